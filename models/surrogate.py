"""A small network S that predicts R(G(w)), the embeddings of a rendered person, from w: milliseconds a step
instead of a second. Trained on seeded people that were rendered once at rest.

    S(w) = normalise per recogniser(A x + MLP(x)),   x = (w - mean) V^T / s for each group of rows
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keyface.models.population import Population
from keyface.models.projector import N_GROUPS

log = logging.getLogger(__name__)

N_RECOGNISERS = 2
N_INPUT_AXES = 160
HIDDEN = 1024


@dataclass(frozen=True, slots=True)
class RenderedPeople:
    """w (N, 3, 512) of the groups of rows, and unit embeddings (N, 2, 128): SFace, MobileFaceNet."""

    w: np.ndarray
    embeddings: np.ndarray


class Surrogate(nn.Module):
    """(N, 3, 512) -> (N, 2, 128) unit embeddings."""

    w_mean: Tensor
    whiten: Tensor

    def __init__(self, w_mean: np.ndarray, whiten: np.ndarray) -> None:
        """whiten: (512, A), from w - mean to coordinates of variance 1."""
        super().__init__()
        n_in, n_out = N_GROUPS * whiten.shape[1], N_RECOGNISERS * 128
        self.register_buffer("w_mean", torch.from_numpy(np.array(w_mean, np.float32)))
        self.register_buffer("whiten", torch.from_numpy(np.array(whiten, np.float32)))
        self.linear = nn.Linear(n_in, n_out)
        self.fc1, self.fc2 = nn.Linear(n_in, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(HIDDEN, n_out, bias=False)
        nn.init.zeros_(self.out.weight)

    def coordinates(self, styles: Tensor) -> Tensor:
        """(N, 3 A)."""
        return ((styles - self.w_mean) @ self.whiten).flatten(1)

    def forward(self, styles: Tensor) -> Tensor:
        x = self.coordinates(styles)
        hidden = self.drop(F.silu(self.fc2(self.drop(F.silu(self.fc1(x))))))
        raw = self.linear(x) + self.out(hidden)
        return F.normalize(raw.reshape(len(x), N_RECOGNISERS, 128), dim=2)

    @classmethod
    def for_population(cls, population: Population) -> Surrogate:
        """Untrained."""
        axes, deviations = population.axes[:N_INPUT_AXES], population.deviations[:N_INPUT_AXES]
        return cls(population.mean, (axes / deviations[:, None]).T)

    def fit_linear(self, people: RenderedPeople, ridge: float = 40.0) -> None:
        """Starts from ridge regression."""
        with torch.no_grad():
            x = self.coordinates(torch.from_numpy(people.w)).double()
            y = torch.from_numpy(people.embeddings).double().flatten(1)
            mean_x, mean_y = x.mean(0), y.mean(0)
            x, y = x - mean_x, y - mean_y
            slope = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
            self.linear.weight.copy_(slope.T)
            self.linear.bias.copy_(mean_y - mean_x @ slope)

    def save(self, path: Path) -> None:
        """All tensors, float32."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, str(path))

    @classmethod
    def load(cls, path: Path) -> Surrogate:
        """As saved; frozen."""
        tensors = load_file(str(path))
        model = cls(tensors["w_mean"].numpy(), tensors["whiten"].numpy())
        model.load_state_dict(tensors)
        model.requires_grad_(False)
        model.eval()
        return model


@dataclass(frozen=True)
class SurrogateQuality:
    """On held-out people, for each recogniser: mean cosine of prediction and truth, and the correlation of the
    cosines of all pairs as predicted and as true, which is what P's losses use."""

    cosine: tuple[float, ...]
    pair_correlation: tuple[float, ...]


def train_surrogate(
    people: RenderedPeople, population: Population, *, steps: int = 4000, seed: int = 0, lr: float = 5e-4
) -> tuple[Surrogate, SurrogateQuality]:
    """Trains on nine tenths of the people, judges on the last tenth."""
    torch.manual_seed(seed)
    n_train = len(people.w) * 9 // 20 * 2
    model = Surrogate.for_population(population)
    model.fit_linear(RenderedPeople(people.w[:n_train], people.embeddings[:n_train]))
    w, wanted = torch.from_numpy(people.w), torch.from_numpy(people.embeddings)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    model.train()
    for step, rows in enumerate(_batches(n_train, steps, seed)):
        found = model(w[rows])
        loss = _surrogate_loss(found, wanted[rows])
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimiser.step()
        if (step + 1) % 500 == 0:
            log.info("surrogate step %d loss %.4f", step + 1, float(loss.detach()))
    model.requires_grad_(False)
    model.eval()
    return model, judge(model, RenderedPeople(people.w[n_train:], people.embeddings[n_train:]))


def judge(model: Surrogate, people: RenderedPeople) -> SurrogateQuality:
    """Quality on people that it was not trained on."""
    with torch.no_grad():
        found = model(torch.from_numpy(people.w)).numpy()
    cosine, correlation = [], []
    upper = np.triu_indices(len(found), 1)
    for i in range(N_RECOGNISERS):
        true = people.embeddings[:, i]
        cosine.append(round(float((found[:, i] * true).sum(1).mean()), 4))
        pairs = (found[:, i] @ found[:, i].T)[upper], (true @ true.T)[upper]
        correlation.append(round(float(np.corrcoef(*pairs)[0, 1]), 4))
    return SurrogateQuality(tuple(cosine), tuple(correlation))


def _surrogate_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine, and the squared error of the cosines between the people of the batch, and of neighbours."""
    direct = 1 - (found * wanted).sum(2).mean()
    predicted = torch.einsum("ird,jrd->rij", found, found)
    true = torch.einsum("ird,jrd->rij", wanted, wanted)
    near = (found[0::2] * found[1::2]).sum(2) - (wanted[0::2] * wanted[1::2]).sum(2)
    return direct + 4.0 * (predicted - true).square().mean() + 2.0 * near.square().mean()


def _batches(n: int, steps: int, seed: int, size: int = 256) -> Iterator[np.ndarray]:
    """Rows of a batch: neighbours (2 i, 2 i + 1) together, since some are rendered for their likeness."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        first = 2 * rng.integers(n // 2, size=min(size, n) // 2)
        yield np.stack([first, first + 1], 1).ravel()
