"""Logs and the board: one JSON object a line, what changed, and nothing secret."""

from __future__ import annotations

import io
import json
import logging
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from page_cases import report_of

from keyface.configs.errors import SinkError
from keyface.pipeline.live.board import LiveBoard
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.log import EventWatch, JsonLines, log_event, without_secrets
from keyface.tools.stream_console import ConsoleLine, open_log

SECRETS = ("hidden-user", "hidden-password", "hidden-path", "hidden-token")
URL = "rtsp://hidden-user:hidden-password@camera.example:554/hidden-path?token=hidden-token"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("keyface")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield text
    logger.removeHandler(handler)
    logger.setLevel(before)


def events(text: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"{URL} has ended.", "rtsp://camera.example:554 has ended."),
        (f"it ('{URL}') ended", "it ('rtsp://camera.example:554') ended"),
        ("http://a:hidden-pass/word@host/x", "http://..."),
        ("http://[::1]:80/hidden-path", "http://[::1]:80"),
        ("http://host:hidden/", "http://..."),
        ("srt://host:9000?passphrase=hidden-token", "srt://host:9000"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_urls_lose_their_secrets(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_records_are_lines_of_json_without_secrets(lines: io.StringIO) -> None:
    log_event("start", {"source": URL, "deep": {"list": [URL, 3]}, "level": "mine"})
    logging.getLogger("keyface.anything").warning("%s\nis lost", URL)
    try:
        raise ValueError(URL)
    except ValueError:
        logging.getLogger("keyface.anything").exception("failed")
    first, second, third = events(lines)
    assert (
        first["event"] == "start"
        and first["source"] == first["deep"]["list"][0] == "rtsp://camera.example:554"
    )
    assert first["level"] == "info" and first["time"].endswith("+00:00")
    assert second["message"] == "rtsp://camera.example:554\nis lost" and second["level"] == "warning"
    assert third["exception"] == "ValueError"
    assert not [secret for secret in SECRETS if secret in lines.getvalue()]


def test_what_changes_is_logged_once(lines: io.StringIO) -> None:
    controls = LiveControls()
    board = LiveBoard(controls, problem=lambda: f"{URL} was silent.")
    watch = EventWatch(board)
    reports = [
        report_of(state="starting", wall_s=0.1, first_output_s=None, reconnects=0),
        report_of(wall_s=1.0, reconnects=0),
        report_of(wall_s=2.0, reconnects=0),
        report_of(wall_s=3.0, reconnects=0, state="lost"),
        report_of(wall_s=4.0, reconnects=1),
    ]
    for report in reports:
        board(report)
        watch(report)
    controls.is_panic = True
    board(report_of(wall_s=5.0))
    watch(report_of(wall_s=5.0))
    watch(report_of(wall_s=11.0))
    watch(report_of(wall_s=12.0))
    names = [event["event"] for event in events(lines)]
    assert names == ["source", "first_picture", "source", "source", "reconnected", "controls", "figures"]
    lost, figures = events(lines)[2], events(lines)[-1]
    assert (lost["from"], lost["to"], lost["problem"]) == (
        "live",
        "lost",
        "rtsp://camera.example:554 was silent.",
    )
    assert figures["age_p95_ms"] == 90.0 and figures["sinks"][2] == {
        "kind": "file", "state": "live", "written": 480, "dropped": 1,
    }  # fmt: skip
    assert "hidden" not in lines.getvalue()


def test_rates_are_those_of_the_last_seconds() -> None:
    now_s = [0.0]
    board = LiveBoard(LiveControls(), clock_s=lambda: now_s[0])
    assert board.rates().fps_in == 0.0
    for tick in range(80):
        now_s[0] = tick / 4
        rate = 5 if tick < 40 else 10
        board(report_of(frames_in=1000 + rate * tick, frames_out=900 + 2 * tick, dropped=tick))
    rates = board.rates()
    assert rates.fps_in == pytest.approx(40.0) and rates.fps_out == pytest.approx(8.0)
    assert rates.fps_dropped == pytest.approx(4.0)


def test_the_log_file_is_private_and_continued(tmp_path: Path) -> None:
    file = tmp_path / "stream.jsonl"
    for name in ("first", "second"):
        with ExitStack() as stack:
            open_log(str(file), stack)
            log_event(name)
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["first", "second"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with ExitStack() as stack, pytest.raises(SinkError, match="cannot be written"):
        open_log(str(tmp_path / "none" / "x"), stack)


def test_warnings_are_still_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        open_log("-", stack)
        log_event("start")
        logging.getLogger("keyface.anything").warning("look here")
    text, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["start", "message"]
    assert err == "look here\n"


def test_the_line_says_what_matters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("keyface.tools.stream_console.time.monotonic", lambda: now_s[0])
    controls = LiveControls(mode="mosaic")
    board = LiveBoard(controls, clock_s=lambda: now_s[0])
    line = ConsoleLine(board)
    for tick in range(9):
        now_s[0] += 0.25
        board(report_of(frames_in=100 + 6 * tick, frames_out=90 + 5 * tick))
        line(board.report)  # type: ignore[arg-type]
    first, second = capsys.readouterr().err.splitlines()
    for part in ("live", "in 24.0 fps", "out 20.0 fps", "latency 60/90 ms", "dropped 17", "faces 2",
                 "mosaics 11", "reconnects 1", "MOSAIC ONLY"):  # fmt: skip
        assert part in second
    assert len(first) < 160
