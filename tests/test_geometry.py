"""Boxes, similarity fits, the FFHQ quad and head pose."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.pipeline.faces.canonical import CANONICAL_XYZ, RIGID_INDEX, RIGID_WEIGHT
from keyface.pipeline.faces.geometry import (
    apply_affine,
    box_from_mesh,
    box_from_points,
    clip_box,
    compose_affine,
    enlarge_box,
    euler_ypr_deg,
    ffhq_quad,
    fit_similarity,
    frame_from_quad,
    head_rotation,
    invert_affine,
    iou_matrix,
    points_5_from_mesh,
    pose_from_mesh,
    rotation_from_ypr,
    similarity_scale,
)

Points = npt.NDArray[np.float64]

angles = st.floats(-180, 180)
shifts = st.floats(-500, 500)
scales = st.floats(0.05, 20)


def similarity(angle_deg: float, scale: float, dx: float, dy: float) -> npt.NDArray[np.float64]:
    c, s = np.cos(np.radians(angle_deg)) * scale, np.sin(np.radians(angle_deg)) * scale
    return np.array([[c, -s, dx], [s, c, dy]])


def seen_mesh(
    ypr_deg: tuple[float, float, float],
    *,
    size_wh: tuple[int, int] = (640, 640),
    distance_cm: float = 60.0,
    at_cm: tuple[float, float] = (0.0, 0.0),
) -> Points:
    """The canonical face turned and seen by MediaPipe's camera: (478, 3) px, z as from the network."""
    face = np.vstack([CANONICAL_XYZ, np.repeat(CANONICAL_XYZ[[33]], 10, 0)])
    metric = face @ rotation_from_ypr(np.array(ypr_deg)).T + np.array([*at_cm, -distance_cm])
    focal_px = size_wh[1] / 2 / np.tan(np.radians(63.0) / 2)
    x = size_wh[0] / 2 + metric[:, 0] / -metric[:, 2] * focal_px
    y = size_wh[1] / 2 - metric[:, 1] / -metric[:, 2] * focal_px
    z = -(metric[:, 2] - metric[:468, 2].mean()) / distance_cm * focal_px
    return np.column_stack([x, y, z])


@given(angles, scales, shifts, shifts)
def test_similarity_fit_finds_the_map(angle: float, scale: float, dx: float, dy: float) -> None:
    source = np.array([[0.0, 0.0], [100.0, 5.0], [40.0, 80.0], [-30.0, 20.0]])
    truth = similarity(angle, scale, dx, dy)
    fitted = fit_similarity(source, source @ truth[:, :2].T + truth[:, 2])
    np.testing.assert_allclose(fitted, truth, atol=2e-3 * max(scale, 1))
    assert similarity_scale(fitted) == pytest.approx(scale, rel=1e-4)


def test_similarity_fit_never_mirrors() -> None:
    source = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    fitted = fit_similarity(source, source * [-1, 1])
    assert np.linalg.det(fitted[:, :2]) >= 0


