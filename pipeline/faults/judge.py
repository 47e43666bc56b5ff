"""Counts raw faces at the sink, with a detector and recognisers that the chain does not use.

Where the faces are is found in the clips beforehand by the independent detector. In each frame that comes out,
every one of these places is compared with what went in: a face is raw when its pixels are those of the original, or
when two recognisers take it for the person. Pixels are compared in all frames; recognisers look at a sample, and
wherever the pixels give the least reason to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keyface.pipeline.face import F32, Detection
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import FindsFaces, Recogniser, inner_ellipse
from keyface.pipeline.measure.leak import MIN_FACE_PX, Embeddings, embed_pair, measure_change

_RAW_SHARE = 0.5  # of a face's pixels exactly as they were
_DOUBTFUL_SHARE = 0.2
_DOUBTFUL_DIFFERENCE = 6.0  # mean, of 255
_SAME_PLACE = 0.3  # IoU
_FLAT_LEVELS = 4.0
_MOST_EXAMPLES = 50


@dataclass(frozen=True, slots=True)
class Filmed:
    """A picture that went into the chain, and the faces in it: those of `MIN_FACE_PX` and more."""

    image_rgb: ImageRgb
    faces: tuple[Detection, ...]
    note: dict[str, Any]


@dataclass(slots=True)
class LeakCount:
    """What was seen so far.

    Attributes:
        frames, slates: that came out.
        faces: places looked at, summed over frames.
        raw_frames: frames with at least one raw face; unchanged, recognised: faces that were raw for that reason.
        looked: faces that recognisers looked at; matched: recogniser -> faces that it took for the person.
        examples: the first raw ones, for whoever looks into it.
    """

    frames: int = 0
    slates: int = 0
    faces: int = 0
    raw_frames: int = 0
    unchanged: int = 0
    recognised: int = 0
    looked: int = 0
    matched: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: getattr(self, name) for name in LeakCount.__dataclass_fields__}


def find_judged_faces(detector: FindsFaces, image_rgb: ImageRgb) -> tuple[Detection, ...]:
    """The faces that count."""
    found = detector.detect(image_rgb)
    return tuple(d for d in found if float((d.box_xyxy[2:] - d.box_xyxy[:2]).max()) >= MIN_FACE_PX)


class LeakJudge:
    """Compares what came out with what went in.

    Args:
        recognisers: all that are asked; two must agree, or the only one. None for generated people, who are all
            alike to recognisers: then pixels alone count.
        look_every: frames from one look of the recognisers to the next.
    """

    def __init__(
        self, detector: FindsFaces, recognisers: Sequence[Recogniser], *, look_every: int = 40
    ) -> None:
        self._detector, self._recognisers, self._look_every = detector, tuple(recognisers), look_every
        self.count = LeakCount(matched={r.name: 0 for r in self._recognisers})

    def see(self, image_rgb: ImageRgb, filmed: Filmed | None) -> bool:
        """One frame; None: a slate, which shows nothing that was filmed. True when a raw face is in it."""
        if filmed is None:
            self.count.slates += 1
            return False
        self.count.frames += 1
        is_sampled = self.count.frames % self._look_every == 0
        reasons = [self._judge(image_rgb, filmed, face, is_sampled) for face in filmed.faces]
        is_raw = any(reasons)
        self.count.raw_frames += is_raw
        if is_raw and len(self.count.examples) < _MOST_EXAMPLES:
            self.count.examples.append({**filmed.note, "why": sorted(filter(None, reasons))})
        return is_raw

    def _judge(self, image_rgb: ImageRgb, filmed: Filmed, face: Detection, is_sampled: bool) -> str:
        self.count.faces += 1
        if image_rgb.shape != filmed.image_rgb.shape:
            raise ValueError(f"leak judge: got {image_rgb.shape}, went in as {filmed.image_rgb.shape}")
        share, difference = _sameness(filmed.image_rgb, image_rgb, face.box_xyxy)
        change = None
        if share > _DOUBTFUL_SHARE or difference < _DOUBTFUL_DIFFERENCE:
            change = measure_change(filmed.image_rgb, image_rgb, face.box_xyxy)
        if share > _RAW_SHARE or (change is not None and change.is_unchanged):
            self.count.unchanged += 1
            return "unchanged"
        has_reason = is_sampled or change is not None
        if self._recognisers and has_reason and self._is_recognised(image_rgb, filmed, face):
            self.count.recognised += 1
            return "recognised"
        return ""

    def _is_recognised(self, image_rgb: ImageRgb, filmed: Filmed, face: Detection) -> bool:
        self.count.looked += 1
        points_5 = _points_there(self._detector.detect(image_rgb), face)
        seen = embed_pair(
            self._recognisers, filmed.image_rgb, image_rgb, face.box_xyxy, face.points_5, points_5
        )
        n_matches = 0
        for recogniser in self._recognisers:
            embeddings: Embeddings = seen[recogniser.name]
            if embeddings.recognition(recogniser.threshold).is_match:
                self.count.matched[recogniser.name] += 1
                n_matches += 1
        return n_matches >= min(2, len(self._recognisers))


def _sameness(raw_rgb: ImageRgb, now_rgb: ImageRgb, box_xyxy: F32) -> tuple[float, float]:
    """Inside the ellipse of a face: the share of pixels exactly as they were, and the mean absolute difference. A
    flat patch is the same whatever one does to it: (0, 255)."""
    height, width = raw_rgb.shape[:2]
    x0, y0 = (int(v) for v in np.clip(box_xyxy[:2], 0, [width, height]))
    x1, y1 = (int(v) for v in np.clip(box_xyxy[2:] + 1, 0, [width, height]))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return 0.0, 255.0
    inside = inner_ellipse((x1 - x0, y1 - y0), np.asarray(box_xyxy - np.array([x0, y0, x0, y0]), np.float32))
    raw, now = raw_rgb[y0:y1, x0:x1][inside], now_rgb[y0:y1, x0:x1][inside]
    if len(raw) < 16 or float(raw.std()) < _FLAT_LEVELS:
        return 0.0, 255.0
    gap = np.abs(raw.astype(np.int16) - now)
    return float((gap == 0).all(1).mean()), float(gap.mean())


def _points_there(found: Sequence[Detection], face: Detection) -> F32 | None:
    if not found:
        return None
    overlaps = iou_matrix(face.box_xyxy[None], np.stack([d.box_xyxy for d in found]))[0]
    best = int(overlaps.argmax())
    return found[best].points_5 if overlaps[best] >= _SAME_PLACE else None
