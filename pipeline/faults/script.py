"""What a fault run films and what it breaks, frame by frame, decided by a seed alone.

The pictures are frames of clips, cut, switched and damaged; the faults are those that a live chain may meet. Two
limits are those that the chain promises: right after a new scene, where nobody has seen a face yet, a burst of
missed detections ends within `live.LiveOptions.settle_s`; elsewhere, on faces that are tracked, bursts last up to
3 s, and up to 1 s where the landmarks fail with the detector.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

FPS = 25.0

FaultKind = Literal[
    "missed_detections", "missed_everything", "one_face_missed", "exception_detector", "exception_landmarks",
    "exception_analyse", "exception_reenact", "exception_paste", "stall", "nan_boxes", "nan_landmarks",
    "nan_place", "cut", "switch", "size_change", "lost_frames", "damaged", "noise", "mosaic_mode", "pause",
    "boxes", "quality", "key",
]  # fmt: skip

_SCENE = ("cut", "switch", "size_change", "lost_frames")
# Kind -> (mean frames between two, shortest and longest run in frames).
_RATES: dict[FaultKind, tuple[float, int, int]] = {
    "missed_detections": (90, 1, 75),
    "missed_everything": (250, 1, 25),
    "one_face_missed": (200, 1, 50),
    "exception_detector": (300, 1, 8),
    "exception_landmarks": (300, 1, 8),
    "exception_analyse": (400, 1, 10),
    "exception_reenact": (250, 1, 10),
    "exception_paste": (250, 1, 10),
    "stall": (700, 1, 1),
    "nan_boxes": (300, 1, 5),
    "nan_landmarks": (300, 1, 5),
    "nan_place": (300, 1, 5),
    "cut": (180, 1, 1),
    "switch": (700, 1, 1),
    "size_change": (1500, 1, 1),
    "lost_frames": (300, 1, 1),
    "damaged": (250, 1, 15),
    "noise": (600, 1, 4),
    "mosaic_mode": (900, 20, 60),
    "pause": (1200, 10, 30),
    "boxes": (1200, 20, 60),
    "quality": (250, 1, 1),
    "key": (1500, 1, 1),
}
_MOST_FRAMES_IN_NEW_SCENE = 23  # of missed detections, under 1 s at FPS
# One after the other such faults may hide a face for so long, 5 s at FPS; the chain loses one after 6 s.
_MOST_FRAMES_MISSED = 125
_MISSING: tuple[FaultKind, ...] = ("missed_detections", "missed_everything", "one_face_missed")


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame to be filmed.

    Attributes:
        clip, number: which picture.
        pts_s: its time.
        is_tall: shown in another size.
        faults: what goes wrong with it.
        begun: the faults of these that begin with it.
    """

    clip: int
    number: int
    pts_s: float
    is_tall: bool
    faults: frozenset[FaultKind]
    begun: frozenset[FaultKind]


@dataclass(slots=True)
class _State:
    clip: int = 0
    number: int = 0
    pts_s: float = 0.0
    is_tall: bool = False
    left: dict[FaultKind, int] = field(default_factory=dict)
    since_scene: int = 0
    missed: int = 0


def fault_script(seed: int, n_frames: int, clip_lengths: list[int]) -> Iterator[Shot]:
    """The shots of one run. The same seed gives the same run.

    Args:
        clip_lengths: frames of each clip; one that ends begins anew, which counts as a cut.
    """
    chance = random.Random(seed)
    state = _State(clip=chance.randrange(len(clip_lengths)))
    for index in range(n_frames):
        begun = _begin(chance, state) if index else set()
        if index:
            _advance(chance, state, begun, clip_lengths)
        _bound_missing(state, begun)
        faults = frozenset(begun | {kind for kind, left in state.left.items() if left > 0})
        yield Shot(state.clip, state.number, state.pts_s, state.is_tall, faults, frozenset(begun))
        state.left = {kind: left - 1 for kind, left in state.left.items() if left > 1}
        state.since_scene += 1


def _bound_missing(state: _State, begun: set[FaultKind]) -> None:
    """A frame in which faces can be found ends each run of frames in which they cannot."""
    is_missing = any(kind in begun or state.left.get(kind, 0) > 0 for kind in _MISSING)
    state.missed = state.missed + 1 if is_missing else 0
    if state.missed > _MOST_FRAMES_MISSED:
        state.missed = 0
        for kind in _MISSING:
            state.left.pop(kind, None)
            begun.discard(kind)


def _begin(chance: random.Random, state: _State) -> set[FaultKind]:
    begun: set[FaultKind] = set()
    for kind, (every, shortest, longest) in _RATES.items():
        if kind in state.left or chance.random() >= 1 / every:
            continue
        begun.add(kind)
        # Short runs are the most frequent, long ones do happen.
        length = round(shortest * (longest / shortest) ** chance.random())
        if length > 1 or longest > 1:
            state.left[kind] = length
    return begun


def _advance(chance: random.Random, state: _State, begun: set[FaultKind], lengths: list[int]) -> None:
    state.number += 1
    step_s = 1 / FPS
    is_new = state.number >= lengths[state.clip] or bool(begun & set(_SCENE))
    if begun & {"cut", "switch", "size_change"}:
        state.clip = chance.randrange(len(lengths))
        state.number = chance.randrange(lengths[state.clip])
    if "switch" in begun:
        step_s += chance.uniform(1.0, 3.0)
    if "size_change" in begun:
        state.is_tall = not state.is_tall
    if "lost_frames" in begun:
        lost = chance.randint(5, 40)
        state.number += lost
        step_s += lost / FPS
    if state.number >= lengths[state.clip]:
        state.number = 0
    state.pts_s += step_s
    # A picture of noise is a scene of its own, and so is what follows it.
    if is_new or "noise" in begun or "noise" in state.left:
        state.since_scene = 0
    most = max(0, _MOST_FRAMES_IN_NEW_SCENE - state.since_scene)
    for kind in _MISSING:
        if kind not in state.left and kind not in begun:
            continue
        is_early = state.since_scene <= _MOST_FRAMES_IN_NEW_SCENE
        limit = 0 if kind == "one_face_missed" else most
        if is_early and state.left.get(kind, 0) > limit:
            state.left[kind] = limit
            if not limit:
                state.left.pop(kind)
                begun.discard(kind)
