"""What comes in front of a face stays in front; what is only the face moving, speaking or lit anew never
opens the mask."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.paste.hairline import HairZones, VirtualHair, paint_skin, skin_level, zone_planes
from keyface.pipeline.paste.mask import Region, core_polygons, face_mask, region_of
from keyface.pipeline.paste.occluders import HOLD_S, OccluderModel, Occlusion
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
U8 = npt.NDArray[np.uint8]
SIZE = 240
DT_S = 1 / 25


def _points(open_px: float = 0.0) -> F32:
    """(478, 2): a frontal face 130 px wide in the middle; `open_px` drops the lower lip and the chin."""
    out = np.random.default_rng(1).uniform(-30, 30, (478, 2)).astype(np.float32)

    def ring(index: npt.NDArray[Any], x: float, y: float, rx: float, ry: float) -> None:
        a = np.linspace(0, 2 * np.pi, len(index), endpoint=False) - np.pi / 2
        out[index] = np.stack([x + rx * np.cos(a), y + ry * np.sin(a)], 1)

    ring(OVAL, 0, 0, 65, 85)
    for x, eye, brow in ((-26, RIGHT_EYE, RIGHT_BROW), (26, LEFT_EYE, LEFT_BROW)):
        ring(eye, x, -16, 12, 5)
        ring(brow, x, -31, 15, 3)
    ring(NOSE, 0, 8, 10, 18)
    ring(LIPS, 0, 43, 21, 8)
    out[13], out[14] = (0, 42), (0, 44 + open_px)
    out[[17, 84, 314, 91, 321], 1] += open_px
    out[OVAL[13:24], 1] += open_px * 0.7
    return out + SIZE / 2


def _draw(points: F32, *, light: float = 1.0, seed: int = 0) -> U8:
    image = np.full((SIZE, SIZE, 3), (60, 90, 120), np.uint8)
    cv2.fillPoly(image, [np.rint(points[OVAL]).astype(np.int32)], (190, 145, 120))
    for index, colour in ((RIGHT_EYE, (50, 40, 40)), (LEFT_EYE, (50, 40, 40)), (LIPS, (150, 70, 70))):
        cv2.fillPoly(image, [cv2.convexHull(np.rint(points[index]).astype(np.int32))], colour)
    mouth = np.array(
        [points[13] + (-14, 0), points[13] + (14, 0), points[14] + (14, 0), points[14] + (-14, 0)]
    )
    cv2.fillPoly(image, [np.rint(mouth).astype(np.int32)], (60, 20, 20))
    noise = np.random.default_rng(seed).normal(0, 3, (SIZE, SIZE, 1))
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1) * light + noise, 0, 255).astype(np.uint8)


def _look(model: OccluderModel, image: U8, points: F32) -> tuple[Occlusion, Region, F32, F32]:
    region = region_of(points, (SIZE, SIZE))
    assert region is not None
    width = face_width(points[OVAL])
    mask, core = face_mask(region, [points[OVAL]], core_polygons(points, width), width)
    small = np.asarray(cv2.resize(region.cut(image), region.size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return model.update(small, region, points, mask, core, DT_S), region, mask, core


def _taught() -> OccluderModel:
    model = OccluderModel()
    for i in range(40):
        occlusion, *_ = _look(model, _draw(_points(), seed=i), _points())
        assert not occlusion.in_front.any() and not occlusion.is_too_much
    return model


def _cup(
    image: U8, top: int, colour: tuple[int, int, int] = (225, 230, 235)
) -> tuple[U8, npt.NDArray[np.bool_]]:
    """A bright cup held before the face from below up to row `top`."""
    out, where = image.copy(), np.zeros(image.shape[:2], bool)
    where[top:, 95:150] = True
    out[where] = colour
    return out, where


def test_a_cup_stays_in_front_and_nothing_else_is_shown() -> None:
    model, points = _taught(), _points()
    for i in range(10):
        image, where = _cup(_draw(points, seed=100 + i), 172)
        occlusion, region, mask, _ = _look(model, image, points)
    truth = np.asarray(
        cv2.resize(region.cut(np.dstack([where.astype(np.uint8)] * 3) * 255), region.size_wh)[..., 0]
        / 255.0
        * mask
    )
    shown = occlusion.in_front * mask
    both = np.minimum(shown, truth).sum()
    assert not occlusion.is_too_much
    assert both / truth.sum() > 0.6
    assert both / shown.sum() > 0.93


def _another(seed: int) -> U8:
    """Another person in other light: darker and warmer, one side in shade, as after a cut that nobody saw."""
    image = _draw(_points(), light=0.62, seed=seed).astype(np.float32)
    image *= np.array([1.0, 0.86, 0.62], np.float32)
    image *= np.linspace(0.55, 1.0, SIZE, dtype=np.float32)[None, :, None]
    image[:, :, :2] += 12 * (np.arange(SIZE)[:, None, None] > 130)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_another_face_after_a_cut_that_nobody_saw_is_not_let_through() -> None:
    model = _taught()
    for i in range(40):
        occlusion, *_ = _look(model, _another(i), _points())
        assert not occlusion.in_front.any(), i
    # and what comes in front of the new face is seen again once it has been watched
    for i in range(12):
        image, cup = _cup(_another(i), 150)
        occlusion, region, *_ = _look(model, image, _points())
    small = cv2.resize(region.cut(cup.astype(np.uint8)), region.size_wh, interpolation=cv2.INTER_AREA)
    assert occlusion.in_front[small > 0].mean() > 0.3


def test_a_thing_that_goes_leaves_no_hole() -> None:
    model, points = _taught(), _points()
    for i in range(10):
        _look(model, _cup(_draw(points, seed=i), 172)[0], points)
    occlusion, _, mask, _ = _look(model, _draw(points, seed=77), points)
    assert (occlusion.in_front * mask).sum() < 0.01 * mask.sum()


def test_nothing_is_in_front_before_the_face_is_known() -> None:
    model, points = OccluderModel(), _points()
    for i in range(10):
        occlusion, *_ = _look(model, _cup(_draw(points, seed=i), 172)[0], points)
        assert not occlusion.in_front.any()


def test_too_much_in_front_asks_for_a_mosaic_for_a_while() -> None:
    model, points = _taught(), _points()
    hidden = _draw(points)
    hidden[80:, :] = (225, 230, 235)
    occlusion, *_ = _look(model, hidden, points)
    assert occlusion.is_too_much
    held = 0
    while _look(model, _draw(points, seed=held), points)[0].is_too_much:
        held += 1
    assert abs(held - HOLD_S / DT_S) <= 1


def test_a_wide_open_mouth_is_no_thing_in_front() -> None:
    model = _taught()
    for open_px in (6, 14, 22, 26, 26, 26, 12):
        points = _points(open_px)
        occlusion, _, _, core = _look(model, _draw(points, seed=int(open_px)), points)
        assert (occlusion.in_front * core).sum() < 0.01 * core.sum()
        assert not occlusion.is_too_much


def test_other_light_is_no_thing_in_front() -> None:
    model, points = _taught(), _points()
    for light in (0.85, 0.75, 1.1, 1.2):
        occlusion, *_ = _look(model, _draw(points, light=light), points)
        assert not occlusion.in_front.any() and not occlusion.is_too_much


# ---------------------------------------------------------------- hair
def _hair_scene(points: F32, fringe_to: float | None) -> tuple[F32, F32, F32]:
    """How much of a virtual face with a fringe counts as hair, where its features are, and its rows in heights."""
    n = 36
    region = region_of(points, (SIZE, SIZE))
    assert region is not None
    width = face_width(points[OVAL])
    mask, core = face_mask(region, [points[OVAL]], core_polygons(points, width), width)
    mask, core = (
        np.asarray(cv2.resize(m, (n, n), interpolation=cv2.INTER_AREA), np.float32) for m in (mask, core)
    )
    uv = ((region.frame_grid((n, n)) - SIZE / 2) / 74).astype(np.float32)
    lit = np.broadcast_to(np.array([190, 145, 120], np.float32), (n, n, 3)).copy()
    level = skin_level(cv2.cvtColor(lit, cv2.COLOR_RGB2GRAY), mask * (1 - core), uv)
    assert level is not None
    planes = cv2.resize(zone_planes(region, points), (n, n))
    rows = np.linspace(0, 1, n, dtype=np.float32)
    if fringe_to is not None:
        lit[rows < fringe_to] = (30, 22, 18)
    for brow in (RIGHT_BROW, LEFT_BROW):
        cells = (points[brow] - (region.x0, region.y0)) * n / (region.x1 - region.x0, region.y1 - region.y0)
        cv2.polylines(lit, [np.rint(cells[:5]).astype(np.int32)], False, (60, 45, 40), 2)
    zones = HairZones(
        cv2.dilate(core, np.ones((3, 3), np.uint8)), planes[..., 0], planes[..., 2], planes[..., 1]
    )
    return VirtualHair().update(lit, level, zones, DT_S) * mask, core, rows


def test_a_virtual_fringe_is_hair_and_brows_are_not() -> None:
    hair, _, rows = _hair_scene(_points(), fringe_to=0.16)
    assert hair[rows < 0.12].max() > 0.95
    bare, core, _ = _hair_scene(_points(), fringe_to=None)
    assert (bare * core)[rows > 0.25].max() < 0.05


def test_skin_takes_the_place_of_hair() -> None:
    lit = np.full((36, 36, 3), (190.0, 145.0, 120.0), np.float32)
    hair = np.zeros((36, 36), np.float32)
    hair[:8] = 1
    lit[:8] = 20
    painted = paint_skin(lit, hair, np.ones((36, 36), np.float32))
    assert np.abs(painted[:8] - (190, 145, 120)).max() < 2
    far = paint_skin(lit, hair, np.float32(np.arange(36) > 30)[:, None] * np.ones((36, 36), np.float32))
    assert np.abs(far[:8] - (190, 145, 120)).max() < 2  # skin at the chin alone colours the forehead too
