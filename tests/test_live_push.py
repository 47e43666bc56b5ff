"""Pushes to real receivers on loopback: what arrives, and what happens when they go away, stall or refuse."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from fake_chain import BOX, fake_parts, read_video
from fault_chain import no_threads_left
from live_chain import Screen, Steering
from live_sink_cases import PUSH_SIZE_WH, SECRETS, Pacer, Receiver, free_port, until
from rtsp_server import SYSTEM_PYTHON, need_server, number_of

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline import live_sink_carrier
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live import LiveReport, run_live
from keyface.pipeline.live_address import parse_source
from keyface.pipeline.live_sink import make_sink
from keyface.pipeline.live_sink_address import parse_push
from keyface.pipeline.live_sink_push import PushSink
from keyface.pipeline.live_sink_recording import RecordingSink
from keyface.pipeline.live_source import LiveSource
from keyface.pipeline.live_source_options import LiveSourceOptions

pytestmark = pytest.mark.timeout(120)
RTSP_RECEIVER = Path(__file__).with_name("rtsp_receiver_process.py")


def rtmp(port: int, user: str = "") -> str:
    return f"rtmp://{user}127.0.0.1:{port}/hidden-path/key"


def push(url: str, **options: float) -> PushSink:
    return PushSink(parse_push(url), first_pause_s=0.1, longest_pause_s=0.3, **options)


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
        assert pacer.run(lambda: len(receiver.numbers()) > 60 and len(receiver.entries("audio")) > 60, 40)
        sink.close()
    numbers = receiver.numbers()
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 0.9 * (numbers[-1] - numbers[0] + 1)  # nothing is lost on the way
    entries = receiver.entries("video")
    first = next(entry for entry in entries if entry["number"] is not None)
    last = [entry for entry in entries if entry["number"] is not None][-1]
    in_stream_s = last["time_s"] - first["time_s"]
    assert in_stream_s == pytest.approx((last["number"] - first["number"]) / 25, abs=0.01)
    keys_s = [entry["time_s"] for entry in entries if entry["is_key"]]
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


def numbers_in(file: Path) -> list[int | None]:
    with av.open(str(file)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_an_rtsp_server_takes_the_stream_and_takes_it_again_after_a_restart(tmp_path: Path) -> None:
    need_server()
    port = free_port()
    sink = push(f"rtsp://hidden-user:hidden-password@127.0.0.1:{port}/hidden-path")
    auth = "hidden-user:hidden-password"

    def sent(n: int) -> Callable[[], bool]:
        n_before = sum(pacer.results)
        return lambda: sum(pacer.results) >= n_before + n

    pacer = Pacer(sink)
    with rtsp_receiver(port, tmp_path, auth):
        assert pacer.run(sent(60))
    assert pacer.run(lambda: sink.problem, 10)
    with rtsp_receiver(port, tmp_path, auth):
        assert pacer.run(sent(60))
        sink.close()
        time.sleep(0.3)
    assert sink.reconnects == 1 and sink.problem == ""
    files = sorted(tmp_path.glob("*.ts"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    for file in files:
        numbers = numbers_in(file)
        assert len(numbers) >= 40 and None not in numbers[1:]
    assert pacer.longest_s < 2.0  # whatever happens, a frame is taken or refused at once


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
    sink = push(f"srt://127.0.0.1:{port}")
    try:
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: sum(pacer.results) > 75, 30)
        sink.close()
    finally:
        receiver.kill()
        receiver.wait(10)
    numbers = [number for number in numbers_in(out) if number is not None]
    assert len(numbers) > 40 and numbers == sorted(set(numbers))


def test_srt_without_anything_that_speaks_it_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_sink_carrier, "_libav_speaks", lambda scheme: False)
    monkeypatch.setattr(live_sink_carrier.shutil, "which", lambda name: None)
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
        assert pacer.run(lambda n=n_before: len(receiver.numbers()) > n + 20, 40)  # type: ignore[misc]
        assert sink.problem == "" and sink.reconnects == round_number
        receiver.kill()
        assert pacer.run(lambda: sink.problem, 20)
    assert pacer.longest_s < 2.0
    began_s = time.monotonic()
    sink.close()
    assert time.monotonic() - began_s < 2.0
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
        assert pacer.longest_s < 2.0 and not any(pacer.results)
        began_s = time.monotonic()
        sink.close()
        assert time.monotonic() - began_s < 2.0
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_a_receiver_that_stalls_is_given_up_and_found_again(tmp_path: Path) -> None:
    """It neither reads nor goes away. The sink waits for `stall_s`, on its own thread, and then begins anew."""
    url = rtmp(free_port())
    sink = push(url, stall_s=0.5)
    receiver = Receiver(url, "flv", tmp_path, listen="1")
    with receiver:
        pacer = Pacer(sink, with_sound=True)
        assert pacer.run(lambda: len(receiver.numbers()) > 10, 40)
        carrier = sink._carrier
        assert carrier is not None
        carrier._process.send_signal(signal.SIGSTOP)  # the carrier itself takes nothing more
        flood = np.random.default_rng(0).bytes(200_000)
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            carrier.stream.write(flood)
        assert 0.4 < time.monotonic() - began_s < 5.0
        n = len(receiver.numbers())
        sink._lose(TimeoutError())
        assert "does not take" in sink.problem
        assert pacer.run(lambda: len(receiver.numbers()) > n + 20, 40)
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
    thread.join(2)
    assert not thread.is_alive() and failures
    sink.close()
    assert carrier._process.poll() is not None


def test_no_process_stays_behind_when_the_program_is_killed() -> None:
    """The carrier ends with its input, whatever happened to who wrote it."""
    code = f"""
