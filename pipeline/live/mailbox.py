"""What waits for one live sink: a few safe frames, of which the oldest gives way to the newest."""

from __future__ import annotations

import threading
from collections import deque

from keyface.pipeline.frame import SafeFrame

MAILBOX_BYTES = 64 * 1024 * 1024


class SinkMailbox:
    """Safe frames on their way to one sink. Whoever puts never waits; memory is bounded.

    Any number of threads may put, get and close.

    Args:
        capacity: most frames held, >= 1.
        capacity_bytes: most bytes of pixels held; one frame is always held, however large it is.

    Attributes:
        capacity, capacity_bytes: as given.
    """

    def __init__(self, capacity: int, *, capacity_bytes: int = MAILBOX_BYTES) -> None:
        if capacity < 1 or capacity_bytes < 1:
            raise ValueError(f"mailbox: got {capacity} frames, {capacity_bytes} bytes; want >= 1")
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self._frames: deque[SafeFrame] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Frames that the sink never got: pushed out by newer ones, or forgotten at the end."""
        with self._changed:
            return self._dropped

    @property
    def held_bytes(self) -> int:
        """Bytes of the pixels held."""
        with self._changed:
            return self._held_bytes

    def __len__(self) -> int:
        with self._changed:
            return len(self._frames)

    def put(self, frame: SafeFrame) -> None:
        """Adds a frame; the oldest give way when it does not fit. After `close` it counts as dropped.

        Raises:
            TypeError: not a `SafeFrame`.
        """
        if type(frame) is not SafeFrame:
            raise TypeError(f"mailbox: got {type(frame).__name__}, want SafeFrame")
        with self._changed:
            if self._is_closed:
                self._dropped += 1
                return
            self._frames.append(frame)
            self._held_bytes += frame.image_rgb.nbytes
            while len(self._frames) > 1 and (
                len(self._frames) > self.capacity or self._held_bytes > self.capacity_bytes
            ):
                self._pop()
                self._dropped += 1
            self._changed.notify()

    def get(self, *, timeout_s: float | None = None) -> SafeFrame | None:
        """Waits for the oldest frame and takes it; None when the mailbox is closed and empty.

        Raises:
            TimeoutError: nothing came for `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self._is_closed, timeout_s):
                raise TimeoutError(f"mailbox: nothing came for {timeout_s} s")
            return self._pop() if self._frames else None

    def close(self, *, discard: bool = False) -> None:
        """No more frames; may be called again. With `discard` those held are dropped, else they can still be
        taken."""
        with self._changed:
            self._is_closed = True
            if discard:
                self._dropped += len(self._frames)
                self._frames.clear()
                self._held_bytes = 0
            self._changed.notify_all()

    def _pop(self) -> SafeFrame:
        frame = self._frames.popleft()
        self._held_bytes -= frame.image_rgb.nbytes
        return frame
