"""The error tree of keyface.

    KeyfaceError
    +-- UsageError            exit 2   a bad option, path or combination
    +-- KeyFileError          exit 3   key file missing, wrong size, wrong passphrase
    |   +-- BookError                  identity book missing, damaged, or made under another key
    +-- ModelStoreError       exit 4   weights missing, offline, hash mismatch
    +-- EngineError           exit 5   a back-end missing, or an output of wrong shape or not finite
    |   +-- DeviceError                a graphics card, its driver or its library that cannot be used
    |       +-- DeviceMemoryError      the card has too little free memory
    |       +-- DeviceLostError        the card went away, or its context is broken
    +-- MediaError            exit 6   a source that cannot be read, a sink that cannot be written
    |   +-- SourceError
    |   +-- SinkError
    +-- StageError            exit 7   a stage of the chain failed or timed out

Every error carries one sentence that says what is wrong and one that says what to do.
Only `tools/` prints errors and chooses exit codes.
"""

from __future__ import annotations


class KeyfaceError(Exception):
    """Base of all errors that a user may see.

    Args:
        problem: one sentence, names the subject, what came and what was expected.
        way_out: one sentence that says what to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, way_out: str = "") -> None:
        super().__init__(f"{problem} {way_out}".strip())
        self.problem = problem
        self.way_out = way_out


class UsageError(KeyfaceError):
    """A bad option, path or combination of options."""

    exit_code = 2


class KeyFileError(KeyfaceError):
    """A key file that is missing, of the wrong size or locked by another passphrase."""

    exit_code = 3


class BookError(KeyFileError):
    """An identity book that is missing, damaged, made under another key, or that cannot be written."""


class ModelStoreError(KeyfaceError):
    """Weights are missing, cannot be fetched, or do not have the expected SHA-256."""

    exit_code = 4


class EngineError(KeyfaceError):
    """An inference back-end is missing or gave outputs of wrong shape or that are not finite."""

    exit_code = 5


class DeviceError(EngineError):
    """A graphics card, its driver or its library is missing, too old or failed."""


class DeviceMemoryError(DeviceError):
    """The card has too little free memory for what was asked."""


class DeviceLostError(DeviceError):
    """The card went away or its context is broken: nothing more can be run on it in this process."""


class MediaError(KeyfaceError):
    """A source or sink failed."""

    exit_code = 6


class SourceError(MediaError):
    """A source cannot be opened or read."""


class SinkError(MediaError):
    """A sink cannot be opened or written (permission, disk full, codec)."""


class StageError(KeyfaceError):
    """A stage of the chain raised, timed out or gave an unusable result."""

    exit_code = 7
