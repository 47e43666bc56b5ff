"""Ends a wait inside libav from another thread.

While libav waits for a network or a device it asks several times a second whether to go on. PyAV answers
that question from `time.monotonic` alone, to end waits that are too long, and lets nobody else answer. Here
that clock is wrapped: on a thread whose stop was asked for, it runs so fast that every wait is too long.

Unlike shutting sockets down this needs no knowledge of hosts and ports, reaches every protocol, works on
every system, and leaves connections of other threads to the same server alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av.container.core as libav_waits

_LEAP_S = 1e12


class _Interruption(threading.local):
    is_wanted: threading.Event | None = None
    n_leaps: int = 0


_HERE = _Interruption()


class _Clock:
    """Stands for the module `time` in PyAV's containers, which use nothing else of it."""

    def monotonic(self) -> float:
        if _HERE.is_wanted is None or not _HERE.is_wanted.is_set():
            return time.monotonic()
        _HERE.n_leaps += 1  # each reading is later than the last one by more than any time-out
        return _LEAP_S * _HERE.n_leaps


def install() -> bool:
    """Puts the clock in place; False when this PyAV cannot be reached so, and waits end by time-out only."""
    if not hasattr(libav_waits, "time"):
        return False
    libav_waits.time = _Clock()
    return True


_CAN_INTERRUPT = install()


@contextmanager
def interruptible(is_wanted: threading.Event) -> Iterator[None]:
    """Within it, libav's waits on this thread end with `av.ExitError` (or another error) at most a fifth
    of a second after `is_wanted` is set. Only for containers that were opened with a time-out."""
    before = _HERE.is_wanted
    _HERE.is_wanted = is_wanted
    try:
        yield
    finally:
        _HERE.is_wanted = before
