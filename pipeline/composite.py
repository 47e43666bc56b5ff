"""One virtual face composed into one frame, steadied over the frames of its track."""

from __future__ import annotations

import cv2
import numpy as np

from keyface.pipeline.blend import Bend, bend_between, blend_into, crop_map, resample
from keyface.pipeline.colour import FIT_SIDE, Light, LightFilter, fit_light, relight
from keyface.pipeline.face import F32, VirtualFace
from keyface.pipeline.frame import Frame, ImageRgb, RedactionReason
from keyface.pipeline.geometry import apply_affine, compose_affine, similarity_scale
from keyface.pipeline.mask import OutlineFilter, Region, core_polygons, face_mask, region_of
from keyface.pipeline.occlude import OccluderModel
from keyface.pipeline.place import face_width
from keyface.pipeline.sharpness import PATCH_SIDE, TextureFilter, add_grain, match_texture, treat


class Unfit(Exception):
    """This face cannot be replaced in this frame; carries the reason for the mosaic."""

    def __init__(self, reason: RedactionReason) -> None:
        super().__init__(reason)
        self.reason: RedactionReason = reason


class FaceCompositor:
    """Composes the faces of one track; frames in order of time.

    Args:
        keep_occluders: see `paste.Paster`.
    """

    def __init__(self, *, keep_occluders: bool) -> None:
        self._outline = OutlineFilter()
        self._light = LightFilter()
        self._texture = TextureFilter()
        self._occluder = OccluderModel() if keep_occluders else None

    def compose(
        self,
        frame: Frame,
        driver_xy: F32,
        cover_xy: F32,
        virtual: VirtualFace,
        image_rgb: ImageRgb,
        dt_s: float,
    ) -> None:
        """Writes the face into `image_rgb`.

        Args:
            frame: the raw frame: what colour, sharpness and occluders are measured on.
            driver_xy: (478, 2) frame px.
            cover_xy: (N, 2) frame px, points that must end up under opaque mask.
            virtual: what to paste.
            image_rgb: uint8 (H, W, 3), written in place.
            dt_s: time since the track's last frame.

        Raises:
            Unfit: nothing was written, the face must be mosaicked.
        """
        outline = self._outline.update(driver_xy, dt_s)
        frame_wh = (frame.image_rgb.shape[1], frame.image_rgb.shape[0])
        region = region_of(np.concatenate([outline, driver_xy]), frame_wh)
        if region is None:
            raise Unfit("implausible")
        crop_rgb, frame_from_crop, virtual_xy = _at_frame_scale(virtual)
        bend = bend_between(outline, virtual_xy, frame_from_crop)
        core_xy = core_polygons(driver_xy, bend.width_px)
        mask, core = face_mask(region, [outline, bend.outline_xy], core_xy, bend.width_px)
        _check_cover(region, mask, cover_xy, bend.width_px)
        small = cv2.resize(region.cut(frame.image_rgb), region.size_wh, interpolation=cv2.INTER_AREA)
        if self._occluder is not None:
            occlusion = self._occluder.update(small, region, driver_xy, mask, core, dt_s)
            if occlusion.is_too_much:
                raise Unfit("implausible")
            mask = mask * (1 - occlusion.in_front)
        uv_from_frame = _face_coordinates(outline)
        skin = mask * (1 - core)
        light = self._light.update(
            _measure_light(small, crop_rgb, region, bend, frame_from_crop, skin, uv_from_frame), dt_s
        )
        if light is not None:
            crop_rgb = relight(
                crop_rgb, light, _corners(crop_rgb, compose_affine(uv_from_frame, frame_from_crop))
            )
        crop_rgb = self._match_texture(frame, crop_rgb, region, bend, frame_from_crop, dt_s)
        pasted = resample(
            crop_rgb,
            crop_map(region, bend, frame_from_crop),
            (region.x1 - region.x0, region.y1 - region.y0),
            is_smooth=similarity_scale(frame_from_crop) > 1.4,
        )
        if self._texture.texture is not None:
            pasted = add_grain(pasted, self._texture.texture.grain, frame.index)
        blend_into(image_rgb, region, pasted, mask)

    def _match_texture(
        self, frame: Frame, crop_rgb: ImageRgb, region: Region, bend: Bend, frame_from_crop: F32, dt_s: float
    ) -> ImageRgb:
        if self._texture.is_due():
            patch = _patch(region, similarity_scale(frame_from_crop))
            own = cv2.resize(patch.cut(frame.image_rgb), patch.size_wh, interpolation=cv2.INTER_AREA)
            virtual = resample(crop_rgb, crop_map(patch, bend, frame_from_crop), patch.size_wh)
            self._texture.update(match_texture(own, virtual), dt_s)
        texture = self._texture.texture
        return crop_rgb if texture is None else treat(crop_rgb, texture.treatment)


