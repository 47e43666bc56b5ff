"""The file of an identity book: who has been seen under a key, sealed with a key derived from it.

    16 bytes   "keyface-book v1\\n"
    12 bytes   nonce, new at each write
    the rest   ChaCha20-Poly1305 (RFC 8439) of the people as JSON, which authenticates the first 16 bytes too

What is inside (embeddings of faces, days on which they were seen) is biometric data. Without the key the file tells
its size, and so about how many people it holds, and nothing else. It is replaced as a whole under a lock, so that
two programs never undo each other's work, and a power cut leaves the old book or the new one. An older copy of the
same book is as valid as a newer one: the seal does not tell that somebody has put it back.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from keyface.configs.errors import BookError, ModelStoreError
from keyface.engines.file_lock import file_lock
from keyface.pipeline.face import F32

PURPOSE = "identity-book/v1"
MOST_PEOPLE = 20_000

_NAME = b"keyface-book v"
_MAGIC = _NAME + b"1\n"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_MOST_FILE_BYTES = 1 << 28
_LOCK_TIMEOUT_S = 20.0
_RESTORE = "Restore it from a backup, or name another file with --book."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One person of a book. The first four never change once they are stored.

    Attributes:
        id: 8 hex digits, random.
        made_from: (128,) unit embedding from which the virtual face was made.
        candidate: number of the virtual person, see `VirtualIdentities.w`.
        w: (512,) of the virtual person.
        total: (128,) sum of weighted embeddings.
        weight: their sum of weights, more than 0; about the number of good looks.
        first_day, last_day: ISO dates, UTC.
        clips: videos, photos and streams in which the person was seen to their end.
    """

    id: str
    made_from: F32
    candidate: int
    w: F32
    total: F32
    weight: float
    first_day: str
    last_day: str
    clips: int

    @property
    def average(self) -> F32:
        """(128,) unit: the mean of what was seen."""
        return np.asarray(self.total / np.linalg.norm(self.total), np.float32)


class BookFile:
    """Reads and replaces one book. Holds a derived secret: `close` forgets it.

    Args:
        path: of the book; links are followed.
        secret: 32 bytes, `key.derive(PURPOSE, 32)`.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        self.path = Path(path)
        self._real = Path(os.path.realpath(path))
        self._secret = secret

    def exists(self) -> bool:
        """True when there is something under the name, whatever it is."""
        return os.path.lexists(self._real)

    def stamp(self) -> tuple[int, int, int] | None:
        """Changes whenever the file is replaced; None when it is missing."""
        try:
            facts = self._real.stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns, facts.st_size

    def read(self) -> tuple[Entry, ...]:
        """Everybody in the book, in the order in which they came. Raises BookError: the file is missing or
        unreadable, was made under another key, or is damaged."""
        return open_book(self.path, self._load(), self._secret)

    def make(self) -> None:
        """Writes an empty book under a name that is free. Raises BookError."""
        with self._locked():
            if self.exists():
                raise BookError(
                    f"Identity book '{self.path}' exists already.", "Use it, or name another file."
                )
            self._replace(seal_book((), self._secret))

    def change(self, update: Callable[[tuple[Entry, ...]], Sequence[Entry]]) -> tuple[Entry, ...]:
        """Replaces what is in the book by `update` of it, with nobody else in between.

        Raises:
            BookError: as `read`, or the book cannot be written or is full; it is as it was then.
        """
        with self._locked():
            before = self.read()
            after = tuple(update(before))
            if after != before:
                self._replace(seal_book(after, self._secret))
            return after

    def close(self) -> None:
        """Forgets the secret."""
        self._secret = b""

    def _load(self) -> bytes:
        try:
            with self._real.open("rb") as file:
                data = file.read(_MOST_FILE_BYTES + 1)
        except FileNotFoundError:
            raise BookError(
                f"Identity book '{self.path}' does not exist.", "Check its name, or make one with --remember."
            ) from None
        except OSError as error:
            raise BookError(
                f"Identity book '{self.path}' cannot be read: {error.strerror or error}.",
                "Check who may read it.",
            ) from error
        if len(data) > _MOST_FILE_BYTES:
            raise BookError(f"Identity book '{self.path}' is larger than any book.", _RESTORE)
        return data

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._real.with_name(f"{self._real.name}.lock")
        try:
            with file_lock(lock, timeout_s=_LOCK_TIMEOUT_S):
                yield
        except ModelStoreError:
            raise BookError(
                f"Identity book '{self.path}' has been held by another program for {_LOCK_TIMEOUT_S:.0f} s.",
                "Wait until it is done, or end it.",
            ) from None
        except OSError as error:
            raise BookError(
                f"Identity book '{self.path}' cannot be written: {error.strerror or error}.",
                "Choose a folder that exists and that you may write to.",
            ) from error

    def _replace(self, data: bytes) -> None:
        """Under the lock."""
        replace_private(self._real, data)


def replace_private(path: Path, data: bytes) -> None:
    """The new content beside `path`, mode 0600, on the disk, then under its name. Raises OSError."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)  # of a program that was killed here
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_private(path: Path, data: bytes, *, may_replace: bool = False) -> None:
    """Writes an export, mode 0600, whole or not at all. Raises BookError: it exists, or cannot be written."""
    if os.path.lexists(path) and not may_replace:
        raise BookError(f"'{path}' already exists.", "Choose another name, or pass --force to replace it.")
    try:
        replace_private(path, data)
    except OSError as error:
        raise BookError(
            f"'{path}' cannot be written: {error.strerror or error}.",
            "Choose a folder that exists and that you may write to.",
        ) from error


