"""Keeps the manifest's hashes of the weights that this package carries up to date (for developers)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import Manifest, PackageSource, default_manifest_path, load_manifest
from keyface.engines.archive import sha256_of


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """What `update_own_weights` found: entries whose hash it changed, files that no entry names."""

    updated: tuple[str, ...]
    unlisted: tuple[Path, ...]


def update_own_weights(path: Path | None = None) -> OwnWeights:
    """Writes sha256 and bytes of every package file into the manifest, leaving all else as it is.

    Args:
        path: the manifest; None takes the package's own.

    Raises:
        ModelStoreError: a file that is missing, or a manifest that cannot be written.
    """
    path = path or default_manifest_path()
    manifest = load_manifest(path)
    text = path.read_text(encoding="utf-8")
    updated = []
    for entry in manifest.models.values():
        if not isinstance(entry.source, PackageSource):
            continue
        weights = _folder(entry.source) / entry.file
        if not weights.is_file():
            raise ModelStoreError(f"{entry.name}: {weights} is missing.", "Train or restore it first.")
        sha256, n_bytes = sha256_of(weights), weights.stat().st_size
        if (sha256, n_bytes) != (entry.sha256, entry.bytes):
            text = _replace(text, entry.name, sha256, n_bytes)
            updated.append(entry.name)
    if updated:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ModelStoreError(f"{path} cannot be written: {error.strerror}.") from error
    return OwnWeights(tuple(updated), _unlisted(manifest))


def _replace(text: str, name: str, sha256: str, n_bytes: int) -> str:
    blocks = re.split(r"(?m)^(?=\[\[model\]\])", text)
    for i, block in enumerate(blocks):
        if re.search(rf'(?m)^name = "{re.escape(name)}"$', block):
            block = re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{sha256}"', block)
            blocks[i] = re.sub(r"(?m)^bytes = .*$", f"bytes = {n_bytes}", block)
    return "".join(blocks)


def _unlisted(manifest: Manifest) -> tuple[Path, ...]:
    source = PackageSource()
    known = {e.file for e in manifest.models.values() if isinstance(e.source, PackageSource)}
    folder = _folder(source)
    return tuple(sorted(p for p in folder.glob("*") if p.is_file() and p.name not in known))


def _folder(source: PackageSource) -> Path:
    return Path(str(files(source.package))) / source.folder
