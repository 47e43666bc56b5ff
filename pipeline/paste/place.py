"""Where a rendered face goes in the frame: the similarity that lays its mesh on the driver's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.pipeline.faces.geometry import fit_similarity

F32 = npt.NDArray[np.float32]

# MediaPipe mesh indices; the outline runs clockwise in the image from the middle of the forehead.
OVAL = np.array(
    [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
     152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
)  # fmt: skip
RIGHT_EYE = np.array([33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246])
LEFT_EYE = np.array([263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466])
RIGHT_BROW = np.array([70, 63, 105, 66, 107, 55, 65, 52, 53, 46])
LEFT_BROW = np.array([300, 293, 334, 296, 336, 285, 295, 282, 283, 276])
NOSE = np.array([168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358, 64, 294])
LIPS = np.array([61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185])
INNER_LIPS = np.array(
    [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191]
)

# Share of each group in the fit. Eyes, nose and mouth must meet, because gaze and speech are read there;
# the outline holds the scale steady, and its few badly tracked points weigh little one by one.
_GROUPS = ((OVAL, 0.30), (RIGHT_EYE, 0.15), (LEFT_EYE, 0.15), (NOSE, 0.22), (LIPS, 0.18))
_FIT_INDEX = np.concatenate([index for index, _ in _GROUPS])
_FIT_WEIGHT = np.concatenate([np.full(len(index), share / len(index)) for index, share in _GROUPS])


def fit_frame_from_crop(virtual_points: npt.NDArray[Any], driver_points: npt.NDArray[Any]) -> F32:
    """Weighted least-squares similarity that lays the virtual mesh on the driver's.

    Args:
        virtual_points: (478, 2 or 3) px of the crop.
        driver_points: (478, 2 or 3) px of the frame.

    Returns:
        (2, 3) float32 frame_from_crop: rotation, one scale, shift; follows any roll.

    Raises:
        ValueError: a mesh is not finite or has no extent.
    """
    if not np.isfinite(driver_points).all():
        raise ValueError("placement: the driver's mesh is not finite")
    return fit_similarity(virtual_points[_FIT_INDEX, :2], driver_points[_FIT_INDEX, :2], _FIT_WEIGHT)


def misfit(virtual_points: npt.NDArray[Any], driver_points: npt.NDArray[Any], frame_from_crop: F32) -> float:
    """Weighted mean distance between the carried virtual mesh and the driver's, in face widths."""
    m = frame_from_crop
    carried = virtual_points[_FIT_INDEX, :2] @ m[:, :2].T + m[:, 2]
    target = driver_points[_FIT_INDEX, :2]
    return float(_FIT_WEIGHT @ np.linalg.norm(carried - target, axis=1)) / max(face_width(target), 1e-6)


def face_width(points_xy: npt.NDArray[Any]) -> float:
    """Square root of the area of the points' box, px: a width that neither yaw nor roll changes much."""
    extent = np.ptp(points_xy[:, :2], axis=0)
    return float(np.sqrt(max(float(extent[0] * extent[1]), 0.0)))
