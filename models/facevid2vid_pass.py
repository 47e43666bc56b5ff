"""One pass of the full reenactor over a batch of training: pictures, and what its losses look at.

    learned keypoints   x_s, x_d = moved_keypoints(x_c of the source, motion of the source, of the driver)
    of a mesh           x_s, x_d = landmarks of the source, of the driver

Networks run in bfloat16 where autocast is on; what finds and moves keypoints never does, since a keypoint off by a
250th of the picture, which is what bfloat16 keeps, is seen.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from keyface.models.facevid2vid import FaceVid2Vid
from keyface.models.facevid2vid_geometry import HeadMotion, moved_keypoints
from keyface.models.warp_batches import Batch, resized
from keyface.models.warp_losses import RandomWarp

# Landmarks of MediaPipe's mesh that stand for keypoints, the more telling first: outline and nose, mouth, lids and
# irises, brows, cheeks. A network of n keypoints takes the first n.
MESH_POINTS = (
    4, 152, 234, 454, 10, 61, 291, 13, 14, 468, 473, 159, 386, 145, 374, 105, 334, 0, 17, 33, 263, 133, 362, 168,
    172, 397, 205, 425, 55, 285, 78, 308, 81, 311, 178, 402, 70, 300, 2, 199, 58, 288, 127, 356, 67, 297, 50, 280,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Learned:
    """What losses of learned keypoints look at.

    Attributes:
        warped_points: (N, K, 3) found in the drivers' pictures under `warp`; None without one.
        source, driver: motions of the S sources and N drivers, as the network sees them.
    """

    warped_points: Tensor | None
    source: HeadMotion
    driver: HeadMotion


@dataclass(frozen=True, slots=True)
class Pass:
    """image (N, 3, H, H) in [-1, 1], N = S * V, and the keypoints (N, K, 3) that it was made by; `learned` is None
    where a mesh gives them."""

    image: Tensor
    source_points: Tensor
    driving_points: Tensor
    learned: Learned | None


def run_pass(
    network: FaceVid2Vid,
    b: Batch,
    *,
    warp: RandomWarp | None = None,
    takes_measured_angles: bool = False,
    autocast: AbstractContextManager[object] | None = None,
) -> Pass:
    """All pictures of a batch.

    Args:
        warp: N maps, for the equivariance loss.
        takes_measured_angles: where `b.is_predicted`, the measured angles turn the head in place of those that the
            network sees in the driver: the paper's free view. Only where keypoints are learned.
        autocast: for the networks that may compute in less than float32.
    """
    autocast = autocast or nullcontext()
    image, side = b.image * 0.5 + 0.5, network.config.side_px
    learned = None
    if network.config.learns_keypoints:
        driver = resized(b.target * 0.5 + 0.5, side)
        measured = b.is_predicted if takes_measured_angles else torch.zeros_like(b.is_predicted)
        source_points, driving_points, learned = _learned(network, b, image, driver, warp, measured)
    else:
        index = list(MESH_POINTS[: network.config.n_keypoints])
        source_points, driving_points = b.source[:, index].repeat_interleave(b.n_each, 0), b.driving[:, index]
    with autocast:
        features = network.appearance(image).repeat_interleave(b.n_each, 0)
        picture = network.render(features, source_points, driving_points)
    return Pass(picture.float() * 2 - 1, source_points, driving_points, learned)


def _learned(
    network: FaceVid2Vid, b: Batch, image: Tensor, driver: Tensor, warp: RandomWarp | None, measured: Tensor
) -> tuple[Tensor, Tensor, Learned]:
    """Source and driving keypoints (N, K, 3), and the rest. All pictures go through H and Delta together, so that its
    norms see one batch."""
    assert network.keypoints is not None
    canonical = network.keypoints(image).repeat_interleave(b.n_each, 0)
    seen = [image, driver] if warp is None else [image, driver, warp.image(driver)]
    motion = network.motion_of(torch.cat(seen))
    parts = [_rows(motion, rows) for rows in torch.arange(len(motion.shift)).split([len(x) for x in seen])]
    source = _rows(parts[0], torch.arange(len(image)).repeat_interleave(b.n_each))
    driver_motion = parts[1]
    degrees = torch.where(measured[:, None], network_degrees(b.target_poses), driver_motion.degrees)
    turned = HeadMotion(degrees, driver_motion.shift, driver_motion.deltas)
    warped = None if warp is None else moved_keypoints(canonical, parts[2])
    found = Learned(warped, parts[0], driver_motion)
    return moved_keypoints(canonical, source), moved_keypoints(canonical, turned), found


def _rows(motion: HeadMotion, rows: Tensor) -> HeadMotion:
    rows = rows.to(motion.shift.device)
    return HeadMotion(motion.degrees[rows], motion.shift[rows], motion.deltas[rows])


def network_degrees(pose_ypr_deg: Tensor) -> Tensor:
    """The product's yaw, pitch, roll (N, 3) as angles of the network's R = R_x R_y R_z, degrees.

    The product turns R_z(-roll) R_y(yaw) R_x(pitch) with y up and z towards the viewer. Keypoints have y down, and
    z away from the viewer as MediaPipe's mesh, so that R = R_z(roll) R_y(-yaw) R_x(pitch), which is taken apart in
    the network's order.
    """
    yaw, pitch, roll = torch.deg2rad(pose_ypr_deg).unbind(-1)
    (cy, sy), (cp, sp), (cr, sr) = ((a.cos(), a.sin()) for a in (-yaw, pitch, roll))
    r02, r12, r22 = cr * sy * cp + sr * sp, sr * sy * cp - cr * sp, cy * cp
    r00, r01 = cr * cy, cr * sy * sp - sr * cp
    angles = torch.asin(r02.clamp(-1, 1)), torch.atan2(-r12, r22), torch.atan2(-r01, r00)
    return torch.rad2deg(torch.stack(angles, -1))
