"""Structured logs of a stream: one JSON object a line, without names, embeddings or secrets of URLs."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keyface.pipeline.live.board import LiveBoard, Rates
from keyface.pipeline.live.metrics import sink_kind

if TYPE_CHECKING:
    from keyface.pipeline.live.run import LiveReport

_LOG = logging.getLogger(__name__)
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://[^\s'\"<>]+")
_FIGURES_EVERY_S = 10.0


def log_event(event: str, fields: Mapping[str, Any] | None = None, *, level: int = logging.INFO) -> None:
    """Writes one event with its fields, plain values for `json.dumps`."""
    _LOG.log(level, event.replace("_", " "), extra={"event": event, "fields": dict(fields or {})})


def without_secrets(text: str) -> str:
    """The text with nothing left of each URL but scheme, host and port."""
    return _URL.sub(_bare, text)


def _bare(match: re.Match[str]) -> str:
    try:
        parts = urlsplit(match.group())
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{match[1]}://..."
    # With an @ behind the first slash, what looks like the host may be a user.
    if not host or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{match[1]}://..."
    host = f"[{host}]" if ":" in host else host
    return f"{match[1]}://{host}" + (f":{port}" if port else "")


class JsonLines(logging.Formatter):
    """Formats records: time (UTC), level, event, message, and the fields of `log_event`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line. Texts pass through `without_secrets`, fields too; a traceback is named, not written."""
        event = getattr(record, "event", "message")
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": event,
        }
        if event == "message":
            line["message"] = without_secrets(record.getMessage())
            line["logger"] = record.name
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        fields = {name: value for name, value in getattr(record, "fields", {}).items() if name not in line}
        return json.dumps({**line, **_cleaned(fields)}, default=str)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {str(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


class EventWatch:
    """An `on_tick` of `run_live` that logs what changed, and the figures every ten seconds.

    Args:
        board: of the stream; updated before this is called.
    """

    def __init__(self, board: LiveBoard) -> None:
        self._board = board
        self._state: str = "starting"
        self._changes = board.controls.state().changes
        self._reconnects = 0
        self._has_output = False
        self._next_s = _FIGURES_EVERY_S

    def __call__(self, report: LiveReport) -> None:
        """Compares with the last report."""
        if report.state != self._state:
            log_event("source", {"from": self._state, "to": report.state, "problem": self._board.problem})
            self._state = report.state
        if report.reconnects != self._reconnects:
            self._reconnects = report.reconnects
            log_event("reconnected", {"reconnects": report.reconnects})
        if report.first_output_s is not None and not self._has_output:
            self._has_output = True
            log_event("first_picture", {"after_s": round(report.first_output_s, 3)})
        controls = self._board.controls.state()
        if controls.changes != self._changes:
            self._changes = controls.changes
            log_event("controls", controls.to_json())
        if report.wall_s >= self._next_s:
            self._next_s = report.wall_s + _FIGURES_EVERY_S
            log_event("figures", figures(report, self._board.rates()))


def figures(report: LiveReport, rates: Rates) -> dict[str, Any]:
    """Counts, rates and times of a report, for `log_event`; sinks by kind, not by name."""
    return {
        "state": report.state, "wall_s": round(report.wall_s, 3), "fps_in": round(rates.fps_in, 2),
        "fps_out": round(rates.fps_out, 2), "frames_in": report.frames_in, "frames_out": report.frames_out,
        "dropped": report.dropped, "faces": report.faces, "people": report.people,
        "replaced": report.replaced, "redacted_frames": report.redacted_frames,
        "redacted": report.redacted, "slates": report.slates, "reconnects": report.reconnects,
        "age_p50_ms": round(report.age.p50_ms, 1), "age_p95_ms": round(report.age.p95_ms, 1),
        "faults": report.faults, "quality": report.quality, "rotations": report.rotations,
        "sinks": [
            {"kind": sink_kind(sink.name), "state": sink.state, "written": sink.written,
             "dropped": sink.dropped}
            for sink in report.outputs
        ],
    }  # fmt: skip
