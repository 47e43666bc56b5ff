"""Keypoints of a virtual person: pose and expression travel, the driver's shape does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import BLENDSHAPE_NAMES, FaceMesh
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.faces.geometry import pose_from_mesh, rotation_from_ypr
from keyface.pipeline.reenact.keypoints import (
    N_HIDDEN,
    N_MODES,
    N_POINTS,
    KeypointModel,
    fit_pose,
    turn_between,
    unit_points,
)

IMAGE_AXES = np.array([1.0, -1.0, -1.0])
JAW = BLENDSHAPE_NAMES.index("jawOpen")


def tensors(seed: int = 0, size: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "linear.weight": (N_MODES, 52), "fc1.weight": (N_HIDDEN, 52), "fc1.bias": (N_HIDDEN,),
        "fc2.weight": (N_MODES, N_HIDDEN), "modes": (N_MODES, 3 * N_POINTS),
    }  # fmt: skip
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def canonical_478() -> np.ndarray:
    """The canonical face with irises in the middle of the eyes, in image axes, cm."""
    xyz = CANONICAL_XYZ * IMAGE_AXES
    irises = [xyz[[33, 133]].mean(0)] * 5 + [xyz[[362, 263]].mean(0)] * 5
    return np.concatenate([xyz, irises])


def mesh(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, *, side: int = 256) -> FaceMesh:
    """The canonical face, turned, in a crop."""
    turn = IMAGE_AXES[:, None] * rotation_from_ypr(np.array([yaw, pitch, roll])) * IMAGE_AXES
    points = (9.0 * canonical_478() @ turn.T + np.array([side / 2, side / 2, 0.0])).astype(np.float32)
    shapes = np.full(52, 0.1, np.float32)
    return FaceMesh(points, shapes, pose_from_mesh(points), 1.0)


def controls(yaw_deg: float, pitch_deg: float, shapes: np.ndarray) -> np.ndarray:
    return np.concatenate([[yaw_deg / 30, pitch_deg / 30], shapes]).astype(np.float32)


def test_the_motion_that_the_source_shows_moves_nothing() -> None:
    model = KeypointModel(tensors())
    source = model.source(mesh(12.0, -6.0, 4.0), 256)
    assert model.driving(source, source.controls) == pytest.approx(source.points, abs=2e-5)


@settings(max_examples=examples(40))
@given(yaw=st.floats(-35, 35), pitch=st.floats(-25, 25), roll=st.floats(-20, 20))
def test_the_fit_takes_pose_and_shape_apart(yaw: float, pitch: float, roll: float) -> None:
    points = unit_points(mesh(yaw, pitch, roll).points_xyz, 256)
    rotation, scale, shift = fit_pose(points)
    canonical = (points - shift) @ rotation / scale
    expected = canonical_478()
    centre = np.median(canonical - expected, axis=0)
    assert canonical - centre == pytest.approx(expected, abs=2e-3)
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-5) and np.linalg.det(rotation) > 0
    assert scale == pytest.approx(9.0 / 128, rel=1e-4)


@settings(max_examples=examples(25))
@given(yaw=st.floats(-30, 30), pitch=st.floats(-20, 20), own=st.floats(-10, 10))
def test_the_wanted_pose_is_read_off_the_moved_mesh(yaw: float, pitch: float, own: float) -> None:
    model = KeypointModel(tensors())
    source = model.source(mesh(own, 0.5 * own, 3.0), 256)
    points = model.driving(source, controls(yaw, pitch, source.controls[2:]))
    pixels = (points + np.array([1.0, 1.0, 0.0])) * 128 - np.array([0.5, 0.5, 0.0])
    seen = pose_from_mesh(pixels)
    assert seen[:2] == pytest.approx([yaw, pitch], abs=0.6)
    assert seen[2] == pytest.approx(source.pose_ypr_deg[2], abs=2.0)


def test_turning_there_and_back_is_no_turn() -> None:
    pose = np.array([10.0, -5.0, 3.0], np.float32)
    turn = turn_between(pose, np.array([-20.0, 12.0]))
    back = turn_between(np.array([-20.0, 12.0, 3.0], np.float32), pose[:2])
    assert turn @ back == pytest.approx(np.eye(3), abs=1e-6)


def test_expressions_move_the_mesh_and_the_driver_has_no_say_in_its_shape() -> None:
    model = KeypointModel(tensors())
    wide = mesh()
    wide.points_xyz[:, 0] = 128 + 1.2 * (wide.points_xyz[:, 0] - 128)
    shapes = wide.blendshapes.copy()
    shapes[JAW] = 0.7
    moved = {}
    for name, of in (("plain", mesh()), ("wide", wide)):
        source = model.source(of, 256)
        before, after = (model.driving(source, controls(0, 0, s)) for s in (of.blendshapes, shapes))
        assert np.abs(after - before).max() > 1e-3
        moved[name] = source, after - before
    # the same shift in canonical units, whatever the person's shape
    in_cm = {name: change @ s.rotation / s.scale for name, (s, change) in moved.items()}
    apart = in_cm["wide"] - in_cm["plain"]
    assert np.ptp(apart, axis=0) == pytest.approx(np.zeros(3), abs=2e-3)
    assert np.ptp(moved["wide"][0].points[:, 0]) > 1.15 * np.ptp(moved["plain"][0].points[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    model, broken = KeypointModel(tensors()), mesh()
    broken.points_xyz[7, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        model.source(broken, 256)
    source = model.source(mesh(), 256)
    wanted = source.controls.copy()
    wanted[5] = bad
    with pytest.raises(ValueError, match="not finite"):
        model.driving(source, wanted)


def test_a_mesh_without_extent_is_refused() -> None:
    flat = FaceMesh(
        np.full((478, 3), 100.0, np.float32), np.zeros(52, np.float32), np.zeros(3, np.float32), 1.0
    )
    with pytest.raises(ValueError, match="no extent"):
        KeypointModel(tensors()).source(flat, 256)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    wrong = tensors()
    wrong["modes"] = wrong["modes"][:, :99].copy()
    save_file(wrong, str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelStoreError, match="modes is"):
        KeypointModel.load(tmp_path / "other.safetensors")
    del wrong["modes"]
    with pytest.raises(ModelStoreError, match="nothing"):
        KeypointModel(wrong)
