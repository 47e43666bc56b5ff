"""Makers of small manifests and archives, for the tests of the model store."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from keyface.configs.manifest import Manifest, parse_manifest

WEIGHTS = bytes(range(256)) * 500
OTHER = b"other weights" * 99


def sha256_hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(name: str, source: str, content: bytes | None = WEIGHTS, *, group: str = "default") -> str:
    facts = "" if content is None else f'sha256 = "{sha256_hex(content)}"\nbytes = {len(content)}\n'
    return (
        f'[[model]]\nname = "{name}"\ngroup = "{group}"\nfile = "{name}.bin"\nsource = {source}\n{facts}'
        f'licence = "MIT"\nlicence_note = ""\ncard = "x.md"\n'
    )


def manifest_of(*entries: str) -> Manifest:
    return parse_manifest("\n".join(entries))


PYPI = (
    '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/weights.bin", archive_bytes = 9 }'
)
PYPI_OTHER = '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/other.bin" }'
PYPI_TASK = '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/pack.task" }'


def zip_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


TASK = zip_of({"inner.tflite": OTHER})


def holds_only(root: Path, *names: str) -> bool:
    """True when `root` holds these files and the lock, and no staging folder."""
    return {path.name for path in root.iterdir()} - {".lock"} == set(names)


def make_wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, kf_sample 1.0, which is all that pip can see from now on."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    facts = "Metadata-Version: 2.1\nName: kf-sample\nVersion: 1.0\nRequires-Python: >=9.9\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {
        "kf_sample/weights.bin": WEIGHTS,
        "kf_sample/other.bin": OTHER,
        "kf_sample/pack.task": TASK,
        "kf_sample-1.0.dist-info/METADATA": facts.encode(),
        "kf_sample-1.0.dist-info/WHEEL": wheel.encode(),
        "kf_sample-1.0.dist-info/RECORD": b"",
    }
    (folder / "kf_sample-1.0-py3-none-any.whl").write_bytes(zip_of(members))
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder
