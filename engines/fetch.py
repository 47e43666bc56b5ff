"""Brings archives and files from the package index, an address or a folder into a staging folder.

Nothing here trusts what it brings: the store compares every file with its SHA-256 afterwards.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from keyface.configs.errors import ModelStoreError
from keyface.configs.manifest import ModelEntry, PypiSource, UrlSource

Report = Callable[[int, int], None]
"""Takes bytes done and bytes in all (0: not known)."""

WAY_OUT = (
    "Go online and run 'keyface models pull' again, or bring the files from another machine and run "
    "'keyface models pull --from FOLDER'."
)
STALL_S = 180.0
_POLL_S = 0.1
_URL_TIMEOUT_S = 30.0
_NOT_REACHED = re.compile(
    r"name resolution|name or service not known|getaddrinfo failed|newconnectionerror|connection refused|"
    r"network is unreachable|connecttimeouterror|proxyerror|max retries exceeded|connection broken",
    re.IGNORECASE,
)


def fetch_pypi(source: PypiSource, staging: Path, report: Report) -> Path:
    """Downloads the pinned archive with pip, under the user's own index settings; returns its path.

    A wheel is only stored. An sdist makes pip run the archive's build script to read its metadata, as
    installing it would; so pip compares the archive with its SHA-256 before. pip's output stays in a log in
    `staging`; its last line is quoted on failure.

    Raises:
        ModelStoreError: no pip here, index out of reach, no such version, no progress for three minutes.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelStoreError(
            f"{source.requirement} cannot be downloaded: this Python has no pip.",
            "Add it with 'python -m ensurepip', or 'uv pip install pip' in an environment made by uv.",
        )
    downloads, scratch, log = staging / "downloads", staging / "tmp", staging / "pip.log"
    downloads.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    project = source.requirement.split("==")[0]
    kind = "--only-binary" if source.archive == "wheel" else "--no-binary"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--no-cache-dir",
        "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2",
        kind, project, "--dest", str(downloads), *_what_to_download(source, staging),
    ]  # fmt: skip
    # pip unpacks into its temporary folder: keep that on the cache's own disk, where it is watched for
    # progress and swept away with the rest.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as output:
        code = _run_watched(
            command, environment, output.fileno(), staging, lambda done: report(done, source.archive_bytes)
        )
    archives = sorted(
        p for p in downloads.iterdir() if p.name.endswith((".whl", ".tar.gz", ".zip", ".tar.bz2"))
    )
    if code != 0 or len(archives) != 1:
        raise _pip_error(source.requirement, log.read_text(encoding="utf-8", errors="replace"))
    size = archives[0].stat().st_size
    report(size, size)
    return archives[0]


def _what_to_download(source: PypiSource, staging: Path) -> list[str]:
    """pip's arguments for the requirement; a hash can be given in a file only."""
    if not source.archive_sha256:
        return [source.requirement]
    wanted = staging / "requirements.txt"
    wanted.write_text(f"{source.requirement} --hash=sha256:{source.archive_sha256}\n", encoding="utf-8")
    return ["--require-hashes", "--requirement", str(wanted)]


def _run_watched(
    command: list[str],
    environment: dict[str, str],
    output: int,
    folder: Path,
    report: Callable[[int], None],
) -> int:
    """Runs `command`, reporting the size of what grows in `folder`; ends it when nothing grows."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    )
    try:
        largest, last_growth_s = 0, time.monotonic()
        while process.poll() is None:
            time.sleep(_POLL_S)
            size = _largest_file(folder)
            if size > largest:
                largest, last_growth_s = size, time.monotonic()
                report(largest)
            elif time.monotonic() - last_growth_s > STALL_S:
                raise ModelStoreError(f"the download made no progress for {STALL_S:.0f} s.", WAY_OUT)
        return process.returncode
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _largest_file(folder: Path) -> int:
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue  # pip moves its files while we look
    return largest


def _pip_error(requirement: str, log: str) -> ModelStoreError:
    if re.search(r"no space left|errno 28", log, re.IGNORECASE):
        return ModelStoreError(
            f"{requirement} cannot be downloaded: the disk is full.",
            "Free some space, or set KEYFACE_MODEL_DIR to a folder on another disk.",
        )
    if _NOT_REACHED.search(log):
        return ModelStoreError(
            f"{requirement} cannot be downloaded: the package index cannot be reached.", WAY_OUT
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip said nothing"]
    last = errors[-1].removeprefix("ERROR:").strip().rstrip(".")[:300]
    return ModelStoreError(f"{requirement} cannot be downloaded; pip says: {last}.", WAY_OUT)


def fetch_url(source: UrlSource, entry: ModelEntry, staging: Path, report: Report) -> Path:
    """Downloads one address into `staging`; returns the file's path. Raises ModelStoreError, OSError."""
    path = staging / "download"
    limit = entry.bytes if not source.member else sys.maxsize
    try:
        with urllib.request.urlopen(source.url, timeout=_URL_TIMEOUT_S) as answer, path.open("wb") as sink:
            total = int(answer.headers.get("Content-Length") or 0)
            done = 0
            while done <= limit and (chunk := answer.read(1 << 18)):
                sink.write(chunk)
                done += len(chunk)
                report(done, total or entry.bytes)
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer itself, with an open socket
        raise ModelStoreError(f"{entry.name}: {source.url} answers {error.code}.", WAY_OUT) from error
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException, ConnectionError) as error:
        raise ModelStoreError(f"{entry.name}: {source.url} cannot be reached: {error}.", WAY_OUT) from error
    if total and done < total:
        raise ModelStoreError(f"{entry.name}: the download ended after {done} of {total} bytes.", WAY_OUT)
    return path


def find_in_folder(entry: ModelEntry, folder: Path) -> tuple[Path, str]:
    """What `folder` has for an entry: a path, and the member to take out of it ("": the file itself).

    The file under its own name comes first, then the archive of any of its sources under the
    archive's usual name. Raises ModelStoreError when there is neither.
    """
    plain = folder / entry.file
    if plain.is_file():
        return plain, ""
    wanted = [entry.file]
    for source in (entry.source, *entry.mirrors):
        if isinstance(source, PypiSource):
            project, version = source.requirement.split("==")
            stem = re.sub(r"[-_.]+", "_", project).lower()
            wanted.append(f"{stem}-{version}*")
            for path in sorted(folder.iterdir()):
                name = re.sub(r"[-_.]+", "_", path.name.split(f"-{version}")[0]).lower()
                if f"-{version}" in path.name and name == stem and path.is_file():
                    return path, source.member
    raise ModelStoreError(f"{folder} has nothing for {entry.name}: wanted {' or '.join(wanted)}.")
