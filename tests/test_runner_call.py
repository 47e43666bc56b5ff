"""Calls that do not come back, and waits of libav that are ended from another thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import av
import pytest
from live_reading import AT_ONCE_S, QUICK, Reading, url_source

from keyface.configs.errors import SourceError
from keyface.pipeline.live import interrupt as live_interrupt
from keyface.pipeline.live import source_open
from keyface.pipeline.live.interrupt import interruptible
from keyface.pipeline.runner_call import GuardedCall

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def never() -> threading.Event:
    return threading.Event()


def test_a_result_or_an_exception_is_handed_on(never: threading.Event) -> None:
    calls: GuardedCall[int] = GuardedCall(lambda _: None)
    assert calls.run(lambda: 7, 5.0, never) == 7

    def fail() -> int:
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        calls.run(fail, 5.0, never)


def test_a_call_that_hangs_is_left_and_its_late_result_discarded(never: threading.Event) -> None:
    discarded: list[int] = []
    may_end = threading.Event()
    calls: GuardedCall[int] = GuardedCall(discarded.append)

    def hang() -> int:
        may_end.wait(20)
        return 8

    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        calls.run(hang, 0.2, never)
    # While it hangs no second one begins.
    n_threads = threading.active_count()
    with pytest.raises(TimeoutError, match="before this one"):
        calls.run(lambda: 9, 0.2, never)
    assert time.monotonic() - began_s < 5 and threading.active_count() == n_threads
    may_end.set()
    assert calls.run(lambda: 9, 5.0, never) == 9
    assert discarded == [8]


def test_a_stop_ends_the_wait_for_a_call() -> None:
    is_stopped, may_end = threading.Event(), threading.Event()
    calls: GuardedCall[bool] = GuardedCall(lambda _: None)
    threading.Timer(0.2, is_stopped.set).start()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        calls.run(lambda: may_end.wait(20), 20.0, is_stopped)
    assert time.monotonic() - began_s < 5
    may_end.set()


def test_the_look_up_of_a_name_cannot_hold_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `getaddrinfo` with a dead name server: it neither returns nor can be interrupted."""
    may_end, was_closed = threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            was_closed.set()

    def look_up(*_: object, **__: object) -> Late:
        may_end.wait(20)
        return Late()

    monkeypatch.setattr(source_open.av, "open", look_up)
    with Reading(url_source("rtsp://cam.invalid/x", QUICK)) as reading:
        time.sleep(0.3)
        assert reading.stop() < AT_ONCE_S
    may_end.set()
    assert was_closed.wait(20)


def test_a_look_up_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(source_open.av, "open", lambda *_, **__: may_end.wait(20) and 1 / 0)
    with pytest.raises(SourceError, match=r"sent nothing for 0\.1 s"):
        next(iter(url_source("rtsp://cam.invalid/x", replace(QUICK, open_timeout_s=0.1))))
    may_end.set()


# libav.


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_this_libav_can_be_interrupted() -> None:
    assert live_interrupt._CAN_INTERRUPT


@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtmp"])
def test_a_wait_ends_when_it_is_to(mute: int, scheme: str) -> None:
    is_wanted = threading.Event()
    began_s = time.monotonic()
    threading.Timer(0.3, is_wanted.set).start()
    with pytest.raises((av.FFmpegError, OSError)), interruptible(is_wanted):
        av.open(f"{scheme}://127.0.0.1:{mute}/a/b", timeout=(30, 30))
    assert 0.2 < time.monotonic() - began_s < 5


def test_other_threads_and_other_times_are_not_touched(mute: int) -> None:
    is_wanted = threading.Event()
    is_wanted.set()
    with interruptible(is_wanted):
        pass
    took_s: list[float] = []

    def wait() -> None:
        began_s = time.monotonic()
        with pytest.raises((av.FFmpegError, OSError)):
            av.open(f"http://127.0.0.1:{mute}/", timeout=(0.8, 0.8))
        took_s.append(time.monotonic() - began_s)

    thread = threading.Thread(target=wait)
    thread.start()
    with interruptible(is_wanted), pytest.raises((av.FFmpegError, OSError)):
        av.open(f"http://127.0.0.1:{mute}/", timeout=(30, 30))
    thread.join(30)
    wait()
    assert len(took_s) == 2 and min(took_s) > 0.5


def test_a_stop_before_the_wait_ends_it_too(mute: int) -> None:
    is_wanted = threading.Event()
    is_wanted.set()
    began_s = time.monotonic()
    with interruptible(is_wanted), pytest.raises((av.FFmpegError, OSError)):
        av.open(f"rtsp://127.0.0.1:{mute}/", timeout=(30, 30))
    assert time.monotonic() - began_s < 5
