"""One virtual face composed into one frame, steadied over the frames of its track."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keyface.pipeline.face import F32, VirtualFace
from keyface.pipeline.faces.geometry import apply_affine, compose_affine, similarity_scale
from keyface.pipeline.frame import Frame, ImageRgb, RedactionReason
from keyface.pipeline.paste.blend import Bend, Pasting, Put, bend_between, crop_map, put_on_host, resample
from keyface.pipeline.paste.colour import FIT_SIDE, LightFilter, fit_light, relight
from keyface.pipeline.paste.hairline import (
    HairZones,
    VirtualHair,
    face_coordinates_of,
    paint_skin,
    skin_level,
    zone_planes,
)
from keyface.pipeline.paste.mask import (
    OutlineFilter,
    Region,
    core_polygons,
    face_mask,
    fill,
    region_of,
    widened,
)
from keyface.pipeline.paste.occluders import OccluderModel
from keyface.pipeline.paste.place import INNER_LIPS, LEFT_BROW, LEFT_EYE, RIGHT_BROW, RIGHT_EYE, face_width
from keyface.pipeline.paste.seam import Seam
from keyface.pipeline.paste.sharpness import PATCH_SIDE, TextureFilter, match_texture, treat
from keyface.pipeline.paste.still import Stillness

_RIM = 1.5  # what lies past the outline is painted with skin: the virtual person's ears, hair or background
_FRINGE = 0.85  # how much less the forehead says of the skin: often there is hair over it


class Unfit(Exception):
    """This face cannot be replaced in this frame; carries the reason for the mosaic."""

    def __init__(self, reason: RedactionReason) -> None:
        super().__init__(reason)
        self.reason: RedactionReason = reason


class FaceCompositor:
    """Composes the faces of one track; frames in order of time.

    Args:
        keep_occluders: see `paster.Paster`.
        put: writes a face that is ready into the frame.
    """

    def __init__(self, *, keep_occluders: bool, put: Put = put_on_host) -> None:
        self._put = put
        self._outline = OutlineFilter()
        self._light = LightFilter()
        self._texture = TextureFilter()
        self._seam = Seam()
        self._virtual_hair = VirtualHair()
        self._skin_log: F32 | None = None  # in cells of the region, as of the last fit of the light
        self._still = Stillness()
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
        frame_wh = (frame.image_rgb.shape[1], frame.image_rgb.shape[0])
        seen = region_of(driver_xy, frame_wh)
        if seen is None:
            raise Unfit("implausible")
        share, seen = self._still.measure(frame.image_rgb, seen)
        virtual = self._still.hold_place(virtual, share, seen, driver_xy)
        driver_xy = self._still.hold_mesh(driver_xy, share, seen)
        outline = self._outline.update(driver_xy, dt_s)
        wide = widened(outline, driver_xy)
        region = region_of(np.concatenate([wide, driver_xy]), frame_wh)
        if region is None:
            raise Unfit("implausible")
        crop_rgb, frame_from_crop, virtual_xy = _at_frame_scale(virtual)
        bend = bend_between(outline, virtual_xy, frame_from_crop)
        wide_virtual = widened(bend.outline_xy, driver_xy)
        core_xy = core_polygons(driver_xy, bend.width_px)
        planes = zone_planes(region, driver_xy)
        mask, core = face_mask(region, [wide, wide_virtual], core_xy, bend.width_px, planes[..., 0])
        inside = np.minimum(mask, fill(region, [outline]) * np.float32(1 / 255))
        _check_cover(region, inside, cover_xy, bend.width_px)
        grid = crop_map(region, bend, frame_from_crop)
        carried_xy = apply_affine(frame_from_crop, virtual_xy)
        uv = _face_coordinates(outline)
        place = _Place(region, bend, frame_from_crop, grid, driver_xy, carried_xy, uv, planes)
        small = np.asarray(
            cv2.resize(region.cut(frame.image_rgb), region.size_wh, interpolation=cv2.INTER_AREA), np.uint8
        )
        front = self._in_front(small, place, mask, core, dt_s)
        mask, inside = mask * (1 - front), inside * (1 - front)
        crop_rgb = self._relight(small, crop_rgb, place, _Masks(mask, inside, core), dt_s)
        crop_rgb = self._match_texture(frame, crop_rgb, place, dt_s)
        crop_rgb = self._still.hold_pixels(crop_rgb, _on_crop(share, seen, place, crop_rgb, outside=1.0))
        texture, grain, grain_index = self._texture.texture, 0.0, 0
        if texture is not None:
            grain, grain_index = texture.grain, self._still.grain_index(frame.index, share)
        scale = similarity_scale(frame_from_crop)
        self._put(image_rgb, Pasting(region, crop_rgb, grid, scale, mask, grain, grain_index))

    def _in_front(self, small: ImageRgb, place: _Place, mask: F32, core: F32, dt_s: float) -> F32:
        if self._occluder is None:
            return np.zeros_like(mask)
        occlusion = self._occluder.update(small, place.region, place.driver_xy, mask, core, dt_s)
        if occlusion.is_too_much:
            raise Unfit("implausible")
        return occlusion.in_front

    def _relight(
        self, small: ImageRgb, crop_rgb: ImageRgb, place: _Place, masks: _Masks, dt_s: float
    ) -> ImageRgb:
        """The crop in the source's light, with skin in place of hair."""
        side = (FIT_SIDE, FIT_SIDE)
        own = np.asarray(cv2.resize(small, side, interpolation=cv2.INTER_AREA), np.uint8)
        virtual = _reduced(crop_rgb, place.grid, FIT_SIDE)
        whole, face, features = cv2.split(cv2.resize(cv2.merge([masks.mask, masks.inside, masks.core]), side))
        zones = _hair_zones(place, masks)
        skin = np.asarray(face * (1 - features) * (1 - _FRINGE * zones.forehead), np.float32)
        uv = face_coordinates_of(place.region, place.uv_from_frame, side)
        if self._light.is_due():
            self._light.update(fit_light(own, virtual, skin, face, uv), dt_s)
            luma = cv2.cvtColor(own, cv2.COLOR_RGB2GRAY).astype(np.float32)
            self._skin_log = skin_level(luma, skin, uv)
        light = self._light.light
        if light is None:
            return crop_rgb
        lit, paint = light.apply(virtual, uv), None
        if self._skin_log is not None:
            hair = self._virtual_hair.update(lit, self._skin_log, zones, dt_s)
            hair = np.maximum(hair, np.clip((whole - face) * _RIM, 0, 1))
            paint = _paint(hair, lit, whole, skin * (1 - zones.features))
        if paint is not None:
            lit += paint[..., 3:] * (paint[..., :3] - lit)
        seam = self._seam.update(own.astype(np.float32), lit, whole, dt_s)
        corners = _corners(crop_rgb, compose_affine(place.uv_from_frame, place.frame_from_crop))
        crop_rgb = relight(
            crop_rgb, light, corners, _on_crop(seam, place.region, place, crop_rgb), _whites(place)
        )
        if paint is not None:
            paint[..., :3] += seam
            crop_rgb = _painted(crop_rgb, _on_crop(paint, place.region, place, crop_rgb))
        return crop_rgb

    def _match_texture(self, frame: Frame, crop_rgb: ImageRgb, place: _Place, dt_s: float) -> ImageRgb:
        if self._texture.is_due():
            patch = _patch(place.region, similarity_scale(place.frame_from_crop))
            own = cv2.resize(patch.cut(frame.image_rgb), patch.size_wh, interpolation=cv2.INTER_AREA)
            virtual = resample(crop_rgb, crop_map(patch, place.bend, place.frame_from_crop), patch.size_wh)
            self._texture.update(match_texture(np.asarray(own, np.uint8), virtual), dt_s)
        texture = self._texture.texture
        return crop_rgb if texture is None else treat(crop_rgb, texture.treatment)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one face goes in one frame."""

    region: Region
    bend: Bend
    frame_from_crop: F32
    grid: F32
    driver_xy: F32
    carried_xy: F32
    uv_from_frame: F32
    planes: F32  # see `hairline.zone_planes`


@dataclass(frozen=True, slots=True)
class _Masks:
    """(h, w) [0, 1] each: what is pasted, what of it lies inside the face's outline, and the features."""

    mask: F32
    inside: F32
    core: F32


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


