"""The key: 256 secret bits that decide every virtual face, and the file that holds them.

A key file is either 32 bare bytes, or text:

    keyface key v1
    lock: none
    fingerprint: 1f2e3d4c
    secret: <base64 of 32 bytes>

or, with a passphrase (Argon2id, RFC 9106, then ChaCha20-Poly1305, RFC 8439, which authenticates the
lines above it too):

    keyface key v1
    lock: argon2id t=3 m=65536 p=4
    salt: <base64 of 16 bytes>
    nonce: <base64 of 12 bytes>
    secret: <base64 of 48 bytes>

Nothing uses the secret itself: each use derives its own bytes with HKDF-SHA256 (RFC 5869) under its own
purpose, so that what one part of the program learns tells nothing about the others.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import NoReturn, Self

from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keyface.configs.errors import KeyFileError

KEY_BYTES = 32
MOST_DERIVED_BYTES = 255 * 32  # limit of HKDF-SHA256

_SALT = b"keyface/v1"
_MAGIC = "keyface key v"
_MOST_FILE_BYTES = 4096
# RFC 9106, second recommended option: 64 MiB, so that a key opens on small machines too.
_ARGON2 = {"t": 3, "m": 65536, "p": 4}
_ARGON2_MOST = {"t": 64, "m": 1 << 21, "p": 64}
_MAKE_ONE = "Make a key with `keyface keygen`."


class Key:
    """A 256-bit secret. Its repr hides it, it cannot be pickled or copied, and `close` wipes it.

    Args:
        secret: 32 bytes; copied. A caller's bytearray should be wiped by the caller.
        warnings: sentences about the file that the key came from, for the user to see.
    """

    __slots__ = ("_secret", "warnings")

    def __init__(self, secret: bytes | bytearray, *, warnings: tuple[str, ...] = ()) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"key: got {len(secret)} bytes, want {KEY_BYTES}")
        self._secret = bytearray(secret)
        self.warnings = warnings

    @classmethod
    def generate(cls) -> Self:
        """A new key from the random source of the operating system."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> Self:
        """Reads a key file.

        Args:
            path: 32 bare bytes or the text format of this module.
            passphrase: opens a locked file; not used for others.

        Raises:
            KeyFileError: missing, unreadable, of wrong size or version, damaged, or locked by another
                passphrase.
        """
        path = Path(path)
        data = _read(path)
        secret = data if len(data) == KEY_BYTES else _parse(path, data, passphrase)
        return cls(secret, warnings=(*_mode_warnings(path), *_weakness_warnings(path, secret)))

    def save(
        self, path: str | os.PathLike[str], *, passphrase: str | None = None, replace: bool = False
    ) -> None:
        """Writes a key file with mode 0600, whole or not at all.

        Args:
            passphrase: locks the file; None leaves it open.
            replace: overwrite an existing file; what that key made cannot be made again.

        Raises:
            KeyFileError: the file exists and `replace` is false, or it cannot be written.
        """
        path = Path(path)
        text = self._format_open() if passphrase is None else self._format_locked(passphrase)
        try:
            _write_private(path, text.encode("ascii"), replace)
        except FileExistsError:
            raise KeyFileError(
                f"Key file '{path}' already exists.",
                "Choose another name, or pass --force to replace it: its virtual faces are then lost.",
            ) from None
        except OSError as error:
            raise KeyFileError(
                f"Key file '{path}' cannot be written: {error.strerror or error}.",
                "Choose a folder that exists and that you may write to.",
            ) from error

    def derive(self, purpose: str, n_bytes: int = KEY_BYTES) -> bytes:
        """Bytes for one use: HKDF-SHA256(secret, salt "keyface/v1", info `purpose`).

        Args:
            purpose: name and version of the use, such as "identity-rotation/v1"; no two uses share one.
            n_bytes: 1 to 8160.

        Raises:
            ValueError: the key is closed, or an argument is out of range.
        """
        if not self._secret:
            raise ValueError("key: it is closed")
        if not re.fullmatch(r"[a-z0-9-]+/v[0-9]+", purpose):
            raise ValueError(f"key purpose: got {purpose!r}, want a form such as 'identity-rotation/v1'")
        if not 1 <= n_bytes <= MOST_DERIVED_BYTES:
            raise ValueError(f"key derive: got {n_bytes} bytes, want 1 to {MOST_DERIVED_BYTES}")
        kdf = HKDF(algorithm=SHA256(), length=n_bytes, salt=_SALT, info=purpose.encode("ascii"))
        return kdf.derive(self._secret)

    @property
    def fingerprint(self) -> str:
        """8 hex digits that tell keys apart and say nothing about the secret."""
        return self.derive("fingerprint/v1", 4).hex()

    def close(self) -> None:
        """Wipes the secret from this object's memory. May be called again."""
        for i in range(len(self._secret)):
            self._secret[i] = 0
        self._secret.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Key(<secret>)" if self._secret else "Key(<closed>)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Key cannot be pickled or copied")

    def _format_open(self) -> str:
        return (
            f"{_MAGIC}1\nlock: none\nfingerprint: {self.fingerprint}\n"
            f"secret: {base64.b64encode(self._secret).decode()}\n"
        )

    def _format_locked(self, passphrase: str) -> str:
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        costs = " ".join(f"{name}={value}" for name, value in _ARGON2.items())
        head = (
            f"{_MAGIC}1\nlock: argon2id {costs}\n"
            f"salt: {base64.b64encode(salt).decode()}\nnonce: {base64.b64encode(nonce).decode()}\n"
        )
        cipher = ChaCha20Poly1305(_stretch(passphrase, salt, _ARGON2))
        sealed = cipher.encrypt(nonce, bytes(self._secret), head.encode("ascii"))
        return f"{head}secret: {base64.b64encode(sealed).decode()}\n"


