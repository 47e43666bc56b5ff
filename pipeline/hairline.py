"""Hair over the forehead and temples: the driver's stays in front, the virtual person's is left away.

MediaPipe's outline crosses a fringe and the hair at the temples. Hair is told from skin by darkness: the
log luminance of the source's skin is fitted as a plane over the face (robustly, so that hair itself does not
count), and what is much darker than that, above the eyes' line and away from the features, is hair.
Below, dark may be a beard or shade, and is always covered.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.mask import Region
from keyface.pipeline.place import LEFT_EYE, RIGHT_EYE, face_width

MAX_SHARE = 0.30  # of the mask: more cannot be a fringe, and is shown less
# Log luminance below skin where hair begins, and where it is certain. Taking the virtual hair away shows a
# piece of bare forehead, so there the lightest strand counts; keeping the driver's needs a real contrast.
_DRIVER_DARKER = (0.45, 0.90)
_VIRTUAL_DARKER = (0.12, 0.35)
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


class Hairline:
    """What the mask must leave to the source around the forehead, for one track."""

    TAU_S = 0.2

    def __init__(self) -> None:
        self._virtual: F32 | None = None

    def uncovered(
        self,
        source_small: npt.NDArray[np.uint8],
        lit_small: F32,
        skin_log: F32,
        allowed: F32,
        mask: F32,
        dt_s: float,
    ) -> F32:
        """(h, w) [0, 1], the part of the mask to take away.

        Args:
            source_small: uint8 (h, w, 3) on the work grid.
            lit_small: (n, n, 3) levels, the relit virtual face.
            skin_log: (n, n), log luminance of skin, see `skin_level`.
            allowed: (h, w) [0, 1], where hair may be.
            mask: (h, w) [0, 1].
        """
        virtual = darkness(cv2.cvtColor(lit_small, cv2.COLOR_RGB2GRAY), skin_log, _VIRTUAL_DARKER)
        virtual = np.asarray(cv2.dilate(virtual, np.ones((3, 3), np.uint8)), np.float32)  # strands have edges
        if self._virtual is not None:
            a = 1 - float(np.exp(-dt_s / self.TAU_S))
            virtual = self._virtual + a * (virtual - self._virtual)
        self._virtual = virtual
        size_wh = mask.shape[::-1]
        grey = cv2.cvtColor(source_small, cv2.COLOR_RGB2GRAY)
        own = darkness(grey, np.asarray(cv2.resize(skin_log, size_wh), np.float32), _DRIVER_DARKER)
        dark = np.maximum(own, cv2.resize(virtual, size_wh))
        away = cv2.GaussianBlur(dark, (0, 0), max(0.5, 0.006 * max(size_wh))) * allowed
        share = float((away * mask).sum()) / max(float(mask.sum()), 1e-6)
        return np.asarray(away * min(1.0, MAX_SHARE / max(share, 1e-6)), np.float32)


def face_coordinates_of(region: Region, uv_from_frame: F32, n_xy: tuple[int, int]) -> F32:
    """(n_y, n_x, 2) face coordinates of the region's cells."""
    grid = region.frame_grid(n_xy)
    return np.asarray(grid @ uv_from_frame[:, :2].T + uv_from_frame[:, 2], np.float32)