def test_similarity_fit_weighs_points() -> None:
    source = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    target = source + np.array([[0.0, 0.0], [0.0, 0.0], [30.0, 30.0]])
    fitted = fit_similarity(source, target, np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(fitted, [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_similarity_fit_refuses_one_place() -> None:
    with pytest.raises(ValueError, match="coincide"):
        fit_similarity(np.ones((5, 2)), np.ones((5, 2)))


@given(angles, scales, shifts, shifts)
def test_inverse_undoes(angle: float, scale: float, dx: float, dy: float) -> None:
    matrix = similarity(angle, scale, dx, dy)
    identity = compose_affine(invert_affine(matrix), matrix)
    np.testing.assert_allclose(identity, [[1, 0, 0], [0, 1, 0]], atol=2e-2)


def test_inverse_refuses_a_singular_map() -> None:
    with pytest.raises(ValueError, match="singular"):
        invert_affine(np.zeros((2, 3)))


def test_compose_applies_inner_first() -> None:
    turn, shift = similarity(90, 1, 0, 0), similarity(0, 1, 10, 0)
    point = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(apply_affine(compose_affine(shift, turn), point), [[10, 1]], atol=1e-5)


def test_iou() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    iou = iou_matrix(boxes, boxes)
    np.testing.assert_allclose(np.diag(iou), 1, atol=1e-6)
    assert iou[0, 1] == pytest.approx(1 / 3)
    assert iou[0, 2] == 0
    assert iou_matrix(np.empty((0, 4)), boxes).shape == (0, 3)


def test_boxes() -> None:
    np.testing.assert_array_equal(box_from_points(np.array([[3, 9], [7, 1], [5, 5]])), [3, 1, 7, 9])
    np.testing.assert_array_equal(enlarge_box(np.array([0, 0, 10, 20]), 2.0), [-5, -10, 15, 30])
    np.testing.assert_array_equal(clip_box(np.array([-5, -10, 15, 30]), (12, 20)), [0, 0, 12, 20])


def test_box_from_mesh_takes_in_the_forehead() -> None:
    mesh = seen_mesh((0, 0, 0))
    tight, box = box_from_points(mesh), box_from_mesh(mesh)
    assert box[1] < tight[1] - 10
    assert (box[3] - box[1]) / (tight[3] - tight[1]) == pytest.approx(1.15, abs=0.01)


def test_ffhq_quad_of_an_upright_face_is_an_upright_square() -> None:
    points_5 = np.array([[100, 100], [160, 100], [130, 130], [105, 170], [155, 170]], np.float32)
    quad = ffhq_quad(points_5)
    side = 2 * max(60 * 2.0, 70 * 1.8)
    np.testing.assert_allclose(quad[3] - quad[0], [side, 0], atol=1e-3)
    np.testing.assert_allclose(quad[1] - quad[0], [0, side], atol=1e-3)
    np.testing.assert_allclose(quad.mean(0), [130, 100 + 70 * 0.1], atol=1e-3)


@given(angles, st.floats(0.2, 5), shifts, shifts)
def test_ffhq_quad_moves_with_the_face(angle: float, scale: float, dx: float, dy: float) -> None:
    points_5 = np.array([[100, 100], [160, 104], [130, 130], [105, 170], [155, 168]], np.float32)
    move = similarity(angle, scale, dx, dy)
    moved_quad = ffhq_quad(apply_affine(move, points_5))
    np.testing.assert_allclose(moved_quad, apply_affine(move, ffhq_quad(points_5)), atol=0.05 * max(scale, 1))


def test_frame_from_quad_takes_outer_corners() -> None:
    quad = np.array([[0, 0], [0, 100], [100, 100], [100, 0]], np.float32)
    frame_from_crop = frame_from_quad(quad, 50)
    np.testing.assert_allclose(
        apply_affine(frame_from_crop, np.array([[-0.5, -0.5], [49.5, 49.5]])), [[0, 0], [100, 100]], atol=1e-3
    )


def test_points_5_order_is_that_of_detections() -> None:
    points = points_5_from_mesh(seen_mesh((0, 0, 0)))
    right_eye, left_eye, nose, right_mouth, left_mouth = points
    assert right_eye[0] < nose[0] < left_eye[0] and right_mouth[0] < left_mouth[0]
    assert right_eye[1] < nose[1] < right_mouth[1]


@given(st.floats(-60, 60), st.floats(-40, 40), st.floats(-89, 89))
def test_euler_angles_and_rotation_are_inverse(yaw: float, pitch: float, roll: float) -> None:
    ypr = np.array([yaw, pitch, roll])
    np.testing.assert_allclose(euler_ypr_deg(rotation_from_ypr(ypr)), ypr, atol=1e-3)


@given(st.floats(-50, 50), st.floats(-30, 30), st.floats(-60, 60))
@settings(max_examples=examples(50))
def test_pose_of_a_face_seen_by_the_camera(yaw: float, pitch: float, roll: float) -> None:
    mesh = seen_mesh((yaw, pitch, roll))
    np.testing.assert_allclose(euler_ypr_deg(head_rotation(mesh, (640, 640))), [yaw, pitch, roll], atol=2.5)


def test_pose_signs() -> None:
    yaw, pitch, roll = (pose_from_mesh(seen_mesh(t)) for t in ((30, 0, 0), (0, 20, 0), (0, 0, 25)))
    assert yaw[0] > 20 and pitch[1] > 12 and roll[2] > 20
    nose_right = seen_mesh((30, 0, 0))
    assert nose_right[4, 0] > nose_right[:468, 0].mean()  # looks to the image's right
    turned = seen_mesh((0, 0, 25))
    assert turned[263, 1] > turned[33, 1]  # clockwise: the image's right eye sinks


@given(shifts, shifts, scales)
def test_pose_is_the_same_wherever_the_face_is(dx: float, dy: float, scale: float) -> None:
    mesh = seen_mesh((20, -10, 15))
    np.testing.assert_allclose(
        pose_from_mesh(mesh * scale + np.array([dx, dy, 0.0])), pose_from_mesh(mesh), atol=1e-2
    )


def test_pose_refuses_points_without_extent() -> None:
    with pytest.raises(ValueError, match="no extent"):
        head_rotation(np.zeros((478, 3)), (100, 100))


def test_canonical_face_is_a_face() -> None:
    assert CANONICAL_XYZ.shape == (468, 3) and len(RIGID_INDEX) == 33
    assert RIGID_WEIGHT.sum() == pytest.approx(1)
    assert CANONICAL_XYZ[10, 1] > CANONICAL_XYZ[4, 1] > CANONICAL_XYZ[152, 1]  # forehead, nose, chin
    assert CANONICAL_XYZ[263, 0] == -CANONICAL_XYZ[33, 0] > 0
