"""The losses of a warping reenactor's training, after FaceVid2Vid (One-Shot Free-View Neural Talking-Head Synthesis).

    perceptual         |phi(y) - phi(d)| at several sizes, phi given by the caller
    equivariance       |x_d - T(x_T(d))|: keypoints move with the picture
    keypoint prior     sum over i != j of max(0, D_t - |x_i - x_j|^2), and |mean depth - z_t|
    head pose          |R - R'| in degrees
    expression prior   |delta|
    adversarial        hinge, and matching of the judge's features

The paper's weights: perceptual 10, adversarial 1, equivariance 20, keypoint prior 10, head pose 20, expression 5.
Pictures are (N, 3, H, W), keypoints (N, K, 3) or (N, K, 2) in [-1, 1] across the picture, x right and y down. All
losses are means over the batch, 0 or above except `generator_hinge_loss`, and float scalars on their input's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[
    [Tensor, Tensor], Tensor
]  # of two batches of pictures: a scalar, or one number per picture

MIN_DISTANCE_SQUARED = 0.1  # D_t of the paper
MEAN_DEPTH = 0.33  # z_t of the paper


def multi_scale_loss(predicted: Tensor, wanted: Tensor, distance: Distance, *, n_scales: int = 3) -> Tensor:
    """Mean of `distance` at the full size, a half, a quarter and so on.

    Args:
        predicted, wanted: (N, 3, H, W) in the range that `distance` takes.
        n_scales: at least 1; the smallest picture is H / 2^(n_scales - 1) high.
    """
    total = distance(predicted, wanted).mean()
    for _ in range(n_scales - 1):
        predicted, wanted = F.avg_pool2d(predicted, 2), F.avg_pool2d(wanted, 2)
        total = total + distance(predicted, wanted).mean()
    return total / n_scales


def feature_distance(features: Callable[[Tensor], Sequence[Tensor]]) -> Distance:
    """Mean over layers of the mean absolute difference of features; no gradient goes to the wanted picture."""

    def distance(predicted: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            targets = features(wanted.detach())
        gaps = [(a - b).abs().mean() for a, b in zip(features(predicted), targets, strict=True)]
        return torch.stack(gaps).mean()

    return distance


@dataclass(frozen=True, slots=True)
class RandomWarp:
    """A smooth map T of the picture's plane: T(p) = A p + b + sum over j of c_j U(|p - q_j|), U(r) = r^2 log r.

    U is the thin plate's. `affine` (N, 2, 3) holds A and b, `knots` (J, 2) the q, `bends` (N, J, 2) the c.
    """

    affine: Tensor
    knots: Tensor
    bends: Tensor

    @classmethod
    def draw(
        cls,
        n: int,
        *,
        rng: torch.Generator | None = None,
        affine_deviation: float = 0.05,
        bend_deviation: float = 0.005,
        n_knots_across: int = 5,
        device: torch.device | str = "cpu",
    ) -> RandomWarp:
        """n maps near the identity, by the public implementation's deviations; both deviations 0: the identity.

        `rng` lives on the CPU, so that a seed gives the same maps on every device.
        """
        ticks = torch.linspace(-1, 1, n_knots_across)
        knots = torch.cartesian_prod(ticks, ticks)
        affine = torch.eye(2, 3) + affine_deviation * torch.randn((n, 2, 3), generator=rng)
        bends = bend_deviation * torch.randn((n, len(knots), 2), generator=rng)
        return cls(affine.to(device), knots.to(device), bends.to(device))

    def points(self, points: Tensor) -> Tensor:
        """T of points (N, K, 2), or of the same points (1, K, 2) for every map."""
        straight = points @ self.affine[:, :, :2].transpose(1, 2) + self.affine[:, None, :, 2]
        squared = (points[:, :, None] - self.knots).square().sum(-1)  # (N, K, J)
        return straight + 0.5 * (squared * torch.log(squared + 1e-12)) @ self.bends

    def image(self, image: Tensor) -> Tensor:
        """The picture (N, 3, H, W) that shows at p what `image` shows at T(p); mirrored beyond the border."""
        height, width = image.shape[2:]
        same = torch.eye(2, 3, device=image.device)[None]
        centres = F.affine_grid(same, [1, 3, height, width], align_corners=False).reshape(1, -1, 2)
        grid = self.points(centres).reshape(-1, height, width, 2)
        return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def equivariance_loss(points: Tensor, points_of_warped: Tensor, warp: RandomWarp) -> Tensor:
    """Mean |x_d - T(x_T(d))| over x and y: 0 where keypoints move with the picture.

    Args:
        points: keypoints of the picture, (N, K, 2 or more); what follows x and y is not read.
        points_of_warped: those found in `warp.image` of it.
    """
    return (points[..., :2] - warp.points(points_of_warped[..., :2])).abs().mean()


def keypoint_prior_loss(
    points: Tensor, *, min_distance_squared: float = MIN_DISTANCE_SQUARED, mean_depth: float = MEAN_DEPTH
) -> Tensor:
    """Keeps learned keypoints (N, K, 3) apart from each other, and their mean z at `mean_depth`.

    Not for keypoints of a mesh, which lie where they lie.
    """
    squared = (points[:, :, None] - points[:, None]).square().sum(-1)  # (N, K, K)
    others = 1 - torch.eye(points.shape[1], device=points.device)
    spread = (F.relu(min_distance_squared - squared) * others).sum((1, 2)).mean()
    depth = (points[..., 2].mean(1) - mean_depth).abs().mean()
    return spread + depth


def head_pose_loss(degrees: Tensor, wanted_degrees: Tensor) -> Tensor:
    """Mean absolute difference of yaw, pitch and roll (N, 3), degrees."""
    return (degrees - wanted_degrees).abs().mean()


def expression_prior_loss(deltas: Tensor) -> Tensor:
    """Mean |delta| of (N, K, 3): what pose explains is not to be told as expression."""
    return deltas.abs().mean()


def discriminator_hinge_loss(real: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """Mean of max(0, 1 - real) + max(0, 1 + generated) over the judge's logits, scale by scale."""
    terms = [F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(real, generated, strict=True)]
    return torch.stack(terms).mean()


def generator_hinge_loss(generated: Sequence[Tensor]) -> Tensor:
    """Minus the mean of the judge's logits of generated pictures, scale by scale."""
    return -torch.stack([logits.mean() for logits in generated]).mean()


def feature_matching_loss(real: Sequence[Tensor], generated: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the judge's features, layer by layer; no gradient goes to the real ones."""
    return torch.stack([(a.detach() - b).abs().mean() for a, b in zip(real, generated, strict=True)]).mean()
