"""Trains the mobile warping reenactor on pairs of one person in two frames.

Per step: a few people, one source frame each, some driving frames. Loss, all against the true frame: L1, LPIPS over
the picture and again over eyes and mouth enlarged; landmarks and blendshapes read off the picture by MediaPipe's
networks; identity of the source; and, in the second half, hinge adversarial with feature matching. Points that drive
are the true frame's, and in a share of the pairs those that `models.keypoints` predicts from the controls alone, as
at run time. The carried weights are a running average of the trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from keyface.models.patch_discriminator import PatchDiscriminator
from keyface.models.warp_batches import Batch, Batcher, Drawer, Drive
from keyface.models.warp_judges import Judges, close_ups, picture_losses
from keyface.models.warp_loop import WarpLoop, run_schedule
from keyface.models.warp_mobile import WarpMobile
from keyface.models.warp_pairs import Pairs
from keyface.models.warp_schedule import WarpSchedule


@dataclass(frozen=True)
class WarpConfig(WarpSchedule):
    """The mobile network's schedule.

    Attributes:
        is_compiled: fused bfloat16 kernels, which need a C++ compiler.
    """

    is_compiled: bool = True


class WarpTraining(WarpLoop):
    """A training that can be stopped and gone on with; see `train_warp`."""

    c: WarpConfig
    model: WarpMobile
    average: WarpMobile

    def __init__(self, judges: Judges, out: Path, config: WarpConfig) -> None:
        torch.manual_seed(config.seed)
        super().__init__(WarpMobile(), PatchDiscriminator(), judges, out, config)
        self.source, self.decode = self.model.source, self.model.decode
        if config.is_compiled:
            self.source.compile(dynamic=False)
            self.decode.compile(dynamic=False)

    def render(self, b: Batch) -> Tensor:
        """Pictures (S * V, 3, 256, 256) of a batch; the networks in bfloat16 where compiled, coordinates never."""
        autocast = torch.autocast(
            torch.device(self.c.device).type, torch.bfloat16, enabled=self.c.is_compiled
        )
        with autocast:
            features, details = self.source(b.image, b.source)
        image, second, features, details, source, second_points = (
            t.repeat_interleave(b.n_each, 0)
            for t in (b.image, b.second, features, details, b.source, b.second_points)
        )
        motion = self.model.motion(source, second_points, b.driving, b.controls)
        has_second = b.has_second.repeat_interleave(b.n_each)[:, None, None, None]
        motion = replace(motion, opening=motion.opening * has_second)
        with autocast:
            picture = self.decode(image, second, features, details, motion, b.controls)
        return torch.as_tensor(picture).float()

    def terms(self, b: Batch) -> dict[str, Tensor]:
        """See `WarpLoop`; the discriminator looks at eyes and mouth."""
        c, share = self.c, self.c.share(self.step)
        picture = self.render(b)
        found = picture_losses(picture, b, self.judges, c, with_reading=share >= c.reading_from)
        if share >= c.adversarial_from:
            real, fake = (close_ups(image, b.target_points) for image in (b.target, picture))
            found |= self.adversarial(real, fake)
        return found


def train_warp(pairs: Pairs, drive: Drive, judges: Judges, out: Path, config: WarpConfig) -> WarpTraining:
    """Trains until the schedule or the time ends; resumes from `out` with suffix .ckpt, and leaves it there.

    Args:
        pairs: to train on.
        drive: the keypoint model's prediction, on these pairs.
        out: where the weights will go; its folder must exist.

    Raises:
        UsageError: the checkpoint is damaged.
        EngineError: the loss is not finite.
    """
    training = WarpTraining(judges, out, config)
    run_schedule(training, Drawer(Batcher(pairs, drive, device=config.device), config))
    return training
