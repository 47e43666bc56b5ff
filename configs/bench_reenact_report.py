"""The form of what `keyface bench reenact --json` writes, its check, and what is wanted of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keyface.configs.bench_report import check_form
from keyface.configs.errors import UsageError

REENACT_SCHEMA = "keyface/bench-reenact/1"

_NUMBER = (int, float)
_TIMES = {"count": int, "p50_ms": _NUMBER, "p95_ms": _NUMBER, "p99_ms": _NUMBER, "total_s": _NUMBER}
_RUN = {
    "total": _TIMES, "network": _TIMES, "landmarks": _TIMES, "numpy": _TIMES, "first_s": _NUMBER,
    "replaced": int, "redacted": {str: int}, "backends": {str: str},
}  # fmt: skip
_FORM: dict[str, Any] = {
    "schema": str,
    "measured_at": str,
    "machine": {"cpu": str, "cores": int, "memory_bytes": (int, type(None)), "system": str, "python": str},
    "versions": {str: str},
    "models": {str: str},
    "clip": {"name": str, "frames": int, "size_wh": [int]},
    "reenactors": {str: _RUN},
    "warp_to_latent": {"p50": _NUMBER, "p95": _NUMBER, "p99": _NUMBER},
    "verdicts": [{"figure": str, "value": _NUMBER, "target": str, "outcome": str}],
}

# figure -> (most that is wanted, unit); on 2 cores of a CPU
REENACT_TARGETS: Mapping[str, tuple[float, str]] = {
    "warp, p50": (25.0, "ms"),
    "warp to latent, p50": (0.7, ""),
}


def check_reenact_bench(report: Any, origin: str = "reenactment bench report") -> None:
    """Raises UsageError naming the first place that is not of the form."""
    if not isinstance(report, dict) or report.get("schema") != REENACT_SCHEMA:
        got = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise UsageError(f"{origin}: schema is {got!r}, want {REENACT_SCHEMA!r}.")
    check_form(report, _FORM, origin)


def reenact_verdicts(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row for each figure."""
    rows = []
    for figure, value in values.items():
        most, unit = REENACT_TARGETS[figure]
        outcome = "pass" if value <= most else "fail"
        rows.append({
            "figure": figure, "value": value, "target": f"at most {most:g} {unit}".strip(), "outcome": outcome,
        })  # fmt: skip
    return rows
