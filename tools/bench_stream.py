"""Runs the live chain for `keyface bench stream`: as a program of its own, with another key in mid-stream, for long,
and under faults."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyface.configs.errors import StageError

SIZE_WH = (640, 480)
FPS = 30
_CLIP_FRAMES = 600
_STOP_S = 10.0
_SWAP_S = 0.5  # before and after a change of key in which gaps count
_ROTATE_AFTER_S, _ROTATE_WITHIN_S = 6.0, 30.0


def make_clips(sources: Sequence[Path], folder: Path, faces: Sequence[int]) -> dict[int, Path]:
    """Clips of `SIZE_WH` at `FPS`, which show so many faces each."""
    from keyface.pipeline.measure.bench_clip import write_bench_clip

    made = {}
    for count in faces:
        made[count] = folder / f"faces-{count}.mp4"
        first, *others = sources[:count] if len(sources) >= count else sources
        write_bench_clip(
            first, made[count], faces=count, size_wh=SIZE_WH, n_frames=_CLIP_FRAMES, fps=FPS, others=others
        )
    return made


def run_program(
    clip: Path, folder: Path, key_file: Path | None, seconds: float, faces: int, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """`keyface stream` as a program of its own, stopped with Ctrl-C.

    Returns:
        A run of the report: `first_safe_frame_s` counts from starting Python, as an upper bound; `stop_s` from the
        signal to the end of the program.
    Raises:
        StageError: the program failed.
    """
    what = ["--redact-only"] if key_file is None else ["--key-file", str(key_file)]
    words = [
        sys.executable, "-m", "keyface.tools.main", "stream", "--source", str(clip), "--loop", "--sink", "null",
        "--json", "--quiet", *what, *extra,
    ]  # fmt: skip
    answer, errors = folder / "answer.json", folder / "errors.txt"
    began_s = time.monotonic()
    with (
        answer.open("wb") as out,
        errors.open("wb") as err,
        subprocess.Popen(words, stdout=out, stderr=err) as child,
    ):
        try:
            child.wait(seconds + 2.0)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
        stopped_s = time.monotonic()
        try:
            code = child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise StageError(f"keyface stream did not stop within {_STOP_S:g} s.") from None
    ended_s = time.monotonic()
    if code != 0:
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise StageError(f"keyface stream ended with code {code}: {lines[-1]}")
    told = json.loads(answer.read_text(encoding="utf-8"))
    outside_s = max(0.0, stopped_s - began_s - told["wall_s"])
    first_s = told["first_output_s"]
    return {
        "faces": faces,
        **_figures(told),
        "first_safe_frame_s": None if first_s is None else round(first_s + outside_s, 3),
        "stop_s": round(ended_s - stopped_s, 3),
    }


def _figures(told: dict[str, Any]) -> dict[str, Any]:
    names = (
        "frames_in", "frames_out", "fps_in", "fps_out", "dropped", "age", "stages", "quality", "quality_changes",
        "replaced", "redacted",
    )  # fmt: skip
    return {name: told[name] for name in names}


class _Watch:
    """A sink's notes: when each frame came, and whether it had a mosaic."""

    def __init__(self) -> None:
        self.name, self.wants_end = "watch", False
        self.times_s: list[float] = []
        self.has_mosaic: list[bool] = []

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Nothing to open."""

    def write(self, frame: Any) -> None:
        """Notes it."""
        self.times_s.append(time.monotonic())
        self.has_mosaic.append(bool(frame.redactions))

    def close(self) -> None:
        """Nothing to close."""

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""


def measure_rotation(clip: Path, parts: Any) -> dict[str, Any]:
    """Changes the key while a stream runs.

    Returns:
        `in_use_s`: from the request until the new virtual faces are shown; `longest_gap_ms`: between two frames
        about that moment, `usual_gap_ms`: the median of the run; `mosaics_between`: frames with a mosaic from the
        request until half a second after the change.
    """
    from keyface.pipeline.live.control import LiveControls
    from keyface.pipeline.live.run import LiveReport
    from keyface.pipeline.people.key import Key

    controls, watch = LiveControls(), _Watch()
    moments: dict[str, float] = {}

    def steer(report: LiveReport) -> None:
        if report.replaced and "shown" not in moments:
            moments["shown"] = time.monotonic()
        if "asked" not in moments and "shown" in moments and _since(moments, "shown") > _ROTATE_AFTER_S:
            moments["asked"] = time.monotonic()
            controls.request_key(Key.generate())
        if "asked" in moments and _since(moments, "asked") > _ROTATE_WITHIN_S:
            controls.request_end()
        if "changed" in moments and _since(moments, "changed") > 3 * _SWAP_S:
            controls.request_end()

    confirm = controls.confirm_key

    def confirmed() -> None:
        moments["changed"] = time.monotonic()
        confirm()

    controls.confirm_key = confirmed  # type: ignore[method-assign]  # to know the very moment
    _run_looped(clip, parts, [watch], controls, steer)
    return _rotation_figures(watch, moments)


def _since(moments: dict[str, float], name: str) -> float:
    return time.monotonic() - moments[name]


def _rotation_figures(watch: _Watch, moments: dict[str, float]) -> dict[str, Any]:
    asked_s, changed_s = moments.get("asked"), moments.get("changed")
    gaps = [(b, b - a) for a, b in zip(watch.times_s, watch.times_s[1:], strict=False)]
    if asked_s is None or changed_s is None:
        near: list[float] = []
    else:
        near = [gap for at_s, gap in gaps if abs(at_s - changed_s) < _SWAP_S]
    between = [
        mosaic
        for at_s, mosaic in zip(watch.times_s, watch.has_mosaic, strict=True)
        if asked_s is not None and changed_s is not None and asked_s < at_s < changed_s + _SWAP_S
    ]
    return {
        "in_use_s": None if asked_s is None or changed_s is None else round(changed_s - asked_s, 3),
        "longest_gap_ms": round(1e3 * max(near, default=0.0), 1),
        "usual_gap_ms": round(1e3 * statistics.median([gap for _, gap in gaps] or [0.0]), 1),
        "mosaics_between": sum(between),
        "frames": len(watch.times_s),
    }


def _run_looped(clip: Path, parts: Any, sinks: Sequence[Any], controls: Any, on_tick: Any) -> Any:
    from keyface.pipeline.live.address import parse_source
    from keyface.pipeline.live.run import LiveOptions, run_live
    from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

    source = LiveSource(parse_source(str(clip)), LiveSourceOptions(is_looped=True))
    report, _ = run_live(source, sinks, parts, LiveOptions(), controls=controls, on_tick=on_tick)
    controls.close()
    return report


def measure_soak(clip: Path, parts: Any, seconds: float) -> dict[str, Any]:
    """Lets a looped clip run for long, and looks at memory, threads, files and age all along.

    Returns:
        One value per interval of 60 s, or a twelfth of the time where that is shorter. `memory_drift`: the last
        quarter's memory over that of the second one, less 1.
    """
    from keyface.pipeline.live.control import LiveControls
    from keyface.pipeline.live.run import LiveReport
    from keyface.pipeline.live.sink import NullSink

    every_s = min(60.0, seconds / 12)
    controls, began_s = LiveControls(), time.monotonic()
    rows: list[dict[str, float]] = []
    ages = _AgeSink()
    last = {"s": began_s, "out": 0}

    def look(report: LiveReport) -> None:
        now_s = time.monotonic()
        if now_s - last["s"] < every_s:
            return
        rows.append({
            "rss": _rss_bytes(), "threads": threading.active_count(), "files": _open_files(),
            "age": ages.take_p95_ms(report.age), "fps": (report.frames_out - last["out"]) / (now_s - last["s"]),
        })  # fmt: skip
        last.update(s=now_s, out=report.frames_out)
        if now_s - began_s >= seconds:
            controls.request_end()

    _run_looped(clip, parts, [NullSink(), ages], controls, look)
    memory = [row["rss"] for row in rows]
    quarter = max(1, len(memory) // 4)
    early, late = memory[quarter : 2 * quarter] or memory, memory[-quarter:]
    drift = statistics.fmean(late) / max(statistics.fmean(early), 1.0) - 1 if memory else 0.0
    return {
        "seconds": round(time.monotonic() - began_s, 1),
        "every_s": round(every_s, 2),
        "memory_drift": round(drift, 4),
        "rss_bytes": [int(row["rss"]) for row in rows],
        "threads": [int(row["threads"]) for row in rows],
        "files": [int(row["files"]) for row in rows],
        "age_p95_ms": [round(row["age"], 1) for row in rows],
        "fps_out": [round(row["fps"], 2) for row in rows],
    }


class _AgeSink(_Watch):
    """Collects how late frames come against their own times, which says how ages spread about their mean."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._lags_s: list[float] = []
        self._count, self._total_s = 0, 0.0

    def write(self, frame: Any) -> None:
        """Notes when it came against its own time."""
        with self._lock:
            self._lags_s.append(time.monotonic() - frame.pts_s)

    def take_p95_ms(self, age: Any) -> float:
        """95th percentile of the ages since the last question; `age`: the report's, from which their mean follows
        and so the offset of the two clocks."""
        with self._lock:
            lags, self._lags_s = self._lags_s, []
        count, total_s = age.count - self._count, age.total_s - self._total_s
        self._count, self._total_s = age.count, age.total_s
        if len(lags) < 2 or count < 1:
            return 0.0
        spread_s = statistics.quantiles(lags, n=20)[-1] - statistics.fmean(lags)
        return 1e3 * float(total_s / count + spread_s)


def _rss_bytes() -> int:
    """Resident memory, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> int:
    """Open file descriptors, 0 where the system does not tell."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0
