"""The form of what `keyface bench stream --json` writes, and its check."""

from __future__ import annotations

from typing import Any

from keyface.configs.bench_report import check_form
from keyface.configs.errors import UsageError

STREAM_SCHEMA = "keyface/bench-stream/1"

_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_TIMES = {"count": int, "p50_ms": _NUMBER, "p95_ms": _NUMBER, "p99_ms": _NUMBER, "total_s": _NUMBER}
_RUN = {
    "faces": int, "frames_in": int, "frames_out": int, "fps_in": _NUMBER, "fps_out": _NUMBER, "dropped": int,
    "age": _TIMES, "stages": {str: _TIMES}, "first_safe_frame_s": _MAYBE, "stop_s": _MAYBE, "quality": int,
    "quality_changes": int, "replaced": int, "redacted": {str: int},
}  # fmt: skip
_COUNT = {
    "frames": int, "slates": int, "faces": int, "raw_frames": int, "unchanged": int, "recognised": int,
    "looked": int, "matched": {str: int}, "injected": {str: int}, "faults": {str: int}, "redacted": {str: int},
    "replaced": int, "dropped": int, "wall_s": _NUMBER,
}  # fmt: skip
_FORM: dict[str, Any] = {
    "schema": str,
    "measured_at": str,
    "machine": {"cpu": str, "cores": int, "memory_bytes": (int, type(None)), "system": str, "python": str},
    "versions": {str: str},
    "clips": [str],
    "reenactor": str,
    "runs": {str: _RUN},
    "rotation": (None, {"in_use_s": _MAYBE, "longest_gap_ms": _NUMBER, "usual_gap_ms": _NUMBER,
                        "mosaics_between": int, "frames": int}),
    "faults": (None, {"real": (None, _COUNT), "canned": (None, _COUNT), "seed": int,
                      "examples": [{"frame": int, "clip": str, "number": int, "faults": [str], "why": [str],
                                    "piece": str}]}),
    "soak": (None, {"seconds": _NUMBER, "memory_drift": _NUMBER, "threads": [int], "files": [int],
                    "age_p95_ms": [_NUMBER], "rss_bytes": [int], "fps_out": [_NUMBER], "every_s": _NUMBER}),
    "drops": (None, {str: (int, float, str, type(None), list, dict)}),
    "verdicts": [{"figure": str, "value": _MAYBE, "target": str, "outcome": str}],
}  # fmt: skip


def check_stream_bench(report: Any, origin: str = "stream bench report") -> None:
    """Raises UsageError naming the first place that is not of the form."""
    if not isinstance(report, dict) or report.get("schema") != STREAM_SCHEMA:
        got = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise UsageError(f"{origin}: schema is {got!r}, want {STREAM_SCHEMA!r}.")
    check_form(report, _FORM, origin)


# (figure, lowest or highest allowed, unit)
TARGETS: dict[str, tuple[str, float, str]] = {
    "one face, fps": ("at least", 15.0, ""),
    "one face, age p95": ("at most", 150.0, "ms"),
    "three faces, fps": ("at least", 8.0, ""),
    "mosaic only, fps": ("at least", 30.0, ""),
    "first safe frame": ("at most", 3.0, "s"),
    "stop": ("at most", 1.0, "s"),
    "rotation, longest gap": ("at most", 100.0, "ms"),
    "raw faces under faults": ("at most", 0.0, ""),
    "back after a drop": ("at most", 3.0, "s"),
    "soak, memory drift": ("at most", 0.02, ""),
}
_ROUNDING = 0.98  # a source of 30 fps gives 29.9 where its first and last frame are counted


def verdicts(values: dict[str, float | None]) -> list[dict[str, Any]]:
    """One row for each figure that was measured."""
    rows = []
    for figure, value in values.items():
        comparison, limit, unit = TARGETS[figure]
        outcome = "not measured"
        if value is not None:
            slack = _ROUNDING if figure == "mosaic only, fps" else 1.0
            is_met = value >= limit * slack if comparison == "at least" else value <= limit
            outcome = "pass" if is_met else "fail"
        target = f"{comparison} {limit:g} {unit}".strip()
        rows.append({"figure": figure, "value": value, "target": target, "outcome": outcome})
    return rows
