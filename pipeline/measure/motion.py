"""Do pose and expression of the anonymised face follow the original's?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, FaceMesh

_INDEX = {name: index for index, name in enumerate(BLENDSHAPE_NAMES)}
_MIN_SAMPLES = 10
_MIN_SPREAD = 0.03  # below it an expression does not vary and a correlation says nothing


def _both(shapes: F32, stem: str) -> float:
    return float(shapes[_INDEX[stem + "Left"]] + shapes[_INDEX[stem + "Right"]]) / 2


def _gaze_h(shapes: F32) -> float:
    """> 0 to the subject's left, [-1, 1]."""
    out_left, in_left, in_right, out_right = (
        float(shapes[_INDEX[f"eyeLook{k}"]]) for k in ("OutLeft", "InLeft", "InRight", "OutRight")
    )
    return (out_left - in_left + in_right - out_right) / 2


EXPRESSIONS: dict[str, Callable[[F32], float]] = {
    "jaw_open": lambda s: float(s[_INDEX["jawOpen"]]),
    "blink": lambda s: _both(s, "eyeBlink"),
    "smile": lambda s: _both(s, "mouthSmile"),
    "gaze_h": _gaze_h,
    "gaze_v": lambda s: _both(s, "eyeLookUp") - _both(s, "eyeLookDown"),
    "pout": lambda s: float(s[_INDEX["mouthPucker"]]),
    "brow": lambda s: float(s[_INDEX["browInnerUp"]]),
}


@dataclass(frozen=True, slots=True)
class MotionPair:
    """Meshes of one face in one frame, and its track."""

    track: int
    original: FaceMesh
    anonymised: FaceMesh


@dataclass(frozen=True)
class Motion:
    """How well motion is kept.

    Attributes:
        pose_error_ypr_deg: mean absolute yaw, pitch, roll error, degrees; None without pairs.
        correlation: by expression, over time, weighted over tracks; only expressions that vary.
        offset: by expression, anonymised minus original, mean; shows a frozen smile.
        blendshape_error: mean absolute error over all 52, [0, 1].
        n_pairs: faces with a mesh on both sides.
    """

    pose_error_ypr_deg: tuple[float, float, float] | None
    correlation: dict[str, float] = field(default_factory=dict)
    offset: dict[str, float] = field(default_factory=dict)
    blendshape_error: float | None = None
    n_pairs: int = 0

    @property
    def mean_correlation(self) -> float | None:
        """Mean over the expressions that vary."""
        return float(np.mean(list(self.correlation.values()))) if self.correlation else None


def measure_motion(pairs: Sequence[MotionPair]) -> Motion:
    """Pose errors, correlations per track over time, and offsets."""
    if not pairs:
        return Motion(None)
    pose = np.array([p.anonymised.pose_ypr_deg - p.original.pose_ypr_deg for p in pairs])
    yaw, pitch, roll = np.abs((pose + 180.0) % 360.0 - 180.0).mean(0)
    shapes = np.array([np.abs(p.anonymised.blendshapes - p.original.blendshapes).mean() for p in pairs])
    offset = {
        name: float(np.mean([read(p.anonymised.blendshapes) - read(p.original.blendshapes) for p in pairs]))
        for name, read in EXPRESSIONS.items()
    }
    return Motion(
        (float(yaw), float(pitch), float(roll)),
        _correlations(pairs),
        offset,
        float(shapes.mean()),
        len(pairs),
    )


def _correlations(pairs: Sequence[MotionPair]) -> dict[str, float]:
    found: dict[str, list[tuple[float, int]]] = {}
    for track in sorted({p.track for p in pairs}):
        own = [p for p in pairs if p.track == track]
        if len(own) < _MIN_SAMPLES:
            continue
        for name, read in EXPRESSIONS.items():
            a = np.array([read(p.original.blendshapes) for p in own])
            b = np.array([read(p.anonymised.blendshapes) for p in own])
            if a.std() > _MIN_SPREAD:
                value = float(np.corrcoef(a, b)[0, 1]) if b.std() > 1e-6 else 0.0
                found.setdefault(name, []).append((value, len(own)))
    return {
        name: float(np.average([v for v, _ in rows], weights=[n for _, n in rows]))
        for name, rows in found.items()
    }


def measure_consistency(tracks: Sequence[int], embeddings: Sequence[F32]) -> float | None:
    """Mean cosine of a track's (D,) unit embeddings to their mean; tracks of five faces or more."""
    values: list[float] = []
    for track in sorted(set(tracks)):
        own = np.array([e for e, t in zip(embeddings, tracks, strict=True) if t == track])
        if len(own) >= 5:
            mean = own.mean(0)
            values += [float(v) for v in own @ (mean / max(float(np.linalg.norm(mean)), 1e-9))]
    return float(np.mean(values)) if values else None
