"""Calls that may never come back, made so that the caller does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_EVERY_S = 0.05


class GuardedCall(Generic[T]):
    """Makes one call at a time on a thread of its own, and waits for it only so long.

    For calls without a time-out of their own, such as the look-up of a host's name. A call that is given
    up goes on in the background; its late result is handed to `discard`, and until it has come back no
    other call begins, so that a caller who tries again and again gathers no threads.

    Args:
        discard: called, on any thread, with a result that nobody waits for any more.
    """

    def __init__(self, discard: Callable[[T], object]) -> None:
        self._discard = discard
        self._lock = threading.Lock()
        self._busy: threading.Thread | None = None

    def run(self, call: Callable[[], T], timeout_s: float, is_stopped: threading.Event) -> T:
        """The result of `call`, or the exception that it raised.

        Raises:
            TimeoutError: it, or one before it, did not come back in time, or `is_stopped` was set.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._busy is not None and not self._has_ended(self._busy, deadline_s, is_stopped):
            raise TimeoutError("a call before this one has not come back")
        attempt: _Attempt[T] = _Attempt(call, self._discard, self._lock)
        self._busy = threading.Thread(target=attempt.make, name="keyface-call", daemon=True)
        self._busy.start()
        self._has_ended(self._busy, deadline_s, is_stopped)
        return attempt.result()

    @staticmethod
    def _has_ended(thread: threading.Thread, deadline_s: float, is_stopped: threading.Event) -> bool:
        while thread.is_alive() and not is_stopped.is_set():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            thread.join(min(left_s, _LOOK_EVERY_S))
        return not thread.is_alive()


class _Attempt(Generic[T]):
    """One call, and who has its result: the caller, or nobody."""

    def __init__(self, call: Callable[[], T], discard: Callable[[T], object], lock: threading.Lock) -> None:
        self._call, self._discard, self._lock = call, discard, lock
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._is_given_up = False

    def make(self) -> None:
        """On the call's own thread."""
        try:
            result = self._call()
        except BaseException as error:  # raised where it is waited for
            self._error = error
            return
        with self._lock:
            if not self._is_given_up:
                self._results.append(result)
                return
        self._discard(result)

    def result(self) -> T:
        """What came, on the caller's thread. Raises TimeoutError: nothing has, and what comes is discarded."""
        with self._lock:
            if self._results:
                return self._results.pop()
            self._is_given_up = True
        if self._error is not None:
            raise self._error
        raise TimeoutError("the call has not come back")
