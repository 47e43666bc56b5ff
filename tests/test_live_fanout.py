"""Several sinks at once: one that is slow, blocks, or breaks costs nobody but itself."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from fault_chain import no_threads_left
from live_chain import Screen
from live_sink_cases import safe, until

from keyface.configs.errors import KeyfaceError, SinkError
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.fanout import Fanout
from keyface.pipeline.live.sink import LiveSink
from keyface.pipeline.live.source import LiveStatus

pytestmark = pytest.mark.timeout(240)


class Blocking(Screen):
    """Takes one frame and never comes back, until it is released."""

    queue_frames = 2

    def __init__(self, *, on: str = "write") -> None:
        super().__init__()
        self.release = threading.Event()
        self._on = on

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        super().open(size_wh, fps)
        if self._on == "open":
            self.release.wait(50)

    def write(self, frame: SafeFrame) -> None:
        super().write(frame)
        if self._on == "write":
            self.release.wait(50)

    def close(self) -> None:
        super().close()
        if self._on == "close":
            self.release.wait(50)


class Breaking(Screen):
    def __init__(self, error: Exception, *, after: int = 0, on: str = "write") -> None:
        super().__init__()
        self._error, self._after, self._on = error, after, on

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        super().open(size_wh, fps)
        if self._on == "open":
            raise self._error

    def write(self, frame: SafeFrame) -> None:
        super().write(frame)
        if self._on == "write" and len(self.frames) > self._after:
            raise self._error

    def finish(self, *, is_complete: bool) -> None:
        super().finish(is_complete=is_complete)
        if self._on == "finish":
            raise self._error


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    sink = Blocking()
    yield sink
    sink.release.set()
    assert no_threads_left()


def fanout(*sinks: LiveSink, **options: float) -> Fanout:
    return Fanout(sinks, LiveStatus(origin_s=time.monotonic() - 5), **options)  # type: ignore[arg-type]


def show(target: Fanout, n: int, *, pause_s: float = 0.002) -> None:
    for number in range(n):
        target.show(safe(number / 100))
        time.sleep(pause_s)


def test_all_sinks_get_all_frames_in_order() -> None:
    one, two = Screen(), Screen()
    both = fanout(one, two)
    show(both, 20)
    both.close()
    both.finish(is_complete=True)
    assert [frame.pts_s for frame in one.frames] == [number / 100 for number in range(20)]
    assert one.frames == two.frames and one.endings == two.endings == [True]
    assert [(r.written, r.dropped, r.state) for r in both.reports()] == [(20, 0, "closed")] * 2
    assert all(report.age.count == 20 and report.age.p50_ms > 4000 for report in both.reports())
    assert no_threads_left()


@pytest.mark.parametrize("on", ["open", "write"])
def test_a_sink_that_blocks_for_ever_holds_nobody_up(on: str) -> None:
    blocked, other = Blocking(on=on), Screen()
    both = fanout(blocked, other, timeout_s=2.0)
    began_s = time.monotonic()
    show(both, 30)
    assert time.monotonic() - began_s < 10  # `show` itself never waited: the sink would, for 50 s
    assert until(lambda: len(other.frames) == 30)
    report = both.reports()[0]
    assert report.written == 0 and report.dropped >= 27
    assert until(lambda: both.check() is None and both.reports()[0].state == "failed")
    assert "has not taken a frame for 2 s" in both.reports()[0].problem
    began_s = time.monotonic()
    both.close()
    both.finish(is_complete=True)
    assert time.monotonic() - began_s < 10
    assert other.endings == [True] and blocked.endings == []  # its thread may still be at work in it
    blocked.release.set()
    assert no_threads_left() and blocked.is_closed


def test_a_sink_that_blocks_at_the_end_is_told(blocking: Blocking) -> None:
    blocking._on = "close"
    only = fanout(blocking)
    show(only, 3)
    began_s = time.monotonic()
    only.close()
    assert time.monotonic() - began_s < 10
    with pytest.raises(SinkError, match="did not come back"):
        only.finish(is_complete=True)


@pytest.mark.parametrize("on", ["open", "write"])
@pytest.mark.parametrize("error", [SinkError("The screen broke."), RuntimeError("boom"), MemoryError()])
def test_a_sink_that_raises_is_left_out_and_told_once(
    on: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = Breaking(error, after=3, on=on), Screen()
    both = fanout(broken, other)
    show(both, 20)
    both.close()
    both.finish(is_complete=True)
    report = both.reports()[0]
    assert report.state == "failed" and report.written == (0 if on == "open" else 3)
    assert report.problem.startswith("The screen broke." if type(error) is SinkError else "null failed:")
    assert len(other.frames) == 20 and broken.is_closed
    assert (broken.endings, other.endings) == ([False], [True])
    assert len([record for record in caplog.records if "left out" in record.getMessage()]) == 1
    assert no_threads_left()


def test_when_the_last_sink_fails_it_is_an_error() -> None:
    both = fanout(Breaking(SinkError("One."), after=2), Breaking(SinkError("Two."), after=4))
    with pytest.raises(SinkError, match="One"):
        for _ in range(500):
            show(both, 1, pause_s=0.01)
    both.close()
    assert no_threads_left()


def test_one_that_cannot_finish_keeps_no_other_from_it() -> None:
    broken, other = Breaking(OSError("disk"), on="finish"), Screen()
    both = fanout(broken, other)
    show(both, 3)
    both.close()
    with pytest.raises(KeyfaceError, match="disk"):
        both.finish(is_complete=True)
    assert other.endings == [True]


def test_an_incomplete_end_reaches_all() -> None:
    one, two = Screen(), Screen()
    both = fanout(one, two)
    show(both, 3)
    both.close()
    both.finish(is_complete=False)
    assert one.endings == two.endings == [False]


def test_nothing_shown_is_a_good_end_too() -> None:
    one = Screen()
    only = fanout(one)
    only.close()
    only.finish(is_complete=True)
    assert one.size_wh is None and one.is_closed and only.reports()[0].state == "closed"


def test_a_slow_sink_gets_the_newest_and_memory_stays_bounded(blocking: Blocking) -> None:
    other = Screen()
    other.queue_frames = 2
    both = fanout(blocking, other)
    show(both, 3)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            both.show(safe(1 + number / 100, size_wh=(320, 240)))
            other.frames.clear()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    frame_bytes = 320 * 240 * 3
    assert peak - before < 12 * frame_bytes and after - before < 8 * frame_bytes
    assert both.reports()[0].dropped >= 198
    assert len(both.posts[0].mailbox) == 2
    blocking.release.set()
    both.close()
    assert blocking.frames[-1].pts_s == pytest.approx(2.99)


def test_only_safe_frames_are_handed_out() -> None:
    one = Screen()
    only = fanout(one)
    raw = Frame(np.zeros((8, 8, 3), np.uint8), 0, 0.0)
    with pytest.raises(TypeError, match="want SafeFrame"):
        only.show(raw)  # type: ignore[arg-type]
    only.close()
    assert one.frames == []


def test_frames_that_a_sink_refuses_count_as_dropped() -> None:
    class Choosy(Screen):
        def write(self, frame: SafeFrame) -> bool:  # type: ignore[override]
            return round(frame.pts_s * 100) % 2 == 0

    only = fanout(Choosy())
    show(only, 10)
    only.close()
    (report,) = only.reports()
    assert (report.written, report.dropped, report.age.count) == (5, 5, 5)
    assert report.to_json()["written"] == 5


def test_a_sink_that_is_lost_for_the_time_being_says_so() -> None:
    class Lost(Screen):
        problem = "Nobody is there."

    lost = Lost()
    only = fanout(lost)
    show(only, 1)
    assert until(lambda: only.reports()[0].state == "lost")
    assert only.reports()[0].problem == "Nobody is there."
    lost.problem = ""
    assert only.reports()[0].state == "live"
    only.close()
