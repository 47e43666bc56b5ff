"""The picture of the status page: keeps the newest safe frame, and encodes it only while somebody watches.

Writing stores one reference, so no watcher can hold the chain up. JPEG is made on a watcher's thread, once
for all of them; who is slow misses frames.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import SafeFrame

MOST_WATCHERS = 4
MOST_WIDTH_PX = 960  # half of full HD: quick to scale to, and little to encode
_JPEG_QUALITY = 80


class PagePicture(NamedTuple):
    """A picture as the page gets it: number of the frame since the start, and its JPEG."""

    number: int
    jpeg: bytes


class PageSink:
    """A live sink that a few watchers read.

    Args:
        most_watchers: at the same time.

    Attributes:
        n_encoded: pictures made, for all watchers together.
    """

    def __init__(self, *, most_watchers: int = MOST_WATCHERS) -> None:
        self.name = "page"
        self.wants_end = False
        self.n_encoded = 0
        self._most_watchers = most_watchers
        self._changed = threading.Condition()
        self._frame: SafeFrame | None = None
        self._number = 0
        self._n_watchers = 0
        self._is_closed = False
        self._encoding = threading.Lock()
        self._picture: PagePicture | None = None

    @property
    def n_watchers(self) -> int:
        """Now."""
        with self._changed:
            return self._n_watchers

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Nothing to open: the page is up before the first picture."""

    def write(self, frame: SafeFrame) -> None:
        """Takes the newest frame. Raises TypeError for anything but a SafeFrame."""
        if type(frame) is not SafeFrame:
            raise TypeError(f"sink page: got {type(frame).__name__}, want SafeFrame")
        with self._changed:
            self._frame = frame
            self._number += 1
            if self._n_watchers:
                self._changed.notify_all()

    def close(self) -> None:
        """Ends all watching, and forgets the picture."""
        with self._changed:
            self._is_closed = True
            self._frame = None
            self._changed.notify_all()

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts as a watcher inside. Raises SinkError when there are too many."""
        with self._changed:
            if self._n_watchers >= self._most_watchers:
                raise SinkError(f"{self._n_watchers} are watching already.", "Close another window first.")
            self._n_watchers += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_watchers -= 1

    def picture(self, *, after: int = 0, timeout_s: float = 1.0) -> PagePicture | None:
        """The newest picture, as soon as its number is above `after`.

        Returns:
            None when none came within `timeout_s`, or the sink is closed. For `watching` threads.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not self._is_closed and self._number <= after:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return None
        return self._encoded()

    @property
    def is_closed(self) -> bool:
        """True when no picture will come any more."""
        with self._changed:
            return self._is_closed

    def _encoded(self) -> PagePicture | None:
        with self._encoding:
            with self._changed:
                frame, number = self._frame, self._number
            if frame is None:
                return None
            if self._picture is None or self._picture.number != number:
                self._picture = PagePicture(number, _jpeg_of(frame))
                self.n_encoded += 1
            return self._picture


def _jpeg_of(frame: SafeFrame) -> bytes:
    image_rgb = frame.image_rgb
    height, width = image_rgb.shape[:2]
    if width > MOST_WIDTH_PX:
        size_wh = (MOST_WIDTH_PX, max(1, round(height * MOST_WIDTH_PX / width)))
        # Areas are quick for whole factors only.
        how = cv2.INTER_AREA if width % MOST_WIDTH_PX == 0 else cv2.INTER_LINEAR
        image_rgb = cv2.resize(image_rgb, size_wh, interpolation=how)
    image_bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise SinkError("The page's picture cannot be encoded.")
    return jpeg.tobytes()