def seal_book(people: Sequence[Entry], secret: bytes) -> bytes:
    """The bytes of a book. Raises BookError when it is full."""
    if len(people) > MOST_PEOPLE:
        raise BookError(
            f"The identity book is full: it holds {MOST_PEOPLE} people.",
            "Forget some with `keyface book forget`.",
        )
    plain = json.dumps({"people": [entry_to_json(entry) for entry in people]}, separators=(",", ":"))
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _MAGIC + nonce + ChaCha20Poly1305(secret).encrypt(nonce, plain.encode(), _MAGIC)


def open_book(path: Path, data: bytes, secret: bytes) -> tuple[Entry, ...]:
    """Everybody in the bytes of a book. Raises BookError; `path` is for its sentence only."""
    if not data.startswith(_NAME):
        what = f"'{path}' is empty" if not data else f"'{path}' is no identity book"
        raise BookError(f"{what}.", _RESTORE)
    head = data[: len(_MAGIC)]
    if head != _MAGIC:
        version = head.removeprefix(_NAME).decode("ascii", "replace").strip()
        raise BookError(
            f"Identity book '{path}' has version '{version}'; this program reads 1.", "Update keyface."
        )
    body = data[len(_MAGIC) :]
    try:
        if len(body) < _NONCE_BYTES + _TAG_BYTES:
            raise InvalidTag
        plain = ChaCha20Poly1305(secret).decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], head)
    except InvalidTag:
        raise BookError(
            f"Identity book '{path}' does not open: it was made under another key, or it is damaged.",
            "Use the key that it was made with, or restore it from a backup.",
        ) from None
    try:
        return tuple(entry_from_json(row) for row in json.loads(plain)["people"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BookError(
            f"Identity book '{path}' holds what this program cannot read ({error}).", _RESTORE
        ) from None


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """A person as plain values; arrays in base64 of little-endian float32."""
    arrays = {name: _encode(getattr(entry, name)) for name in ("made_from", "w", "total")}
    names = ("id", "candidate", "weight", "first_day", "last_day", "clips")
    return {**{name: getattr(entry, name) for name in names}, **arrays}


def entry_from_json(row: dict[str, Any]) -> Entry:
    """The reverse. Raises ValueError, KeyError or TypeError for anything else."""
    entry = Entry(
        id=str(row["id"]),
        made_from=_decode(row["made_from"], 128),
        candidate=int(row["candidate"]),
        w=_decode(row["w"], 512),
        total=_decode(row["total"], 128),
        weight=float(row["weight"]),
        first_day=date.fromisoformat(row["first_day"]).isoformat(),
        last_day=date.fromisoformat(row["last_day"]).isoformat(),
        clips=int(row["clips"]),
    )
    is_id = len(entry.id) == 8 and not set(entry.id) - set("0123456789abcdef")
    if not is_id or entry.candidate < 0 or entry.clips < 0 or not 0 < entry.weight < float("inf"):
        raise ValueError("a person with values out of range")
    if float(np.linalg.norm(entry.total)) < 1e-9:
        raise ValueError("a person without an embedding")
    return entry


def _encode(array: F32) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _decode(text: str, length: int) -> F32:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("an array is not base64") from None
    if len(data) != 4 * length:
        raise ValueError(f"an array of {len(data)} bytes, want {4 * length}")
    array = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("an array that is not finite")
    return array


def _flush_folder(folder: Path) -> None:
    """That the new name survives a power cut is asked for, not demanded."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