def _at_frame_scale(virtual: VirtualFace) -> tuple[ImageRgb, F32, F32]:
    """Crop, frame_from_crop and mesh (478, 2), the crop reduced to about the frame's resolution, so that
    bilinear sampling neither aliases nor shimmers."""
    scale = similarity_scale(virtual.frame_from_crop)
    size = virtual.crop_rgb.shape[0]
    reduced = max(16, round(size * scale * 1.15))
    if reduced >= 0.85 * size:
        return virtual.crop_rgb, virtual.frame_from_crop, virtual.mesh.points_xy
    f = reduced / size
    crop = cv2.resize(virtual.crop_rgb, (reduced, reduced), interpolation=cv2.INTER_AREA)
    full_from_reduced = np.array([[1 / f, 0, 0.5 / f - 0.5], [0, 1 / f, 0.5 / f - 0.5]])
    points = (virtual.mesh.points_xy + 0.5) * f - 0.5
    return (
        np.asarray(crop, np.uint8),
        compose_affine(virtual.frame_from_crop, full_from_reduced),
        points.astype(np.float32),
    )


def _check_cover(region: Region, mask: F32, cover_xy: F32, width_px: float) -> None:
    """Every point inside the frame must have opaque mask within 4 % of the face's width, else the mesh sits
    somewhere else than the face."""
    reach = max(1, round(0.04 * width_px * region.scale))
    for (fx, fy), (x, y) in zip(cover_xy, np.rint(region.work_from_frame(cover_xy)).astype(int), strict=True):
        if not (0 <= fx < region.frame_wh[0] and 0 <= fy < region.frame_wh[1]):
            continue
        near = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        if near.size == 0 or float(near.max()) < 0.9:
            raise Unfit("implausible")


def _face_coordinates(outline_xy: F32) -> F32:
    """(2, 3): frame px to face coordinates, axes as the frame's, about -1 to 1 inside the face."""
    low, high = outline_xy.min(0), outline_xy.max(0)
    centre, half = (low + high) / 2, max(face_width(outline_xy) / 2, 1.0)
    return np.array([[1 / half, 0, -centre[0] / half], [0, 1 / half, -centre[1] / half]], np.float32)


def _corners(crop_rgb: ImageRgb, uv_from_crop: F32) -> F32:
    """Face coordinates of the crop's corners: top left, top right, bottom left."""
    end = crop_rgb.shape[0] - 0.5
    return apply_affine(uv_from_crop, np.array([[-0.5, -0.5], [end, -0.5], [-0.5, end]]))


def _measure_light(
    small: ImageRgb,
    crop_rgb: ImageRgb,
    region: Region,
    bend: Bend,
    frame_from_crop: F32,
    skin: F32,
    uv_from_frame: F32,
) -> Light | None:
    side = (FIT_SIDE, FIT_SIDE)
    # area averages of the crop, by sampling a reduced copy of it
    reduced = cv2.resize(crop_rgb, (64, 64), interpolation=cv2.INTER_AREA)
    f = 64 / crop_rgb.shape[0]
    grid = (crop_map(region, bend, frame_from_crop) + 0.5) * f - 0.5
    uv = apply_affine(uv_from_frame, region.frame_grid(side).reshape(-1, 2)).reshape(*side, 2)
    return fit_light(
        np.asarray(cv2.resize(small, side, interpolation=cv2.INTER_AREA), np.uint8),
        resample(np.asarray(reduced, np.uint8), grid.astype(np.float32), side),
        np.asarray(cv2.resize(skin, side, interpolation=cv2.INTER_AREA), np.float32),
        uv,
    )


def _patch(region: Region, scale: float) -> Region:
    """The middle of the region, sampled at the coarser of the frame's and the crop's resolution."""
    step = max(1.0, scale)
    cx, cy = (region.x0 + region.x1) // 2, (region.y0 + region.y1) // 2
    half_w = max(4, min(round(0.34 * (region.x1 - region.x0)), round(PATCH_SIDE * step / 2)))
    half_h = max(4, min(round(0.34 * (region.y1 - region.y0)), round(PATCH_SIDE * step / 2)))
    x0, x1 = max(region.x0, cx - half_w), min(region.x1, cx + half_w)
    y0, y1 = max(region.y0, cy - half_h), min(region.y1, cy + half_h)
    size_wh = (max(4, round((x1 - x0) / step)), max(4, round((y1 - y0) / step)))
    return Region(x0, y0, x1, y1, 1 / step, size_wh, region.frame_wh)
