"""Pushes to real receivers on loopback: what arrives, and what happens when they go away, stall or refuse."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_sink_cases import PUSH_SIZE_WH, SECRETS, Pacer, Receiver, free_port, is_bound, push, rtmp, until
from rtsp_server import N_FRAMES, SYSTEM_PYTHON, need_server, number_of

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live import sink_carrier
from keyface.pipeline.live.sink import make_sink
from keyface.pipeline.live.sink_address import parse_push
from keyface.pipeline.live.sink_push import PushSink

pytestmark = pytest.mark.timeout(240)
LONGEST_S = 4.5  # of a call that waits for nobody: where it does wait, that is for 5 s or 8 s
RTSP_RECEIVER = Path(__file__).with_name("rtsp_receiver_process.py")


# Names.


@pytest.mark.parametrize(
    ("url", "label", "format"),
    [
        ("rtsp://hidden-user:hidden-password@host/hidden-path", "rtsp://host", "rtsp"),
        ("rtmps://host:444/hidden-path?key=hidden-password", "rtmps://host:444", "flv"),
        ("srt://host:9000?passphrase=hidden-password", "srt://host:9000", "mpegts"),
        ("udp://[::1]:9000", "udp://[::1]:9000", "mpegts"),
        ("rtsp://hidden-user/hidden-password@host/x", "rtsp://...", "rtsp"),
    ],
)
def test_of_a_url_only_the_host_is_shown(url: str, label: str, format: str) -> None:
    address = parse_push(url)
    assert (address.label, address.format) == (label, format)
    assert not [secret for secret in SECRETS if secret in repr(address)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gopher://hidden-user:hidden-password@host/hidden-path", "Legal: rtsp://"),
        ("udp://host/hidden-path", "HOST:PORT"),
        ("rtmp:///hidden-path", "HOST"),
        ("rtsp://hidden-user:hidden-password@host:port/hidden-path", "HOST"),
    ],
)
def test_a_wrong_url_is_refused_and_not_repeated(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_sink(url)
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


def test_a_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSH_TO", "rtmp://hidden-user:hidden-password@host/hidden-path")
    assert make_sink("env:PUSH_TO").name == "rtmp://host"
    for text in ("", "hidden-password"):
        monkeypatch.setenv("PUSH_TO", text)
        with pytest.raises(UsageError, match="PUSH_TO") as caught:
            make_sink("env:PUSH_TO")
        assert "hidden-password" not in str(caught.value)


def test_only_safe_frames_are_sent() -> None:
    sink = push(rtmp(free_port()))
    sink.open(PUSH_SIZE_WH, 25.0)
    raw = Frame(np.zeros((120, 160, 3), np.uint8), 0, 0.0)
    for bad in (raw, raw.image_rgb, None):
        with pytest.raises(TypeError, match="want SafeFrame"):
            sink.write(bad)  # type: ignore[arg-type]
    sink.close()


# What arrives.


@pytest.mark.parametrize("kind", ["udp", "rtmp"])
def test_picture_and_sound_arrive(kind: str, tmp_path: Path) -> None:
    if kind == "udp":
        url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        receiver = Receiver(url, "mpegts", tmp_path)
    else:
        url = rtmp(free_port())
        receiver = Receiver(url, "flv", tmp_path, listen="1")
    sink = push(url)
    with receiver:
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: len(receiver.numbers()) > 60 and len(receiver.entries("audio")) > 60)
        sink.close()
    numbers = receiver.numbers()
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 0.9 * (numbers[-1] - numbers[0] + 1)  # nothing is lost on the way
    first, *_, last = receiver.numbered()
    in_stream_s = last["time_s"] - first["time_s"]
    assert in_stream_s == pytest.approx((last["number"] - first["number"]) / 25, abs=0.01)
    keys_s = [entry["time_s"] for entry in receiver.entries("video") if entry["is_key"]]
    assert len(keys_s) >= 2 and max(np.diff(keys_s)) <= 1.1  # where viewers can join
    loud = [entry["level"] for entry in receiver.entries("audio")]
    assert np.median(loud) == pytest.approx(0.5 / 2**0.5, abs=0.05)
    assert sink.problem == "" and sink.reconnects == 0


@contextmanager
def rtsp_receiver(port: int, folder: Path, auth: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [SYSTEM_PYTHON, str(RTSP_RECEIVER), "--port", str(port), "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--auth", auth] if auth else command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def decoded(file: Path, kind: str) -> list[Any]:
    """Frames of a kind, without those that are torn."""
    frames: list[Any] = []
    with av.open(str(file)) as container:
        for packet in container.demux(next(stream for stream in container.streams if stream.type == kind)):
            with contextlib.suppress(av.FFmpegError):
                frames += packet.decode()
    return frames


def numbers_in(file: Path) -> list[int | None]:
    return [number_of(frame.to_ndarray(format="rgb24")) for frame in decoded(file, "video")]


def has_arrived(file: Path, n_frames: int) -> bool:
    """Whether a file that is still being written holds so many frames."""
    try:
        return len(numbers_in(file)) >= n_frames
    except av.FFmpegError:  # not even a beginning of a stream yet
        return False


def test_an_rtsp_server_takes_the_stream_and_takes_it_again_after_a_restart(tmp_path: Path) -> None:
    need_server()
    port = free_port()
    sink = push(f"rtsp://hidden-user:hidden-password@127.0.0.1:{port}/hidden-path")
    auth = "hidden-user:hidden-password"

    def sent(n: int) -> Callable[[], bool]:
        n_before = sum(pacer.results)
        return lambda: sum(pacer.results) >= n_before + n

    def arrived(n_files: int) -> bool:
        files = list(tmp_path.glob("*.ts"))
        return len(files) == n_files and all(has_arrived(file, 40) for file in files)

    pacer = Pacer(sink)
    with rtsp_receiver(port, tmp_path, auth):
        assert pacer.run(sent(60))
        # What is still on its way is taken in before the server is killed, however busy the machine is.
        assert pacer.run(lambda: sum(pacer.results) % 10 == 0 and arrived(1))
    assert pacer.run(lambda: sink.problem)
    with rtsp_receiver(port, tmp_path, auth):
        assert pacer.run(sent(60))
        assert pacer.run(lambda: sum(pacer.results) % 10 == 0 and arrived(2))
        sink.close()
    assert sink.reconnects == 1 and sink.problem == ""
    for file in tmp_path.glob("*.ts"):
        assert None not in numbers_in(file)[1:-1]  # the server was killed while it wrote the last one
    assert pacer.longest_s < LONGEST_S  # whatever happens, a frame is taken or refused at once


def test_rtsp_carries_sound_too(tmp_path: Path) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("no second RTSP server to test with: install ffmpeg")
    url, out = f"rtsp://127.0.0.1:{free_port()}/hidden-path", tmp_path / "out.ts"
    receiver = subprocess.Popen(
        [program, "-loglevel", "quiet", "-rtsp_flags", "listen", "-i", url, "-c", "copy", str(out)],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    sink = push(url)
    try:
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: sum(pacer.results) > 75)
        sink.close()  # says goodbye, upon which ffmpeg ends its file
        assert receiver.wait(60) == 0
    finally:
        receiver.kill()
        receiver.wait(10)
    assert len(numbers_in(out)) > 50 and len(decoded(out, "audio")) > 80


def test_srt_arrives(tmp_path: Path) -> None:
    program = shutil.which("srt-live-transmit")
    if program is None:
        pytest.skip("no SRT to test with: install srt-tools (Debian, Ubuntu)")
    port = free_port(socket.SOCK_DGRAM)
    out = tmp_path / "out.ts"
    with out.open("wb") as file:
        receiver = subprocess.Popen(
            [program, "-q", f"srt://127.0.0.1:{port}?mode=listener", "file://con"],
            stdout=file, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    sink = push(f"srt://127.0.0.1:{port}", open_timeout_s=30.0)
    try:
        assert until(lambda: is_bound(port, "udp"))
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: sum(pacer.results) > 75)
        sink.close()
        assert until(lambda: has_arrived(out, 41))  # what is still on its way
    finally:
        receiver.kill()
        receiver.wait(10)
    numbers = [number for number in numbers_in(out) if number is not None]
    assert len(numbers) > 40 and len(set(numbers)) == len(numbers)
    assert all(0 < (b - a) % N_FRAMES < N_FRAMES // 2 for a, b in pairwise(numbers))


def test_srt_without_anything_that_speaks_it_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_carrier, "_libav_speaks", lambda scheme: False)
    monkeypatch.setattr(sink_carrier.shutil, "which", lambda name: None)
    with pytest.raises(SinkError, match=r"without SRT.*srt-tools"):
        make_sink("srt://127.0.0.1:9000?passphrase=hidden-password")


# Receivers that are not there, refuse, go away, stall.


def test_a_receiver_that_comes_late_and_goes_away_is_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = rtmp(free_port(), "hidden-user:hidden-password@")
    sink = push(url)
    pacer = Pacer(sink)
    assert pacer.run(lambda: sink.problem)
    assert "refuses the connection" in sink.problem and not any(pacer.results)
    receiver = Receiver(url, "flv", tmp_path, listen="1")
    for round_number in range(2):
        n_before = len(receiver.numbers()) if round_number else 0
        receiver.start()
        assert pacer.run(lambda n=n_before: len(receiver.numbers()) > n + 20)  # type: ignore[misc]
        assert sink.problem == "" and sink.reconnects == round_number
        receiver.kill()
        assert pacer.run(lambda: sink.problem)
    assert pacer.longest_s < LONGEST_S
    began_s = time.monotonic()
    sink.close()
    assert time.monotonic() - began_s < LONGEST_S
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 3  # each loss once, however often it was tried
    assert not [secret for secret in SECRETS if secret in caplog.text + sink.name + sink.problem]


@pytest.mark.parametrize("how", ["silent", "garbage"])
def test_a_server_that_never_agrees_holds_nobody_up(how: str) -> None:
    """It takes the connection and says nothing, or nonsense: libav would wait in there for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                taken.append(connection)
                if how == "garbage":
                    connection.sendall(np.random.default_rng(0).bytes(5000))

        threading.Thread(target=serve, daemon=True).start()
        sink = push(f"rtsp://127.0.0.1:{server.getsockname()[1]}/hidden-path", open_timeout_s=1.0)
        pacer = Pacer(sink)
        assert pacer.run(lambda: len(taken) >= 2 and sink.problem)
        assert pacer.longest_s < LONGEST_S and not any(pacer.results)
        began_s = time.monotonic()
        sink.close()
        assert time.monotonic() - began_s < LONGEST_S
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_trying_again_and_again_gathers_nothing() -> None:
    sink = PushSink(parse_push(rtmp(free_port())), first_pause_s=0.01, longest_pause_s=0.01)
    pacer = Pacer(sink)
    tries: list[float] = []
    make = sink._make_carrier

    def counted(stall_s: float) -> sink_carrier.Carrier:
        tries.append(stall_s)
        return make(stall_s)

    sink._make_carrier = counted
    handles: list[int] = []
    for n in (2, 10):
        assert pacer.run(lambda n=n: len(tries) >= n and sink._carrier is None, 60)  # type: ignore[misc]
        handles.append(len(os.listdir("/dev/fd")))
    sink.close()
    assert handles[1] <= handles[0]