def is_locked(path: str | os.PathLike[str]) -> bool:
    """True when the key file needs a passphrase. Raises KeyFileError as `Key.load` does."""
    data = _read(Path(path))
    return len(data) != KEY_BYTES and b"\nlock: argon2id" in data.replace(b"\r\n", b"\n")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileError(f"Key file '{path}' does not exist.", _MAKE_ONE) from None
    except IsADirectoryError:
        raise KeyFileError(f"Key file '{path}' is a folder.", "Give the path of the file in it.") from None
    except OSError as error:
        raise KeyFileError(
            f"Key file '{path}' cannot be read: {error.strerror or error}.", "Check who may read it."
        ) from error
    if not data:
        raise KeyFileError(f"Key file '{path}' is empty.", _MAKE_ONE)
    return data


def _parse(path: Path, data: bytes, passphrase: str | None) -> bytes:
    lines = data[:_MOST_FILE_BYTES].decode("ascii", "replace").splitlines()
    if not lines or not lines[0].startswith(_MAGIC):
        size = f"{len(data)} bytes" if len(data) <= _MOST_FILE_BYTES else f"over {_MOST_FILE_BYTES} bytes"
        raise KeyFileError(
            f"Key file '{path}' has {size}; want {KEY_BYTES} bare bytes or a file made by `keyface keygen`.",
            _MAKE_ONE,
        )
    if lines[0] != f"{_MAGIC}1":
        raise KeyFileError(
            f"Key file '{path}' has version '{lines[0].removeprefix(_MAGIC)[:20]}'; this program reads 1.",
            "Update keyface.",
        )
    fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    try:
        if fields["lock"] == "none":
            secret = _decode(fields["secret"], KEY_BYTES)
            with Key(secret) as key:
                if key.fingerprint != fields["fingerprint"]:
                    raise ValueError("the fingerprint does not match")
            return secret
        costs = _argon2_costs(fields["lock"])
        salt, nonce = _decode(fields["salt"], 16), _decode(fields["nonce"], 12)
        sealed = _decode(fields["secret"], KEY_BYTES + 16)
    except (KeyError, ValueError) as error:
        raise KeyFileError(
            f"Key file '{path}' is damaged ({str(error).strip(chr(39))}).", "Restore it from a backup."
        ) from None
    if passphrase is None:
        raise KeyFileError(
            f"Key file '{path}' is locked and no passphrase was given.",
            "Type it when asked, or set KEYFACE_PASSPHRASE.",
        )
    head = "".join(f"{line}\n" for line in lines[:4])
    try:
        return ChaCha20Poly1305(_stretch(passphrase, salt, costs)).decrypt(
            nonce, sealed, head.encode("ascii")
        )
    except (InvalidTag, UnicodeEncodeError):
        raise KeyFileError(
            f"Key file '{path}' does not open: the passphrase is wrong, or the file is damaged.",
            "Try the passphrase again, or restore the file from a backup.",
        ) from None


def _decode(text: str, n_bytes: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("a line is not base64") from None
    if len(data) != n_bytes:
        raise ValueError(f"a line holds {len(data)} bytes, want {n_bytes}")
    return data


def _argon2_costs(lock: str) -> dict[str, int]:
    """Costs from "argon2id t=3 m=65536 p=4"; bounded, so that no file can take all memory."""
    match = re.fullmatch(r"argon2id t=(\d{1,7}) m=(\d{1,7}) p=(\d{1,7})", lock)
    if match is None:
        raise ValueError(f"the lock {lock[:40]!r} is not known")
    costs = dict(zip("tmp", (int(value) for value in match.groups()), strict=True))
    if any(not 1 <= costs[name] <= _ARGON2_MOST[name] for name in costs) or costs["m"] < 8 * costs["p"]:
        raise ValueError(f"the lock {lock[:40]!r} has costs out of range")
    return costs


def _stretch(passphrase: str, salt: bytes, costs: dict[str, int]) -> bytes:
    """Argon2id, 32 bytes."""
    return hash_secret_raw(
        passphrase.encode("utf-8"),
        salt,
        time_cost=costs["t"],
        memory_cost=costs["m"],
        parallelism=costs["p"],
        hash_len=32,
        type=Type.ID,
    )


def _write_private(path: Path, data: bytes, replace: bool) -> None:
    """Writes to a temporary file of mode 0600 beside `path`, then moves it there."""
    if not replace and os.path.lexists(path):
        raise FileExistsError(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(name, path)
        else:
            _move_if_free(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _move_if_free(name: str, path: Path) -> None:
    """Gives the file its final name unless somebody else has taken it meanwhile."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.replace(name, path)


def _mode_warnings(path: Path) -> tuple[str, ...]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name != "posix" or not mode & 0o044:
        return ()
    return (f"Key file '{path}' can be read by other users (mode {mode:04o}): run `chmod 600 '{path}'`.",)


def _weakness_warnings(path: Path, secret: bytes) -> tuple[str, ...]:
    # 32 random bytes have fewer than 16 distinct values once in 10^17.
    if len(set(secret)) >= 16:
        return ()
    return (f"Key file '{path}' does not look random: make a key with `keyface keygen`.",)