def _hair_zones(place: _Place, masks: _Masks) -> HairZones:
    """Where the virtual person's hair may be: above the eyes, and in a strip along the outline."""
    width_px = place.bend.width_px * place.region.scale
    forehead, high, upper = cv2.split(cv2.resize(place.planes, (FIT_SIDE, FIT_SIDE)))
    side, step = (FIT_SIDE, FIT_SIDE), max(masks.mask.shape) / FIT_SIDE
    soft = cv2.GaussianBlur(cv2.resize(masks.inside, side), (0, 0), max(0.5, 0.10 * width_px / step))
    strip = np.clip((0.97 - soft) * 4, 0, 1) * (1 - cv2.resize(masks.core, side))
    features, eyes = _virtual_features(place)
    hair = np.maximum(high, strip).astype(np.float32) * (1 - eyes)
    return HairZones(features, forehead, upper, hair)


def _virtual_features(place: _Place) -> tuple[F32, F32]:
    """(n, n) [0, 1] twice: the virtual face's brows with its eyes, and its eyes alone, both grown by a cell."""
    region = place.region
    cells = np.array([FIT_SIDE / (region.x1 - region.x0), FIT_SIDE / (region.y1 - region.y0)])
    found = []
    for parts in ((RIGHT_EYE, RIGHT_BROW), (LEFT_EYE, LEFT_BROW)), ((RIGHT_EYE,), (LEFT_EYE,)):
        drawn = np.zeros((FIT_SIDE, FIT_SIDE), np.uint8)
        for part in parts:
            points = (place.carried_xy[np.concatenate(part)] - (region.x0, region.y0)) * cells
            cv2.fillConvexPoly(drawn, cv2.convexHull(points.astype(np.int32)), 1)
        found.append(cv2.dilate(drawn, np.ones((3, 3), np.uint8)).astype(np.float32))
    return found[0], found[1]


