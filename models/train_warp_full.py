"""Trains the full warping reenactor (FaceVid2Vid) on pairs of one person in two frames.

The losses of the paper (arXiv 2011.15126, section 3 and appendix A): perceptual at several sizes, adversarial at
several sizes with feature matching, equivariance, keypoint prior, head pose against the measured one, expression
prior. Added, as in the mobile network's training: L1, LPIPS of eyes and mouth enlarged, landmarks and blendshapes
read off the picture, and the source's identity in place of the paper's face-recognition features. Where a mesh gives
the keypoints, the four losses of learned ones have nothing to say and are left out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyface.configs.errors import UsageError
from keyface.models.facevid2vid import FaceVid2Vid
from keyface.models.facevid2vid_config import FaceVid2VidConfig
from keyface.models.facevid2vid_layout import for_inference
from keyface.models.facevid2vid_pass import MESH_POINTS, Pass, network_degrees, run_pass
from keyface.models.patch_discriminator import MIN_SIDE_PX, PatchDiscriminator
from keyface.models.warp_batches import Batch, Batcher, Drawer, Drive
from keyface.models.warp_judges import Judges, picture_losses
from keyface.models.warp_loop import WarpLoop, run_schedule
from keyface.models.warp_losses import (
    RandomWarp,
    equivariance_loss,
    expression_prior_loss,
    head_pose_loss,
    keypoint_prior_loss,
)
from keyface.models.warp_pairs import Pairs
from keyface.models.warp_schedule import WarpSchedule
from keyface.models.warp_validation import Render

N_SETTLING = 8  # batches over which norms are measured at the end


@dataclass(frozen=True)
class FullWarpConfig(WarpSchedule):
    """The full network's schedule.

    Attributes:
        equivariance_weight, prior_weight, pose_weight, expression_weight: of learned keypoints only; pose_weight is
            per degree.
        n_scales: sizes at which LPIPS compares, each half of the one before.
        critic_scales, critic_channels: sizes at which the discriminator looks, and its width.
        network: sizes of the network; with `upscale` 2 it learns from pictures of twice `side_px`.

    Raises:
        UsageError: numbers that no schedule or network can have, or that do not fit together.
    """

    equivariance_weight: float = 2.0
    prior_weight: float = 1.0
    pose_weight: float = 2.0
    expression_weight: float = 0.5
    n_scales: int = 3
    critic_scales: int = 2
    critic_channels: int = 64
    network: FaceVid2VidConfig = field(default_factory=lambda: FaceVid2VidConfig(is_spectral=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in dataclasses.fields(self.network):
            value = getattr(self.network, entry.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise UsageError(f"network: {entry.name} is {value:g}, want more than 0.")
        if self.picture_px < MIN_SIDE_PX:
            raise UsageError(f"network: pictures of {self.picture_px} px, want {MIN_SIDE_PX} or more.")
        if not self.network.learns_keypoints and self.network.n_keypoints > len(MESH_POINTS):
            raise UsageError(
                f"network: n_keypoints is {self.network.n_keypoints}, want 1 to {len(MESH_POINTS)} of a mesh."
            )
        if self.n_scales < 1 or self.picture_px >> (self.n_scales - 1) < MIN_SIDE_PX:
            raise UsageError(
                f"n_scales is {self.n_scales}: the smallest of pictures of {self.picture_px} px would be below "
                f"{MIN_SIDE_PX} px, or there would be none."
            )
        if not 1 <= self.critic_scales <= 3 or self.critic_channels < 1:
            raise UsageError(
                f"critic_scales is {self.critic_scales} and critic_channels {self.critic_channels}, want 1 to 3 and "
                "1 or more."
            )

    @property
    def picture_px(self) -> int:
        """Side of the pictures that the network makes."""
        return self.network.side_px * self.network.upscale


class FullTraining(WarpLoop):
    """A training of the full network that can be stopped and gone on with; see `train_full`."""

    c: FullWarpConfig
    model: FaceVid2Vid
    average: FaceVid2Vid

    def __init__(self, judges: Judges, out: Path, config: FullWarpConfig) -> None:
        torch.manual_seed(config.seed)
        critic = PatchDiscriminator(n_scales=config.critic_scales, n_channels=config.critic_channels)
        super().__init__(FaceVid2Vid(config.network), critic, judges, out, config)

    def made_for(self) -> dict[str, Any]:
        """The network's sizes, and the critic's."""
        sizes = {f"network.{name}": value for name, value in dataclasses.asdict(self.c.network).items()}
        return sizes | {"critic_scales": self.c.critic_scales, "critic_channels": self.c.critic_channels}

    def terms(self, b: Batch) -> dict[str, Tensor]:
        """See `WarpLoop`; the discriminator looks at whole pictures."""
        c, share = self.c, self.c.share(self.step)
        warp = self._random_warp(len(b.target)) if c.network.learns_keypoints else None
        made = run_pass(self.model, b, warp=warp, autocast=autocast_on(c.device))
        with_reading = share >= c.reading_from and c.reading_weight + c.identity_weight > 0
        found = picture_losses(made.image, b, self.judges, c, with_reading=with_reading, n_scales=c.n_scales)
        if warp is not None:
            found |= keypoint_losses(made, b, warp, c)
        if share >= c.adversarial_from:
            found |= self.adversarial(b.target, made.image)
        return found

    def _random_warp(self, n: int) -> RandomWarp:
        """The same maps whenever this step is made."""
        seed = int(np.random.SeedSequence([self.c.seed, self.step]).generate_state(1)[0])
        return RandomWarp.draw(n, rng=torch.Generator().manual_seed(seed), device=self.c.device)

    def finished(self, draw: Callable[[np.random.Generator], Batch]) -> FaceVid2Vid:
        """The running average for use: without spectral norm, on the CPU, in evaluation mode.

        Its norms' statistics are measured anew over batches, since those of training belong to the weights before
        averaging, and lag behind them.
        """
        network = copy.deepcopy(self.average)
        norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
        network.train()
        with torch.no_grad():
            for i in range(N_SETTLING):
                b = draw(np.random.default_rng([self.c.seed, i, 1]))
                run_pass(network, b, autocast=autocast_on(self.c.device))
        return for_inference(network)


def keypoint_losses(made: Pass, b: Batch, warp: RandomWarp, c: FullWarpConfig) -> dict[str, Tensor]:
    """The weighted terms of learned keypoints, of a pass under `warp`."""
    learned = made.learned
    assert learned is not None and learned.warped_points is not None
    degrees = torch.cat([learned.source.degrees, learned.driver.degrees])
    measured = network_degrees(torch.cat([b.image_poses, b.target_poses]))
    deltas = torch.cat([learned.source.deltas, learned.driver.deltas])
    moves_along = equivariance_loss(made.driving_points, learned.warped_points, warp)
    return {
        "equivariance": c.equivariance_weight * moves_along,
        "prior": c.prior_weight * keypoint_prior_loss(made.driving_points),
        "pose": c.pose_weight * head_pose_loss(degrees, measured),
        "expression": c.expression_weight * expression_prior_loss(deltas),
    }


def autocast_on(device: str) -> AbstractContextManager[object]:
    """bfloat16 on a card, float32 elsewhere."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    context: AbstractContextManager[object] = torch.autocast("cuda", torch.bfloat16)
    return context


