"""Keypoints of a virtual person in motion: the mesh of the person's own shape, with the driver's pose and expression.

FaceVid2Vid's composition of keypoints, with MediaPipe's 478 landmarks in place of learned ones:

    x_k = s R(c) (x_c,k + delta_k(c) - delta_k(c_0)) + t                        (eq. 1-4 of the paper)

x_c are the *source's* canonical points, so nothing of the driver's shape travels; R turns from the source's measured
pose to the wanted one; delta is a small trained map from the 52 blendshapes to shifts of the canonical points
(`models/keypoints.py`); t keeps the face where FFHQ's alignment has it. c (54,): yaw / 30, pitch / 30, blendshapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.canonical import CANONICAL_XYZ, RIGID_INDEX, RIGID_WEIGHT
from keyface.pipeline.faces.geometry import points_5_from_mesh, pose_from_mesh, rotation_from_ypr
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG, controls_of

N_POINTS = 478
N_MODES, N_HIDDEN, N_BLENDSHAPES = 32, 64, 52
_SHAPES = {
    "linear.weight": (N_MODES, N_BLENDSHAPES), "fc1.weight": (N_HIDDEN, N_BLENDSHAPES), "fc1.bias": (N_HIDDEN,),
    "fc2.weight": (N_MODES, N_HIDDEN), "modes": (N_MODES, 3 * N_POINTS),
}  # fmt: skip
_TO_IMAGE = np.array([1.0, -1.0, -1.0])  # the canonical face has y up and z towards the viewer
# the wanted pose is one that is measured: so many times what is still missing is asked for in addition
_POSE_STEPS, _MOST_ASKED_DEG = 2, 60.0
_RIGID_XYZ = CANONICAL_XYZ[RIGID_INDEX] * _TO_IMAGE
_RIGID_XYZ = _RIGID_XYZ - RIGID_WEIGHT @ _RIGID_XYZ


@dataclass(frozen=True, slots=True)
class SourceShape:
    """A person in the source frame.

    Attributes:
        points: (478, 3), [-1, 1] across the crop, z in the same scale.
        canonical: (478, 3) the same without pose, in units of MediaPipe's canonical face (cm).
        rotation: (3, 3), scale, shift (3,): points = scale * canonical @ rotation.T + shift.
        pose_ypr_deg: (3,) as measured.
        controls: (54,) of the source frame.
    """

    points: F32
    canonical: F32
    rotation: F32
    scale: float
    shift: F32
    pose_ypr_deg: F32
    controls: F32


class KeypointModel:
    """The trained map from blendshapes to canonical shifts; read-only, so any thread may use it.

    Raises:
        ModelStoreError: the file lacks a tensor or has one of another shape.
    """

    def __init__(self, tensors: dict[str, F32], name: str = "keypoints") -> None:
        for tensor, shape in _SHAPES.items():
            if tensor not in tensors or tensors[tensor].shape != shape:
                got = tensors[tensor].shape if tensor in tensors else "nothing"
                raise ModelStoreError(f"{name}: {tensor} is {got}, want {shape}.", "Install keyface again.")
        self._t = {tensor: tensors[tensor].astype(np.float32) for tensor in _SHAPES}

    @classmethod
    def load(cls, path: Path) -> KeypointModel:
        """Reads models/weights/keypoints.safetensors or another file of `keyface train keypoints`."""
        return cls(load_file(str(path)), path.name)

    def deformation(self, blendshapes: F32) -> F32:
        """delta (478, 3), canonical units, of blendshapes (52,)."""
        t = self._t
        hidden = t["fc1.weight"] @ blendshapes + t["fc1.bias"]
        hidden = hidden / (1.0 + np.exp(-np.clip(hidden, -60.0, 60.0)))
        found = (t["linear.weight"] @ blendshapes + t["fc2.weight"] @ hidden) @ t["modes"]
        return np.asarray(found.reshape(N_POINTS, 3), np.float32)

    def source(self, mesh: FaceMesh, side_px: int) -> SourceShape:
        """What a mesh in a crop of `side_px` tells of the person's shape.

        Raises:
            ValueError: the mesh is not finite or has no extent.
        """
        points = unit_points(mesh.points_xyz, side_px)
        rotation, scale, shift = fit_pose(points)
        canonical = ((points - shift) @ rotation / scale).astype(np.float32)
        return SourceShape(
            points, canonical, rotation.astype(np.float32), float(scale), shift.astype(np.float32),
            mesh.pose_ypr_deg.astype(np.float32), controls_of(mesh),
        )  # fmt: skip

    def driving(self, source: SourceShape, wanted: F32) -> F32:
        """(478, 3) float32, [-1, 1] across the crop: the person with controls `wanted` (54,).

        Raises:
            ValueError: `wanted` is not finite.
        """
        if wanted.shape != (54,) or not np.isfinite(wanted).all():
            raise ValueError(f"keypoints: the wanted motion is not finite or has shape {wanted.shape}")
        moved = source.canonical + self.deformation(wanted[2:]) - self.deformation(source.controls[2:])
        asked_deg = wanted_deg = (wanted[:2] * POSE_SCALE_DEG).astype(np.float64)
        points = _placed(source, moved, asked_deg)
        for _ in range(_POSE_STEPS):
            asked_deg = np.clip(asked_deg + wanted_deg - _pose_deg(points), -_MOST_ASKED_DEG, _MOST_ASKED_DEG)
            points = _placed(source, moved, asked_deg)
        return points


def unit_points(points_xyz: F32, side_px: int) -> F32:
    """(478, 3) px of a crop -> [-1, 1] across it: -1 is the left edge of the first pixel.

    Raises:
        ValueError: a point is not finite.
    """
    if points_xyz.shape != (N_POINTS, 3) or not np.isfinite(points_xyz).all():
        raise ValueError(f"keypoints: the mesh is not finite or has shape {points_xyz.shape}")
    half = side_px / 2
    unit = (points_xyz + np.array([0.5, 0.5, 0.0])) / half - np.array([1.0, 1.0, 0.0])
    return np.asarray(unit, np.float32)


def fit_pose(points: F32) -> tuple[F32, float, F32]:
    """Rotation (3, 3), scale and shift (3,) that lay the canonical face's rigid core on points (478, 3); image axes.

    Raises:
        ValueError: the points have no extent.
    """
    target = points[RIGID_INDEX].astype(np.float64)
    mean = RIGID_WEIGHT @ target
    u, sizes, vt = np.linalg.svd(((target - mean) * RIGID_WEIGHT[:, None]).T @ _RIGID_XYZ)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    spread = float((RIGID_WEIGHT[:, None] * _RIGID_XYZ**2).sum())
    scale = float((sizes * signs).sum()) / spread
    if not np.isfinite(scale) or scale < 1e-6:
        raise ValueError("keypoints: the mesh has no extent")
    return ((u * signs) @ vt).astype(np.float32), scale, mean.astype(np.float32)


def turn_between(pose_ypr_deg: F32, yaw_pitch_deg: npt.NDArray[Any]) -> F32:
    """(3, 3) in image axes: from a measured pose (3,) to the same roll with another yaw and pitch (2,)."""
    there = rotation_from_ypr(np.append(yaw_pitch_deg, pose_ypr_deg[2]))
    turn = there @ rotation_from_ypr(pose_ypr_deg).T
    return np.asarray(_TO_IMAGE[:, None] * turn * _TO_IMAGE, np.float32)


def _placed(source: SourceShape, moved: F32, yaw_pitch_deg: npt.NDArray[np.float64]) -> F32:
    """Canonical points turned, with FFHQ's centre where the source has it."""
    turn = turn_between(source.pose_ypr_deg, yaw_pitch_deg)
    points = source.scale * moved @ (turn @ source.rotation).T
    shift = np.append(_anchor(source.points) - _anchor(points), source.shift[2])
    return np.asarray(points + shift, np.float32)


def _pose_deg(points: F32) -> npt.NDArray[np.float64]:
    """(2,) yaw and pitch as they are measured: through a camera, while points are turned without perspective."""
    return pose_from_mesh(points)[:2].astype(np.float64)


def _anchor(points: F32) -> F32:
    """(2,) the centre of FFHQ's crop: between the eyes, a tenth of the way to the mouth."""
    five = points_5_from_mesh(points)
    eyes, mouth = five[:2].mean(0), five[3:].mean(0)
    return np.asarray(eyes + 0.1 * (mouth - eyes), np.float32)
