"""A lock between processes, held on a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyface.configs.errors import ModelStoreError

_POLL_S = 0.05


@contextmanager
def file_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Holds the lock on `path` (made if missing) while the block runs.

    The operating system frees it when the process dies, so a crash leaves nothing to clean up.

    Raises:
        ModelStoreError: another process held it for `timeout_s`.
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end_s = time.monotonic() + timeout_s
        while not _try_lock(handle):
            if time.monotonic() >= end_s:
                raise ModelStoreError(
                    f"another process has held {path} for {timeout_s:.0f} s.",
                    "Wait until its 'keyface models pull' is done, or end it.",
                )
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            _unlock(handle)
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)
