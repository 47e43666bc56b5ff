"""Trains a projector: on the surrogate first, then with the generator and the recognisers in the loop.

Algorithm 1 of IVFG: two keys and triplets x1, x2 of one person and y of another give four virtual faces; the losses
of `models.projector_losses` move P alone, everything else is frozen.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keyface.configs.errors import UsageError
from keyface.configs.projector import LOSS_NAMES, ProjectorConfig
from keyface.models.look_limits import LookLimits
from keyface.models.projector import (
    ConcatenationProjector,
    Latents,
    Metric,
    Projector,
    RotationProjector,
)
from keyface.models.projector_data import PhotoTriplets, Triplets, TripletSource
from keyface.models.projector_losses import Virtual, projector_losses
from keyface.models.surrogate import Surrogate

log = logging.getLogger(__name__)

# styles (N, 3, 512) and numbers of the photos (N,) that they are made for -> (N, R, 128) unit embeddings
Recognise = Callable[[Tensor, Tensor], Tensor]
_LOG_EVERY = 25
_KEEP_EVERY = 100


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a training: `name`, steps, triplets a step, learning rate, and what recognises."""

    name: str
    steps: int
    batch: int
    lr: float
    recognise: Recognise


def make_projector(
    config: ProjectorConfig,
    latents: Latents,
    metric: Metric,
    looks: LookLimits,
    surrogate: Surrogate | None = None,
) -> Projector:
    """An untrained projector; ours starts at the directions of w that the surrogate says move embeddings most."""
    torch.manual_seed(config.seed)
    if config.form == "concatenation":
        return ConcatenationProjector(config, latents.width(config), looks)
    start = None if surrogate is None else start_of(config, latents, surrogate)
    return RotationProjector(config, metric, latents.width(config), looks, start)


def load_projector(config: ProjectorConfig, latents: Latents, path: Path) -> RotationProjector:
    """Ours, with the weights of a file that `save_projector` wrote; the configuration's `spread` counts.

    Raises:
        UsageError: the file is of another form or size than the configuration.
    """
    tensors = {name: tensor.float() for name, tensor in load_file(str(path)).items()}
    bounds = (
        tensors.get(f"network.bounds.{name}", torch.zeros(0)) for name in ("normals", "steps", "limits")
    )
    looks = LookLimits(*(tensor.numpy() for tensor in bounds))
    metric = Metric(np.zeros((config.n_code, 128), np.float32), np.zeros(128, np.float32))
    projector = RotationProjector(config, metric, latents.width(config), looks)
    kept = {name: tensor for name, tensor in tensors.items() if name not in {"fold", "radius"}}
    try:
        projector.load_state_dict(kept)
    except RuntimeError as error:
        raise UsageError(
            f"{path} is no projector of the configuration.",
            "Give the configuration that it was trained with.",
        ) from error
    return projector


def start_of(config: ProjectorConfig, latents: Latents, surrogate: Surrogate) -> np.ndarray | None:
    """(width, n): the n leading right singular vectors of the surrogate's linear part along the axes of w, scaled so
    that codes give coordinates of deviation `spread`; None for z."""
    if config.latent == "z":
        return None
    per_axis = (latents.axes * latents.deviations[:, None]) @ surrogate.whiten  # (A, inputs of a group)
    groups = surrogate.linear.weight.reshape(len(surrogate.linear.weight), 3, -1) @ per_axis.T
    slope = groups.sum(1) if config.latent == "w" else groups.flatten(1)
    _, _, directions = torch.linalg.svd(slope, full_matrices=False)
    kept = directions[: config.n_code].T
    scale = config.spread * (len(kept) / config.n_code) ** 0.5
    return np.asarray((kept * scale).numpy(), np.float32)


