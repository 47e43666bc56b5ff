"""A window on this machine's screen."""

from __future__ import annotations

import contextlib
import os
import sys

import cv2

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live_sink import checked_pixels


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
