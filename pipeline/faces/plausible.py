"""Does a mesh look like a face at all? The landmark network's own score says yes too easily."""

from __future__ import annotations

import numpy as np

from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.geometry import (
    F64,
    LEFT_EYE_INDEX,
    MOUTH_CORNERS_INDEX,
    RIGHT_EYE_INDEX,
    box_from_mesh,
)

_FOREHEAD_INDEX, _CHIN_INDEX = 10, 152
_MAX_SIZE_RATIO = 1.7
_MAX_SHIFT = 0.4  # of centres, in sides of the expected box
_MOUTH_BELOW_EYES = (0.2, 0.75)  # in heights of the face


def is_plausible(mesh: FaceMesh, box_xyxy: F32, size_wh: tuple[int, int]) -> bool:
    """True when the mesh may be the face expected in the box.

    Asked are: finite points; a size and place near the box's; forehead, eyes, mouth and chin in that order
    along the face, with usual proportions; most of it inside the frame.

    Args:
        mesh: px of the frame.
        box_xyxy: (4,) px where a detector or a prediction has the face.
        size_wh: of the frame, px.
    """
    points = mesh.points_xyz[:, :2].astype(np.float64)
    if not np.isfinite(mesh.points_xyz).all() or not np.isfinite(mesh.blendshapes).all():
        return False
    return _lies_at(mesh, box_xyxy) and _is_in_order(points) and _is_inside(points, size_wh)


def _lies_at(mesh: FaceMesh, box_xyxy: F32) -> bool:
    box = box_from_mesh(mesh.points_xyz)
    got, want = box[2:] - box[:2], box_xyxy[2:] - box_xyxy[:2]
    side = float(np.sqrt(max(want.prod(), 1.0)))
    ratio = float(np.sqrt(max(got.prod(), 1e-6))) / side
    shift = float(np.hypot(*((box[:2] + box[2:]) - (box_xyxy[:2] + box_xyxy[2:])) / 2)) / side
    return 1 / _MAX_SIZE_RATIO <= ratio <= _MAX_SIZE_RATIO and shift <= _MAX_SHIFT


def _is_in_order(points: F64) -> bool:
    eyes = points[np.concatenate([RIGHT_EYE_INDEX, LEFT_EYE_INDEX])].mean(0)
    mouth = points[MOUTH_CORNERS_INDEX].mean(0)
    down = points[_CHIN_INDEX] - points[_FOREHEAD_INDEX]
    height = float(np.hypot(*down))
    if height < 2.0:
        return False
    low, high = _MOUTH_BELOW_EYES
    along = [float((p - points[_FOREHEAD_INDEX]) @ down) / height**2 for p in (eyes, mouth)]
    return along[0] > 0.0 and along[1] < 1.05 and low <= along[1] - along[0] <= high


def _is_inside(points: F64, size_wh: tuple[int, int]) -> bool:
    inside = (points >= 0).all(1) & (points <= np.asarray(size_wh)).all(1)
    return float(inside.mean()) >= 0.5