def render_of(network: FaceVid2Vid, device: str) -> Render:
    """The pictures of a finished network, for validation. Where keypoints are learned, views whose points are told
    from controls are turned by the measured angles in place of the seen ones."""

    def render(b: Batch) -> Tensor:
        return run_pass(network, b, takes_measured_angles=True, autocast=autocast_on(device)).image

    return render


def batcher_of(pairs: Pairs, drive: Drive, config: FullWarpConfig) -> Batcher:
    """Batches of the sides that the network takes and makes.

    Raises:
        UsageError: the pairs' pictures are smaller.
    """
    if pairs.side_px < config.picture_px:
        raise UsageError(
            f"The pairs' pictures are {pairs.side_px} px wide, and the network makes {config.picture_px} px.",
            f"Make such pairs (keyface train pairs --side {config.picture_px}), or set upscale or side_px lower.",
        )
    return Batcher(pairs, drive, config.network.side_px, config.picture_px, config.device)


def train_full(
    pairs: Pairs, drive: Drive, judges: Judges, out: Path, config: FullWarpConfig
) -> tuple[FullTraining, FaceVid2Vid]:
    """Trains until the schedule or the time ends; resumes from `out` with suffix .ckpt, and leaves it there.

    Args:
        pairs: to train on.
        drive: points that drive in the share `predicted` of the pairs; where a mesh gives the keypoints only.
        out: where the weights will go; its folder must exist.

    Returns:
        The training, and the network as it is at its end, for use.

    Raises:
        UsageError: the pairs are too small, or the checkpoint is damaged or another network's.
        EngineError: the loss is not finite.
    """
    drawer = Drawer(batcher_of(pairs, drive, config), config)
    training = FullTraining(judges, out, config)
    run_schedule(training, drawer)
    return training, training.finished(drawer.draw)
