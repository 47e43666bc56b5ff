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

pytestmark = pytest.mark.timeout(120)


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
