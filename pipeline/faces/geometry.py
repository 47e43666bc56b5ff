"""Plane and rigid geometry of faces: boxes, similarity fits, the FFHQ quad, head pose from a mesh.

Everything is plain numpy. Points are (N, 2) or (N, 3) pixels, x right, y down; affine maps are
(2, 3) float32 and named after where they lead: `frame_from_crop` takes crop pixels to frame pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.pipeline.faces.canonical import CANONICAL_XYZ, RIGID_INDEX, RIGID_WEIGHT

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_Array = npt.NDArray[Any]

_RIGID_XYZ: F64 = CANONICAL_XYZ[RIGID_INDEX]
_RIGID_XYZ = _RIGID_XYZ - RIGID_WEIGHT @ _RIGID_XYZ  # centred
_RIGID_SPREAD = float((RIGID_WEIGHT[:, None] * _RIGID_XYZ**2).sum())
_N_FACE_POINTS = 468  # MediaPipe leaves the ten iris points out of the fit
_VERTICAL_FOV_DEG = 63.0
_HEIGHT_AT_NEAR = 2.0 * np.tan(np.radians(_VERTICAL_FOV_DEG) / 2.0)  # near plane at 1

# A detector's box (YuNet's and SCRFD's agree) seen from the mesh's tight box, in the mesh's longer sides:
# larger, and higher since it takes in the forehead. Medians over 80 photos, deviation 0.05 and 0.02.
BOX_PER_MESH = 1.15
BOX_WIDTH_PER_MESH = 0.985  # width alone
BOX_RISE = 0.07
POSE_CROP_SCALE = 1.8  # side of the square in which the pose is read, in longer sides of a detector's box

# Mesh points of the six dlib points of each eye, "right" being the subject's (left in the image).
RIGHT_EYE_INDEX = np.array([33, 160, 158, 133, 153, 144])
LEFT_EYE_INDEX = np.array([362, 385, 387, 263, 373, 380])
NOSE_TIP_INDEX = 4
MOUTH_CORNERS_INDEX = np.array([61, 291])  # right, left


# ---------------------------------------------------------------- boxes
def box_from_points(points_xy: _Array) -> F32:
    """(N, 2) px -> (4,) x0, y0, x1, y1 px, the tight box."""
    box: F32 = np.concatenate([points_xy[:, :2].min(0), points_xy[:, :2].max(0)]).astype(np.float32)
    return box


def box_from_mesh(points_xyz: _Array) -> F32:
    """(478 or 468, 2 or 3) px -> (4,) px, the box that a detector would give for the face."""
    tight = box_from_points(np.asarray(points_xyz)[:_N_FACE_POINTS])
    side = float((tight[2:] - tight[:2]).max())
    tight[1::2] -= BOX_RISE * side
    width = float(tight[2] - tight[0])
    grow_x, grow_y = (BOX_WIDTH_PER_MESH - 1) * width / 2, (BOX_PER_MESH - 1) * side / 2
    box: F32 = (tight + np.array([-grow_x, -grow_y, grow_x, grow_y])).astype(np.float32)
    return box


def enlarge_box(box_xyxy: _Array, scale: float) -> F32:
    """(4,) px -> (4,) px, the box about its centre with both sides times `scale`."""
    box = np.asarray(box_xyxy, np.float32)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * scale
    return np.concatenate([centre - half, centre + half]).astype(np.float32)


def clip_box(box_xyxy: _Array, size_wh: tuple[int, int]) -> F32:
    """(4,) px -> (4,) px inside a frame of `size_wh`; a box outside collapses onto the border."""
    limit = np.array([*size_wh, *size_wh], np.float32)
    return np.clip(np.asarray(box_xyxy, np.float32), 0.0, limit).astype(np.float32)


def iou_matrix(boxes_a: _Array, boxes_b: _Array) -> F32:
    """(N, 4) and (M, 4) px -> (N, M) intersection over union, [0, 1]."""
    a, b = np.asarray(boxes_a, np.float32).reshape(-1, 4), np.asarray(boxes_b, np.float32).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    union = area_a[:, None] + area_b[None] - inter
    iou: F32 = (inter / np.maximum(union, 1e-9)).astype(np.float32)
    return iou


# ---------------------------------------------------------------- affine maps
def apply_affine(matrix: _Array, points_xy: _Array) -> F32:
    """(2, 3) map applied to (N, 2) px -> (N, 2) px."""
    m = np.asarray(matrix, np.float64)
    return (np.asarray(points_xy, np.float64)[:, :2] @ m[:, :2].T + m[:, 2]).astype(np.float32)


def invert_affine(matrix: _Array) -> F32:
    """(2, 3) -> its inverse (2, 3). Raises ValueError when it has none."""
    m = np.asarray(matrix, np.float64)
    if abs(np.linalg.det(m[:, :2])) < 1e-12:
        raise ValueError("affine map: got a singular 2x3 matrix, want an invertible one")
    inverse = np.linalg.inv(m[:, :2])
    return np.column_stack([inverse, -inverse @ m[:, 2]]).astype(np.float32)


def compose_affine(outer: _Array, inner: _Array) -> F32:
    """(2, 3) map that applies `inner`, then `outer`."""
    a, b = np.asarray(outer, np.float64), np.asarray(inner, np.float64)
    return np.column_stack([a[:, :2] @ b[:, :2], a[:, :2] @ b[:, 2] + a[:, 2]]).astype(np.float32)


def fit_similarity(source_xy: _Array, target_xy: _Array, weights: _Array | None = None) -> F32:
    """Least-squares rotation + uniform scale + shift without reflection (Umeyama 1991, in closed form).

    Args:
        source_xy, target_xy: (N, 2), N >= 2, not all equal.
        weights: (N,) >= 0, all one by default.
    Returns:
        (2, 3) target_from_source. Raises ValueError when the source points coincide.
    """
    s = np.asarray(source_xy, np.float64)
    t = np.asarray(target_xy, np.float64)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, np.float64)
    w = w / w.sum()
    ms, mt = w @ s, w @ t
    a, b = s - ms, t - mt
    spread = float(w @ (a**2).sum(1))
    if not np.isfinite(spread) or spread < 1e-12:
        raise ValueError("similarity fit: the source points coincide or are not finite")
    p = float(w @ (a * b).sum(1)) / spread
    q = float(w @ (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])) / spread
    linear = np.array([[p, -q], [q, p]])
    return np.column_stack([linear, mt - linear @ ms]).astype(np.float32)


def similarity_scale(matrix: _Array) -> float:
    """Scale factor of a (2, 3) similarity."""
    m = np.asarray(matrix, np.float64)
    return float(np.sqrt(abs(np.linalg.det(m[:, :2]))))


# ---------------------------------------------------------------- five points and the FFHQ quad
def points_5_from_mesh(points_xyz: _Array) -> F32:
    """(478, 2 or 3) -> (5, 2) px: eye centres, nose tip, mouth corners, in the order of `Detection`."""
    p = np.asarray(points_xyz)[:, :2]
    corners = p[MOUTH_CORNERS_INDEX]
    return np.stack(
        [p[RIGHT_EYE_INDEX].mean(0), p[LEFT_EYE_INDEX].mean(0), p[NOSE_TIP_INDEX], corners[0], corners[1]]
    ).astype(np.float32)


def ffhq_quad(points_5: _Array) -> F32:
    """Corners of the FFHQ crop (Karras et al., 2019, as in its recreate script).

        x' = eye_to_eye - rot90(eye_to_mouth);  x = x'/|x'| * max(2.0 |eye_to_eye|, 1.8 |eye_to_mouth|)
        y = rot90(x);  c = eye_centre + 0.1 eye_to_mouth;  quad = c -x-y, c -x+y, c +x+y, c +x-y

    Args:
        points_5: (5, 2) px, order of `Detection`.
    Returns:
        (4, 2) px: top left, bottom left, bottom right, top right of the crop; roll follows the face.
    """
    p = np.asarray(points_5, np.float64)
    eye_to_eye = p[1] - p[0]
    eye_centre, mouth_centre = (p[0] + p[1]) / 2, (p[3] + p[4]) / 2
    eye_to_mouth = mouth_centre - eye_centre
    x = eye_to_eye - eye_to_mouth[::-1] * np.array([-1, 1])
    length = max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    x = x / max(float(np.hypot(*x)), 1e-9) * length
    y = x[::-1] * np.array([-1, 1])
    c = eye_centre + eye_to_mouth * 0.1
    return np.stack([c - x - y, c - x + y, c + x + y, c + x - y]).astype(np.float32)


def frame_from_quad(quad_xy: _Array, size: int) -> F32:
    """(4, 2) quad -> (2, 3) frame_from_crop for a crop of `size` px.

    The quad's corners are the outer corners of the corner pixels: (-0.5, -0.5) in crop pixels.
    """
    low, high = -0.5, size - 0.5
    crop = np.array([[low, low], [low, high], [high, high], [high, low]])
    return fit_similarity(crop, quad_xy)


# ---------------------------------------------------------------- head pose
def _procrustes(targets: F64) -> tuple[F64, float]:
    """Weighted orthogonal Procrustes (Akca 2003, eq. 51-53): rotation (3, 3) and scale that take the
    canonical face to `targets` (33, 3)."""
    centred = targets - RIGID_WEIGHT @ targets
    u, _, vt = np.linalg.svd((centred * RIGID_WEIGHT[:, None]).T @ _RIGID_XYZ)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        u[:, 2] *= -1
    rotation: F64 = u @ vt
    fitted = _RIGID_XYZ @ rotation.T
    return rotation, float((RIGID_WEIGHT[:, None] * fitted * centred).sum()) / _RIGID_SPREAD


def head_rotation(points_xyz: _Array, size_wh: tuple[float, float]) -> F64:
    """Rotation of the head as MediaPipe's face geometry reports it for an image of `size_wh`.

    A pinhole camera with 63 degrees of vertical view is assumed. The landmarks are projected onto its
    near plane, their scale is estimated twice by weighted Procrustes against the canonical face, with an
    unprojection in between, and a third fit gives the pose.

    Args:
        points_xyz: (478 or 468, 3) px of the image, z in the same scale.
        size_wh: size of the image, px.
    Returns:
        (3, 3) rotation, right-handed: x right, y up, z towards the viewer. Raises ValueError when the
        landmarks are not finite or have no extent.
    """
    width, height = size_wh
    points = np.asarray(points_xyz, np.float64)
    p = points[RIGID_INDEX]
    per_px = _HEIGHT_AT_NEAR / height  # the same for x, y and z: pixels are square
    x, y = (p[:, 0] - width / 2) * per_px, (height / 2 - p[:, 1]) * per_px
    z = p[:, 2] * per_px
    depth_offset = float(points[:_N_FACE_POINTS, 2].mean()) * per_px
    _, scale = _procrustes(np.column_stack([x, y, -z]))
    for _ in range(2):
        if not np.isfinite(scale) or scale < 1e-9:
            raise ValueError("head pose: the landmarks are not finite or have no extent")
        depth = (z - depth_offset + 1.0) / scale
        rotation, again = _procrustes(np.column_stack([x * depth, y * depth, -depth]))
        scale *= again
    return rotation


def euler_ypr_deg(rotation: _Array) -> F32:
    """(3, 3) rotation = Rz(-roll) Ry(yaw) Rx(pitch) -> (3,) yaw, pitch, roll in degrees.

    Signs as in `pipeline.face`: yaw > 0 looks to the image's right, pitch > 0 down, roll > 0 turns
    clockwise in the image (so that roll is minus the rotation about the axis to the viewer).
    """
    r = np.asarray(rotation, np.float64)
    cos_yaw = np.hypot(r[0, 0], r[1, 0])
    yaw, pitch = np.arctan2(-r[2, 0], cos_yaw), np.arctan2(r[2, 1], r[2, 2])
    return np.degrees([yaw, pitch, -np.arctan2(r[1, 0], r[0, 0])]).astype(np.float32)


def rotation_from_ypr(pose_ypr_deg: _Array) -> F64:
    """Inverse of `euler_ypr_deg`: (3,) degrees -> (3, 3)."""
    yaw, pitch, roll = np.radians(np.asarray(pose_ypr_deg, np.float64)) * (1, 1, -1)
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    rotation: F64 = about_z @ about_y @ about_x
    return rotation


def pose_from_mesh(points_xyz: _Array) -> F32:
    """Yaw, pitch, roll of a mesh, wherever the face is in its frame.

    The pose is what MediaPipe reports for a square crop centred on a detector's box of the face, with
    `POSE_CROP_SCALE` times its longer side (the box is put back from the mesh). So a face keeps its pose
    when it is cut out or moves through the picture, which MediaPipe's pose of the whole frame does not.
    Against MediaPipe on such crops: bias 0.1 degrees, deviation 0.2 for the same landmarks.

    Args:
        points_xyz: (478, 3) px.
    Returns:
        (3,) float32 degrees, see `euler_ypr_deg`.
    """
    points = np.asarray(points_xyz, np.float64)
    low, high = points[:_N_FACE_POINTS, :2].min(0), points[:_N_FACE_POINTS, :2].max(0)
    mesh_side = float((high - low).max())
    side = mesh_side * BOX_PER_MESH * POSE_CROP_SCALE
    shifted = points.copy()
    shifted[:, :2] += side / 2 - (low + high) / 2
    shifted[:, 1] += BOX_RISE * mesh_side
    return euler_ypr_deg(head_rotation(shifted, (side, side)))
