"""The keypoint model: from blendshapes to shifts of MediaPipe's landmarks, and its training.

    x_k = s R (x_c,k + delta_k(b) - delta_k(b_0)) + t,   delta(b) = (L b + W2 silu(W1 b + b1)) M

as `pipeline.reenact.keypoints` runs it in numpy. Learnt from meshes of generated people who make faces
(`models.warp_pairs`): the shift from a person's source frame to its other frames, without pose. A second term asks
that MediaPipe's own blendshape network reads the wanted blendshapes off the moved mesh, so that a motion is not
shrunk to what is likely. No mesh of a real person is looked at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

N_POINTS, N_BLENDSHAPES, N_MODES, N_HIDDEN = 478, 52, 32, 64
# landmarks that expressions move most, counted more: lips, eyes, irises, brows
_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
         78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)  # fmt: skip
_EYES = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
         263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)  # fmt: skip
_IRISES = tuple(range(468, 478))


class Deformation(nn.Module):
    """delta: (N, 52) -> (N, 478, 3), canonical units."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N_BLENDSHAPES, N_MODES, bias=False)
        self.fc1 = nn.Linear(N_BLENDSHAPES, N_HIDDEN)
        self.fc2 = nn.Linear(N_HIDDEN, N_MODES, bias=False)
        self.modes = nn.Parameter(torch.zeros(N_MODES, 3 * N_POINTS))

    def initialise(self, shifts: Tensor, changes: Tensor, ridge: float = 1.0) -> None:
        """Starts at ridge regression of shifts (M, 478, 3) on changes of blendshapes (M, 52)."""
        with torch.no_grad():
            gram = changes.T @ changes + ridge * torch.eye(N_BLENDSHAPES)
            slope = torch.linalg.solve(gram, changes.T @ shifts.reshape(len(shifts), -1))  # (52, 1434)
            u, s, vt = torch.linalg.svd(slope, full_matrices=False)
            self.modes.copy_(vt[:N_MODES])
            self.linear.weight.copy_((u[:, :N_MODES] * s[:N_MODES]).T)
            self.fc2.weight.zero_()

    def forward(self, blendshapes: Tensor) -> Tensor:
        found = self.linear(blendshapes) + self.fc2(F.silu(self.fc1(blendshapes)))
        return (found @ self.modes).reshape(-1, N_POINTS, 3)


@dataclass(frozen=True)
class KeypointConfig:
    """batch: pairs a step; reading_weight: of the blendshapes read off the moved mesh, against the mesh itself."""

    batch: int = 96
    lr: float = 2e-3
    steps: int = 1500
    seconds: float = 900.0
    seed: int = 0
    reading_weight: float = 2.0


@dataclass(frozen=True, slots=True)
class Shapes:
    """Canonical points (P, V, 478, 3) and controls (P, V, 54) of P people's V frames, the source frame first;
    poses (P, 4, 3) of the source frames: rotation over shift, and scale (P,), to lay canonical points in the crop."""

    canonical: np.ndarray
    controls: np.ndarray
    rotation: np.ndarray
    shift: np.ndarray
    scale: np.ndarray


Read = Callable[[Tensor], Tensor]  # points (N, 478, 3), [-1, 1] across the crop -> blendshapes (N, 52)


def train_keypoints(shapes: Shapes, read: Read, out: Path, config: KeypointConfig) -> dict[str, float]:
    """Trains and saves; returns mean distances, in canonical units (cm), on people held out (a tenth)."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    n_held = max(1, len(shapes.canonical) // 10)
    canonical, controls = torch.from_numpy(shapes.canonical), torch.from_numpy(shapes.controls)
    model = Deformation()
    shifts = (canonical[n_held:, 1:] - canonical[n_held:, :1]).reshape(-1, N_POINTS, 3)
    changes = (controls[n_held:, 1:, 2:] - controls[n_held:, :1, 2:]).reshape(-1, N_BLENDSHAPES)
    model.initialise(shifts, changes)
    optimiser = torch.optim.Adam(model.parameters(), config.lr)
    weight, start, step = _point_weights(), time.monotonic(), 0
    while step < config.steps and time.monotonic() - start < config.seconds:
        people = torch.from_numpy(rng.integers(n_held, len(canonical), config.batch))
        views = torch.from_numpy(rng.integers(1, canonical.shape[1], config.batch))
        loss = _loss(model, shapes, canonical, controls, people, views, read, weight, config)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimiser.step()
        step += 1
        if step % 100 == 0:
            log.info("keypoints step %d loss %.4f", step, float(loss.detach()))
    save_file({k: v.detach().half().contiguous() for k, v in model.state_dict().items()}, str(out))
    with torch.no_grad():
        wanted = model(controls[:n_held, 1:, 2:].reshape(-1, N_BLENDSHAPES)) - model(
            controls[:n_held, :1, 2:].expand(-1, canonical.shape[1] - 1, -1).reshape(-1, N_BLENDSHAPES)
        )
        true = (canonical[:n_held, 1:] - canonical[:n_held, :1]).reshape(-1, N_POINTS, 3)
        missed, moved = (wanted - true).norm(dim=2), true.norm(dim=2)
        lips = list(_LIPS)
        return {
            "steps": float(step),
            "missed_cm": float(missed.mean()), "moved_cm": float(moved.mean()),
            "missed_lips_cm": float(missed[:, lips].mean()), "moved_lips_cm": float(moved[:, lips].mean()),
        }  # fmt: skip


def _loss(
    model: Deformation, shapes: Shapes, canonical: Tensor, controls: Tensor, people: Tensor, views: Tensor,
    read: Read, weight: Tensor, config: KeypointConfig,
) -> Tensor:  # fmt: skip
    source, target = canonical[people, 0], canonical[people, views]
    wanted = controls[people, views, 2:]
    moved = source + model(wanted) - model(controls[people, 0, 2:])
    distance = F.smooth_l1_loss(moved, target, reduction="none", beta=0.2).sum(2)
    picks = people.numpy()
    rotation, shift = torch.from_numpy(shapes.rotation[picks]), torch.from_numpy(shapes.shift[picks])
    scale = torch.from_numpy(shapes.scale[picks])[:, None, None]
    points = scale * moved @ rotation.transpose(1, 2) + shift[:, None]
    reading = F.smooth_l1_loss(read(points) / 0.1, wanted / 0.1)
    return (distance * weight).mean() + config.reading_weight * 0.05 * reading


def _point_weights() -> Tensor:
    weight = torch.ones(N_POINTS)
    weight[list(_LIPS)] = 3.0
    weight[list(_EYES)] = 4.0
    weight[list(_IRISES)] = 4.0
    return weight / weight.mean()
