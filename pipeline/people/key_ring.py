"""The keys that a stream may change to while it runs, in the order of their files. Never through the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from keyface.configs.errors import KeyFileError
from keyface.pipeline.people.key import Key, is_locked


class KeyRing:
    """Goes round key files. Files are read again at each change, so that one may be replaced meanwhile.

    Args:
        files: at least one; the first is the one that the stream begins with.
        ask_passphrase: called here for each locked file.

    Attributes:
        warnings: about the files, for the user to see.

    Raises:
        KeyFileError: one of the files cannot be used.
    """

    def __init__(self, files: Sequence[Path], ask_passphrase: Callable[[Path], str]) -> None:
        self._files = tuple(files)
        self._lock = threading.Lock()
        self._passphrases = {file: ask_passphrase(file) for file in self._files if is_locked(file)}
        self._place = 0
        self._fingerprint = ""
        warnings: list[str] = []
        for file in self._files:
            with self._read(file) as key:
                warnings += key.warnings
        self.warnings = tuple(dict.fromkeys(warnings))

    def first(self) -> Key:
        """The key to begin with; the caller owns it."""
        key = self._read(self._files[0])
        self._fingerprint = key.fingerprint
        return key

    def next(self) -> Key:
        """The key of the next file, or of the only one read again; the caller owns it.

        Raises:
            KeyFileError: the file cannot be used, or holds the key that is in use; that one stays then.
        """
        with self._lock:
            place = (self._place + 1) % len(self._files)
            key = self._read(self._files[place])
            fingerprint = key.fingerprint
            if fingerprint == self._fingerprint:
                key.close()
                raise KeyFileError(
                    f"Key file '{self._files[place]}' holds the key that is in use.",
                    "Replace the file, or name another one with --next-key-file.",
                )
            self._place, self._fingerprint = place, fingerprint
            return key

    def _read(self, file: Path) -> Key:
        return Key.load(file, self._passphrases.get(file))
