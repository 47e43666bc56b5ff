"""A small network S that predicts R(G(w)), the embeddings of a rendered person, from w: milliseconds a step
instead of a second. Trained on seeded people that were rendered once, at rest or pasted over a driver.

    S(w, d) = normalise per recogniser(A x + MLP(x, d) + b_d),   x = (w - mean) V^T / s for each group of rows

d says where the face was seen: 0 by itself, k > 0 pasted over driver k, whose hair and outline are then around it.
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
    """w (N, 3, 512) of the groups of rows, unit embeddings (N, 2, 128): SFace, MobileFaceNet; and where they were
    seen (N,): 0 by itself, k > 0 over driver k."""

    w: np.ndarray
    embeddings: np.ndarray
    driver: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray) -> RenderedPeople:
        return RenderedPeople(self.w[rows], self.embeddings[rows], self.driver[rows])


class Surrogate(nn.Module):
    """(N, 3, 512) -> (N, 2, 128) unit embeddings."""

    w_mean: Tensor
    whiten: Tensor

    def __init__(self, w_mean: np.ndarray, whiten: np.ndarray, n_drivers: int = 0) -> None:
        """whiten: (512, A), from w - mean to coordinates of variance 1."""
        super().__init__()
        n_in, n_out = N_GROUPS * whiten.shape[1], N_RECOGNISERS * 128
        self.register_buffer("w_mean", torch.from_numpy(np.array(w_mean, np.float32)))
        self.register_buffer("whiten", torch.from_numpy(np.array(whiten, np.float32)))
        self.linear = nn.Linear(n_in, n_out)
        self.fc1, self.fc2 = nn.Linear(n_in, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(HIDDEN, n_out, bias=False)
        self.place, self.place_hidden = (
            nn.Embedding(n_drivers + 1, n_out),
            nn.Embedding(n_drivers + 1, HIDDEN),
        )
        for weight in (self.out.weight, self.place.weight, self.place_hidden.weight):
            nn.init.zeros_(weight)

    @property
    def n_drivers(self) -> int:
        """Drivers over whom it has seen people pasted."""
        return len(self.place.weight) - 1

    def coordinates(self, styles: Tensor) -> Tensor:
        """(N, 3 A)."""
        return ((styles - self.w_mean) @ self.whiten).flatten(1)

    def forward(self, styles: Tensor, driver: Tensor) -> Tensor:
        x = self.coordinates(styles)
        hidden = self.drop(F.silu(self.fc1(x) + self.place_hidden(driver)))
        hidden = self.drop(F.silu(self.fc2(hidden)))
        raw = self.linear(x) + self.out(hidden) + self.place(driver)
        return F.normalize(raw.reshape(len(x), N_RECOGNISERS, 128), dim=2)

    @classmethod
    def for_population(cls, population: Population, n_drivers: int = 0) -> Surrogate:
        """Untrained."""
        axes, deviations = population.axes[:N_INPUT_AXES], population.deviations[:N_INPUT_AXES]
        return cls(population.mean, (axes / deviations[:, None]).T, n_drivers)

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
        n_drivers = len(tensors["place.weight"]) - 1
        model = cls(tensors["w_mean"].numpy(), tensors["whiten"].numpy(), n_drivers)
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
    model = Surrogate.for_population(population, int(people.driver.max()))
    model.fit_linear(people[:n_train])
    w, wanted = torch.from_numpy(people.w), torch.from_numpy(people.embeddings)
    driver = torch.from_numpy(people.driver.astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    model.train()
    for step, rows in enumerate(_batches(n_train, steps, seed)):
        found = model(w[rows], driver[rows])
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
    return model, judge(model, people[n_train:])


def judge(model: Surrogate, people: RenderedPeople) -> SurrogateQuality:
    """Quality on people that it was not trained on."""
    with torch.no_grad():
        found = model(torch.from_numpy(people.w), torch.from_numpy(people.driver.astype(np.int64))).numpy()
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


class Seen(nn.Module):
    """A surrogate as P's losses use it: every virtual face by itself, and pasted over the photo that it is made for.

    Photo i gets one driver, so that the virtual faces of one photo under two keys share hair and outline, as they
    will, and those of two photos of one person do not.
    """

    def __init__(self, surrogate: Surrogate, *, seed: int = 0) -> None:
        super().__init__()
        self.surrogate = surrogate
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, styles: Tensor, photo: Tensor) -> Tensor:
        """(N, 3, 512) and (N,) -> (N, 2 or 4, 128)."""
        alone: Tensor = self.surrogate(styles, torch.zeros(len(styles), dtype=torch.int64))
        n = self.surrogate.n_drivers
        if not n:
            return alone
        drivers = torch.randint(1, n + 1, (int(photo.max()) + 1,), generator=self._generator)
        return torch.cat([alone, self.surrogate(styles, drivers[photo])], 1)
