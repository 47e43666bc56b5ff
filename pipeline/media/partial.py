"""A file that gets its name only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
import weakref
from pathlib import Path

from keyface.configs.errors import SinkError


class PartialFile:
    """A temporary file beside `path`, under a name with a dot, that becomes `path` by `commit`.

    The caller writes to `temporary`. Whatever happens, `path` holds either what it held before or the
    whole new content. The temporary file goes away with `abort`, with the object, or at exit.

    Args:
        path: of the finished file.
        is_kept: what was written stays when it is not finished, even after a crash: as "NAME.partial", or
            "NAME.2.partial" where there is one already. For recordings that can be played up to where they
            end. Only `abort` removes it.

    Raises:
        SinkError: the folder is missing or may not be written, `path` is a folder or a device.
    """

    def __init__(self, path: Path | str, *, is_kept: bool = False) -> None:
        self.path = Path(path)
        _check_target(self.path)
        self._is_kept = is_kept
        try:
            self.temporary = _new_kept(self.path) if is_kept else _new_hidden(self.path)
        except OSError as error:
            raise sink_error(self.path, error) from error
        self._remove = weakref.finalize(self, _nothing if is_kept else _remove, self.temporary)

    @property
    def is_open(self) -> bool:
        """True until `commit` or `abort`."""
        return self._remove.alive

    def commit(self) -> None:
        """Flushes the content to the disk and gives it its name, in one step.

        Raises:
            SinkError: the disk refused; the temporary file is removed unless it is kept.
        """
        if not self.is_open:
            raise SinkError(f"{self.path} has been finished or given up already.")
        try:
            _flush_to_disk(self.temporary)
            os.replace(self.temporary, self.path)
        except OSError as error:
            self._remove()
            raise sink_error(self.path, error) from error
        self._remove.detach()
        # The new name is there already; that it survives a power cut is asked for, not demanded.
        with contextlib.suppress(OSError):
            _flush_to_disk(self.path.parent)

    def leave(self) -> None:
        """Ends it unfinished: the temporary file stays when it is kept, and is removed otherwise."""
        self._remove()

    def abort(self) -> None:
        """Removes the temporary file, kept or not; does nothing once it is finished or given up."""
        if self.is_open:
            self._remove()
            _remove(self.temporary)


def sink_error(path: Path, error: Exception) -> SinkError:
    """One clear sentence for a failure to write `path`."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return SinkError(
            f"The disk is full: {path} could not be written.", "Free some space, or write to another disk."
        )
    if number == errno.EFBIG:
        return SinkError(f"{path} grew larger than this system allows.", "Cut it with --start and --end.")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SinkError(
            f"{path.parent} may not be written by this user.", "Choose another folder or change permissions."
        )
    if number == errno.ENAMETOOLONG:
        return SinkError(f"The name {path.name[:40]}... is too long.", "Choose a shorter one.")
    return SinkError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}.")


def _check_target(path: Path) -> None:
    try:
        if not path.parent.is_dir():
            raise SinkError(f"The folder {path.parent} does not exist.", "Create it first.")
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise sink_error(path, error) from error
    if stat.S_ISDIR(mode):
        raise SinkError(f"{path} is a folder.", "Name a file in it.")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise SinkError(f"{path} is not a regular file.", "Name a new file.")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _new_hidden(path: Path) -> Path:
    # Not made from the name of `path`, which may be as long as the file system allows.
    return _made(path.parent / f".keyface-{secrets.token_hex(8)}.part")


def _new_kept(path: Path) -> Path:
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            return _made(path.with_name(f"{path.name}{'' if number == 1 else f'.{number}'}.partial"))
    raise AssertionError("counting ends never")


def _made(path: Path) -> Path:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return path


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _nothing(path: Path) -> None:
    """For files that stay."""
