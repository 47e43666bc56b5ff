"""Finds the first frame after a scene cut."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb

_THUMBNAIL_WH = (48, 32)
_RECENT = 12


class SceneCutDetector:
    """Compares tiny pictures of neighbouring frames.

    A cut is a frame whose mean difference from the one before is large, stands out from the recent frames'
    differences (so that a moving camera is no cut), and whose histogram of colours is another as well (so
    that a person who jumps through the picture is none).

    Args:
        min_difference: mean absolute difference, grey levels.
        min_ratio: to the median of the recent differences.
        max_overlap: shared area of the two colour histograms, [0, 1].
    """

    def __init__(
        self, *, min_difference: float = 18.0, min_ratio: float = 4.0, max_overlap: float = 0.7
    ) -> None:
        self._min_difference = min_difference
        self._min_ratio = min_ratio
        self._max_overlap = max_overlap
        self.reset()

    def reset(self) -> None:
        """Forgets all frames; the next one is no cut."""
        self._last: npt.NDArray[np.float32] | None = None
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._was_suspect = False

    def is_cut(self, image_rgb: ImageRgb, *, is_suspect: bool = False) -> bool:
        """Takes the next frame, uint8 (H, W, 3); True when it begins another scene.

        Args:
            is_suspect: the picture is damaged: how it differs says nothing of how the scene moves.
        """
        tiny = _thumbnail(image_rgb)
        last, self._last = self._last, tiny
        if last is None:
            return False
        difference = float(np.abs(tiny - last).mean())
        usual = float(np.median(self._recent)) if self._recent else 0.0
        is_cut = (
            difference > self._min_difference
            and difference > self._min_ratio * usual
            and _overlap(tiny, last) < self._max_overlap
        )
        if is_cut:
            self._recent.clear()
        elif not is_suspect and not self._was_suspect:
            self._recent.append(difference)
        self._was_suspect = is_suspect
        return is_cut


def _thumbnail(image_rgb: ImageRgb) -> npt.NDArray[np.float32]:
    height, width = image_rgb.shape[:2]
    # Every n-th pixel first: averaging all of a 4K frame would cost more than the rest of the stage.
    every = max(1, min(height, width) // 128)
    sparse = np.ascontiguousarray(image_rgb[::every, ::every])
    return np.asarray(cv2.resize(sparse, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA), np.float32)


def _overlap(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Shared area of the histograms over 5 x 5 x 5 colours."""
    ha, hb = (np.bincount(_colour_index(t), minlength=125) / t[..., 0].size for t in (a, b))
    return float(np.minimum(ha, hb).sum())


def _colour_index(tiny: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    level = np.minimum(tiny / 51.2, 4).astype(np.intp)
    index: npt.NDArray[np.intp] = level @ np.array([25, 5, 1])
    return index.ravel()
