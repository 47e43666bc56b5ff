"""Landmarks through the optional package face-alignment (Bulat and Tzimiropoulos 2017): 68 points.

Installed by `pip install 'keyface[landmarks]'`; it needs PyTorch and fetches its weights when it first runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, FaceMesh
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.faces.geometry import F64, pose_from_mesh
from keyface.pipeline.faces.landmarks import N_POINTS, box_from_hints
from keyface.pipeline.frame import ImageRgb

# The mesh point at the place of each of the 68: jaw, brows, nose, eyes, outer and inner lips.
MESH_INDEX_OF_68 = np.array([
    127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
])  # fmt: skip
_IRIS_EYES = ((33, 133), (362, 263))  # corners of the eyes whose irises are points 468.. and 473..
_EYE_68 = {"Right": (36, 37, 38, 39, 40, 41), "Left": (42, 43, 44, 45, 46, 47)}
_SMOOTH = 0.05


class FaceAlignmentLandmarker:
    """68 points of face-alignment in the layout of the 478, as far as that goes.

    What it can drive: redaction, alignment (eyes, nose and mouth are its own points) and head pose, to a few
    degrees. What it cannot: expression. Only `jawOpen` and the two `eyeBlink` are estimated, from how far
    mouth and eyes are open; all other blendshapes are 0, and the gaze is straight. Points that are none of
    the 68, the forehead above all, come from the canonical face bent to fit. face-alignment gives no
    presence score: the score is 1 where it returns points.

    Args:
        device: "cpu" or "cuda", for PyTorch.
    Raises:
        EngineError: the package is missing, or its weights cannot be had.
    """

    def __init__(self, device: str = "cpu") -> None:
        try:
            import face_alignment
        except ImportError as error:
            raise EngineError(
                "face-alignment is not installed.", "Install it: pip install 'keyface[landmarks]'"
            ) from error
        try:
            self._network: Any = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D, device=device, flip_input=False
            )
        except (OSError, RuntimeError, ValueError) as error:  # no network, no disk, damaged weights
            raise EngineError(
                f"face-alignment cannot be opened: {str(error).strip()[:300]}",
                "It fetches its weights at the first run: try again online, or use another landmarker.",
            ) from error

    def detect(
        self,
        image_rgb: ImageRgb,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None:
        """See `Landmarker`. Raises ValueError without any hint."""
        box_xyxy = box_from_hints(points_5, box_xyxy, previous)
        if self._network is None:
            raise EngineError("face-alignment is closed.")
        try:
            found = self._network.get_landmarks_from_image(
                image_rgb, detected_faces=[[float(v) for v in box_xyxy]]
            )
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineError(f"face-alignment failed: {str(error).strip()[:300]}") from error
        if not found:
            return None
        points_68 = np.asarray(found[0], np.float64)
        if points_68.shape[0] != 68 or points_68.shape[1] < 2:
            raise EngineError(f"face-alignment: got points {points_68.shape}, want (68, 2).")
        if not np.isfinite(points_68).all():
            return None
        points = mesh_from_68(points_68[:, :2])
        return FaceMesh(points, _expression(points_68), pose_from_mesh(points), 1.0)

    def close(self) -> None:
        """Drops the network."""
        self._network = None


def mesh_from_68(points_68: F64) -> F32:
    """(68, 2) px -> (478, 3) px: the canonical face under the best affine camera, then bent by thin-plate
    splines so that the 68 points lie where they were found."""
    known = CANONICAL_XYZ[MESH_INDEX_OF_68]
    homogeneous = np.column_stack([known, np.ones(68)])
    camera, *_ = np.linalg.lstsq(homogeneous, points_68, rcond=None)  # (4, 2)
    xy = np.column_stack([CANONICAL_XYZ, np.ones(len(CANONICAL_XYZ))]) @ camera
    xy += _bend(known[:, :2], points_68 - homogeneous @ camera, CANONICAL_XYZ[:, :2])
    # Third row of the camera: at right angles to the first two, of their mean length; z grows away.
    rows = camera[:3].T
    scale = float(np.linalg.norm(rows, axis=1).mean())
    into = np.cross(rows[0], rows[1])
    into *= scale / max(float(np.linalg.norm(into)), 1e-9)
    z = CANONICAL_XYZ @ into
    points = np.empty((N_POINTS, 3))
    points[:468] = np.column_stack([xy, z - z.mean()])
    for first, corners in zip((468, 473), _IRIS_EYES, strict=True):
        centre, width = points[list(corners)].mean(0), np.ptp(points[list(corners), 0])
        ring = np.array([[0, 0, 0], [1, 0, 0], [0, -1, 0], [-1, 0, 0], [0, 1, 0]]) * width * 0.2
        points[first : first + 5] = centre + ring
    return points.astype(np.float32)


def _bend(known_xy: F64, offsets: F64, at_xy: F64) -> F64:
    """Smoothed thin-plate spline r^2 log r (Bookstein 1989) through offsets (N, 2) at known_xy."""

    def kernel(a: F64, b: F64) -> F64:
        squared = ((a[:, None] - b[None]) ** 2).sum(2)
        values: F64 = squared * np.log(np.maximum(squared, 1e-12)) / 2
        return values

    n = len(known_xy)
    plane = np.column_stack([np.ones(n), known_xy])
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = kernel(known_xy, known_xy) + _SMOOTH * np.eye(n)
    system[:n, n:], system[n:, :n] = plane, plane.T
    weights = np.linalg.solve(system, np.vstack([offsets, np.zeros((3, 2))]))
    bent: F64 = (
        kernel(at_xy, known_xy) @ weights[:n] + np.column_stack([np.ones(len(at_xy)), at_xy]) @ weights[n:]
    )
    return bent


def _expression(points_68: F64) -> F32:
    """(52,): jawOpen and eyeBlink from openings, the rest 0."""
    p = points_68[:, :2]
    blendshapes = np.zeros(len(BLENDSHAPE_NAMES), np.float32)
    mouth_open = np.linalg.norm(p[62] - p[66]) / max(float(np.linalg.norm(p[27] - p[8])), 1e-6)
    blendshapes[BLENDSHAPE_NAMES.index("jawOpen")] = np.clip(mouth_open / 0.35, 0, 1)
    for side, (a, b, c, d, e, f) in _EYE_68.items():
        width = max(float(np.linalg.norm(p[a] - p[d])), 1e-6)
        opening = (np.linalg.norm(p[b] - p[f]) + np.linalg.norm(p[c] - p[e])) / 2 / width
        blendshapes[BLENDSHAPE_NAMES.index(f"eyeBlink{side}")] = np.clip((0.3 - opening) / 0.2, 0, 1)
    return blendshapes
