"""The cache of built engines: what was built from what, for what, by what; nothing else is ever opened.

Beside each `.engine` file lies `.engine.json` with its key, size and SHA-256. Both are written under a
temporary name and renamed, the note last, so an engine without a note does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from keyface.configs.errors import EngineError
from keyface.engines.archive import sha256_of
from keyface.engines.file_lock import file_lock
from keyface.engines.store import default_root

EngineState = Literal["ok", "damaged", "stale", "foreign"]

LOCK_TIMEOUT_S = 3600.0
_BUILD = "Run 'keyface engines build'."
_SUFFIX = ".engine"
_MEANINGS = {
    "onnx_sha256": "the network",
    "converter": "what writes the network for cards",
    "flavour": "the library",
    "flavour_version": "the library's version",
    "precision": "the precision",
    "shapes": "the sizes",
    "architectures": "the card",
}


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that an engine depends on.

    Attributes:
        model: name in the manifest.
        onnx_sha256: of the float32 network it was made from.
        converter: version of what writes the network anew for cards.
        flavour, flavour_version: the TensorRT library.
        architectures: what it runs on, such as ("sm89",).
        precision: "f16" or "f32".
        shapes: input ranges, as text.
    """

    model: str
    onnx_sha256: str
    converter: int
    flavour: str
    flavour_version: str
    architectures: tuple[str, ...]
    precision: str
    shapes: str

    def file_name(self) -> str:
        """Readable, and different for different keys."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.model}.{self.precision}.{'-'.join(self.architectures)}.{digest}{_SUFFIX}"


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """One engine in the cache: its file, its key, its size in bytes and its state."""

    path: Path
    key: EngineKey
    n_bytes: int
    sha256: str
    state: EngineState = "ok"
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "file": self.path.name, **asdict(self.key), "architectures": list(self.key.architectures),
            "bytes": self.n_bytes, "state": self.state, "reason": self.reason,
        }  # fmt: skip


def engine_root() -> Path:
    """KEYFACE_ENGINE_DIR, else the folder `engines` beside the models' cache. Raises ModelStoreError."""
    chosen = os.environ.get("KEYFACE_ENGINE_DIR")
    return Path(chosen).expanduser() if chosen else default_root().parent / "engines"


class EngineCache:
    """Engines in one folder, made on the first build.

    Args:
        root: None takes `engine_root()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or engine_root()).absolute()

    def entries(self) -> Iterator[CachedEngine]:
        """All engines with a readable note, sorted by name; sizes and hashes are not looked at."""
        for path in sorted(self.root.glob(f"*{_SUFFIX}")):
            entry = _read_note(path)
            if entry is not None:
                yield entry

    def find(self, key: EngineKey) -> Path:
        """The engine for a key, whose hash was just found right.

        `key.architectures` names the card alone: an engine for several cards serves each of them.

        Raises:
            EngineError: there is none; says whether one is stale, foreign or damaged, and why.
        """
        path, reasons = self._usable(key)
        if path is not None:
            return path
        what = f"{key.model} in {key.precision} for {', '.join(key.architectures)}"
        if not reasons:
            raise EngineError(f"there is no engine of {what} yet.", _BUILD)
        raise EngineError(f"no engine of {what} can be used: {'; '.join(reasons)}.", _BUILD)

    def _usable(self, key: EngineKey) -> tuple[Path | None, list[str]]:
        """The engine for a key, or why none of those for its network and precision is."""
        reasons = []
        for entry in self.entries():
            if entry.key.model != key.model or entry.key.precision != key.precision:
                continue
            judged = self.judge(entry, key)
            if judged.state == "ok":
                return judged.path, []
            reasons.append(f"{judged.path.name} is {judged.state}: {judged.reason}")
        return None, reasons

    def judge(self, entry: CachedEngine, wanted: EngineKey | None) -> CachedEngine:
        """The entry with its state: compared with a key (None: with nothing), then hashed."""
        state, reason = _compare(entry.key, wanted) if wanted is not None else ("ok", "")
        if state == "ok" and not _is_whole(entry):
            state, reason = "damaged", "its SHA-256 is not that of when it was built"
        return CachedEngine(entry.path, entry.key, entry.n_bytes, entry.sha256, state, reason)

    def ensure(self, key: EngineKey, build: Callable[[], bytes], *, force: bool = False) -> tuple[Path, bool]:
        """The engine for a key, built when there is none that can be used (with `force`: always).

        Only one process builds at a time; the others wait, and take what it built.

        Args:
            build: makes the engine's content.
        Returns:
            The path, and whether it was built now.
        Raises:
            EngineError: it cannot be built or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / ".lock", timeout_s=LOCK_TIMEOUT_S):
                path, _ = (None, []) if force else self._usable(key)
                if path is not None:
                    return path, False
                return self._write(key, build()), True
        except OSError as error:
            raise EngineError(
                f"{self.root} cannot be written: {error.strerror or error}.", "Set KEYFACE_ENGINE_DIR."
            ) from error

    def remove(self, entry: CachedEngine) -> None:
        """Deletes an engine, its note first. Raises EngineError."""
        try:
            _note_path(entry.path).unlink(missing_ok=True)
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"{entry.path} cannot be removed: {error.strerror or error}.") from error

    def remove_left_overs(self) -> int:
        """Deletes files of builds that were killed, temporary or without a note; returns how many.

        Takes the builders' lock, so that nothing that is just being written goes. Raises EngineError.
        """
        if not self.root.is_dir():
            return 0
        try:
            with file_lock(self.root / ".lock", timeout_s=LOCK_TIMEOUT_S):
                orphans = [p for p in self.root.glob(f"*{_SUFFIX}") if _read_note(p) is None]
                doomed = [*self.root.glob(".*.part"), *orphans]
                for path in doomed:
                    path.unlink()
        except OSError as error:
            raise EngineError(f"{self.root} cannot be cleaned: {error.strerror or error}.") from error
        return len(doomed)

    def _write(self, key: EngineKey, content: bytes) -> Path:
        path = self.root / key.file_name()
        note = {
            "key": asdict(key), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        _note_path(path).unlink(missing_ok=True)
        _write_whole(path, content)
        _write_whole(_note_path(path), json.dumps(note, indent=1).encode())
        return path


def _compare(have: EngineKey, want: EngineKey) -> tuple[EngineState, str]:
    if not set(want.architectures) <= set(have.architectures):
        return (
            "foreign",
            f"it is for {', '.join(have.architectures)}, this is {', '.join(want.architectures)}",
        )
    changed = [
        f"{_MEANINGS[f.name]} was {_short(getattr(have, f.name))}, is {_short(getattr(want, f.name))}"
        for f in fields(EngineKey)
        if f.name in _MEANINGS
        and f.name != "architectures"
        and getattr(have, f.name) != getattr(want, f.name)
    ]
    return ("stale", ", ".join(changed)) if changed else ("ok", "")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _is_whole(entry: CachedEngine) -> bool:
    try:
        return entry.path.stat().st_size == entry.n_bytes and sha256_of(entry.path) == entry.sha256
    except OSError:
        return False


def _read_note(path: Path) -> CachedEngine | None:
    try:
        note = json.loads(_note_path(path).read_text(encoding="utf-8"))
        key = note["key"]
        key["architectures"] = tuple(key["architectures"])
        return CachedEngine(path, EngineKey(**key), int(note["bytes"]), str(note["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # as good as missing: it is built again


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
