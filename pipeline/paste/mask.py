"""The mask of a pasted face: its outline steadied in time, drawn small, eroded and feathered.

All masks are float32 in [0, 1] on a work grid: the face's region of the frame, scaled down so that its
longer side is at most `WORK_SIDE` pixels. A feather is many work pixels wide, so scaling the mask up
again loses nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.place import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    face_width,
)

F32 = npt.NDArray[np.float32]

WORK_SIDE = 160
FEATHER = 0.022  # sigma of the edge, in face widths
_LOW, _HIGH = 0.62, 0.96  # share of the blurred hull where the mask starts and is full
GROW = 0.09  # of the outline, as a share of its distance from the middle of the face
LIFT = 0.18  # of the forehead's edge towards the hair, in face widths
_NEAR_SIDE, _FAR_SIDE = (
    0.45,
    0.25,
)  # face widths from nose to outline: of a side in full view, of one turned away
CORE_GROW = 0.035  # the features' hulls grow by this many face widths before they are held opaque
_FOREHEAD_FEATHER = 2.2  # times the feather, where skin meets skin
_BRIDGE = 168  # of the nose, mesh index
_SHIFT = 4  # fractional bits of cv2's polygon coordinates


@dataclass(frozen=True, slots=True)
class Region:
    """A face's part of the frame and its work grid.

    Attributes:
        x0, y0, x1, y1: px of the frame, inside it.
        scale: work pixels per frame pixel, <= 1.
        size_wh: of the work grid.
        frame_wh: of the frame.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    scale: float
    size_wh: tuple[int, int]
    frame_wh: tuple[int, int]

    def cut(self, image_rgb: ImageRgb) -> ImageRgb:
        """The region of a frame, a contiguous copy."""
        return np.ascontiguousarray(image_rgb[self.y0 : self.y1, self.x0 : self.x1])

    def work_from_frame(self, points_xy: npt.NDArray[Any]) -> F32:
        """(N, 2) frame px -> (N, 2) work px, pixel centres at integers in both."""
        sx = self.size_wh[0] / (self.x1 - self.x0)
        sy = self.size_wh[1] / (self.y1 - self.y0)
        offset = np.array([self.x0 - 0.5, self.y0 - 0.5])
        return np.asarray((points_xy[:, :2] - offset) * np.array([sx, sy]) - 0.5, np.float32)

    def frame_grid(self, n_xy: tuple[int, int]) -> F32:
        """(n_y, n_x, 2) frame px: the centres of n_x by n_y cells of the region."""
        nx, ny = n_xy
        xs = self.x0 - 0.5 + (np.arange(nx) + 0.5) * (self.x1 - self.x0) / nx
        ys = self.y0 - 0.5 + (np.arange(ny) + 0.5) * (self.y1 - self.y0) / ny
        return np.stack(np.meshgrid(xs, ys), -1).astype(np.float32)


