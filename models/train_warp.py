"""Trains the warping reenactor on pairs of one person in two frames.

Per step: a few people, one source frame each, some driving frames. Loss, all against the true frame: L1, LPIPS over
the picture and again over eyes and mouth enlarged; landmarks and blendshapes read off the picture by MediaPipe's
networks; identity of the source; and, in the second half, hinge adversarial with feature matching. Points that drive
are the true frame's, and in a share of the pairs those that `models.keypoints` predicts from the controls alone, as
at run time. The carried weights are a running average of the trained ones.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.face_measure import FaceMeasure
from keyface.models.lpips import Lpips
from keyface.models.patch_discriminator import PatchDiscriminator
from keyface.models.warp_losses import (
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
)
from keyface.models.warp_mobile import WarpMobile
from keyface.models.warp_pairs import SIDE_PX, Pairs

log = logging.getLogger(__name__)

Drive = Callable[
    [int, int, int], np.ndarray
]  # person, source view, driving view -> predicted points (478, 3), unit
MOUTH, EYES = (61, 291, 0, 17), (33, 263, 105, 334)
EMPHASISED = (3, *range(9, 23), 25, 32, 38, 44, 45)  # as in models.train_motion


@dataclass(frozen=True)
class WarpConfig:
    """A schedule.

    Attributes:
        people, views: sources a step, and driving frames of each.
        steps: length of the schedule; seconds: time budget of this call.
        predicted: share of driving frames whose points the keypoint model predicts.
        other_source: share of sources that are not the person at rest.
        reading_from, adversarial_from: shares of the schedule at which these terms begin.
        decay: of the running average.
        device: as PyTorch calls it.
    """

    people: int = 2
    views: int = 2
    lr: float = 6e-4
    steps: int = 6000
    seconds: float = 3600.0
    seed: int = 0
    predicted: float = 0.3
    other_source: float = 0.25
    pixel_weight: float = 4.0
    perceptual_weight: float = 1.0
    close_weight: float = 1.5
    reading_weight: float = 0.8
    identity_weight: float = 0.6
    adversarial_weight: float = 0.05
    matching_weight: float = 0.5
    reading_from: float = 0.15
    adversarial_from: float = 0.5
    decay: float = 0.998
    is_compiled: bool = True
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Batch:
    """Sources (S, 3, 256, 256) and points (S, 478, 3); targets (S * V, ...), their points, controls (S * V, 108), and
    the points that drive. Points in [-1, 1]."""

    image: Tensor
    source: Tensor
    target: Tensor
    target_points: Tensor
    driving: Tensor
    controls: Tensor


class Drawer:
    """Draws batches from pairs."""

    def __init__(self, pairs: Pairs, drive: Drive, config: WarpConfig) -> None:
        self._pairs, self._drive, self._c = pairs, drive, config

    def draw(self, rng: np.random.Generator) -> Batch:
        """A batch, on the configuration's device."""
        c, n_views = self._c, self._pairs.images.shape[1]
        people = rng.integers(len(self._pairs), size=c.people)
        sources = np.where(rng.random(c.people) < c.other_source, rng.integers(n_views, size=c.people), 0)
        rows = [self._row(int(p), int(s), rng) for p, s in zip(people, sources, strict=True)]
        source = [(int(p), int(s)) for p, s in zip(people, sources, strict=True)]
        return self.batch(source, [entry for row in rows for entry in row])

    def _row(self, person: int, source: int, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
        views = rng.permutation(self._pairs.images.shape[1])
        views = views[views != source][: self._c.views]
        return [(person, int(view), bool(rng.random() < self._c.predicted)) for view in views]

    def batch(self, sources: list[tuple[int, int]], targets: list[tuple[int, int, bool]]) -> Batch:
        """Sources (person, view); targets (person, view, whether points are predicted), V for each source in turn."""
        p, each = self._pairs, len(targets) // len(sources)
        source_of = [sources[i // each] for i in range(len(targets))]
        true = np.stack([unit(p.points[person, view]) for person, view, _ in targets])
        driving = true.copy()
        for i, (person, view, is_predicted) in enumerate(targets):
            if is_predicted:
                driving[i] = self._drive(person, source_of[i][1], view)
        controls = np.stack(
            [
                np.concatenate([p.controls[person, view], p.controls[source_of[i]]])
                for i, (person, view, _) in enumerate(targets)
            ]
        )
        tensors = (
            pictures(np.stack([p.images[s] for s in sources])),
            torch.from_numpy(np.stack([unit(p.points[s]) for s in sources])),
            pictures(np.stack([p.images[person, view] for person, view, _ in targets])),
            torch.from_numpy(true), torch.from_numpy(driving), torch.from_numpy(controls),
        )  # fmt: skip
        return Batch(*(t.float().to(self._c.device) for t in tensors))


def unit(points: np.ndarray) -> np.ndarray:
    """(478, 3) px of a 256 px crop -> [-1, 1]; as `pipeline.reenact.keypoints.unit_points`."""
    half = SIDE_PX / 2
    return np.asarray((points + np.array([0.5, 0.5, 0.0])) / half - np.array([1.0, 1.0, 0.0]), np.float32)


def pictures(images: np.ndarray) -> Tensor:
    """uint8 (N, 256, 256, 3) -> float (N, 3, 256, 256), [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def close_ups(image: Tensor, points: Tensor, side: int = 128) -> Tensor:
    """Mouth and eyes of (N, 3, 256, 256) at points (N, 478, 3), enlarged: (2 N, 3, side, side)."""
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


class Judges(nn.Module):
    """The frozen networks of the loss."""

    def __init__(self, lpips: Lpips, measure: FaceMeasure) -> None:
        super().__init__()
        self.lpips, self.measure = lpips, measure
        self.requires_grad_(False).eval()


def face_mask(points: Tensor) -> Tensor:
    """(N, 1, 256, 256), [0, 1]: an ellipse about the landmarks (N, 478, 3) with some of the hair, softly ended."""
    low, high = points[..., :2].amin(1), points[..., :2].amax(1)
    centre, half = (low + high) / 2, (high - low) / 2
    axis = (torch.arange(SIDE_PX, device=points.device) + 0.5) / SIDE_PX * 2 - 1
    x = (axis[None] - centre[:, :1]) / (1.15 * half[:, :1])
    y = (axis[None] - centre[:, 1:] + 0.1 * half[:, 1:]) / (1.3 * half[:, 1:])
    distance = x[:, None, :] ** 2 + y[:, :, None] ** 2
    return torch.sigmoid(6 * (1.2 - distance))[:, None]


def losses(
    picture: Tensor, b: Batch, judges: Judges, c: WarpConfig, *, with_reading: bool
) -> dict[str, Tensor]:
    """Terms of the loss of pictures (N, 3, 256, 256) but for the adversarial ones."""
    mask = face_mask(b.target_points)
    # Hair and background of a generated person change from frame to frame, and only the face is pasted.
    faces = b.target + (picture - b.target) * mask
    near, wanted = (close_ups(image, b.target_points) for image in (picture, b.target))
    found = {
        "pixel": c.pixel_weight * ((picture - b.target).abs() * (0.5 + mask)).mean(),
        "perceptual": c.perceptual_weight * judges.lpips(faces, b.target).mean(),
        "close": c.close_weight * (judges.lpips(near, wanted).mean() + (near - wanted).abs().mean()),
    }
    if with_reading:
        found |= readings(picture, b, judges.measure, c)
    return found


def readings(picture: Tensor, b: Batch, measure: FaceMeasure, c: WarpConfig) -> dict[str, Tensor]:
    """Landmarks, blendshapes and identity read off the pictures."""
    seen = (b.target_points + 1) * (SIDE_PX / 2) - 0.5
    low, high = seen[..., :2].amin(1), seen[..., :2].amax(1)
    roi = torch.cat([(low + high) / 2, ((high - low).amax(1) * 1.5)[:, None]], 1)
    points, _ = measure.look(picture.clamp(-1, 1), roi)
    shapes = measure.shapes(points[:, measure.subset, :2])[0].reshape(-1, 52)
    emphasis = torch.ones(52, device=picture.device)
    emphasis[0], emphasis[list(EMPHASISED)] = 0.0, 5.0
    off = F.smooth_l1_loss(shapes / 0.1, b.controls[:, 2:54] / 0.1, reduction="none")
    shift = F.smooth_l1_loss(points[..., :2] / 2, seen[..., :2] / 2)
    with torch.no_grad():
        source = (b.source + 1) * (SIDE_PX / 2) - 0.5
        own = measure.identity(b.image, source).repeat_interleave(len(picture) // len(b.image), 0)
    kept = (measure.identity(picture, seen) * own).sum(1) / (own.shape[1] // 128)
    return {
        "reading": c.reading_weight * ((off * emphasis).sum(1).mean() / emphasis.sum() + shift),
        "identity": c.identity_weight * (1 - kept).mean(),
    }


class WarpTraining:
    """A training that can be stopped and gone on with; see `train_warp`."""

    def __init__(self, judges: Judges, out: Path, config: WarpConfig) -> None:
        self.c, self.judges, self.out = config, judges.to(config.device), out
        torch.manual_seed(config.seed)
        self.model = WarpMobile().to(config.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.critic = PatchDiscriminator().to(config.device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), 2e-4, betas=(0.5, 0.99))
        self.step = 0
        self.means: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._load()
        self.source, self.decode = self.model.source, self.model.decode
        if config.is_compiled:
            self.source.compile(dynamic=False)
            self.decode.compile(dynamic=False)

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model, "average": self.average, "critic": self.critic, "optimiser": self.optimiser,
            "critic_optimiser": self.critic_optimiser,
        }  # fmt: skip

    def _load(self) -> None:
        path = self.out.with_suffix(".ckpt")
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=self.c.device)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step, self.history = int(state["step"]), list(state["history"])

    def save(self) -> None:
        """The checkpoint, written whole or not at all."""
        path = self.out.with_suffix(".ckpt")
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        torch.save(state | {"step": self.step, "history": self.history}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def render(self, b: Batch) -> Tensor:
        """Pictures (S * V, 3, 256, 256) of a batch; the networks in bfloat16 where compiled, coordinates never."""
        autocast = torch.autocast(
            torch.device(self.c.device).type, torch.bfloat16, enabled=self.c.is_compiled
        )
        with autocast:
            features, details = self.source(b.image, b.source)
        n = len(b.driving) // len(b.image)
        image, features, details, source = (
            t.repeat_interleave(n, 0) for t in (b.image, features, details, b.source)
        )
        motion = self.model.motion(source, b.driving, b.controls)
        with autocast:
            picture = self.decode(image, features, details, motion, b.controls)
        return torch.as_tensor(picture).float()

    def train_step(self, b: Batch) -> None:
        """One step of both networks."""
        c, share = self.c, self.step / self.c.steps
        for group in self.optimiser.param_groups:
            group["lr"] = (
                c.lr
                * min(1.0, (self.step + 1) / 100)
                * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * share)))
            )
        picture = self.render(b)
        terms = losses(picture, b, self.judges, c, with_reading=share >= c.reading_from)
        if share >= c.adversarial_from:
            terms |= self._adversarial(picture, b)
        self.optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(c.decay, self.step / (self.step + 20))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        for name, term in terms.items():
            value = float(term.detach())
            self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value

    def _adversarial(self, picture: Tensor, b: Batch) -> dict[str, Tensor]:
        """Steps the discriminator on eyes and mouth, and gives the generator's terms."""
        fake, real = close_ups(picture, b.target_points), close_ups(b.target, b.target_points)
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


def train_warp(pairs: Pairs, drive: Drive, judges: Judges, out: Path, config: WarpConfig) -> WarpTraining:
    """Trains until the schedule or the time ends; resumes from `out` with suffix .ckpt, and leaves it there.

    Args:
        pairs: to train on.
        drive: the keypoint model's prediction, on these pairs.
        out: where the weights will go; its folder must exist.
    """
    training, drawer = WarpTraining(judges, out, config), Drawer(pairs, drive, config)
    rng, start = np.random.default_rng([config.seed, training.step]), time.monotonic()
    log.info("warp %s", asdict(config))
    while training.step < config.steps and time.monotonic() - start < config.seconds:
        training.train_step(drawer.draw(rng))
        if training.step % 25 == 0:
            training.history.append({"step": float(training.step), **training.means})
            log.info(
                "warp step %d %s", training.step, " ".join(f"{k} {v:.4f}" for k, v in training.means.items())
            )
        if training.step % 200 == 0:
            training.save()
    training.save()
    return training
