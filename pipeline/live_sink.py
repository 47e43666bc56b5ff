"""Where a live picture goes: a virtual camera, a window, a recording, or nowhere. All take `SafeFrame` only.

A sink is opened with the size of the picture, written and closed on one thread. `finish` comes after all
threads have ended and decides about recordings: one that was stopped on purpose, or whose source ended, is
complete and gets its name; one that a failure cut short does not.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline.capture import SourceInfo
from keyface.pipeline.frame import ImageRgb, SafeFrame
from keyface.pipeline.sink_encode import Mp4File

_TIME_BASE = Fraction(1, 90_000)
_LEAST_STEP_S = Fraction(1, 1000)  # between two frames of a recording
_INSTALL_CAMERA = {
    "linux": "Load the kernel module: sudo modprobe v4l2loopback exclusive_caps=1 (package v4l2loopback-dkms).",
    "darwin": "Install OBS Studio and start its virtual camera once.",
}


class LiveSink(Protocol):
    """One output of a live stream.

    Attributes:
        name: for messages and the summary.
        wants_end: True when the user has ended the stream through this sink.
    """

    name: str
    wants_end: bool

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Called once, before the first `write`. Raises SinkError."""
        ...

    def write(self, frame: SafeFrame) -> None:
        """Shows one frame now. Raises TypeError for anything but a SafeFrame, SinkError when it fails."""
        ...

    def close(self) -> None:
        """Gives the device back; on the same thread; also when `open` failed or was never called."""
        ...

    def finish(self, *, is_complete: bool) -> None:
        """After `close`, on any thread: keeps or drops what was recorded."""
        ...


def make_sink(text: str, *, may_replace: bool = False) -> LiveSink:
    """The sink that a `--sink` names, checked as far as possible before anything is opened.

    Args:
        text: "virtual" or "virtual:DEVICE", "window", "null", or the name of an MP4 file.
        may_replace: an existing file is replaced.

    Raises:
        UsageError: no such kind of sink, or the file exists.
        SinkError: what it needs is missing.
    """
    if text == "null":
        return NullSink()
    if text == "window":
        return WindowSink()
    if text == "virtual" or text.startswith("virtual:"):
        return VirtualCameraSink(text.partition(":")[2] or None)
    path = Path(text)
    if path.suffix.lower() != ".mp4":
        raise UsageError(f"--sink: got {text!r}.", "Legal: virtual, virtual:DEVICE, window, null, FILE.mp4.")
    if not may_replace and os.path.lexists(path):
        raise UsageError(f"Output '{path}' already exists.", "Pass --force to replace it.")
    if not path.parent.is_dir():
        raise SinkError(f"The folder {path.parent} does not exist.", "Create it first.")
    return RecordingSink(path)


def checked_pixels(frame: SafeFrame, subject: str) -> ImageRgb:
    """The pixels of a safe frame, C-contiguous. Raises TypeError for anything else."""
    if type(frame) is not SafeFrame:
        raise TypeError(f"{subject}: got {type(frame).__name__}, want SafeFrame")
    return np.ascontiguousarray(frame.image_rgb)


