"""What the tests of live sinks share: safe frames, sound, and a receiver in a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rtsp_server import N_FRAMES, numbered

from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.audio import AUDIO_RATE_HZ, AudioPiece
from keyface.pipeline.live.sink import LiveSink, SoundSink
from keyface.pipeline.live.sink_address import parse_push
from keyface.pipeline.live.sink_push import PushSink
from keyface.pipeline.paste.redact import redact_frame

SIZE_WH = (96, 64)
PUSH_SIZE_WH = (160, 120)
RECEIVER = Path(__file__).with_name("stream_receiver_process.py")
SECRETS = ("hidden-user", "hidden-password", "hidden-path")


def safe(pts_s: float = 0.0, level: int = 90, size_wh: tuple[int, int] = SIZE_WH) -> SafeFrame:
    image = np.full((size_wh[1], size_wh[0], 3), level, np.uint8)
    image[..., 0] = 200
    return redact_frame(Frame(image, 0, pts_s), [])


def tone(pts_s: float, duration_s: float = 0.04, level: float = 0.5) -> AudioPiece:
    n = round(duration_s * AUDIO_RATE_HZ)
    wave = level * np.sin(2 * np.pi * 1000 * (pts_s + np.arange(n) / AUDIO_RATE_HZ))
    return AudioPiece(np.repeat(wave.astype(np.float32)[:, None], 2, axis=1), pts_s)


def until(is_so: Callable[[], Any], timeout_s: float = 60.0) -> bool:
    """Waits for a condition."""
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_bound(port: int, protocol: str = "tcp") -> bool:
    """Whether a program here waits at the port; asked without a connection, of which it may take only one."""
    rows = [row.split() for row in Path(f"/proc/net/{protocol}").read_text("ascii").splitlines()[1:]]
    waits = "0A" if protocol == "tcp" else "07"
    return any(int(row[1].split(":")[1], 16) == port and row[3] == waits for row in rows)


class Pacer:
    """Sends numbered frames, and sound if asked for, to a sink at 25 frames a second."""

    def __init__(self, sink: LiveSink, *, with_sound: bool = False) -> None:
        self.sink, self.with_sound = sink, with_sound
        if with_sound:
            assert isinstance(sink, SoundSink)
            sink.expect_sound()
        sink.open(PUSH_SIZE_WH, 25.0)
        self.began_s = time.monotonic()
        self.number = 0
        self.results: list[bool] = []
        self.sent_s: dict[int, float] = {}
        self.longest_s = 0.0

    def run(self, is_over: Callable[[], Any], timeout_s: float = 60.0) -> bool:
        """Until the condition holds; False when it does not in time."""
        deadline_s = time.monotonic() + timeout_s
        while not is_over():
            if time.monotonic() > deadline_s:
                return False
            self.step()
        return True

    def step(self) -> None:
        pts_s = self.number / 25
        time.sleep(max(0.0, self.began_s + pts_s - time.monotonic()))
        frame = redact_frame(Frame(numbered(self.number, PUSH_SIZE_WH), self.number, pts_s), [])
        self.sent_s[self.number] = before_s = time.monotonic()
        if self.with_sound:
            self.sink.write_sound(tone(pts_s))  # type: ignore[attr-defined]
        self.results.append(self.sink.write(frame) is True)
        self.longest_s = max(self.longest_s, time.monotonic() - before_s)
        self.number += 1


class Receiver:
    """Something that takes a stream on loopback, decodes it and notes what comes; see the process's help."""

    def __init__(self, url: str, format: str, folder: Path, **options: str) -> None:
        self._command = [sys.executable, str(RECEIVER), url, format, json.dumps(options)]
        self._log = folder / f"received-{time.monotonic_ns()}.jsonl"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.DEVNULL)
        assert until(lambda: any(entry["kind"] == "ready" for entry in self.entries()))

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def entries(self, kind: str = "") -> list[dict[str, Any]]:
        whole = self._log.read_bytes().rpartition(b"\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        return [entry for entry in found if not kind or entry["kind"] == kind]

    def numbers(self) -> list[int]:
        """Numbers of the frames that came, as read off the pictures."""
        return [entry["number"] for entry in self.numbered()]

    def numbered(self) -> list[dict[str, Any]]:
        """The entries of pictures whose number can be read; numbers go on where those in pictures begin anew."""
        found = [entry for entry in self.entries("video") if entry["number"] is not None]
        n_rounds, before = 0, 0
        for entry in found:
            n_rounds += entry["number"] < before - N_FRAMES // 2
            before = entry["number"]
            entry["number"] += n_rounds * N_FRAMES
        return found


def rtmp(port: int, user: str = "") -> str:
    return f"rtmp://{user}127.0.0.1:{port}/hidden-path/key"


def push(url: str, **options: float) -> PushSink:
    return PushSink(parse_push(url), first_pause_s=0.1, longest_pause_s=0.3, **options)
