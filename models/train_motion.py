"""Trains the motion map through the frozen generator G and the measuring networks M and R.

Per step: a few people w, two wanted motions each. Loss: blendshapes and pose of the rendered faces against
the wanted ones, identity kept between the two renderings and to the person at rest, and a small norm of the
displacement. Wanted motions are drawn from measured motion (controls only, no picture), mixed between the
upper and the lower face and topped up with blinks, gaze, jaw, pout, brow and smile.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from keyface.models.face_measure import FaceMeasure, Measured
from keyface.models.generator import Generator256
from keyface.models.motion import N_CONTROLS, N_TRAITS, POSE_SCALE_DEG, MotionMap, displaced

log = logging.getLogger(__name__)

EYE_REGION = tuple(range(1, 6)) + tuple(range(9, 23))  # brows, blinks, gaze, squint, wide
BLINK, LOOK_DOWN, LOOK_IN, LOOK_OUT, LOOK_UP = (9, 10), (11, 12), (13, 14), (15, 16), (17, 18)
BROW_INNER_UP, JAW_OPEN, PUCKER, SMILE = 3, 25, 38, (44, 45)
EMPHASISED = (*BLINK, *LOOK_DOWN, *LOOK_IN, *LOOK_OUT, *LOOK_UP, BROW_INNER_UP, JAW_OPEN, PUCKER, *SMILE, 32)
MAX_YAW_DEG, MAX_PITCH_DEG = 38.0, 28.0


@dataclass(frozen=True)
class MotionConfig:
    """people: per step, two motions each; seconds: time budget of this call; steps: length of the schedule;
    device: as PyTorch calls it."""

    people: int = 3
    lr: float = 1e-3
    seconds: float = 3600.0
    steps: int = 3000
    identity_weight: float = 3.5
    norm_weight: float = 0.01
    seed: int = 0
    is_compiled: bool = True
    device: str = "cpu"


def controls_of(m: Measured) -> Tensor:
    """(N, 54)."""
    return torch.cat([m.pose / POSE_SCALE_DEG, m.blendshapes], 1)


class WantedMotions:
    """Draws wanted controls from measured ones, (M, 54) float32."""

    def __init__(self, measured: np.ndarray, rng: np.random.Generator) -> None:
        self.measured, self.rng = measured.astype(np.float32), rng

    def draw(self, n: int) -> Tensor:
        picks = self.rng.integers(len(self.measured), size=(3, n))
        wanted = self.measured[picks[0]].copy()
        upper = np.array(EYE_REGION) + 2
        wanted[:, upper] = self.measured[picks[1]][:, upper]
        wanted[:, :2] = self.measured[picks[2], :2] * self.rng.uniform(0.3, 1.6, (n, 1))
        limits = np.array([MAX_YAW_DEG, MAX_PITCH_DEG]) / POSE_SCALE_DEG
        wanted[:, :2] = np.clip(wanted[:, :2], -limits, limits)
        for row in wanted:
            self._top_up(row[2:])
        return torch.from_numpy(wanted)

    def _top_up(self, shapes: np.ndarray) -> None:
        """Makes rare motions frequent; in place."""
        chance, uniform = self.rng.random, self.rng.uniform
        if chance() < 0.35:
            self._look(shapes, uniform(-0.8, 0.8), uniform(-0.6, 0.4))
        if chance() < 0.15:
            shapes[list(BLINK)] = uniform(0.3, 0.85) + uniform(-0.03, 0.03, 2)
        if chance() < 0.2:
            shapes[JAW_OPEN] = uniform(0.0, 0.75)
        if chance() < 0.2:
            shapes[PUCKER] = uniform(0.2, 0.98)
            shapes[list(SMILE)] *= 0.1
        if chance() < 0.2:
            shapes[BROW_INNER_UP] = uniform(0.0, 0.9)
        if chance() < 0.2:
            shapes[list(SMILE)] = uniform(0.0, 0.95)

    @staticmethod
    def _look(shapes: np.ndarray, right: float, up: float) -> None:
        """right: to the subject's left eye's outside, [-1, 1]; up [-1, 1]."""
        shapes[[LOOK_OUT[0], LOOK_IN[1]]] = max(right, 0.0)
        shapes[[LOOK_IN[0], LOOK_OUT[1]]] = max(-right, 0.0)
        shapes[list(LOOK_UP)], shapes[list(LOOK_DOWN)] = max(up, 0.0), max(-up, 0.0)


def linear_directions(w: np.ndarray, controls: np.ndarray, ridge: float = 30.0) -> np.ndarray:
    """(54, 512): minimum-norm change of w per unit of each control, from ridge regression controls ~ w."""
    x, y = w - w.mean(0), controls - controls.mean(0)
    scale = x.std()
    slope = np.linalg.solve(x.T @ x + ridge * scale**2 * np.eye(512) * len(w) / 100, x.T @ y)  # (512, 54)
    gram = slope.T @ slope
    pinv = slope @ np.linalg.inv(gram + 0.02 * np.trace(gram) / len(gram) * np.eye(len(gram)))
    return np.asarray(pinv.T, np.float32, order="C")


def trait_axes(w: np.ndarray) -> np.ndarray:
    """(32, 512): the first principal axes of w, each over its deviation."""
    _, s, vt = np.linalg.svd(w - w.mean(0), full_matrices=False)
    axes: np.ndarray = (vt[:N_TRAITS] / (s[:N_TRAITS, None] / np.sqrt(len(w)))).astype(np.float32)
    return axes


def motion_loss(
    m: Measured, wanted: Tensor, at_rest: Tensor, displacement: Tensor, config: MotionConfig
) -> dict[str, Tensor]:
    """Terms of the loss; rows 2i and 2i+1 are the same person, whose embedding at rest is `at_rest` (N/2, D)."""
    weight = torch.ones(52, device=wanted.device)
    weight[0] = 0.0
    weight[list(EMPHASISED)] = 7.0
    shapes = F.smooth_l1_loss(m.blendshapes / 0.1, wanted[:, 2:] / 0.1, reduction="none")
    pose = F.smooth_l1_loss(m.pose / 3.0, wanted[:, :2] * (POSE_SCALE_DEG / 3.0))
    assert m.embedding is not None
    half = m.embedding.shape[1] // 128
    first, second = m.embedding[0::2], m.embedding[1::2]
    apart = 1 - (first * second).sum(1) / half
    moved = 1 - (m.embedding * at_rest.repeat_interleave(2, 0)).sum(1) / half
    return {
        "shapes": (shapes * weight).sum(1).mean() / weight.sum() * 3.0,
        "pose": pose,
        "identity": config.identity_weight * (apart.mean() + 0.5 * moved.mean()),
        "norm": config.norm_weight * displacement.square().mean() * 100.0,
    }


def train_motion(
    generator: Generator256,
    measure: FaceMeasure,
    draw_w: Callable[[int, np.random.Generator], np.ndarray],
    measured: np.ndarray,
    initial: MotionMap,
    out: Path,
    config: MotionConfig,
    guards: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Trains and saves the map in half precision; resumes from `out` with suffix .ckpt.

    Args:
        draw_w: (n, rng) -> float32 (n, 512) people.
        measured: float32 (M, 54) controls of real motion.
        guards: see `save_motion`.
    """
    model, checkpoint, step = initial.to(config.device), out.with_suffix(".ckpt"), 0
    generator, measure = generator.to(config.device), measure.to(config.device)
    autocast = torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.is_compiled)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, config.lr, betas=(0.9, 0.99))
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=config.device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    rng = np.random.default_rng([config.seed, step])
    motions = WantedMotions(measured, rng)
    render = (
        torch.compile(generator.to(memory_format=torch.channels_last), dynamic=False)
        if config.is_compiled
        else generator
    )
    start, averages = time.monotonic(), dict[str, float]()
    while step < config.steps and time.monotonic() - start < config.seconds:
        w = torch.from_numpy(draw_w(config.people, rng)).to(config.device)
        with torch.no_grad(), autocast:
            rest_image = render(w[:, None].expand(-1, 23, -1).contiguous())
        with torch.no_grad():
            rest = measure(rest_image.float())
        wanted = motions.draw(2 * config.people).to(config.device)
        displacement = model(
            *(t.repeat_interleave(2, 0) for t in (w,)), wanted, controls_of(rest).repeat_interleave(2, 0)
        )
        w_plus = displaced(w.repeat_interleave(2, 0), displacement)
        with autocast:
            image = render(w_plus)
        assert rest.embedding is not None
        terms = motion_loss(measure(image.float()), wanted, rest.embedding, displacement, config)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = (
                config.lr * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
            )
        optimiser.step()
        step += 1
        for name, term in terms.items():
            averages[name] = 0.98 * averages.get(name, float(term.detach())) + 0.02 * float(term.detach())
        if step % 25 == 0:
            log.info("motion step %d %s", step, " ".join(f"{k} {v:.3f}" for k, v in averages.items()))
        if step % 100 == 0:
            torch.save(
                {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, checkpoint
            )
            save_motion(model, out, guards)
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, checkpoint)
    save_motion(model, out, guards)


def save_motion(model: MotionMap, out: Path, guards: tuple[np.ndarray, np.ndarray] | None = None) -> None:
    """Half precision, under the names that `pipeline.reenact.motion` reads.

    Args:
        guards: normals and steps (K, 512) of linear scores of w, as in the identity basis: what no motion may
            change (glasses, hair over the face) is taken out of every direction of the basis.
    """
    assert model.linear.weight.shape[1] == N_CONTROLS
    tensors = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    if guards is not None:
        normals, steps = (torch.from_numpy(np.asarray(g, np.float32)) for g in guards)
        rows = tensors["basis"].reshape(-1, 512)
        share = torch.linalg.solve((normals @ steps.T).T, (rows @ normals.T).T).T
        tensors["basis"] = (rows - share @ steps).reshape(tensors["basis"].shape)
    temporary = out.with_suffix(".tmp")
    save_file({k: v.half().contiguous() for k, v in tensors.items()}, str(temporary))
    temporary.replace(out)
