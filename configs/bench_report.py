"""The form of what `keyface bench --json` writes, its check, and the comparison of two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keyface.configs.errors import UsageError

SCHEMA = "keyface/bench/1"
_WAY_OUT = "Give output of keyface bench --json."

_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_STAGE = {"count": int, "p50_ms": _NUMBER, "p95_ms": _NUMBER, "p99_ms": _NUMBER, "total_s": _NUMBER}
_RUN = {
    "frames": int, "faces": int, "redacted_frames": int, "wall_s": _NUMBER, "fps": _NUMBER,
    "first_frame_s": _MAYBE, "cpu_s": _NUMBER, "peak_rss_bytes": (int, type(None)), "stages": {str: _STAGE},
}  # fmt: skip
_FORM: dict[str, Any] = {
    "schema": str,
    "measured_at": str,
    "machine": {"cpu": str, "cores": int, "memory_bytes": (int, type(None)), "system": str, "python": str},
    "versions": {str: str},
    "models": {str: str},
    "clip": (None, {"name": str, "frames": int, "size_wh": [int], "fps": _NUMBER, "faces_asked": int,
                    "options": str}),
    "whole_process": (None, _RUN),
    "in_process": (None, _RUN),
    "engines": [
        {"model": str, "backend": str, "precision": str, "threads": int, "runs": int, "open_ms": _NUMBER,
         "p50_ms": _NUMBER, "p95_ms": _NUMBER, "p99_ms": _NUMBER}
    ],
    "verdicts": [{"figure": str, "value": _MAYBE, "target": str, "outcome": str}],
    "skipped": {str: str},
}  # fmt: skip


def check_bench(report: Any, origin: str = "bench report") -> None:
    """Raises UsageError naming the first place that is not of the form."""
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        got = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise UsageError(f"{origin}: schema is {got!r}, want {SCHEMA!r}.", _WAY_OUT)
    check_form(report, _FORM, origin)


def check_form(value: Any, form: Any, where: str) -> None:
    """Raises UsageError unless a value has a form.

    `form`: a type or types, [form] for a list, {str: form} for a table, {key: form} for a record,
    (None, form) for a record that may be null."""
    if isinstance(form, tuple) and form[0] is None:
        if value is not None:
            check_form(value, form[1], where)
    elif isinstance(form, list):
        _expect(isinstance(value, list), value, where, "a list")
        for index, item in enumerate(value):
            check_form(item, form[0], f"{where}[{index}]")
    elif isinstance(form, dict):
        _expect(isinstance(value, dict), value, where, "a table")
        if str not in form:
            _expect(set(value) == set(form), sorted(value), where, f"the keys {', '.join(sorted(form))}")
        for key, item in value.items():
            check_form(item, form.get(str, form.get(key)), f"{where}.{key}")
    else:
        _expect(isinstance(value, form) and not isinstance(value, bool), value, where, _names(form))
        _expect(not isinstance(value, float) or math.isfinite(value), value, where, "a finite number")


def _names(form: Any) -> str:
    kinds = form if isinstance(form, tuple) else (form,)
    return " or ".join(kind.__name__ for kind in kinds)


def _expect(is_fine: bool, value: Any, where: str, wish: str) -> None:
    if not is_fine:
        raise UsageError(f"{where}: got {value!r}, want {wish}.")


def read_bench(path: Path) -> dict[str, Any]:
    """A checked report from a file. Raises UsageError."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as JSON: {error}.", _WAY_OUT) from error
    check_bench(report, path.name)
    return dict(report)


def compare_bench(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """(figure, in a, in b, b / a) for all figures that both have; None where a is 0."""
    first, second = _flat(a), _flat(b)
    return [
        (name, value, second[name], second[name] / value if value else None)
        for name, value in first.items()
        if name in second
    ]


def _flat(report: Mapping[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for run in ("whole_process", "in_process"):
        row = report[run] or {}
        for key in ("fps", "first_frame_s", "cpu_s", "peak_rss_bytes"):
            if row.get(key) is not None:
                figures[f"{run} {key}"] = float(row[key])
        for stage, times in row.get("stages", {}).items():
            for key in ("p50_ms", "p95_ms"):
                figures[f"{run} {stage} {key}"] = float(times[key])
    for t in report["engines"]:
        label = f"{t['model']} {t['backend']} {t['precision']} threads {t['threads']}"
        figures[f"{label} p50_ms"] = float(t["p50_ms"])
    return figures
