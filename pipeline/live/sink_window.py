"""A window on this machine's screen."""

from __future__ import annotations

import contextlib
import os
import sys

import cv2

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import ImageRgb, SafeFrame
from keyface.pipeline.live.keys import LiveKeys
from keyface.pipeline.live.sink import checked_pixels


class WindowSink:
    """A window on this machine's screen; q, Esc or closing it ends the stream.

    Attributes:
        keys: gets the other keys; None: they do nothing.

    Raises:
        SinkError: there is no screen.
    """

    def __init__(self) -> None:
        self.name = "window"
        self.wants_end = False
        self.keys: LiveKeys | None = None
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
            cv2.imshow(self._title, self._with_text(pixels)[..., ::-1])
            pressed = cv2.waitKey(1) & 0xFF
            is_gone = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error as error:
            raise SinkError("The window failed.", "Use another --sink.") from error
        if self.keys is not None:
            self.keys.press(pressed)
        self.wants_end = is_gone or pressed in (ord("q"), 27)

    def close(self) -> None:
        """Closes the window."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(cv2.error):
                cv2.destroyWindow(self._title)

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""

    def _with_text(self, pixels: ImageRgb) -> ImageRgb:
        """The picture with the list of keys, or with what went wrong at the last one."""
        if self.keys is None or not (self.keys.shows_help or self.keys.message):
            return pixels
        lines = self.keys.help_lines() if self.keys.shows_help else [self.keys.message]
        image: ImageRgb = (pixels // 3).astype(pixels.dtype)
        pitch_px = max(12, min(26, image.shape[0] // (len(lines) + 2)))
        for i, line in enumerate(lines):
            place = (pitch_px, pitch_px * (i + 2))
            cv2.putText(
                image, line, place, cv2.FONT_HERSHEY_SIMPLEX, pitch_px / 44, (235, 235, 235), 1, cv2.LINE_AA
            )
        return image