def widened(outline_xy: npt.NDArray[Any], driver_xy: npt.NDArray[Any]) -> F32:
    """The edge of what is pasted: the outline moved outwards by `GROW`, and its upper part into the hair by `LIFT`.

    Forehead and hairline are much of what recognisers know a face by. Over 60 photos, pasting up to the outline
    left a cosine of 0.14 (w600k) to the driver, where the virtual person alone has -0.02; here it is 0.05.
    A side that is turned away ends at the outline, since the background begins there.

    Args:
        outline_xy: (36, 2) frame px, in the order of `place.OVAL`.
        driver_xy: (478, 2) frame px.

    Returns:
        (36, 2) frame px.
    """
    width = max(face_width(driver_xy), 1e-6)
    up = outline_xy[0] - outline_xy[len(outline_xy) // 2]
    tall = max(float(np.linalg.norm(up)), 1e-6)
    up = up / tall
    along = np.array([-up[1], up[0]])
    arm = outline_xy - outline_xy.mean(0)
    beside = (outline_xy - driver_xy[_BRIDGE]) @ along
    grow = np.empty(len(outline_xy))
    for side in (beside > 0, beside <= 0):
        reach = float(np.abs(beside[side]).max()) / width if side.any() else 0.0
        grow[side] = GROW * np.clip((reach - _FAR_SIDE) / (_NEAR_SIDE - _FAR_SIDE), 0, 1)
    sideways, upwards = arm @ along, arm @ up
    dome = (
        1 - (sideways / max(float(np.abs(sideways).max()), 1e-6)) ** 2
    )  # a head is round: less at the temples
    lift = LIFT * width * np.clip(2 * upwards / tall, 0, 1) * np.sqrt(dome)
    moved = (sideways * grow)[:, None] * along + (upwards * GROW + lift)[:, None] * up
    return np.asarray(outline_xy + moved, np.float32)


def region_of(points_xy: npt.NDArray[Any], frame_wh: tuple[int, int], margin: float = 0.08) -> Region | None:
    """The points' box, grown by `margin` face widths and cut at the frame; None when nothing is in view."""
    grow = margin * face_width(points_xy) + 2
    low, high = points_xy[:, :2].min(0) - grow, points_xy[:, :2].max(0) + grow
    x0, y0 = max(0, math.floor(low[0])), max(0, math.floor(low[1]))
    x1, y1 = min(frame_wh[0], math.ceil(high[0])), min(frame_wh[1], math.ceil(high[1]))
    if x1 - x0 < 8 or y1 - y0 < 8:
        return None
    scale = min(1.0, WORK_SIDE / max(x1 - x0, y1 - y0))
    size_wh = (max(4, round((x1 - x0) * scale)), max(4, round((y1 - y0) * scale)))
    return Region(x0, y0, x1, y1, scale, size_wh, frame_wh)


def fill(region: Region, polygons_xy: list[npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """uint8 (h, w) on the work grid, 255 inside any of the polygons (frame px), edges antialiased."""
    out = np.zeros(region.size_wh[::-1], np.uint8)
    for polygon in polygons_xy:
        fixed = np.rint(region.work_from_frame(polygon) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(out, [fixed], 255, cv2.LINE_AA, _SHIFT)
    return out


def core_polygons(driver_xy: npt.NDArray[Any], width_px: float) -> list[F32]:
    """Hulls that must be covered: brows with eyes, what is between the brows, nose with mouth, grown a little
    (frame px)."""
    groups = (
        np.concatenate([RIGHT_EYE, RIGHT_BROW]),
        np.concatenate([LEFT_EYE, LEFT_BROW]),
        np.concatenate([RIGHT_BROW, LEFT_BROW]),
        np.concatenate([RIGHT_EYE, LEFT_EYE, NOSE]),
        np.concatenate([NOSE, LIPS]),
    )
    return [
        _grow(cv2.convexHull(driver_xy[g].astype(np.float32))[:, 0], CORE_GROW * width_px) for g in groups
    ]


def _grow(polygon_xy: F32, by_px: float) -> F32:
    arm = polygon_xy - polygon_xy.sum(0) / len(polygon_xy)
    length = np.sqrt((arm * arm).sum(1, keepdims=True)) + 1e-6
    return np.asarray(polygon_xy + arm * (by_px / length), np.float32)


def face_mask(
    region: Region,
    outlines_xy: list[npt.NDArray[Any]],
    core_xy: list[F32],
    width_px: float,
    forehead: F32 | None = None,
) -> tuple[F32, F32]:
    """The feathered mask and the core inside it.

    Args:
        outlines_xy: polygons in frame px; the mask lies inside all of them, but for the nose and mouth.
        core_xy: see `core_polygons`; fully covered, up to the outlines' very edge; the last, nose and mouth,
            also beyond it.
        width_px: of the face, frame px.
        forehead: (h, w) [0, 1], where the edge runs over bare skin and is feathered more widely.

    Returns:
        float32 (h, w) twice, [0, 1]: mask with the core opaque, and the core alone.
    """
    hull = fill(region, outlines_xy[:1])
    for outline in outlines_xy[1:]:
        hull = np.minimum(hull, fill(region, [outline]))
    # in a turned face the nose stands out beyond the outline, and must not be left the driver's own
    hull = np.maximum(hull, fill(region, core_xy[-1:]))
    sigma = max(0.6, FEATHER * width_px * region.scale)
    soft = _blur(hull, sigma)
    mask = np.clip((soft - 255 * _LOW) * (1 / (255 * (_HIGH - _LOW))), 0, 1)
    mask = mask * mask * (3 - 2 * mask)
    if forehead is not None:
        wide = np.clip(_blur(hull, _FOREHEAD_FEATHER * sigma) * (1 / (255 * 0.48)) - 1.04, 0, 1)
        mask = mask * (1 - forehead * (1 - wide))
    core = _blur(fill(region, core_xy), max(0.5, 1.2 * sigma))
    # not past the outline: in a turned face the far brow lies on it, and would stick out into the background
    core = np.minimum(
        np.clip(core * (2 / 255), 0, 1), np.clip((soft - 255 * 0.30) * (1 / (255 * 0.25)), 0, 1)
    )
    return np.maximum(mask, core), core


def _blur(image: npt.NDArray[np.uint8], sigma: float) -> F32:
    """Gaussian blur with the hull taken as ending at the frame's border only where it does end."""
    return np.asarray(
        cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32
    )


class OutlineFilter:
    """Steadies the outline of one track without lag in motion.

    The outline is held in the face's own frame (shift and scale of the mesh taken out) and averaged there
    over `TAU_S`; a large change, as when the jaw opens, passes at once (One-Euro, Casiez et al. 2012:
    the cutoff grows with speed).
    """

    TAU_S = 0.12
    FAST = 0.02  # change in face widths at which the filter lets nearly all through

    def __init__(self) -> None:
        self._shape: F32 | None = None

    def update(self, driver_xy: npt.NDArray[Any], dt_s: float) -> F32:
        """(478, 2) frame px -> (36, 2) steadied outline, frame px."""
        centre, width = driver_xy.mean(0), max(face_width(driver_xy), 1e-6)
        shape = ((driver_xy[OVAL] - centre) / width).astype(np.float32)
        if self._shape is not None:
            change = np.linalg.norm(shape - self._shape, axis=1, keepdims=True) / self.FAST
            alpha = 1 - np.exp(-dt_s / self.TAU_S * (1 + 8 * change**2))
            shape = (self._shape + alpha * (shape - self._shape)).astype(np.float32)
        self._shape = shape
        return np.asarray(shape * width + centre, np.float32)
