"""Where a pasted face goes and ends: placement, bend, outline, mask and its edge in the hair."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_face import a_mesh_xy
from property_cases import examples

from keyface.pipeline.faces.geometry import apply_affine
from keyface.pipeline.paste.blend import bend_between, crop_map, upscale_map
from keyface.pipeline.paste.mask import (
    _BRIDGE,
    LIFT,
    OutlineFilter,
    core_polygons,
    face_mask,
    region_of,
    widened,
)
from keyface.pipeline.paste.place import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    face_width,
    fit_frame_from_crop,
)


def test_the_edge_reaches_into_the_hair_but_not_past_a_side_turned_away() -> None:
    driver = a_mesh_xy()
    outline = driver[OVAL]
    wide = widened(outline, driver)
    width, up = face_width(driver), outline[0] - outline[18]
    assert ((wide - outline) @ up)[0] / np.linalg.norm(up) > 0.9 * LIFT * width
    assert all(cv2.pointPolygonTest(wide, (float(x), float(y)), False) >= 0 for x, y in outline)
    turned = driver.copy()
    turned[_BRIDGE] += 0.3 * width * np.array([1, 0], np.float32)  # the right of the picture is turned away
    side = (outline - outline.mean(0))[:, 0] > 0.3 * width
    assert np.abs((widened(outline, turned) - outline)[side, 0]).max() < 0.002 * width


@settings(max_examples=examples(30))
@given(st.floats(-180, 180), st.floats(0.2, 5))
def test_the_edge_turns_and_grows_with_the_face(angle: float, scale: float) -> None:
    driver = a_mesh_xy()
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    matrix = np.array([[c, -s, 40], [s, c, -25]])
    there = apply_affine(matrix, driver)
    found, want = widened(there[OVAL], there), apply_affine(matrix, widened(driver[OVAL], driver))
    assert (
        np.abs(found - want).max() < 0.25 * face_width(driver) * scale
    )  # the box that gives the width turns


@settings(max_examples=examples(50))
@given(st.floats(-180, 180), st.floats(0.05, 8), st.floats(-500, 2000), st.floats(-500, 2000))
def test_placement_finds_any_similarity(angle: float, scale: float, dx: float, dy: float) -> None:
    own = a_mesh_xy()
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    matrix = np.array([[c, -s, dx], [s, c, dy]])
    found = fit_frame_from_crop(own, apply_affine(matrix, own))
    assert np.abs(apply_affine(found, own) - apply_affine(matrix, own)).max() < 0.02


def test_placement_refuses_what_is_not_finite() -> None:
    bad = a_mesh_xy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_frame_from_crop(a_mesh_xy(), bad)


def test_the_mask_covers_the_features_and_stays_inside_the_outline() -> None:
    driver = a_mesh_xy()
    region = region_of(driver, (256, 256))
    assert region is not None
    width = face_width(driver[OVAL])
    mask, _ = face_mask(region, [driver[OVAL]], core_polygons(driver, width), width)
    at = np.rint(region.work_from_frame(driver)).astype(int)
    for index in (RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW, NOSE, LIPS):
        assert min(mask[y, x] for x, y in at[index]) > 0.99
    assert max(mask[y, x] for x, y in np.clip(at[OVAL], 0, np.array(region.size_wh) - 1)) < 0.25


def test_the_bend_brings_the_outline_home_and_leaves_the_features() -> None:
    driver = a_mesh_xy(jaw=1.08)
    own = a_mesh_xy((128, 124), 150.0)
    frame_from_crop = fit_frame_from_crop(own, driver)
    region = region_of(driver, (256, 256))
    assert region is not None
    bend = bend_between(driver[OVAL], own, frame_from_crop)
    size = (region.x1 - region.x0, region.y1 - region.y0)
    dense = upscale_map(crop_map(region, bend, frame_from_crop), size)
    chin = np.rint(driver[152]).astype(int) - [region.x0, region.y0]
    assert np.linalg.norm(dense[chin[1], chin[0]] - own[152]) < 4.0
    carried = apply_affine(frame_from_crop, own)
    for index in (RIGHT_EYE, LEFT_EYE, NOSE):
        for i in index[::4]:
            x, y = np.rint(carried[i]).astype(int) - [region.x0, region.y0]
            assert np.linalg.norm(dense[y, x] - own[i]) < 2.5


def test_the_outline_is_steadied_and_follows() -> None:
    rng = np.random.default_rng(2)
    still, outline = a_mesh_xy(width=200), OutlineFilter()
    seen = [
        outline.update(still + rng.normal(0, 0.5, (478, 2)).astype(np.float32), 1 / 30) for _ in range(60)
    ]
    jitter = np.std([s - still[OVAL] for s in seen[20:]])
    assert jitter < 0.35
    moved = still + np.array([40, -25], np.float32)
    assert np.abs(outline.update(moved, 1 / 30) - moved[OVAL]).max() < 2.0
    opened = moved.copy()
    opened[OVAL[14:23], 1] += 20
    last = [outline.update(opened, 1 / 30) for _ in range(4)][-1]
    assert np.abs(last - opened[OVAL]).max() < 3.0
