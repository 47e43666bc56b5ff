"""How long the stages of a chain take."""

from __future__ import annotations

import threading
from array import array
from dataclasses import dataclass

import numpy as np

_MOST_KEPT = 16384


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Durations of one stage in milliseconds: percentiles over the last 16,384, count and sum over all."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    total_s: float

    def to_json(self) -> dict[str, float | int]:
        """Rounded to the microsecond."""
        return {
            "count": self.count,
            "p50_ms": round(self.p50_ms, 3),
            "p95_ms": round(self.p95_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "total_s": round(self.total_s, 3),
        }


class DurationLog:
    """Collects durations on one thread; may be read on any. Its memory is bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent_s = array("d")
        self._count = 0
        self._total_s = 0.0

    def add(self, duration_s: float) -> None:
        """Records one duration."""
        with self._lock:
            if len(self._recent_s) < _MOST_KEPT:
                self._recent_s.append(duration_s)
            else:
                self._recent_s[self._count % _MOST_KEPT] = duration_s
            self._count += 1
            self._total_s += duration_s

    def times(self) -> StageTimes:
        """The figures so far; all zero when nothing was recorded."""
        with self._lock:
            recent_ms = np.array(self._recent_s, dtype=np.float64) * 1e3
            count, total_s = self._count, self._total_s
        if not count:
            return StageTimes(0, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = np.percentile(recent_ms, (50, 95, 99))
        return StageTimes(count, float(p50), float(p95), float(p99), total_s)
