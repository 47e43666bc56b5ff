"""Keeps still what stands still in the source.

Landmarks and renderings tremble a little even where the source shows the very same pixels (a repeated frame,
a head held still while the mouth speaks), and a face that trembles over a still neck is what flicker is. So
every cell of the face has a share of change: how far the source's own pixels have moved from what the
virtual face follows there. Mesh, placement and pixels of the virtual face follow by that share. Where
anything moves the share is 1 and nothing lags; what may be codec noise is followed slowly, and a slow motion
until it has become more than that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32, VirtualFace
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.mask import Region

SIDE = 40
_FLOOR = 0.1  # share of what is just noise
_QUIET, _MOVING = 1.6, 5.0  # levels of change, a cell's average: codec noise, and certain motion
_REACH = 5  # cells around a change that count as changed


class Stillness:
    """What one track's face held still; frames in order of time."""

    def __init__(self) -> None:
        self._image: ImageRgb | None = None
        self._region: Region | None = None
        self._cells = np.zeros((SIDE, SIDE, 3), np.float32)  # of the source, as the virtual face follows it
        self._driver_xy: F32 | None = None
        self._virtual: VirtualFace | None = None
        self._crop: ImageRgb | None = None
        self._grain_index = 0

    def measure(self, image_rgb: ImageRgb, region: Region) -> tuple[F32, Region]:
        """(SIDE, SIDE) share of change of each cell, [0, 1], 1 where nothing is known; and the region that the
        cells divide, about the one given.

        Args:
            image_rgb: the raw frame; kept until the next call, so it must not change.
        """
        before, self._image = self._image, image_rgb
        if before is None or before.shape != image_rgb.shape:
            before = self._region = None
        if self._region is None or _is_apart(self._region, region):
            self._region = region
            self._cells = _cells(image_rgb if before is None else before, region)
        now = _cells(image_rgb, self._region)
        if before is None:
            return np.ones((SIDE, SIDE), np.float32), self._region
        change = cv2.GaussianBlur(cv2.absdiff(now, self._cells), (0, 0), 0.8)
        change = np.maximum(np.maximum(change[..., 0], change[..., 1]), change[..., 2])
        change = cv2.dilate(change, np.ones((_REACH, _REACH), np.uint8))
        slow = np.minimum(change * (_FLOOR / _QUIET), _FLOOR)
        share = np.clip((change - _QUIET) * (1 / (_MOVING - _QUIET)), slow, 1)
        share = np.asarray(cv2.GaussianBlur(share, (0, 0), 1.0), np.float32)
        self._cells += share[..., None] * (now - self._cells)
        return share, self._region

    def hold_mesh(self, driver_xy: npt.NDArray[Any], share: F32, region: Region) -> F32:
        """The driver's mesh (478, 2), each point following by the share of its cell."""
        now = np.asarray(driver_xy, np.float32)
        if self._driver_xy is not None:
            now = self._driver_xy + _at(share, now, region)[:, None] * (now - self._driver_xy)
        self._driver_xy = now
        return now

    def hold_place(self, virtual: VirtualFace, share: F32, region: Region, driver_xy: F32) -> VirtualFace:
        """The virtual face with its mesh and place following likewise; its pixels as they are."""
        last = self._virtual
        if last is not None and last.crop_rgb.shape == virtual.crop_rgb.shape:
            points = _at(share, driver_xy, region)[:, None]
            mean = np.float32(points.mean())
            xyz = last.mesh.points_xyz + points * (virtual.mesh.points_xyz - last.mesh.points_xyz)
            matrix = last.frame_from_crop + mean * (virtual.frame_from_crop - last.frame_from_crop)
            mesh = replace(virtual.mesh, points_xyz=xyz.astype(np.float32))
            virtual = replace(virtual, mesh=mesh, frame_from_crop=matrix.astype(np.float32))
        self._virtual = virtual
        return virtual

    def hold_pixels(self, crop_rgb: ImageRgb, share: F32) -> ImageRgb:
        """The crop as it is about to be pasted, following by `share`, (n, n) over the crop."""
        if self._crop is not None and self._crop.shape == crop_rgb.shape:
            share = np.asarray(cv2.resize(share, crop_rgb.shape[1::-1]), np.float32)
            crop_rgb = np.asarray(cv2.blendLinear(self._crop, crop_rgb, 1 - share, share), np.uint8)
        self._crop = crop_rgb
        return crop_rgb

    def grain_index(self, index: int, share: F32) -> int:
        """The frame whose grain is to be shown: grain moves only if something in the face does."""
        if float(share.mean()) > 1.5 * _FLOOR:
            self._grain_index = index
        return self._grain_index


def _cells(image_rgb: ImageRgb, region: Region) -> F32:
    """(SIDE, SIDE, 3) levels, averages over the cells of the region, of every so many pixels."""
    step = max(1, min(region.x1 - region.x0, region.y1 - region.y0) // (3 * SIDE))
    part = image_rgb[region.y0 : region.y1 : step, region.x0 : region.x1 : step]
    return np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _is_apart(one: Region, other: Region) -> bool:
    """Whether an edge differs by more than a twelfth of the size."""
    edges = [(r.x0, r.y0, r.x1, r.y1) for r in (one, other)]
    limit = max(one.x1 - one.x0, one.y1 - one.y0) / 12
    return any(abs(a - b) > limit for a, b in zip(*edges, strict=True))


def _at(share: F32, points_xy: F32, region: Region) -> F32:
    """The cells' values at points of the frame, (N,)."""
    origin = np.array([region.x0, region.y0], np.float32)
    extent = np.array([region.x1 - region.x0, region.y1 - region.y0], np.float32)
    cell = np.clip((points_xy - origin + 0.5) / extent * SIDE, 0, SIDE - 1).astype(np.intp)
    return np.asarray(share[cell[:, 1], cell[:, 0]], np.float32)
