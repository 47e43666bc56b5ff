"""The loop that trains a warping reenactor, whichever its network: steps of both networks, running average, curves,
checkpoints that are written whole or not at all.

A step's batch and all its chance come from the seed and the step's number, so that a training which was stopped and
gone on with makes the same numbers as one that was not.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyface.configs.errors import EngineError, UsageError
from keyface.models.patch_discriminator import PatchDiscriminator
from keyface.models.warp_batches import Batch, Drawer
from keyface.models.warp_judges import Judges
from keyface.models.warp_losses import (
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
)
from keyface.models.warp_schedule import WarpSchedule

log = logging.getLogger(__name__)

LOG_EVERY = 25


class WarpLoop(ABC):
    """A training that can be stopped and gone on with; a subclass says what the loss is.

    Attributes:
        c: the schedule; out: where the weights will go, beside which the checkpoint lies (suffix .ckpt).
        model, average, critic: the trained network, its running average, which is what is kept, and its judge.
        step: steps done; means: running means of the terms; history: those of every 25th step.
    """

    c: WarpSchedule

    def __init__(
        self, model: nn.Module, critic: PatchDiscriminator, judges: Judges, out: Path, config: WarpSchedule
    ) -> None:
        """Raises UsageError when the checkpoint is damaged or another network's."""
        self.c, self.judges, self.out = config, judges.to(config.device), out
        self.model = model.to(config.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.critic = critic.to(config.device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), config.critic_lr, betas=(0.5, 0.99)
        )
        self.step = 0
        self.means: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._load()

    @abstractmethod
    def terms(self, b: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss of a batch; the critic is stepped on the way."""

    def made_for(self) -> dict[str, Any]:
        """What of the configuration a checkpoint belongs to; plain values only."""
        return {}

    @property
    def checkpoint(self) -> Path:
        """Where the training is kept."""
        return self.out.with_suffix(".ckpt")

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model, "average": self.average, "critic": self.critic, "optimiser": self.optimiser,
            "critic_optimiser": self.critic_optimiser,
        }  # fmt: skip

    def _load(self) -> None:
        path = self.checkpoint
        if not path.exists():
            return
        way_out = "Give another --out, or remove the file to start over."
        try:
            state = torch.load(path, weights_only=True, map_location=self.c.device)
            made_for = state.get("made_for", {})
        except Exception as error:  # a damaged file can raise anything
            raise UsageError(f"{path} cannot be read as the checkpoint of a training.", way_out) from error
        wanted = self.made_for()
        other = sorted(name for name in wanted if made_for.get(name) != wanted[name])
        if other:
            raise UsageError(f"{path} is of a network of other {', '.join(other)} than configured.", way_out)
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step, self.history = int(state["step"]), list(state["history"])
            self.means = dict(state.get("means", {}))
        except (KeyError, ValueError, RuntimeError) as error:
            raise UsageError(f"{path} is the checkpoint of another network.", way_out) from error

    def save(self) -> None:
        """The checkpoint, written whole or not at all."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {
            "step": self.step,
            "history": self.history,
            "means": self.means,
            "made_for": self.made_for(),
        }
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)

    def train_step(self, b: Batch) -> None:
        """One step of both networks.

        Raises:
            EngineError: the loss is not finite; the network was not changed by it.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.c.rate(self.step)
        terms = self.terms(b)
        weighted = torch.stack([term.float() for term in terms.values()])
        values = dict(zip(terms, weighted.tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise EngineError(
                f"The loss '{wrong[0]}' is not finite at step {self.step + 1}.",
                "Lower lr or that loss's weight, and go on from the last checkpoint.",
            )
        self.optimiser.zero_grad()
        weighted.sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.c.largest_gradient)
        self.optimiser.step()
        self.step += 1
        self._follow()
        for name, value in values.items():
            self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the running average; what is counted and not trained is taken over."""
        decay = min(self.c.decay, self.step / (self.step + 20))
        for kept, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for kept, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(new)

    def adversarial(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Steps the discriminator, and gives the generator's terms."""
        loss = discriminator_hinge_loss(self.critic(real)[0], self.critic(fake.detach())[0])
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        logits, features = self.critic(fake)
        with torch.no_grad():
            real_features = self.critic(real)[1]
        return {
            "adversarial": self.c.adversarial_weight * generator_hinge_loss(logits),
            "matching": self.c.matching_weight * feature_matching_loss(real_features, features),
        }


def run_schedule(training: WarpLoop, drawer: Drawer) -> None:
    """Trains until the schedule or the time ends, and leaves the checkpoint.

    Raises:
        EngineError: the loss is not finite; the last checkpoint is left as it is.
    """
    config, start = training.c, time.monotonic()
    log.info("warp %s", asdict(config))
    while training.step < config.steps and time.monotonic() - start < config.seconds:
        training.train_step(drawer.draw(np.random.default_rng([config.seed, training.step])))
        if training.step % LOG_EVERY == 0 or training.step == config.steps:
            training.history.append({"step": float(training.step), **training.means})
            log.info(
                "warp step %d %s", training.step, " ".join(f"{k} {v:.4f}" for k, v in training.means.items())
            )
        if training.step % config.save_every == 0:
            training.save()
    training.save()