def test_a_receiver_that_stalls_is_given_up_and_found_again(tmp_path: Path) -> None:
    """It neither reads nor goes away. The sink waits for `stall_s`, on its own thread, and then begins anew."""
    url = rtmp(free_port())
    sink = push(url, stall_s=0.5)
    receiver = Receiver(url, "flv", tmp_path, listen="1")
    with receiver:
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: len(receiver.numbers()) > 10)
        carrier = sink._carrier
        assert carrier is not None
        carrier._process.send_signal(signal.SIGSTOP)  # the carrier itself takes nothing more
        flood = np.random.default_rng(0).bytes(200_000)
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            carrier.stream.write(flood)
        assert 0.4 < time.monotonic() - began_s < 20
        n = len(receiver.numbers())
        sink._lose(TimeoutError())
        assert "does not take" in sink.problem
        assert pacer.run(lambda: len(receiver.numbers()) > n + 20)
    sink.close()
    assert sink.reconnects == 1


def test_a_blocked_write_ends_at_once_when_interrupted() -> None:
    sink = push(rtmp(free_port()), stall_s=60.0)
    sink.open(PUSH_SIZE_WH, 25.0)
    carrier = sink._make_carrier(60.0)
    carrier._process.send_signal(signal.SIGSTOP)
    sink._carrier = carrier
    failures: list[BaseException] = []

    def flood() -> None:
        try:
            carrier.stream.write(bytes(1_000_000))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flood)
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    sink.interrupt()
    thread.join(20)  # it would wait for a minute
    assert not thread.is_alive() and failures
    sink.close()
    assert carrier._process.poll() is not None


def test_no_process_stays_behind_when_the_program_is_killed() -> None:
    """The carrier ends with its input, whatever happened to who wrote it."""
    code = f"""
import time
from live_sink_cases import Pacer
from keyface.pipeline.live.sink import make_sink
sink = make_sink("udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}")
pacer = Pacer(sink)
assert pacer.run(lambda: sum(pacer.results) > 5)
print(sink._carrier._process.pid, flush=True)
time.sleep(60)
"""
    tests = str(Path(__file__).parent)
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tests)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    program.kill()
    program.communicate()
    assert until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"
