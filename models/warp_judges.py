"""What judges the pictures of a warping reenactor in training, against the true frame: pixels, LPIPS over the picture
and again over eyes and mouth enlarged; landmarks, blendshapes and identity read off the picture by frozen networks.

Pictures are (N, 3, H, H) in [-1, 1] of any side; landmarks (N, 478, 3) in [-1, 1] across them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.face_measure import FaceMeasure
from keyface.models.lpips import Lpips
from keyface.models.warp_batches import Batch, resized
from keyface.models.warp_losses import multi_scale_loss
from keyface.models.warp_pairs import SIDE_PX
from keyface.models.warp_schedule import WarpSchedule

MOUTH, EYES = (61, 291, 0, 17), (33, 263, 105, 334)
EMPHASISED = (3, *range(9, 23), 25, 32, 38, 44, 45)  # as in models.train_motion


class Judges(nn.Module):
    """The frozen networks of the loss."""

    def __init__(self, lpips: Lpips, measure: FaceMeasure) -> None:
        super().__init__()
        self.lpips, self.measure = lpips, measure
        self.requires_grad_(False).eval()


def close_ups(image: Tensor, points: Tensor, side: int = 128) -> Tensor:
    """Mouth and eyes of pictures at points, enlarged: (2 N, 3, side, side)."""
    found = []
    for index, width in ((MOUTH, 1.5), (EYES, 1.15)):
        around = points[:, index, :2]
        low, high = around.amin(1), around.amax(1)
        half = (high - low).amax(1, keepdim=True) / 2 * width
        theta = torch.zeros(len(image), 2, 3, device=image.device)
        theta[:, 0, 0] = theta[:, 1, 1] = half[:, 0]
        theta[:, :, 2] = (low + high) / 2
        grid = F.affine_grid(theta, [len(image), 3, side, side], align_corners=False)
        found.append(F.grid_sample(image, grid, align_corners=False, padding_mode="border"))
    return torch.cat(found)


def face_mask(points: Tensor, side: int = SIDE_PX) -> Tensor:
    """(N, 1, side, side), [0, 1]: an ellipse about the landmarks with some of the hair, softly ended."""
    low, high = points[..., :2].amin(1), points[..., :2].amax(1)
    centre, half = (low + high) / 2, (high - low) / 2
    axis = (torch.arange(side, device=points.device) + 0.5) / side * 2 - 1
    x = (axis[None] - centre[:, :1]) / (1.15 * half[:, :1])
    y = (axis[None] - centre[:, 1:] + 0.1 * half[:, 1:]) / (1.3 * half[:, 1:])
    distance = x[:, None, :] ** 2 + y[:, :, None] ** 2
    return torch.sigmoid(6 * (1.2 - distance))[:, None]


def picture_losses(
    picture: Tensor, b: Batch, judges: Judges, c: WarpSchedule, *, with_reading: bool, n_scales: int = 1
) -> dict[str, Tensor]:
    """Terms of the loss of pictures like `b.target`, but for the adversarial ones.

    Args:
        with_reading: landmarks, blendshapes and identity too.
        n_scales: of LPIPS over the picture: so many sizes, each half of the one before.
    """
    mask = face_mask(b.target_points, picture.shape[-1])
    # Hair and background of a generated person change from frame to frame, and only the face is pasted.
    faces = b.target + (picture - b.target) * mask
    near, wanted = (close_ups(image, b.target_points) for image in (picture, b.target))
    perceptual = multi_scale_loss(faces, b.target, judges.lpips, n_scales=n_scales)
    found = {
        "pixel": c.pixel_weight * ((picture - b.target).abs() * (0.5 + mask)).mean(),
        "perceptual": c.perceptual_weight * perceptual,
        "close": c.close_weight * (judges.lpips(near, wanted).mean() + (near - wanted).abs().mean()),
    }
    if with_reading:
        found |= readings(picture, b, judges.measure, c)
    return found


def readings(picture: Tensor, b: Batch, measure: FaceMeasure, c: WarpSchedule) -> dict[str, Tensor]:
    """Landmarks, blendshapes and identity read off the pictures."""
    image, source_image = (resized(found, SIDE_PX) for found in (picture, b.image))
    seen = (b.target_points + 1) * (SIDE_PX / 2) - 0.5
    low, high = seen[..., :2].amin(1), seen[..., :2].amax(1)
    roi = torch.cat([(low + high) / 2, ((high - low).amax(1) * 1.5)[:, None]], 1)
    points, _ = measure.look(image.clamp(-1, 1), roi)
    shapes = measure.shapes(points[:, measure.subset, :2])[0].reshape(-1, 52)
    emphasis = torch.ones(52, device=image.device)
    emphasis[0], emphasis[list(EMPHASISED)] = 0.0, 5.0
    off = F.smooth_l1_loss(shapes / 0.1, b.controls[:, 2:54] / 0.1, reduction="none")
    shift = F.smooth_l1_loss(points[..., :2] / 2, seen[..., :2] / 2)
    with torch.no_grad():
        source = (b.source + 1) * (SIDE_PX / 2) - 0.5
        own = measure.identity(source_image, source).repeat_interleave(b.n_each, 0)
    kept = (measure.identity(image, seen) * own).sum(1) / (own.shape[1] // 128)
    return {
        "reading": c.reading_weight * ((off * emphasis).sum(1).mean() / emphasis.sum() + shift),
        "identity": c.identity_weight * (1 - kept).mean(),
    }
