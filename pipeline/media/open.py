"""Opening a media file for reading, with one clear sentence for each way in which that can fail."""

from __future__ import annotations

import errno
import gc
import os
import stat
from pathlib import Path
from typing import Any, Literal

import av

from keyface.configs.errors import SourceError

MAX_PIXELS = 8192 * 4608  # a little above 8K UHD: one frame is 113 MB as RGB

Container = Literal["MP4 or MOV", "Matroska or WebM", "AVI", "MPEG-TS", "Ogg", "FLV", "ASF"]


def close_input(container: Any) -> None:
    """Closes a container of PyAV and lets go of its memory.

    Container and streams refer to each other, decoders and their pictures included. Few Python objects hold many
    megabytes there, so the collector, which counts objects, may leave them for hours: a looped clip grew by 5 MB each
    time it began again.
    """
    container.close()
    gc.collect()


def check_readable_file(path: Path, kind: str) -> None:
    """Raises SourceError unless `path` is a regular file, not empty, that may be read.

    Args:
        kind: what is wanted, with its article, for the messages: "a video", "a photo".
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{path} is a folder, not {kind}.", "Name a file.")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{path} is not a regular file.", f"Name {kind} file.")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist.", "Check the name and the folder.") from None
    except PermissionError:
        raise SourceError(f"{path} may not be read by this user.", "Change its permissions.") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from None
    if status.st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes).", f"Name {kind} file that has content.")


def open_input(path: Path) -> Any:
    """A PyAV input container on a local file; the caller closes it.

    Only the file protocol is allowed, so that a playlist cannot make keyface fetch anything.

    Raises:
        SourceError: missing, unreadable, empty, truncated, or not a media file.
    """
    check_readable_file(path, "a video")
    options = {"protocol_whitelist": "file"}
    try:
        # An absolute path, since libav would read "a:b.mp4" as protocol "a".
        return av.open(os.path.abspath(path), mode="r", options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _open_error(path, error) from error


def _open_error(path: Path, error: Exception) -> SourceError:
    container = container_by_signature(path)
    if getattr(error, "errno", None) == errno.EIO:
        return SourceError(f"{path} cannot be read from its disk (input/output error).")
    if container is None:
        return SourceError(f"{path} is not a video that can be read.", "Give MP4, MOV, MKV, WebM or AVI.")
    return SourceError(
        f"{path} is truncated or damaged: it begins like {container}, but its index cannot be read.",
        "Copy the file again, or repair it first.",
    )


def container_by_signature(path: Path) -> Container | None:
    """The container that the first bytes of the file announce, None when they announce none."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "MP4 or MOV"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    signatures: dict[bytes, Container] = {
        b"\x1a\x45\xdf\xa3": "Matroska or WebM",
        b"OggS": "Ogg",
        b"FLV": "FLV",
        b"\x30\x26\xb2\x75": "ASF",
    }
    return next((name for start, name in signatures.items() if head.startswith(start)), None)