def _paint(hair: F32, lit: F32, face: F32, skin: F32) -> F32 | None:
    """(n, n, 4): skin to paint, and how much of it, where the virtual person's hair lies over the face."""
    if float((hair * face).max()) < 0.1:
        return None
    return np.dstack([paint_skin(lit, hair, skin), hair]).astype(np.float32)


def _painted(crop_rgb: ImageRgb, paint: F32) -> ImageRgb:
    """The crop with `paint`, see `_paint`, laid over it."""
    *skin, share = cv2.split(paint)
    size_wh = crop_rgb.shape[1::-1]
    over = cv2.resize(cv2.convertScaleAbs(cv2.merge(skin)), size_wh)
    share = cv2.resize(share, size_wh)
    return np.asarray(cv2.blendLinear(crop_rgb, over, 1 - share, share), np.uint8)


def _corners(crop_rgb: ImageRgb, uv_from_crop: F32) -> F32:
    """Face coordinates of the crop's corners: top left, top right, bottom left."""
    end = crop_rgb.shape[0] - 0.5
    return apply_affine(uv_from_crop, np.array([[-0.5, -0.5], [end, -0.5], [-0.5, end]]))


def _whites(place: _Place) -> F32:
    """(3, 4): see `colour.relight`; an eye a quarter as high as wide is open, a mouth when its lips part."""
    rows = []
    for shape, closed, span in ((RIGHT_EYE, 0.1, 0.15), (LEFT_EYE, 0.1, 0.15), (INNER_LIPS, 0.06, 0.2)):
        uv = apply_affine(place.uv_from_frame, place.carried_xy[shape])
        middle = uv.sum(0) / len(uv)
        (a, b), (_, d) = (uv - middle).T @ (uv - middle) / len(uv)
        root = np.hypot((a - d) / 2, b)  # spreads along the shape's own axes, whatever the roll
        wide, high = (np.sqrt(max((a + d) / 2 + sign * root, 1e-9)) for sign in (1, -1))
        rows.append([*middle, 1.4 * wide, min(max((high / wide - closed) / span, 0.0), 1.0)])
    return np.array(rows, np.float32)


def _reduced(crop_rgb: ImageRgb, grid: F32, side: int) -> ImageRgb:
    """Area averages of the crop on a `side` by `side` grid over the region, by sampling a reduced copy."""
    reduced = np.asarray(cv2.resize(crop_rgb, (64, 64), interpolation=cv2.INTER_AREA), np.uint8)
    at = (grid + 0.5) * (64 / crop_rgb.shape[0]) - 0.5
    return resample(reduced, at.astype(np.float32), (side, side))


def _on_crop(field: F32, region: Region, place: _Place, crop_rgb: ImageRgb, *, outside: float = 0.0) -> F32:
    """A field (n, n, ...) over a region, seen from the crop at a fourth of its resolution; `outside` the
    region. Fields are coarser than that already."""
    n, size = field.shape[0], crop_rgb.shape[0]
    reduced = max(16, size // 4)
    sx, sy = n / (region.x1 - region.x0), n / (region.y1 - region.y0)
    cell_from_frame = np.array(
        [[sx, 0, (0.5 - region.x0) * sx - 0.5], [0, sy, (0.5 - region.y0) * sy - 0.5]], np.float32
    )
    step = size / reduced
    crop_from_reduced = np.array([[step, 0, step / 2 - 0.5], [0, step, step / 2 - 0.5]], np.float32)
    matrix = compose_affine(compose_affine(cell_from_frame, place.frame_from_crop), crop_from_reduced)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(field, matrix, (reduced, reduced), flags=flags, borderValue=(outside,) * 4), np.float32
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
