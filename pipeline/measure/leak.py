"""Does a face still show who it was? Two questions a face: is it unchanged, is it recognised?

A recogniser may also find two pictures alike because of what is around the face, most of all in tiny
or dark ones. So each face is compared with itself after its inside was destroyed, too: where that
alone comes near the threshold, the bar is raised to half way between it and a perfect match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import Recogniser, inner_ellipse

MIN_FACE_PX = 40
RECOGNISERS_FOR_A_LEAK = 2
_MAX_DIFFERENCE = 3.0  # mean absolute difference of an unchanged face, of 255
_MIN_PSNR_DB = 38.0
_MIN_DETAIL = 0.3
_DESTROYED_SHARE = 0.15  # blur of a destroyed face, in face widths


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to the pixels inside a face.

    Attributes:
        difference: mean absolute difference, [0, 255].
        psnr_db: peak signal to noise ratio of the anonymised face.
        detail: correlation of the fine structure, [-1, 1]; 0 where one side has none.
        is_unchanged: the same pixels to within codec error, with the same fine structure.
    """

    difference: float
    psnr_db: float
    detail: float
    is_unchanged: bool


@dataclass(frozen=True, slots=True)
class Recognition:
    """What one recogniser says of a face.

    Attributes:
        similarity: cosine of original and anonymised face.
        floor: cosine of the original and itself with the face destroyed.
        bar: the threshold that held here.
    """

    similarity: float
    floor: float
    bar: float

    @property
    def is_match(self) -> bool:
        """Recognised as the original person."""
        return self.similarity > self.bar


def measure_change(original_rgb: ImageRgb, anonymised_rgb: ImageRgb, box_xyxy: F32) -> Change | None:
    """Compares the inner ellipse of a face box; None where fewer than 50 px of it are in the picture."""
    height, width = original_rgb.shape[:2]
    low = np.clip(box_xyxy[:2], 0, [width, height]).astype(int)
    high = np.clip(box_xyxy[2:] + 1, 0, [width, height]).astype(int)
    if (high - low).min() < 2:
        return None
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    a, b = original_rgb[window].astype(np.float32), anonymised_rgb[window].astype(np.float32)
    shifted = (box_xyxy - np.tile(low, 2)).astype(np.float32)
    inside = inner_ellipse((a.shape[1], a.shape[0]), shifted)
    if inside.sum() < 50:
        return None
    gap = (a - b)[inside]
    difference = float(np.abs(gap).mean())
    psnr = float(10.0 * np.log10(255.0**2 / max(float((gap**2).mean()), 1e-6)))
    sigma = max(1.5, 0.06 * float(high[0] - low[0]))
    fine_a, fine_b = ((g - cv2.GaussianBlur(g, (0, 0), sigma))[inside] for g in (a.mean(2), b.mean(2)))
    spread = float(fine_a.std()), float(fine_b.std())
    detail = float((fine_a * fine_b).mean() / (spread[0] * spread[1])) if min(spread) > 0.3 else 0.0
    is_same = difference < _MAX_DIFFERENCE or psnr > _MIN_PSNR_DB
    return Change(difference, psnr, detail, is_same and detail > _MIN_DETAIL)


def destroy_face(image_rgb: ImageRgb, box_xyxy: F32) -> ImageRgb:
    """A copy in which the face and a fifth around it are blurred beyond reading."""
    height, width = image_rgb.shape[:2]
    side = float((box_xyxy[2:] - box_xyxy[:2]).max())
    low = np.clip(box_xyxy[:2] - 0.2 * side, 0, [width - 1, height - 1]).astype(int)
    high = np.clip(box_xyxy[2:] + 0.2 * side, low + 1, [width, height]).astype(int)
    copy = image_rgb.copy()
    part = copy[low[1] : high[1], low[0] : high[0]]
    copy[low[1] : high[1], low[0] : high[0]] = cv2.GaussianBlur(part, (0, 0), _DESTROYED_SHARE * side)
    return copy


def bar_for(threshold: float, floor: float) -> float:
    """The cosine to exceed for a match: the threshold, or more where a destroyed face comes near it."""
    return threshold if floor <= 0.8 * threshold else max(threshold, (1.0 + floor) / 2.0)


def is_leak(change: Change, recognitions: Mapping[str, Recognition]) -> bool:
    """Unchanged, or recognised by two (of a single recogniser: by it)."""
    needed = min(RECOGNISERS_FOR_A_LEAK, len(recognitions))
    matches = sum(r.is_match for r in recognitions.values())
    return change.is_unchanged or (needed > 0 and matches >= needed)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One recogniser's unit vectors of a face: original, anonymised, destroyed."""

    original: F32
    anonymised: F32
    destroyed: F32

    def recognition(self, threshold: float) -> Recognition:
        """Compares them."""
        floor = float(self.original @ self.destroyed)
        return Recognition(float(self.original @ self.anonymised), floor, bar_for(threshold, floor))


def embed_pair(
    recognisers: Sequence[Recogniser],
    original_rgb: ImageRgb,
    anonymised_rgb: ImageRgb,
    box_xyxy: F32,
    points_5: F32,
    anonymised_points_5: F32 | None,
) -> dict[str, Embeddings]:
    """Embeddings by recogniser; where the anonymised face was not found, the original's points are used."""
    destroyed_rgb = destroy_face(original_rgb, box_xyxy)
    there = points_5 if anonymised_points_5 is None else anonymised_points_5
    return {
        r.name: Embeddings(
            r.embed(original_rgb, points_5), r.embed(anonymised_rgb, there), r.embed(destroyed_rgb, points_5)
        )
        for r in recognisers
    }
