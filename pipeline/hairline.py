"""Hair over the forehead and temples: the driver's stays in front, the virtual person's is left away.

MediaPipe's outline crosses a fringe and the hair at the temples. Hair is told from skin by darkness: the
log luminance of the source's skin is fitted as a plane over the face (robustly, so that hair itself does not
count), and what is much darker than that, above the eyes' line and away from the features, is hair.
Below, dark may be a beard or shade, and is covered, except at the very side, where thick hair falls over
the cheek.

Brows are as dark as hair. Near the features only what is thicker than a brow counts as hair, and the
landmarks of the brows' tails, which often lie in the hair, do not hold the mask there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.mask import Region
from keyface.pipeline.place import LEFT_BROW, LEFT_EYE, LIPS, RIGHT_BROW, RIGHT_EYE, face_width

MAX_SHARE = 0.30  # of the mask: more cannot be a fringe, and is shown less
# Log luminance below skin where hair begins, and where it is certain. Taking the virtual hair away shows a
# piece of bare forehead, so there the lightest strand counts; keeping the driver's needs a real contrast.
_DRIVER_DARKER = (0.45, 0.90)
_VIRTUAL_DARKER = (0.12, 0.35)
_THICK_DARKER = (0.42, 0.72)  # of thick hair at the temples and the cheeks' sides: its shape tells it too
_PAINT_DARKER = (0.30, 0.60)
THICK = 0.09  # face widths: more than a brow's height
_VIRTUAL_THICK = 0.14  # sides of the grid: more than a brow's and an eye's height together
_TAIL = (0.025, 0.060)  # beyond the outer corner of the eye: a brow may reach, and reaches no more
_PLANES_SIDE = 32
_FOREHEAD_RAMP = 0.12  # face widths from the brows to where the forehead begins
_PAINT_SPREAD = 0.11  # sigma of the skin that is painted over virtual hair, in sides of the grid
_CHIN, _FOREHEAD = 152, 10
_FLOOR = 6.0


def skin_level(luma: F32, skin: F32, uv: F32) -> F32 | None:
    """(n, n) log luminance that skin has at each place, a plane over the face; None with too little skin.

    Args:
        luma: (n, n) levels.
        skin: (n, n) [0, 1].
        uv: (n, n, 2) face coordinates.
    """
    seen = skin > 0.3
    if int(seen.sum()) < 30:
        return None
    design = np.column_stack([np.ones(int(seen.sum())), uv[seen]])
    target = np.log(luma[seen] + _FLOOR)
    weight = skin[seen] * (target > np.median(target) - 0.5)
    for _ in range(2):
        weighted = design * weight[:, None]
        normal = weighted.T @ design + np.diag([1e-3, 1.0, 1.0]) * (weight.sum() / 100)
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


def temples(grid_xy: F32, driver_xy: npt.NDArray[Any]) -> F32:
    """[0, 1] for (h, w, 2) frame px: 1 further to the side than brows reach, whatever the roll."""
    right, left = driver_xy[RIGHT_EYE].mean(0), driver_xy[LEFT_EYE].mean(0)
    middle, along = (right + left) / 2, (left - right) / max(float(np.linalg.norm(left - right)), 1e-6)
    width = max(face_width(driver_xy), 1e-6)
    inner = [((driver_xy[eye] - middle) @ along) / width for eye in (RIGHT_EYE, LEFT_EYE)]
    at = ((grid_xy - middle) @ along) / width
    beyond = np.maximum(inner[0].min() - at, at - inner[1].max())
    return np.asarray(np.clip((beyond - _TAIL[0]) * (1 / (_TAIL[1] - _TAIL[0])), 0, 1), np.float32)


def sides(grid_xy: F32, driver_xy: npt.NDArray[Any]) -> F32:
    """[0, 1] for (h, w, 2) frame px: 1 from the line of the eyes down to the nose, 0 from the mouth on."""
    eyes = (driver_xy[RIGHT_EYE].mean(0) + driver_xy[LEFT_EYE].mean(0)) / 2
    mouth = driver_xy[LIPS].mean(0)
    down = mouth - eyes
    depth = ((grid_xy - eyes) @ down) / max(float(down @ down), 1e-6)
    return np.asarray(np.clip((1.0 - depth) / 0.5, 0, 1), np.float32)


def zone_planes(region: Region, driver_xy: npt.NDArray[Any]) -> F32:
    """(h, w, 4) [0, 1] on the work grid: above the brows, above the eyes, beyond the brows' reach above the
    eyes, and beside the cheeks; whatever the roll."""
    grid = region.frame_grid((_PLANES_SIDE, _PLANES_SIDE))
    high = above_eyes(grid, driver_xy)
    brows = (driver_xy[RIGHT_BROW].mean(0) + driver_xy[LEFT_BROW].mean(0)) / 2
    up = brows - driver_xy[LIPS].mean(0)
    up = up / max(float(np.linalg.norm(up)) * face_width(driver_xy), 1e-6)
    forehead = np.clip((grid - brows) @ up * (1 / _FOREHEAD_RAMP), 0, 1)
    planes = cv2.merge(
        [forehead.astype(np.float32), high, high * temples(grid, driver_xy), sides(grid, driver_xy)]
    )
    return np.asarray(cv2.resize(planes, region.size_wh), np.float32)


@dataclass(frozen=True, slots=True)
class HairZones:
    """Where which kind of darkness counts as hair.

    Attributes:
        features: (h, w) [0, 1], the driver's brows and eyes and what is near: only thick hair counts.
        temples: (h, w) [0, 1], beyond the brows' reach: thick hair counts even inside the core.
        forehead: (h, w) [0, 1], where the driver's skin is shown in place of virtual hair; elsewhere skin is
            painted over it.
        sides: (h, w) [0, 1], a strip along the outline, down to the mouth: thick hair counts.
        virtual_features: (n, n) [0, 1], the virtual face's brows and eyes: only thick hair counts.
        virtual_hair: (n, n) [0, 1], where the virtual person's hair can lie over the face.
        thick_px: of the work grid.
    """

    features: F32
    temples: F32
    forehead: F32
    sides: F32
    virtual_features: F32
    virtual_hair: F32
    thick_px: float


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
    return np.asarray(spread[..., :3] / np.maximum(spread[..., 3:], 1e-4), np.float32)


class Hairline:
    """What the mask must leave to the source around the forehead, for one track.

    Attributes:
        virtual_hair: (n, n) [0, 1] of the last `uncovered`: where the virtual person's hair lies over the
            face; None before.
    """

    TAU_S = 0.2

    def __init__(self) -> None:
        self._virtual: F32 | None = None
        self.virtual_hair: F32 | None = None

    def uncovered(
        self,
        source_small: npt.NDArray[np.uint8],
        lit_small: F32,
        skin_log: F32,
        allowed: F32,
        mask: F32,
        dt_s: float,
        zones: HairZones | None = None,
    ) -> F32:
        """(h, w) [0, 1], the part of the mask to take away.

        Args:
            source_small: uint8 (h, w, 3) on the work grid.
            lit_small: (n, n, 3) levels, the relit virtual face.
            skin_log: (n, n), log luminance of skin, see `skin_level`.
            allowed: (h, w) [0, 1], where hair may be.
            mask: (h, w) [0, 1].
            zones: None: darkness counts alike wherever it is allowed.
        """
        virtual = self._of_virtual(lit_small, skin_log, zones, dt_s)
        size_wh = mask.shape[::-1]
        level = np.asarray(cv2.resize(skin_log, size_wh), np.float32)
        grey = cv2.cvtColor(source_small, cv2.COLOR_RGB2GRAY)
        own = darkness(grey, level, _DRIVER_DARKER)
        free = np.asarray(cv2.resize(virtual, size_wh), np.float32)
        if zones is None:
            dark, limit = np.maximum(own, free), allowed
        else:
            thick = _thick(own, zones.thick_px)
            free = free * zones.forehead
            own += zones.features * (np.minimum(thick, own) - own)
            thick = _thick(darkness(grey, level, _THICK_DARKER), zones.thick_px)
            dark = np.maximum(np.maximum(own, free) * allowed, thick * np.maximum(zones.temples, zones.sides))
            limit = np.maximum(np.maximum(allowed, zones.temples), zones.sides)
        away = cv2.GaussianBlur(dark, (0, 0), max(0.5, 0.006 * max(size_wh))) * limit
        share = float((away * mask).sum()) / max(float(mask.sum()), 1e-6)
        return np.asarray(away * min(1.0, MAX_SHARE / max(share, 1e-6)), np.float32)

    def _of_virtual(self, lit_small: F32, skin_log: F32, zones: HairZones | None, dt_s: float) -> F32:
        """(n, n) [0, 1], the virtual person's hair, steadied; sets `virtual_hair`."""
        luma = cv2.cvtColor(lit_small, cv2.COLOR_RGB2GRAY)
        virtual = darkness(luma, skin_log, _VIRTUAL_DARKER)
        certain = darkness(luma, skin_log, _PAINT_DARKER)
        if zones is not None:
            keep = zones.virtual_features
            thick = _thick(certain, _VIRTUAL_THICK * virtual.shape[0])
            virtual += keep * (np.minimum(thick, virtual) - virtual)
            certain += keep * (np.minimum(thick, certain) - certain)
        stacked = cv2.dilate(np.dstack([virtual, certain]), np.ones((3, 3), np.uint8))  # strands have edges
        if zones is not None:
            stacked[..., 1] *= zones.virtual_hair
        if self._virtual is not None:
            a = 1 - float(np.exp(-dt_s / self.TAU_S))
            stacked = self._virtual + a * (stacked - self._virtual)
        self._virtual = np.asarray(stacked, np.float32)
        self.virtual_hair = self._virtual[..., 1]
        return self._virtual[..., 0]


def face_coordinates_of(region: Region, uv_from_frame: F32, n_xy: tuple[int, int]) -> F32:
    """(n_y, n_x, 2) face coordinates of the region's cells."""
    grid = region.frame_grid(n_xy)
    return np.asarray(grid @ uv_from_frame[:, :2].T + uv_from_frame[:, 2], np.float32)
