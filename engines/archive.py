"""Takes one member out of a zip, wheel, .task or tar archive, hashing while it writes."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from keyface.configs.errors import ModelStoreError

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 lower-case hex digits. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_hashed(stream: IO[bytes], output: Path, *, max_bytes: int) -> tuple[str, int]:
    """Writes `stream` to `output`; returns its SHA-256 and size.

    Stops one chunk beyond `max_bytes`, so that a hostile archive cannot fill the disk; the size returned
    is then larger than `max_bytes`. Raises OSError for what the disk refuses.
    """
    digest, n_bytes = hashlib.sha256(), 0
    with output.open("wb") as sink:
        while n_bytes <= max_bytes and (chunk := stream.read(_CHUNK)):
            digest.update(chunk)
            n_bytes += len(chunk)
            sink.write(chunk)
    return digest.hexdigest(), n_bytes


def extract_member(archive: Path, member: str, output: Path, *, max_bytes: int) -> tuple[str, int]:
    """Writes one member to `output`; returns its SHA-256 and size.

    Args:
        archive: zip (also .whl, .task) or tar (.tar.gz); told apart by content.
        member: path inside; in a tar archive the leading `name-version/` folder is left out.
        max_bytes: see `copy_hashed`.

    Raises:
        ModelStoreError: not an archive, damaged, or without that member.
    """
    try:
        with _open_member(archive, member) as stream:
            return copy_hashed(stream, output, max_bytes=max_bytes)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise ModelStoreError(
            f"{archive.name} is damaged or cut short: {error}.", "Run 'keyface models pull' again."
        ) from error


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            if member not in bundle.namelist():
                raise ModelStoreError(f"{archive.name} has no member {member!r}.")
            with bundle.open(member) as stream:
                yield stream
        return
    # tarfile.open raises ReadError, a TarError, for anything that is no tar archive.
    with tarfile.open(archive) as ball:
        for item in ball:
            inner = item.name.split("/", 1)[-1]
            if item.isfile() and member in (item.name, inner):
                found = ball.extractfile(item)
                if found is not None:
                    yield found
                    return
        raise ModelStoreError(f"{archive.name} has no member {member!r}.")