def virtual_faces(
    projector: Projector,
    latents: Latents,
    triplets: Triplets,
    recognise: Recognise,
    generator: torch.Generator,
) -> Virtual:
    """The four virtual faces of each triplet, under two new keys."""
    n = len(triplets.x1)
    x1, x2, y = (torch.from_numpy(e) for e in (triplets.x1, triplets.x2, triplets.y))
    first, second = projector.draw_keys(1, generator), projector.draw_keys(1, generator)
    coordinates = torch.cat([projector(torch.cat([x1, x2, y]), first), projector(x1, second)])
    photo = torch.from_numpy(np.concatenate([triplets.photo.ravel(), triplets.photo[0]]))
    found = recognise(latents.styles(coordinates, projector.config), photo).reshape(4, n, -1, 128)
    original = torch.from_numpy(triplets.original).repeat(1, found.shape[2] // triplets.original.shape[1], 1)
    x1_k1, x2_k1, y_k1, x1_k2 = found
    return Virtual(x1_k1, x1_k2, x2_k1, y_k1, original, coordinates.reshape(4, n, -1))


class Training:
    """A training that can be stopped and goes on: state beside `out` (.ckpt), every loss in a table (.csv)."""

    def __init__(
        self, projector: Projector, latents: Latents, source: TripletSource | PhotoTriplets, out: Path
    ) -> None:
        self.projector, self._latents, self._source, self._out = projector, latents, source, out
        self._trained = [p for p in projector.parameters() if p.requires_grad]
        self._done: dict[str, int] = {}
        self._optimiser: dict[str, dict[str, object]] = {}
        if out.with_suffix(".ckpt").exists():
            state = torch.load(out.with_suffix(".ckpt"), weights_only=True)
            projector.load_state_dict(state["model"])
            self._done, self._optimiser = state["done"], state["optimiser"]

    def steps_done(self, phase: str) -> int:
        """Steps behind this training in a phase."""
        return self._done.get(phase, 0)

    def run(
        self,
        phase: Phase,
        *,
        until_s: float = math.inf,
        after: Callable[[int], None] = lambda step: None,
    ) -> int:
        """Trains until the phase is over or `time.monotonic()` passes `until_s`; returns the steps done in all.
        `after` is called with their number after each step."""
        config = self.projector.config
        optimiser = torch.optim.Adam(self._trained, phase.lr)
        if phase.name in self._optimiser:
            optimiser.load_state_dict(self._optimiser[phase.name])
        step = self._done.get(phase.name, 0)
        salt = sum(phase.name.encode())
        rng = np.random.default_rng([config.seed, salt, step])
        generator = torch.Generator().manual_seed((config.seed * 1009 + salt) * 100_003 + step)
        averages: dict[str, float] = {}
        while step < phase.steps and time.monotonic() < until_s:
            virtual = virtual_faces(
                self.projector, self._latents, self._source.draw(phase.batch, rng), phase.recognise, generator
            )
            losses = projector_losses(virtual, config)
            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(self._trained, 1.0)
            for group in optimiser.param_groups:
                group["lr"] = phase.lr * _schedule(step, phase.steps)
            optimiser.step()
            step += 1
            for name, loss in losses.items():
                averages[name] = 0.9 * averages.get(name, float(loss.detach())) + 0.1 * float(loss.detach())
            if step % _LOG_EVERY == 0:
                self._write_row(phase.name, step, averages)
            if step % _KEEP_EVERY == 0 or step == phase.steps:
                self._keep(phase.name, step, optimiser)
            after(step)
        if step > self._done.get(phase.name, 0):
            self._keep(phase.name, step, optimiser)
        return step

    def _keep(self, phase: str, step: int, optimiser: torch.optim.Optimizer) -> None:
        self._done[phase], self._optimiser[phase] = step, optimiser.state_dict()
        state = {"model": self.projector.state_dict(), "done": self._done, "optimiser": self._optimiser}
        partial = self._out.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._out.with_suffix(".ckpt"))

    def _write_row(self, phase: str, step: int, averages: dict[str, float]) -> None:
        path = self._out.with_suffix(".csv")
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["phase", "step", *LOSS_NAMES])
            writer.writerow(
                [phase, step, *(f"{averages[n]:.5f}" if n in averages else "" for n in LOSS_NAMES)]
            )
        log.info(
            "projector %s step %d %s", phase, step, " ".join(f"{k} {v:.3f}" for k, v in averages.items())
        )


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: 50 steps of warming up, then half a cosine."""
    return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def save_projector(projector: Projector, out: Path) -> None:
    """Half precision, under the names that `pipeline.people.projector` reads; `fold`, `radius`: one number."""
    tensors = {k: v.detach().half().contiguous() for k, v in projector.state_dict().items()}
    for name, value in (("fold", projector.config.fold), ("radius", projector.config.spread)):
        tensors[name] = torch.tensor([value], dtype=torch.float16)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    save_file(tensors, str(partial))
    partial.replace(out)
    out.chmod(0o644)
