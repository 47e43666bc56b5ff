"""A bounded queue between two stage threads that can be closed from either side without a hang."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar, get_args

T = TypeVar("T")

WhenFull = Literal["wait", "drop_oldest"]


class ChannelClosed(Exception):
    """The channel is closed: nothing can be put, or nothing is left to get."""


class Channel(Generic[T]):
    """A first-in first-out queue of at most `capacity` items.

    Any number of threads may put, get and close. Closing wakes every waiter, so that a producer
    blocked on a full channel never outlives its consumer.

    Args:
        capacity: most items held, >= 1.
        when_full: "wait" blocks the producer; "drop_oldest" discards the oldest item and counts it.
    """

    def __init__(self, capacity: int, *, when_full: WhenFull = "wait") -> None:
        if capacity < 1:
            raise ValueError(f"channel capacity: got {capacity}, want >= 1")
        if when_full not in get_args(WhenFull):
            raise ValueError(f"channel when_full: got {when_full!r}, want one of {get_args(WhenFull)}")
        self.capacity = capacity
        self.when_full = when_full
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Items discarded because the channel was full; those discarded by `close` do not count."""
        with self._changed:
            return self._dropped

    @property
    def is_closed(self) -> bool:
        """True after `close`, also while items are left to get."""
        with self._changed:
            return self._is_closed

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)

    def put(self, item: T, *, timeout_s: float | None = None) -> None:
        """Adds `item`. Raises ChannelClosed when closed (also while waiting), TimeoutError after
        `timeout_s` on a full channel that waits."""
        with self._changed:
            if self.when_full == "wait":
                self._wait(lambda: len(self._items) < self.capacity or self._is_closed, timeout_s)
            if self._is_closed:
                raise ChannelClosed
            if len(self._items) >= self.capacity:
                self._items.popleft()
                self._dropped += 1
            self._items.append(item)
            self._changed.notify_all()

    def get(self, *, timeout_s: float | None = None) -> T:
        """Takes the oldest item. Raises ChannelClosed when closed and empty, TimeoutError after
        `timeout_s` on an empty open channel."""
        with self._changed:
            self._wait(lambda: bool(self._items) or self._is_closed, timeout_s)
            if not self._items:
                raise ChannelClosed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Ends the channel; may be called again. With `discard`, items still queued are forgotten;
        without, they can still be taken."""
        with self._changed:
            self._is_closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

    def _wait(self, is_ready: Callable[[], bool], timeout_s: float | None) -> None:
        if timeout_s is None:
            self._changed.wait_for(is_ready)
            return
        start_s = time.monotonic()
        if not self._changed.wait_for(is_ready, timeout_s):
            raise TimeoutError(f"channel: nothing happened for {time.monotonic() - start_s:.3f} s")
