"""How keypoints move: FaceVid2Vid, eq. 1 to 4.

    x_k = R x_c,k + t + delta_k

x_c are the canonical keypoints, which hold a person's shape only; R, t and delta are a head's rotation, shift and
expression. A virtual face takes x_c of the *source* and all else of the *driver*. All are in [-1, 1] across the
picture: x right, y down, z as learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

N_BINS = 66
BIN_DEG = 3.0
FIRST_BIN_DEG = -99.0


@dataclass(frozen=True, slots=True)
class HeadMotion:
    """Pose and expression of N heads.

    Attributes:
        degrees: (N, 3) yaw, pitch, roll.
        shift: (N, 3) t.
        deltas: (N, K, 3) delta.
    """

    degrees: Tensor
    shift: Tensor
    deltas: Tensor


def degrees_of_bins(logits: Tensor) -> Tensor:
    """Expected angle of a classification into 66 bins of 3 degrees, from -99: (..., 66) -> (...), degrees."""
    centres = torch.arange(N_BINS, device=logits.device, dtype=logits.dtype) * BIN_DEG + FIRST_BIN_DEG
    return (logits.softmax(-1) * centres).sum(-1)


def rotation_matrix(degrees: Tensor) -> Tensor:
    """R = R_x(pitch) R_y(yaw) R_z(roll) of (N, 3) yaw, pitch, roll: (N, 3, 3), right-handed turns about each axis.

    The public implementation takes 3.14 for pi, which turns 90 degrees into 89.95; here it is pi.
    """
    yaw, pitch, roll = torch.deg2rad(degrees).unbind(-1)
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, -1).reshape(-1, 3, 3)

    cos, sin = torch.cos, torch.sin
    about_x = matrix(one, zero, zero, zero, cos(pitch), -sin(pitch), zero, sin(pitch), cos(pitch))
    about_y = matrix(cos(yaw), zero, sin(yaw), zero, one, zero, -sin(yaw), zero, cos(yaw))
    about_z = matrix(cos(roll), -sin(roll), zero, sin(roll), cos(roll), zero, zero, zero, one)
    return about_x @ about_y @ about_z


def moved_keypoints(canonical: Tensor, motion: HeadMotion) -> Tensor:
    """x_k = R x_c,k + t + delta_k (eq. 1 to 4).

    With the source's own motion it gives the source's keypoints x_s; with the driver's motion, and still the source's
    `canonical`, the driving keypoints x_d, so that a driver's shape never enters.

    Args:
        canonical: (N, K, 3) or (1, K, 3), the source's.
        motion: of N heads.

    Returns:
        (N, K, 3).
    """
    turned = canonical @ rotation_matrix(motion.degrees).transpose(1, 2)
    return turned + motion.shift[:, None] + motion.deltas
