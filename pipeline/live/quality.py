"""Adaptive quality: what a live chain does less of when the machine cannot hold the wanted rate.

The steps, from the best on; each also does what those before it do:

0. every face is rendered and the whole picture searched in each frame;
1. a face is rendered in every second frame, and laid on the driver anew in each;
2. in every third frame;
3. the whole picture is searched for new faces in every second frame;
4. the picture is searched at three quarters of the size;
5. a face is rendered in every fourth frame, and the picture searched in every third.

Beauty goes first, then the search. No step changes what is done with a face that is known: it is replaced or
mosaicked in every frame. But from step 3 on a *new* face may be seen for one or two frames before it is found, and
from step 4 on faces under about 53 px (instead of 40) may be missed. A track that is young, lost or unsure calls the
detector at once, whatever the step.
"""

from __future__ import annotations

import math
import threading
from array import array
from dataclasses import dataclass

import numpy as np

_WINDOW_S = 1.5
_FIRST_WINDOW_S = 0.5  # until a step holds for the first time: a slow start is felt by everybody
_MOST_AGES = 1024
_SETTLED_S = 60.0  # without a change, after which a step up may be tried as early as at first


@dataclass(frozen=True, slots=True)
class QualityStep:
    """What is done how often; see the module.

    Attributes:
        render_every: frames from one rendering of a face to the next.
        detect_every: frames from one search of the whole picture to the next.
        detect_scale: of the detector's input.
    """

    render_every: int
    detect_every: int
    detect_scale: float


STEPS = (
    QualityStep(1, 1, 1.0),
    QualityStep(2, 1, 1.0),
    QualityStep(3, 1, 1.0),
    QualityStep(3, 2, 1.0),
    QualityStep(3, 2, 0.75),
    QualityStep(4, 3, 0.75),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """When the step changes.

    Attributes:
        target_fps: wanted of the output; where the source gives less, that.
        least_share: of the wanted rate, below which the next lower step is taken.
        max_age_s: the same for the age of what is shown (95th percentile of a window) above this.
        first_hold_s: at the wanted rate before a step up is tried. A trial in vain doubles it,
        longest_hold_s: up to this.
    """

    target_fps: float = 25.0
    least_share: float = 0.93
    max_age_s: float = 0.12
    first_hold_s: float = 8.0
    longest_hold_s: float = 240.0


class QualityGovernor:
    """Chooses the step from what was shown, window by window. Told on one thread, may be read on any."""

    def __init__(self, options: QualityOptions | None = None, n_steps: int = len(STEPS)) -> None:
        self._o = options or QualityOptions()
        self._n_steps = n_steps
        self._lock = threading.Lock()
        self._fixed: int | None = None
        self._step = self._changes = 0
        self._hold_s = self._o.first_hold_s
        self._changed_s: float | None = None
        self._is_trial = False
        self._window_s = _FIRST_WINDOW_S
        self._begin(None, 0)

    @property
    def step(self) -> int:
        """The step in force, 0 is the best."""
        with self._lock:
            return self._step if self._fixed is None else self._fixed

    @property
    def changes(self) -> int:
        """Times that the automatic step changed."""
        with self._lock:
            return self._changes

    def fix(self, step: int | None) -> None:
        """Holds a step; None: automatic again, from the step held."""
        with self._lock:
            if self._fixed is not None and step is None:
                self._step = self._fixed
            self._fixed = step

    def note(self, index: int, age_s: float, now_s: float, *, is_exceptional: bool = False) -> None:
        """One frame was shown.

        Args:
            index: of the frame in its source, so that gaps tell what was dropped.
            age_s: since its capture.
            is_exceptional: this frame says nothing about the usual load: the window begins anew.
        """
        with self._lock:
            if (
                self._fixed is not None
                or self._began_s is None
                or is_exceptional
                or now_s - self._began_s > 3 * _WINDOW_S
            ):
                self._begin(now_s, index)
                return
            self._n_shown += 1
            if len(self._ages_s) < _MOST_AGES:
                self._ages_s.append(age_s)
            if now_s - self._began_s < self._window_s:
                return
            self._judge(now_s, index)
            self._begin(now_s, index)

    def _begin(self, now_s: float | None, index: int) -> None:
        self._began_s, self._first_index, self._n_shown = now_s, index, 0
        self._ages_s = array("d")

    def _judge(self, now_s: float, index: int) -> None:
        assert self._began_s is not None
        passed_s = now_s - self._began_s
        n_captured = max(1, index - self._first_index)
        wanted_fps = min(self._o.target_fps, n_captured / passed_s)
        age_s = float(np.percentile(np.array(self._ages_s), 95))
        is_behind = self._n_shown / passed_s < self._o.least_share * wanted_fps or age_s > self._o.max_age_s
        if not is_behind:
            self._window_s = _WINDOW_S
        since_s = math.inf if self._changed_s is None else now_s - self._changed_s
        if since_s > _SETTLED_S and not is_behind:
            self._hold_s = min(self._hold_s, max(self._o.first_hold_s, self._hold_s / 2))
        if is_behind and self._step + 1 < self._n_steps:
            if self._is_trial:
                self._hold_s = min(2 * self._hold_s, self._o.longest_hold_s)
            self._move(1, now_s)
        elif not is_behind and self._step > 0 and since_s >= self._hold_s:
            self._move(-1, now_s)
        elif not is_behind and since_s >= 2 * _WINDOW_S:
            self._is_trial = False

    def _move(self, by: int, now_s: float) -> None:
        self._is_trial = by < 0
        self._changed_s = now_s
        self._step += by
        self._changes += 1
