"""What `keyface stream` says: one line a second, a sentence or a JSON object at the end, and logs."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import SinkError

if TYPE_CHECKING:
    from keyface.pipeline.live.board import LiveBoard
    from keyface.pipeline.live.run import LiveReport
    from keyface.pipeline.live.sink import LiveSink
    from keyface.pipeline.live.source import LiveSource

_LINE_EVERY_S = 1.0
_MODES = {"live": "", "mosaic": "  MOSAIC ONLY", "slate": "  PAUSED"}


class ConsoleLine:
    """An `on_tick` of `run_live`: one line a second on standard error; on a terminal it stays in its place.

    Args:
        board: updated before this is called.
    """

    def __init__(self, board: LiveBoard) -> None:
        self._board = board
        self._last_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._is_begun = False

    def __call__(self, report: LiveReport) -> None:
        """Prints when a second has passed."""
        now_s = time.monotonic()
        if now_s - self._last_s < _LINE_EVERY_S:
            return
        self._last_s = now_s
        line = self._line(report)
        if self._is_terminal:
            self._is_begun = True
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r\x1b[2K{line[: max(1, width - 1)]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the line on a terminal, so that what follows has one of its own."""
        if self._is_begun:
            print(file=sys.stderr, flush=True)
            self._is_begun = False

    def _line(self, report: LiveReport) -> str:
        rates = self._board.rates()
        return (
            f"{report.wall_s:7.1f} s  {report.state:8}  in {rates.fps_in:4.1f} fps  out {rates.fps_out:4.1f} fps"
            f"  latency {report.age.p50_ms:.0f}/{report.age.p95_ms:.0f} ms  dropped {report.dropped}"
            f"  faces {report.faces}  mosaics {report.redacted_frames}  reconnects {report.reconnects}"
            f"{f'  quality {report.quality}' if report.quality else ''}{_MODES[self._board.controls.mode]}"
        )


def open_log(target: str, stack: ExitStack) -> None:
    """Sends all log records as JSON lines to a file, or to standard output for "-", until the stack ends.

    The file is made with mode 0600 and continued; it may be moved away while it is written.

    Raises:
        SinkError: it cannot be written.
    """
    from keyface.pipeline.live.log import JsonLines

    handler: logging.Handler
    if target == "-":
        handler = logging.StreamHandler(sys.stdout)
    else:
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            handler = logging.handlers.WatchedFileHandler(target, encoding="utf-8")
        except OSError as error:
            raise SinkError(f"--log-json: {target} cannot be written: {error.strerror or error}.") from None
    handler.setFormatter(JsonLines())
    warnings = logging.StreamHandler(sys.stderr)  # as Python does on its own where no handler is set
    warnings.setLevel(logging.WARNING)
    warnings.addFilter(lambda record: not hasattr(record, "event"))  # those are told in other ways
    logger = logging.getLogger("keyface")
    before = logger.level
    logger.setLevel(logging.INFO)
    for one in (handler, warnings):
        logger.addHandler(one)
        stack.callback(_remove, logger, one)
    stack.callback(logger.setLevel, before)


def _remove(logger: logging.Logger, handler: logging.Handler) -> None:
    logger.removeHandler(handler)
    handler.close()


def summary(source: LiveSource, sinks: Sequence[LiveSink], report: LiveReport, ending: str) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "source": source.address.label,
        "sinks": [sink.name for sink in sinks],
        "ending": ending,
        "size_wh": source.status.size_wh,
        **report.to_json(),
    }


def sentence(report: LiveReport, ending: str) -> str:
    """The same for people."""
    return (
        f"keyface: {ending.replace('_', ' ')} after {report.wall_s:.1f} s: {report.frames_out} frames at "
        f"{report.fps_out:.1f} fps, {report.dropped} dropped, {report.people} faces, mosaic in "
        f"{report.redacted_frames} frames, latency {report.age.p50_ms:.0f}/{report.age.p95_ms:.0f} ms (p50/p95)"
    )
