"""Measures how a live source comes back from losses: a server is made to fail again and again, at random.

Meant as an `on_tick` of `run_live`, so that it works beside a whole chain or beside the source alone:

    drops = DropRun(source, server, n_drops=50)
    run_live(source, sinks, parts, on_tick=drops)     # raises KeyboardInterrupt in there when it is done
    print(drops.to_json())
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from keyface.pipeline.frame import Frame
from keyface.pipeline.live.source import LiveSource

DROP_KINDS = ("kill", "freeze", "garbage", "noise")

_STEADY_S = 1.0  # of pictures before a drop, and again after it
_LONGEST_WAIT_S = 60.0  # for a picture; then the drop counts as not survived
_OLD_S = 0.5  # by which a picture may be older than the server's return


class FailingServer(Protocol):
    """A server that can be made to fail."""

    def fail(self, how: str) -> None:
        """Fails from now on; `how` is one of the kinds given to `DropRun`."""

    def restore(self) -> None:
        """Ends the failure; returns when it serves again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """One loss.

    Attributes:
        kind: how the server failed.
        down_s: from its failure to its return.
        back_s: from its return to the first new, sound picture; None: none came.
        slates: shown from the failure to that picture.
        age_before_ms, age_after_ms: median age of pictures when they leave the source, over a second; None:
            the age cannot be known.
    """

    kind: str
    down_s: float
    back_s: float | None
    slates: int
    age_before_ms: float | None
    age_after_ms: float | None


class DropRun:
    """Makes a server fail `n_drops` times, for random times, and measures each return.

    Args:
        source: not yet read; its `on_frame` is taken.
        server: serves it.
        kinds: of failure, drawn at random but each about as often.
        longest_down_s: failures last from 0.2 s to this.
        age_of_s: how old the picture in a frame is at a time of `time.monotonic()`, None when it cannot be
            read off; for sources that show when each picture was sent.
        seed: of what is drawn.

    Attributes:
        drops: what was measured so far.
    """

    def __init__(
        self,
        source: LiveSource,
        server: FailingServer,
        *,
        n_drops: int = 50,
        kinds: Sequence[str] = DROP_KINDS,
        longest_down_s: float = 8.0,
        age_of_s: Callable[[Frame, float], float | None] | None = None,
        seed: int = 0,
    ) -> None:
        if n_drops < 1 or not kinds or longest_down_s < 0.2:
            raise ValueError(f"drops: got {n_drops} of kinds {list(kinds)} up to {longest_down_s:g} s")
        self.drops: list[Drop] = []
        self._server, self._age_of_s = server, age_of_s
        draw = random.Random(seed)
        order = [kinds[number % len(kinds)] for number in range(n_drops)]
        draw.shuffle(order)
        self._plan = [(kind, draw.uniform(0.2, longest_down_s), draw.uniform(0, 1)) for kind in order]
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, float | None]] = deque(maxlen=2000)  # (arrival, age)
        self._step: Callable[[int], None] = self._wait_for_steadiness
        self._since_s = time.monotonic()
        self._failed_s = self._returned_s = 0.0
        self._back_s: float | None = None
        self._age_before_ms: float | None = None
        self._slates_before = self._slates = 0
        source.on_frame = self._see

    @property
    def is_done(self) -> bool:
        """True when all drops are over."""
        return len(self.drops) == len(self._plan)

    def __call__(self, report: Any = None) -> None:
        """To be called a few times a second; `report` is that of `run_live`, or None.

        Raises:
            KeyboardInterrupt: all drops are over; this ends `run_live` well.
        """
        if self.is_done:
            raise KeyboardInterrupt
        self._step(0 if report is None else report.slates)

    def to_json(self) -> dict[str, Any]:
        """Figures over all drops, and each of them."""
        back_s = sorted(drop.back_s for drop in self.drops if drop.back_s is not None)
        grown_ms = [
            drop.age_after_ms - drop.age_before_ms
            for drop in self.drops
            if drop.age_after_ms is not None and drop.age_before_ms is not None
        ]
        ages_ms = [drop.age_after_ms for drop in self.drops if drop.age_after_ms is not None]
        return {
            "drops": len(self.drops),
            "lost_for_good": len(self.drops) - len(back_s),
            "back_s": {
                "p50": _share(back_s, 0.5), "p95": _share(back_s, 0.95), "max": _share(back_s, 1.0),
                "within_3_s": sum(value <= 3.0 for value in back_s),
            },
            "age_ms": {"p50": _share(sorted(ages_ms), 0.5), "max": _share(sorted(ages_ms), 1.0)},
            "age_growth_ms": {"p50": _share(sorted(grown_ms), 0.5), "max": _share(sorted(grown_ms), 1.0)},
            "without_slate": sum(drop.slates == 0 for drop in self.drops),
            "each": [asdict(drop) for drop in self.drops],
        }  # fmt: skip

    # The steps, each called until it sets the next one.

    def _wait_for_steadiness(self, slates: int) -> None:
        more_s = self._plan[len(self.drops)][2]
        recent = self._recent(_STEADY_S)
        if len(recent) < 5 or time.monotonic() - self._since_s < _STEADY_S + more_s:
            if time.monotonic() - self._since_s > _LONGEST_WAIT_S:
                raise TimeoutError("drops: the source does not get steady")
            return
        self._age_before_ms, self._slates_before = _median_ms(recent), slates
        self._failed_s = time.monotonic()
        self._server.fail(self._plan[len(self.drops)][0])
        self._step = self._wait_for_restoring

    def _wait_for_restoring(self, slates: int) -> None:
        if time.monotonic() - self._failed_s < self._plan[len(self.drops)][1]:
            return
        self._server.restore()
        self._returned_s = time.monotonic()
        self._step = self._wait_for_a_picture

    def _wait_for_a_picture(self, slates: int) -> None:
        with self._lock:
            fresh = [(at_s, age) for at_s, age in self._seen if at_s > self._returned_s]
        new = [at_s for at_s, age in fresh if age is None or at_s - age > self._returned_s - _OLD_S]
        if not new and time.monotonic() - self._returned_s < _LONGEST_WAIT_S:
            return
        self._back_s = new[0] - self._returned_s if new else None
        self._slates = slates - self._slates_before
        self._since_s = time.monotonic()
        self._step = self._wait_for_the_age

    def _wait_for_the_age(self, slates: int) -> None:
        # What was sent while the source examined the stream comes in a burst of old pictures at first.
        if time.monotonic() - self._since_s < 2 * _STEADY_S:
            return
        kind = self._plan[len(self.drops)][0]
        self.drops.append(
            Drop(
                kind=kind, down_s=self._returned_s - self._failed_s, back_s=self._back_s, slates=self._slates,
                age_before_ms=self._age_before_ms, age_after_ms=_median_ms(self._recent(_STEADY_S)),
            )
        )  # fmt: skip
        self._since_s = time.monotonic()
        self._step = self._wait_for_steadiness

    def _recent(self, span_s: float) -> list[tuple[float, float | None]]:
        with self._lock:
            return [item for item in self._seen if time.monotonic() - item[0] < span_s]

    def _see(self, frame: Frame) -> None:
        """On the source's thread."""
        if frame.is_suspect:
            return
        now_s = time.monotonic()
        age = None if self._age_of_s is None else self._age_of_s(frame, now_s)
        with self._lock:
            self._seen.append((now_s, age))


def _median_ms(seen: Sequence[tuple[float, float | None]]) -> float | None:
    ages = [age for _, age in seen if age is not None]
    return 1e3 * statistics.median(ages) if ages else None


def _share(ordered: Sequence[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
