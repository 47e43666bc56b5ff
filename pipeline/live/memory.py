"""Keeps the memory of a long run steady.

Pictures are made on one thread and dropped on another. The C library of Linux answers the first large blocks with
memory of their own and then, having seen them freed, with parts of a heap per thread, which such traffic leaves full
of holes: a stream grew by some 100 MB a minute. With a fixed limit every large block has memory of its own, which
goes back to the system at once.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 256 * 1024


def keep_memory_steady() -> bool:
    """Sets the limit for this process, once or again. False where there is no such setting (only glibc has it)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
