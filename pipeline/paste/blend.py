"""Carries a virtual crop into the frame: outline warp, resampling and the blend.

The similarity puts eyes, nose and mouth in place. The outline of another person's face still differs, so
the crop is bent a little towards it: the driver's outline point d_i takes its colour from the virtual
outline point v_i, the inner features from where they are, and everything between from a smooth
interpolation (inverse distance, Shepard 1968) on a coarse grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.faces.geometry import apply_affine, invert_affine
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.mask import Region
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
from keyface.pipeline.paste.sharpness import add_grain

F32 = npt.NDArray[np.float32]

MAX_BEND = 0.12  # of the outline, in face widths
_GRID = 14  # nodes along each side of a region
_SOFTEN = 0.04  # face widths: anchors nearer than this do not compete
_FIXED = np.concatenate([RIGHT_EYE[::2], LEFT_EYE[::2], RIGHT_BROW, LEFT_BROW, NOSE, LIPS])


@dataclass(frozen=True, slots=True)
class Bend:
    """Offsets that bend the virtual outline onto the driver's.

    Attributes:
        at_xy: (N, 2) frame px, anchors.
        offset_xy: (N, 2) px: the anchor's colour comes from `at_xy + offset_xy`, before the similarity.
        outline_xy: (36, 2) frame px, where the virtual outline ends up; equal to the driver's where the
            offset was within `MAX_BEND`.
        width_px: of the face.
    """

    at_xy: F32
    offset_xy: F32
    outline_xy: F32
    width_px: float


def bend_between(driver_outline_xy: F32, virtual_xy: npt.NDArray[Any], frame_from_crop: F32) -> Bend:
    """The bend for one face.

    Args:
        driver_outline_xy: (36, 2) frame px.
        virtual_xy: (478, 2) crop px.
        frame_from_crop: (2, 3).
    """
    carried = apply_affine(frame_from_crop, virtual_xy)
    width = face_width(driver_outline_xy)
    offset = carried[OVAL] - driver_outline_xy
    length = np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-6)
    offset = offset * np.minimum(1.0, MAX_BEND * width / length)
    fixed = carried[_FIXED]
    return Bend(
        np.concatenate([driver_outline_xy, fixed]).astype(np.float32),
        np.concatenate([offset, np.zeros_like(fixed)]).astype(np.float32),
        (carried[OVAL] - offset).astype(np.float32),
        width,
    )


def crop_map(region: Region, bend: Bend, frame_from_crop: F32) -> F32:
    """(_GRID, _GRID, 2) float32: crop px for the centres of the region's grid cells."""
    nodes = region.frame_grid((_GRID, _GRID)).reshape(-1, 2)
    soften = (_SOFTEN * bend.width_px) ** 2
    square = (
        (nodes**2).sum(1)[:, None]
        + (bend.at_xy**2).sum(1)[None]
        - 2 * (nodes @ bend.at_xy.T).astype(np.float32)
    )
    weight = 1.0 / (np.maximum(square, 0) + soften) ** 2
    offset = weight @ bend.offset_xy / weight.sum(1, keepdims=True)
    return apply_affine(invert_affine(frame_from_crop), nodes + offset).reshape(_GRID, _GRID, 2)


def upscale_map(grid: F32, size_wh: tuple[int, int]) -> F32:
    """(n, n, 2) cell centres -> (h, w, 2) by linear interpolation, extrapolated at the rim."""
    (w, h), n = size_wh, grid.shape[0]
    # output pixel x sees cell coordinate (x + 0.5) n / w - 0.5, and the padding shifts cells by one
    matrix = np.array([[n / w, 0, 0.5 * n / w + 0.5], [0, n / h, 0.5 * n / h + 0.5]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(with_rim(grid), matrix, (w, h), flags=flags), np.float32)


def with_rim(grid: F32) -> F32:
    """(n, n, 2) -> (n + 2, n + 2, 2): extrapolated by one cell on every side."""
    padded = cv2.copyMakeBorder(grid, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    padded[0], padded[-1] = 2 * padded[1] - padded[2], 2 * padded[-2] - padded[-3]
    padded[:, 0], padded[:, -1] = 2 * padded[:, 1] - padded[:, 2], 2 * padded[:, -2] - padded[:, -3]
    return np.asarray(padded, np.float32)


def resample(crop_rgb: ImageRgb, grid: F32, size_wh: tuple[int, int], *, scale: float = 1.0) -> ImageRgb:
    """The crop on a region of `size_wh` px.

    Args:
        grid: see `crop_map`.
        scale: frame pixels per crop pixel. A crop that is enlarged is bent at about its own resolution
            and scaled up afterwards, bicubically: the same picture at a third of the cost.
    """
    bent_wh = bent_size(size_wh, scale)
    if bent_wh == size_wh:
        return _remap(crop_rgb, upscale_map(grid, size_wh), cv2.INTER_LINEAR)
    small = _remap(crop_rgb, upscale_map(grid, bent_wh), cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(small, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)


def bent_size(size_wh: tuple[int, int], scale: float) -> tuple[int, int]:
    """At which `resample` bends a crop for a region of `size_wh` px; smaller ones are enlarged afterwards."""
    step = max(1.0, scale / 1.3)
    if step < 1.2:
        return size_wh
    return max(4, round(size_wh[0] / step)), max(4, round(size_wh[1] / step))


def _remap(crop_rgb: ImageRgb, at: F32, interpolation: int) -> ImageRgb:
    return np.asarray(cv2.remap(crop_rgb, at, None, interpolation, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def blend_into(image_rgb: ImageRgb, region: Region, virtual_rgb: ImageRgb, mask: F32) -> None:
    """Writes the virtual face into the region of `image_rgb`; pixels whose mask is 0 keep their bytes.

    Args:
        image_rgb: uint8 (H, W, 3), written in place.
        virtual_rgb: uint8, size of the region.
        mask: float32 on the work grid, [0, 1].
    """
    target = image_rgb[region.y0 : region.y1, region.x0 : region.x1]
    height, width = target.shape[:2]
    full = mask if mask.shape == (height, width) else cv2.resize(mask, (width, height))
    target[:] = cv2.blendLinear(np.ascontiguousarray(target), virtual_rgb, 1.0 - full, full)


@dataclass(frozen=True, slots=True)
class Pasting:
    """One face that is ready to be put over its region.

    Attributes:
        region: of the frame.
        crop_rgb: uint8 (S, S, 3), lit, sharpened and painted.
        grid: see `crop_map`.
        scale: see `resample`.
        mask: float32 on the work grid, [0, 1].
        grain: see `sharpness.add_grain`.
        grain_index: stands for the frame's index there.
    """

    region: Region
    crop_rgb: ImageRgb
    grid: F32
    scale: float
    mask: F32
    grain: float
    grain_index: int


Put = Callable[[ImageRgb, Pasting], None]


def put_on_host(image_rgb: ImageRgb, pasting: Pasting) -> None:
    """Bends the crop, adds grain and blends it into uint8 (H, W, 3), in place."""
    region = pasting.region
    size_wh = (region.x1 - region.x0, region.y1 - region.y0)
    pasted = resample(pasting.crop_rgb, pasting.grid, size_wh, scale=pasting.scale)
    pasted = add_grain(pasted, pasting.grain, pasting.grain_index)
    blend_into(image_rgb, region, pasted, pasting.mask)