class NullSink:
    """Takes frames and shows them to nobody: for measuring."""

    def __init__(self) -> None:
        self.name = "null"
        self.wants_end = False
        self.n_frames = 0

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Nothing to open."""

    def write(self, frame: SafeFrame) -> None:
        """Counts."""
        checked_pixels(frame, "sink null")
        self.n_frames += 1

    def close(self) -> None:
        """Nothing to close."""

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""


class VirtualCameraSink:
    """A camera that other programs can choose, through pyvirtualcam (v4l2loopback on Linux, OBS elsewhere).

    Args:
        device: for instance "/dev/video10"; None: the first that is free.

    Raises:
        SinkError: pyvirtualcam is not installed.
    """

    def __init__(self, device: str | None = None) -> None:
        self.name = "virtual camera"
        self.wants_end = False
        self._device = device
        self._camera: Any = None
        try:
            self._pyvirtualcam: Any = importlib.import_module("pyvirtualcam")
        except ImportError as error:
            raise SinkError(
                "The virtual camera needs the package pyvirtualcam, which is not installed.",
                f"Run: pip install 'keyface[stream]'. {_INSTALL_CAMERA.get(sys.platform, '')}".strip(),
            ) from error

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Opens the device for pictures of this size."""
        width, height = size_wh
        pyvirtualcam = self._pyvirtualcam
        try:
            self._camera = pyvirtualcam.Camera(
                width=width, height=height, fps=fps, fmt=pyvirtualcam.PixelFormat.RGB, device=self._device
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise SinkError(
                f"The virtual camera cannot be opened at {width}x{height}: {' '.join(str(error).split())}.",
                _INSTALL_CAMERA.get(sys.platform, "See the documentation of pyvirtualcam."),
            ) from error
        self.name = f"virtual camera {self._camera.device}"

    def write(self, frame: SafeFrame) -> None:
        """Sends one picture; does not wait for the next to be due, since frames come when they come."""
        pixels = checked_pixels(frame, "virtual camera")
        try:
            self._camera.send(pixels)
        except (RuntimeError, OSError, ValueError) as error:
            raise SinkError(
                f"{self.name} failed: {error}.", "Check that the device is still there."
            ) from error

    def close(self) -> None:
        """Gives the device back."""
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""


class WindowSink:
    """A window on this machine's screen; q, Esc or closing it ends the stream.

    Raises:
        SinkError: there is no screen.
    """

    def __init__(self) -> None:
        self.name = "window"
        self.wants_end = False
        self._title = "keyface"
        self._is_open = False
        if sys.platform.startswith("linux") and not (
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            raise SinkError("There is no screen to open a window on.", "Use another --sink.")

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Opens the window."""
        try:
            cv2.namedWindow(self._title, cv2.WINDOW_AUTOSIZE)
        except cv2.error as error:
            raise SinkError("This OpenCV cannot open windows.", "Use another --sink.") from error
        self._is_open = True

    def write(self, frame: SafeFrame) -> None:
        """Shows one picture."""
        pixels = checked_pixels(frame, "window")
        if self.wants_end:
            return
        try:
            cv2.imshow(self._title, pixels[..., ::-1])
            pressed = cv2.waitKey(1) & 0xFF
            is_gone = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error as error:
            raise SinkError("The window failed.", "Use another --sink.") from error
        self.wants_end = is_gone or pressed in (ord("q"), 27)

    def close(self) -> None:
        """Closes the window."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(cv2.error):
                cv2.destroyWindow(self._title)

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""


class RecordingSink:
    """An MP4 file, H.264 without sound, with the times at which frames were captured.

    Args:
        path: gets its name when the recording is finished as complete.
        crf: of x264, as in `Mp4Sink`.
    """

    def __init__(self, path: Path, *, crf: int = 18) -> None:
        self.name = str(path)
        self.wants_end = False
        self._path = path
        self._crf = crf
        self._file: Mp4File | None = None
        self._last_s: Fraction | None = None

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Begins the file under a temporary name."""
        rate = Fraction(fps).limit_denominator(1001)
        info = SourceInfo(
            path=Path("live"), container="live", codec="", pix_fmt="yuv420p", size_wh=size_wh, fps=fps,
            frame_rate=rate, duration_s=None, n_frames_hint=None, time_base=_TIME_BASE, first_pts=0,
        )  # fmt: skip
        self._file = Mp4File(self._path, info, size_wh, self._crf, "superfast", None, {})

    def write(self, frame: SafeFrame) -> None:
        """Encodes one frame. A time that does not increase, as after a slate, is moved by a millisecond."""
        pixels = checked_pixels(frame, self.name)
        if self._file is None:
            raise SinkError(f"{self.name} is not open.")
        with self._file.guarded():
            time_s = self._file.time_of(frame)
            if self._last_s is None:
                self._file.begin(time_s)
            else:
                time_s = max(time_s, self._last_s + _LEAST_STEP_S)
            self._last_s = time_s
            self._file.write(pixels, time_s)

    def close(self) -> None:
        """Nothing yet: see `finish`."""

    def finish(self, *, is_complete: bool) -> None:
        """Gives the file its name, or removes it. Raises SinkError when the disk refuses."""
        file, self._file = self._file, None
        if file is None:
            return
        if not is_complete or self._last_s is None:
            file.abort()
            return
        with file.guarded():
            file.finish_video()
            file.commit()


def finish_all(sinks: Sequence[LiveSink], *, is_complete: bool) -> None:
    """Finishes every sink, also when one fails; raises the first failure."""
    failure: Exception | None = None
    for sink in sinks:
        try:
            sink.finish(is_complete=is_complete)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
