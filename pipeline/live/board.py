"""The figures of a running stream, for everybody who shows them: console, status page, metrics, logs.

The caller's thread of `run_live` updates the board about four times a second; any thread reads it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyface.pipeline.live.control import LiveControls

if TYPE_CHECKING:
    from keyface.pipeline.live.run import LiveReport

_RATE_OVER_S = 2.0
_STANDSTILL_S = 10.0  # without a frame, after which the stream does not count as well


@dataclass(frozen=True, slots=True)
class Rates:
    """Frames a second over about the last two seconds: captured, shown, dropped at the front."""

    fps_in: float = 0.0
    fps_out: float = 0.0
    fps_dropped: float = 0.0


class LiveBoard:
    """An `on_tick` of `run_live` that remembers the last report.

    Args:
        controls: of the stream.
        source: label of the source, without secrets.
        problem: says what the last loss of the source was, '' when there was none.
        clock_s: as `time.monotonic`.

    Attributes:
        has_ended: the stream is over; the figures are final.
    """

    def __init__(
        self,
        controls: LiveControls,
        *,
        source: str = "",
        problem: Callable[[], str] = str,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.controls = controls
        self.source = source
        self.has_ended = False
        self._problem = problem
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._report: LiveReport | None = None
        self._last_output_s = clock_s()
        self._past: deque[tuple[float, int, int, int]] = deque()

    def __call__(self, report: LiveReport) -> None:
        """Takes the newest report."""
        now = (self._clock_s(), report.frames_in, report.frames_out, report.dropped)
        with self._lock:
            if self._report is None or self._report.frames_out != report.frames_out:
                self._last_output_s = now[0]
            self._report = report
            self._past.append(now)
            while len(self._past) > 2 and now[0] - self._past[1][0] >= _RATE_OVER_S:
                self._past.popleft()

    @property
    def report(self) -> LiveReport | None:
        """The newest report, None before the first."""
        with self._lock:
            return self._report

    @property
    def problem(self) -> str:
        """What the last loss of the source was, one sentence without secrets; '' when there was none."""
        return self._problem()

    @property
    def is_well(self) -> bool:
        """True while the source is live and frames come out, or a pause holds them back."""
        with self._lock:
            report, last_s = self._report, self._last_output_s
        if report is None or report.state != "live" or self.has_ended:
            return False
        return self.controls.mode == "slate" or self._clock_s() - last_s < _STANDSTILL_S

    def rates(self) -> Rates:
        """Of about the last two seconds; zeros before that."""
        with self._lock:
            if len(self._past) < 2:
                return Rates()
            first, last = self._past[0], self._past[-1]
        passed_s = last[0] - first[0]
        if passed_s <= 0:
            return Rates()
        return Rates(*((last[k] - first[k]) / passed_s for k in (1, 2, 3)))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values for `json.dumps`: no names, no embeddings, no URL with secrets."""
        report, rates = self.report, self.rates()
        return {
            "source": self.source,
            "state": "ended" if self.has_ended else "starting" if report is None else report.state,
            "problem": self.problem,
            "controls": {**self.controls.state().to_json(), "quality_steps": self.controls.quality_steps},
            "rates": {"fps_in": round(rates.fps_in, 2), "fps_out": round(rates.fps_out, 2)},
            "faces": 0 if report is None else report.faces,
            "report": None if report is None else report.to_json(),
        }
