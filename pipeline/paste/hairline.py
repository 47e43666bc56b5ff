"""Hair over the face: the driver's is covered, and the virtual person's gives way to skin.

Fringe, hairline and the sides of the forehead tell recognisers nearly as much of a person as the features do:
leaving the driver's hair in front of the pasted face doubled its likeness to the driver. So the mask
reaches beyond the outline, into the hair (`mask.widened`), and nothing of the driver's is let through. The virtual
person's own hair would hang in the air there, since the hair above it is the driver's: skin is painted over it.

Hair is told from skin by darkness: the log luminance of the source's skin is fitted as a plane over the face
(robustly, so that hair itself does not count), and what of the relit virtual face is much darker than that, above
the eyes' line or along the outline, is hair. Brows are as dark: near them only what is thicker than a brow counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.paste.mask import Region
from keyface.pipeline.paste.place import LEFT_BROW, LEFT_EYE, LIPS, RIGHT_BROW, RIGHT_EYE, face_width

# Log luminance below skin where hair begins, and where it is certain.
_DARKER = (0.30, 0.60)
_FOREHEAD_DARKER = (0.12, 0.35)  # there is nothing but skin and hair, so the lightest strand counts
_THICK = 0.14  # sides of the grid: more than a brow's and an eye's height together
_PLANES_SIDE = 32
_FOREHEAD_RAMP = 0.12  # face widths from the brows to where the forehead begins
_UPPER = (0.07, 0.16)  # face widths above the brows from where on, and where fully, the forehead is painted
_PAINT_SPREAD = 0.11  # sigma of the skin that is painted over virtual hair, in sides of the grid
_FAR = 0.003  # weight of the average skin
_CHIN, _FOREHEAD = 152, 10
_FLOOR = 6.0


def skin_level(luma: F32, skin: F32, uv: F32, *, stiffness: float = 1.0, rounds: int = 2) -> F32 | None:
    """(n, n) log luminance that skin has at each place, a plane over the face; None with too little skin.

    Args:
        luma: (n, n) levels.
        skin: (n, n) [0, 1].
        uv: (n, n, 2) face coordinates.
        stiffness: what holds the plane level; rounds: how often it is fitted to what lay near it before.
    """
    seen = skin > 0.3
    if int(seen.sum()) < 30:
        return None
    design = np.column_stack([np.ones(int(seen.sum())), uv[seen]])
    target = np.log(luma[seen] + _FLOOR)
    weight = skin[seen] * (target > np.median(target) - 0.5)
    for _ in range(rounds):
        weighted = design * weight[:, None]
        normal = weighted.T @ design + np.diag([1e-3, stiffness, stiffness]) * (weight.sum() / 100)
        plane = np.linalg.solve(normal, weighted.T @ target)
        weight = skin[seen] / (1 + ((target - design @ plane) / 0.15) ** 2)
    return np.asarray(plane[0] + uv @ plane[1:], np.float32)


def darkness(luma: npt.NDArray[Any], skin_log: F32, limits: tuple[float, float]) -> F32:
    """[0, 1], same size as `luma`: 1 where it lies below the skin's log luminance by the upper limit."""
    depth = skin_log - cv2.log(luma.astype(np.float32) + _FLOOR)
    return np.asarray(np.clip((depth - limits[0]) * (1 / (limits[1] - limits[0])), 0, 1), np.float32)


def above_eyes(grid_xy: F32, driver_xy: npt.NDArray[Any]) -> F32:
    """[0, 1] for (h, w, 2) frame px: 1 above the line of the eyes, whatever the roll."""
    eyes = (driver_xy[RIGHT_EYE].mean(0) + driver_xy[LEFT_EYE].mean(0)) / 2
    up = driver_xy[_FOREHEAD] - driver_xy[_CHIN]
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    height = ((grid_xy - eyes) @ up) / max(face_width(driver_xy), 1e-6)
    return np.asarray(np.clip((height + 0.06) / 0.08, 0, 1), np.float32)


