"""Runs the real chain for `keyface bench`: as a program of its own, and again inside this one."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from keyface.configs.errors import KeyfaceError, StageError

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
_POLL_S = 0.02


def run_whole_process(
    clip: Path,
    folder: Path,
    key_file: Path,
    extra: Sequence[str] = (),
    *,
    program: Sequence[str] = ("-m", "keyface.tools.main"),
) -> dict[str, Any]:
    """Starts `keyface process` and waits for its end.

    Returns:
        A run of the bench report. `wall_s` and `fps` count from starting Python to its exit;
        `first_frame_s` adds all the time outside the chain to the chain's own figure, so that it is
        an upper bound.
    Raises:
        StageError: the command failed.
    """
    words = [*program, *_words(clip, folder / "whole.mp4", key_file, extra)]
    answer = folder / "answer.json"
    began = time.perf_counter()
    usage, peak_bytes = _spawn(words, answer, folder / "errors.txt")
    wall_s = time.perf_counter() - began
    told = read_summary(answer.read_text(encoding="utf-8"))
    first_s = told.get("first_frame_s")
    return _run(
        told,
        wall_s=wall_s,
        first_frame_s=None if first_s is None else first_s + max(0.0, wall_s - told["wall_s"]),
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak_bytes,
    )


def make_sample_clip(folder: Path) -> Path:
    """A clip of a generated person, by `keyface demo`, as a program of its own. Raises StageError."""
    demo = folder / "demo"
    words = ["-m", "keyface.tools.main", "demo", "-o", str(demo), "--quiet"]
    _spawn(words, folder / "demo.txt", folder / "errors.txt")
    return demo / "original.mp4"


def _spawn(words: Sequence[str], output: Path, errors: Path) -> tuple[resource.struct_rusage, int]:
    """Runs this Python with `words`; see `_wait`."""
    with output.open("wb") as out, errors.open("wb") as err:
        redirections = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)]
        child = os.posix_spawn(
            sys.executable, [sys.executable, *words], os.environ, file_actions=redirections
        )
        return _wait(child, errors)


def _wait(child: int, errors: Path) -> tuple[resource.struct_rusage, int]:
    """Processor times and peak memory of a child, when it ended well."""
    peak = 0
    try:
        while True:
            peak = max(peak, _peak_bytes(child))
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                break
            time.sleep(_POLL_S)
    except BaseException:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise StageError(f"keyface ended with code {code}: {lines[-1]}")
    return usage, peak or usage.ru_maxrss * _RSS_UNIT


def _peak_bytes(child: int) -> int:
    """High-water mark of a running program, 0 where the system does not tell. `ru_maxrss` would do, but
    on Linux a child is born with the size of its parent."""
    try:
        lines = Path(f"/proc/{child}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def run_in_process(clip: Path, folder: Path, key_file: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `keyface process` twice in this process and measures the second, when all is loaded."""
    from keyface.tools.main import main

    for attempt in range(2):
        out = io.StringIO()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        with redirect_stdout(out):
            code = main(_words(clip, folder / f"inside-{attempt}.mp4", key_file, extra))
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        if code != 0:
            raise StageError(f"keyface process ended with code {code}.")
    told = read_summary(out.getvalue())
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _run(
        told, wall_s=wall_s, first_frame_s=told.get("first_frame_s"), cpu_s=cpu_s, peak_rss_bytes=None
    )


def _words(clip: Path, output: Path, key_file: Path, extra: Sequence[str]) -> list[str]:
    return ["process", str(clip), "-o", str(output), "--key-file", str(key_file), "--json", "--quiet", *extra]


def read_summary(text: str) -> dict[str, Any]:
    """The summary of the one file in the answer of `keyface process --json`. Raises StageError."""
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise StageError(f"keyface process gave no JSON summary: {error}.") from error
    if isinstance(answer, dict) and "files" in answer:
        answer = answer["files"]
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, dict) or "frames" not in answer:
        raise StageError("keyface process gave no summary of one file.")
    return answer


def _run(told: dict[str, Any], **measured: float | int | None) -> dict[str, Any]:
    wall_s = float(measured["wall_s"] or 0.0)
    fps = told["frames"] / max(wall_s, 1e-9)
    counts = {key: int(told[key]) for key in ("frames", "faces", "redacted_frames")}
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in measured.items()}
    return {**counts, **rounded, "fps": round(fps, 3), "stages": told["stages"]}


def restrict_cores(count: int) -> None:
    """Lets this process and its children use `count` cores only. Raises StageError where it cannot."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:count])
    except (AttributeError, OSError) as error:
        raise StageError(f"this system cannot restrict the cores: {error}.", "Leave --cores out.") from error


def make_key(folder: Path) -> Path:
    """A random key that is used once."""
    from keyface.pipeline.people.key import Key

    path = folder / "bench.key"
    with Key.generate() as key:
        key.save(path)
    return path


def attempt(skipped: dict[str, str], what: str, action: Any) -> Any:
    """The action's answer, or None and the reason noted."""
    try:
        return action()
    except KeyfaceError as error:
        skipped[what] = str(error)
        return None
