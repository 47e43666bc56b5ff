"""Sinks in the running stream: it goes on without its receiver, and a stop waits for nobody."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from fake_chain import BOX, fake_parts, read_video
from fault_chain import no_threads_left
from live_chain import Screen, Steering
from live_sink_cases import Receiver, free_port, push, rtmp

from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.run import LiveReport, run_live
from keyface.pipeline.live.sink_recording import RecordingSink
from keyface.pipeline.live.source import LiveSource
from keyface.pipeline.live.source_options import LiveSourceOptions

pytestmark = pytest.mark.timeout(240)


def test_a_stop_ends_everything_at_once_whatever_sinks_do(tmp_path: Path) -> None:
    """A receiver that takes the connection and says nothing, one that is not there, a sink that never comes
    back, and a recording, which is complete. On a busy machine, in one of three tries."""
    for number in range(3):
        if stop_with_such_sinks(tmp_path / f"{number}.mp4") < 3.0:
            return
    raise AssertionError("no stop came within 3 s")


def stop_with_such_sinks(path: Path) -> float:
    """Seconds from the wish to stop to the end."""
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

    recording, screen, stuck = RecordingSink(path), Screen(), Stuck()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sinks = [push(rtmp(silent.getsockname()[1])), push(rtmp(free_port())), stuck, screen, recording]
        source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(160, 120), fps=25))
        report, ending = run_live(source, sinks, fake_parts(BOX), on_tick=steer)
    took_s = time.monotonic() - stopped_s[0]
    release.set()
    assert (
        ending == "interrupted" and took_s < 20
    )  # nothing of it waits for the sink, which would take a minute
    assert len(read_video(path)[0]) == report.outputs[4].written > 10
    assert [sink.written for sink in report.outputs[:3]] == [0, 0, 0]
    shown = [sink.age.p95_ms for sink in report.outputs[3:]]
    assert report.age.p95_ms == max(shown)  # those who show nothing do not count
    assert no_threads_left() and screen.endings == [True] and stuck.endings == []
    return took_s


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