def zone_planes(region: Region, driver_xy: npt.NDArray[Any]) -> F32:
    """(h, w, 3) [0, 1] on the work grid: above the brows, above the eyes, and the upper forehead; whatever the
    roll."""
    grid = region.frame_grid((_PLANES_SIDE, _PLANES_SIDE))
    high = above_eyes(grid, driver_xy)
    brows = (driver_xy[RIGHT_BROW].mean(0) + driver_xy[LEFT_BROW].mean(0)) / 2
    up = brows - driver_xy[LIPS].mean(0)
    up = up / max(float(np.linalg.norm(up)) * face_width(driver_xy), 1e-6)
    height = ((grid - brows) @ up).astype(np.float32)
    forehead = np.clip(height * (1 / _FOREHEAD_RAMP), 0, 1)
    upper = np.clip((height - _UPPER[0]) * (1 / (_UPPER[1] - _UPPER[0])), 0, 1)
    planes = cv2.merge([forehead, high, upper])
    return np.asarray(cv2.resize(planes, region.size_wh), np.float32)


@dataclass(frozen=True, slots=True)
class HairZones:
    """Where which kind of darkness counts as hair; (n, n) [0, 1] each.

    Attributes:
        features: the virtual face's brows and eyes: only thick hair counts.
        forehead: above the brows.
        upper: where skin is painted in any case, since a fringe too light to be told from skin may hang there.
        hair: where the virtual person's hair can lie over the face.
    """

    features: F32
    forehead: F32
    upper: F32
    hair: F32


def _thick(dark: F32, size_px: float) -> F32:
    """What of `dark` is thicker than `size_px` both ways (morphological opening)."""
    size = max(3, round(size_px))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    levels = np.asarray(dark * 255, np.uint8)
    opened = cv2.morphologyEx(levels, cv2.MORPH_OPEN, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(opened * np.float32(1 / 255), np.float32)


def paint_skin(lit_small: F32, hair: F32, skin: F32) -> F32:
    """(n, n, 3) levels: the skin around, spread over the virtual person's hair (normalised convolution).

    Args:
        lit_small: (n, n, 3) levels, the relit virtual face.
        hair, skin: (n, n) [0, 1].
    """
    weight = (skin * (1 - hair) ** 2)[..., None]
    stacked = np.dstack([lit_small * weight, weight]).astype(np.float32)
    spread = cv2.GaussianBlur(stacked, (0, 0), _PAINT_SPREAD * hair.shape[0])
    # Far from any skin the average of all of it, not the darkness of a division by next to nothing.
    mean = stacked[..., :3].sum((0, 1)) / max(float(weight.sum()), 1e-6)
    return np.asarray((spread[..., :3] + _FAR * mean) / (spread[..., 3:] + _FAR), np.float32)


class VirtualHair:
    """Where the virtual person's hair lies over the face, steadied, for one track."""

    TAU_S = 0.2

    def __init__(self) -> None:
        self._hair: F32 | None = None

    def update(self, lit_small: F32, skin_log: F32, zones: HairZones, dt_s: float) -> F32:
        """(n, n) [0, 1], how much of the virtual face is hair.

        Args:
            lit_small: (n, n, 3) levels, the relit virtual face.
            skin_log: (n, n), log luminance of skin, see `skin_level`.
            dt_s: since the last call.
        """
        luma = cv2.cvtColor(lit_small, cv2.COLOR_RGB2GRAY)
        light = darkness(luma, skin_log, _FOREHEAD_DARKER) * zones.forehead
        hair = np.maximum(darkness(luma, skin_log, _DARKER), light)
        thick = _thick(hair, _THICK * hair.shape[0])
        hair += zones.features * (np.minimum(thick, hair) - hair)
        hair = np.asarray(cv2.dilate(hair, np.ones((3, 3), np.uint8)), np.float32)  # strands have edges
        hair = np.maximum(hair * zones.hair, zones.upper)
        if self._hair is not None:
            a = 1 - float(np.exp(-dt_s / self.TAU_S))
            hair = self._hair + a * (hair - self._hair)
        self._hair = np.asarray(hair, np.float32)
        return self._hair


def face_coordinates_of(region: Region, uv_from_frame: F32, n_xy: tuple[int, int]) -> F32:
    """(n_y, n_x, 2) face coordinates of the region's cells."""
    grid = region.frame_grid(n_xy)
    return np.asarray(grid @ uv_from_frame[:, :2].T + uv_from_frame[:, 2], np.float32)
