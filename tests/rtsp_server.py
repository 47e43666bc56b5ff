"""A camera that speaks RTSP on loopback, in a process that can be killed, stopped and made to talk nonsense."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from keyface.pipeline.faults.numbered import FPS, N_FRAMES, age_s, number_of, write_number

__all__ = ["FPS", "N_FRAMES", "age_s", "number_of"]  # and what is defined here

SERVER = Path(__file__).with_name("rtsp_server_process.py")
SYSTEM_PYTHON = "/usr/bin/python3"
CHECK = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


@cache
def why_no_server() -> str:
    """'' when the system has what the server needs, else what to install."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", CHECK], capture_output=True, timeout=60)
    except OSError:
        return f"no RTSP server to test with: there is no {SYSTEM_PYTHON}"
    if done.returncode:
        return "no RTSP server to test with: run tests/install_media_servers.sh (Debian, Ubuntu)"
    return ""


def need_server() -> None:
    """Skips the test where there is no RTSP server."""
    if reason := why_no_server():
        pytest.skip(reason)


def numbered(number: int, size_wh: tuple[int, int]) -> np.ndarray:
    """A picture with its number in bars along the top, uint8 (H, W, 3)."""
    width, height = size_wh
    image = np.full((height, width, 3), 90, np.uint8)
    write_number(image, number)
    left = number * 7 % max(1, width - 20)
    image[height // 2 : height // 2 + 20, left : left + 20] = (200, 60, 60)
    return image


def write_clip(
    path: Path,
    size_wh: tuple[int, int],
    *,
    key_every: int = FPS,
    pictures: Iterable[np.ndarray] | None = None,
) -> Path:
    """Numbered frames, or other pictures uint8 (H, W, 3), as H.264, in the form that the server reads."""
    shown = pictures or (numbered(number, size_wh) for number in range(N_FRAMES))
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = size_wh
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, FPS), Fraction(FPS)
    encoder.gop_size = key_every
    encoder.options = {
        "preset": "ultrafast", "tune": "zerolatency", "crf": "26",
        "x264-params": f"keyint={key_every}:min-keyint={key_every}:scenecut=0:repeat-headers=1:annexb=1",
    }  # fmt: skip
    with path.open("wb") as file:
        packets = []
        for number, picture in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(*size_wh)
            frame.pts = number
            packets += encoder.encode(frame)
        for packet in [*packets, *encoder.encode(None)]:
            file.write(struct.pack(">IB", packet.size, packet.is_keyframe) + bytes(packet))
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RtspServer:
    """Started by `start`, or as a context manager; `fail` and `restore` are what `measure_drops` wants."""

    def __init__(self, clips: Sequence[Path], *, audio: bool = False, auth: str = "") -> None:
        self.port = free_port()
        self._auth = auth
        self._command = [SYSTEM_PYTHON, str(SERVER), "--port", str(self.port), "--fps", str(FPS)]
        for clip in clips:
            self._command += ["--clip", str(clip)]
        self._command += ["--audio"] if audio else []
        self._command += ["--auth", auth] if auth else []
        self._process: subprocess.Popen[str] | None = None
        self._noise: _Noise | None = None
        self._failure = ""

    @property
    def url(self) -> str:
        user = f"{self._auth}@" if self._auth else ""
        return f"rtsp://{user}127.0.0.1:{self.port}/hidden-path"

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._end_noise()

    def start(self) -> None:
        """Comes back when it serves."""
        for _ in range(20):  # the port may still be held by what listened before
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() == "ready":
                return
            self.kill()
            time.sleep(0.1)
        raise AssertionError("the RTSP server did not start")

    def tell(self, word: str) -> None:
        """See the server's own help."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def fail(self, how: str) -> None:
        """ "kill", "freeze", "garbage" (another server that talks nonsense), "noise" (in the pictures)."""
        self._failure = how
        if how == "freeze":
            self.freeze()
        elif how == "noise":
            self.tell("garbage")
        else:
            self.kill()
            if how == "garbage":
                self._noise = _Noise(self.port)

    def restore(self) -> None:
        """Ends what `fail` began; comes back when the server serves."""
        if self._failure == "freeze":
            self.thaw()
        elif self._failure == "noise":
            self.tell("serve")
        else:
            self._end_noise()
            self.start()

    def _end_noise(self) -> None:
        if self._noise is not None:
            self._noise.close()
            self._noise = None


class _Noise:
    """Takes connections on a port and sends random bytes."""

    def __init__(self, port: int) -> None:
        self._is_over = False
        deadline_s = time.monotonic() + 30
        while True:
            try:
                self._listener = socket.create_server(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
        self._listener.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over = True
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        connections: list[socket.socket] = []
        number = 0
        while not self._is_over:
            try:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                connections.append(connection)
            except TimeoutError:
                pass
            for connection in list(connections):
                number += 1
                try:
                    connection.send(np.random.default_rng(number).bytes(2000))
                except OSError:
                    connections.remove(connection)
                    connection.close()
        for connection in connections:
            connection.close()


def pictures_of(media: Path) -> Iterator[np.ndarray]:
    """The frames of a video, uint8 (H, W, 3)."""
    with av.open(str(media)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def below_numbers(pictures: Iterable[np.ndarray], size_wh: tuple[int, int]) -> Iterator[np.ndarray]:
    """N_FRAMES pictures of a size, over and over if there are fewer, under bars that number them."""
    width, height = size_wh
    shown = itertools.cycle(pictures)
    for number in range(N_FRAMES):
        image = np.full((height, width, 3), 90, np.uint8)
        image[height // 4 :] = cv2.resize(next(shown), (width, height - height // 4))
        write_number(image, number)
        yield image


def serve() -> None:
    """By hand: serves numbered frames until Ctrl-C; with --write VIDEO CLIP it makes a clip for the server's process
    instead, 640x480 at 30 frames a second, of the video's pictures below bars that number them."""
    if "--write" in sys.argv:
        media, clip = (Path(word) for word in sys.argv[sys.argv.index("--write") + 1 :][:2])
        write_clip(clip, (640, 480), pictures=below_numbers(pictures_of(media), (640, 480)))
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        RtspServer([write_clip(Path(folder) / "a", (640, 480))], audio="--audio" in sys.argv) as server,
    ):
        print(server.url)
        signal.pause()


if __name__ == "__main__":
    serve()