import time
from fake_chain import BOX, fake_parts, read_video
from fault_chain import no_threads_left
from live_chain import Screen, Steering
from live_sink_cases import Pacer
from keyface.pipeline.live_sink import make_sink
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
    assert until(lambda: not _is_running(pid), 10)


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


# In the stream.


def test_a_stop_ends_everything_within_a_second_whatever_sinks_do(tmp_path: Path) -> None:
    """A receiver that takes the connection and says nothing, one that is not there, a sink that never comes
    back, and a recording, which is complete."""
    release = threading.Event()

    class Stuck(Screen):
        def write(self, frame: SafeFrame) -> None:
            super().write(frame)
            release.wait(60)

    stopped_s: list[float] = []

    def steer(report: LiveReport) -> None:
        if report.frames_out > 20:
            stopped_s.append(time.monotonic())
            raise KeyboardInterrupt

    recording, screen, stuck = RecordingSink(tmp_path / "a.mp4"), Screen(), Stuck()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sinks = [push(rtmp(silent.getsockname()[1])), push(rtmp(free_port())), stuck, screen, recording]
        source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(160, 120), fps=25))
        report, ending = run_live(source, sinks, fake_parts(BOX), on_tick=steer)
    took_s = time.monotonic() - stopped_s[0]
    release.set()
    assert ending == "interrupted" and took_s < 2.0
    assert len(read_video(tmp_path / "a.mp4")[0]) == len(screen.frames) > 20
    assert [sink.written for sink in report.outputs[:3]] == [0, 0, 0]
    assert report.age.p95_ms < 1000  # those who show nothing do not count
    assert no_threads_left() and screen.endings == [True] and stuck.endings == []


def test_a_push_alone_outlives_its_receiver(tmp_path: Path) -> None:
    """The stream goes on although its only output has nobody to send to."""
    url = rtmp(free_port())
    receiver = Receiver(url, "flv", tmp_path, listen="1")
    steps = Steering(
        (lambda report: report.outputs[0].state == "lost", receiver.start),
        (lambda report: len(receiver.entries("video")) > 5, receiver.kill),
        (lambda report: report.outputs[0].state == "lost", lambda: None),
    )
    source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(160, 120), fps=25))
    report, ending = run_live(source, [push(url)], fake_parts(BOX), on_tick=steps)
    assert ending == "interrupted" and report.outputs[0].dropped > 0
    assert len(receiver.entries("video")) > 5
    assert no_threads_left()
