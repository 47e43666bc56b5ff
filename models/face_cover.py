"""How much of a generated face is covered: by hair above all, but also by hard shadows and blemishes.

Counts the pixels of the upper face, without eyes, brows and nose, whose colour is far from that of the cheeks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating[Any]]

FAR = 26.0  # colour distance, lightness counted 0.6, the two colour axes 1.3
CHEEKS = (50, 205, 280, 425, 118, 347)  # mesh points of skin that is seldom covered
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358)
UPPER_LIP_TOP = 2  # below it mouth and beard would be counted


@dataclass(frozen=True, slots=True)
class Outlines:
    """Mesh indices: the face's oval in order; each eye with its brow, in any order."""

    oval: npt.NDArray[np.integer[Any]]
    eyes_with_brows: tuple[npt.NDArray[np.integer[Any]], ...]


def covered_share(image_rgb: U8, points_xy: Points, outlines: Outlines) -> float:
    """Share [0, 1] of the looked-at skin that is far in colour from the cheeks.

    Args:
        image_rgb: (256, 256, 3).
        points_xy: (478, 2) px.
    """
    skin = _skin(image_rgb.shape[:2], points_xy, outlines)
    lab = cv2.cvtColor(cv2.GaussianBlur(image_rgb, (0, 0), 1), cv2.COLOR_RGB2LAB).astype(np.float32)
    limit = np.array(image_rgb.shape[1::-1]) - 1
    x, y = points_xy[list(CHEEKS)].astype(int).clip(0, limit).T
    apart = (lab - np.median(lab[y, x], 0)) * np.array([0.6, 1.3, 1.3], np.float32)
    is_far = np.sqrt((apart**2).sum(-1)) > FAR
    return float((is_far & skin).sum() / max(int(skin.sum()), 1))


def _skin(size_hw: tuple[int, ...], points_xy: Points, outlines: Outlines) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size_hw, np.uint8)
    centre = points_xy[outlines.oval].mean(0)
    cv2.fillPoly(mask, [((points_xy[outlines.oval] - centre) * 0.95 + centre).astype(np.int32)], 1)
    for index in outlines.eyes_with_brows:
        eye = points_xy[index]
        grown = (eye - eye.mean(0)) * 1.25 + eye.mean(0)
        cv2.fillConvexPoly(mask, cv2.convexHull(grown.astype(np.int32)), 0)
    mask[max(int(points_xy[UPPER_LIP_TOP, 1]), 0) :] = 0
    cv2.fillConvexPoly(mask, cv2.convexHull(points_xy[list(NOSE)].astype(np.int32)), 0)
    return mask > 0
