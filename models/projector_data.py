"""People that a projector is trained on: embeddings of their photos, triplets, and the metric of ours.

Only embeddings are kept, never pictures. Half of the triplets are of real people with two photos or more. The
others are of generated people, whose two "photos" are their embedding plus what two photos of one real person
differ by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import UsageError
from keyface.models.projector import Metric

F32 = npt.NDArray[np.float32]
SHRINKAGE = 0.5  # of the covariance within people towards a multiple of 1


@dataclass(frozen=True, slots=True)
class Photos:
    """Unit embeddings (N, R, 128) of photos, the first recogniser's being E's, and the number (N,) of each photo's
    person."""

    embeddings: F32
    person: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Triplets:
    """(N, 128) unit embeddings by E of x1, x2 and y, x1's by all recognisers (N, R, 128), and numbers of the photos
    (3, N): those of x1, x2 and y."""

    x1: F32
    x2: F32
    y: F32
    original: F32
    photo: npt.NDArray[np.int64]


def residuals(photos: Photos) -> F32:
    """(K, R, 128) photo less the mean of its person, times sqrt(n / (n - 1)), of people with n >= 2 photos.

    Raises:
        UsageError: nobody has two.
    """
    _, inverse, count = np.unique(photos.person, return_inverse=True, return_counts=True)
    if not (count > 1).any():
        raise UsageError(
            "No person has two photos.", "Give a folder with a folder of photos for each person."
        )
    mean = np.zeros((len(count), *photos.embeddings.shape[1:]))
    np.add.at(mean, inverse, photos.embeddings)
    mean /= count[:, None, None]
    keep = count[inverse] > 1
    scale = np.sqrt(count / np.maximum(count - 1, 1))[inverse][keep]
    found = (photos.embeddings - mean[inverse])[keep] * scale[:, None, None]
    return np.asarray(found, np.float32)


def fit_metric(photos: Photos, n: int) -> Metric:
    """Linear discriminant analysis of E's embeddings: the n directions in which people differ most for what photos
    of one person do, whitened by the latter (shrunk). L and m of `models.projector`."""
    x = photos.embeddings[:, 0].astype(np.float64)
    mean = x.mean(0)
    within = residuals(photos)[:, 0].astype(np.float64)
    d = x.shape[1]
    s_within = within.T @ within / len(within)
    s_within = (1 - SHRINKAGE) * s_within + SHRINKAGE * np.trace(s_within) / d * np.eye(d)
    whiten = np.linalg.cholesky(np.linalg.inv(s_within))
    people = np.stack([x[photos.person == p].mean(0) for p in np.unique(photos.person)])
    _, vectors = np.linalg.eigh(whiten.T @ np.cov(people.T) @ whiten)
    matrix = (whiten @ vectors[:, ::-1][:, :n]).T
    matrix = matrix / np.linalg.norm(matrix, axis=1).mean()
    return Metric(np.asarray(matrix, np.float32), np.asarray(mean, np.float32))


class TripletSource:
    """Draws triplets.

    Args:
        real: photos of real people for training.
        generated: unit embeddings (M, R, 128) of generated people.
        share_generated: of the triplets.
    """

    def __init__(self, real: Photos, generated: F32, *, share_generated: float = 0.3) -> None:
        self._real, self._generated = real, generated
        self._noise = residuals(real)
        self._share = share_generated if len(generated) else 0.0
        order = np.argsort(real.person, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(real.person[order])) + 1)
        self._groups = [g for g in groups if len(g) > 1]

    def draw(self, n: int, rng: np.random.Generator) -> Triplets:
        """n triplets; who y is never depends on who x is, except that it is another person."""
        rows = [
            self._generated_pair(rng) if rng.random() < self._share else self._real_pair(rng)
            for _ in range(n)
        ]
        x1 = np.stack([row[0] for row in rows])
        x2 = np.stack([row[1] for row in rows])
        y = np.stack([self._other(row[2], rng) for row in rows])
        return Triplets(x1[:, 0], x2, y, x1, np.arange(3 * n).reshape(3, n))

    def _real_pair(self, rng: np.random.Generator) -> tuple[F32, F32, int]:
        group = self._groups[rng.integers(len(self._groups))]
        first, second = rng.choice(group, 2, replace=False)
        embeddings = self._real.embeddings
        return embeddings[first], embeddings[second, 0], int(self._real.person[first])

    def _generated_pair(self, rng: np.random.Generator) -> tuple[F32, F32, int]:
        centre = self._generated[rng.integers(len(self._generated))]
        noise = self._noise[rng.integers(len(self._noise), size=2)]
        first, second = _unit(centre * 0.8 + noise[0]), _unit(centre * 0.8 + noise[1])
        return first, second[0], -1

    def _other(self, person: int, rng: np.random.Generator) -> F32:
        while True:
            row = int(rng.integers(len(self._real.person)))
            if self._real.person[row] != person:
                return np.asarray(self._real.embeddings[row, 0])


def _unit(x: F32) -> F32:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


class PhotoTriplets:
    """Draws triplets of photos that virtual people are pasted over. `photos`: of people with two each or more."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos
        rows = [np.flatnonzero(photos.person == p) for p in np.unique(photos.person)]
        self._groups = [r for r in rows if len(r) > 1]
        if len(self._groups) < 2:
            raise UsageError(
                "Fewer than two people have two photos.",
                "Give a folder with a folder of photos for each person.",
            )

    def draw(self, n: int, rng: np.random.Generator) -> Triplets:
        """n triplets, as `TripletSource` draws them; `photo` holds the rows of the photos."""
        chosen = [rng.choice(len(self._groups), 2, replace=False) for _ in range(n)]
        pairs = [rng.choice(self._groups[first], 2, replace=False) for first, _ in chosen]
        others = [rng.choice(self._groups[second]) for _, second in chosen]
        photo = np.array([[a for a, _ in pairs], [b for _, b in pairs], others], np.int64)
        e = self._photos.embeddings
        return Triplets(e[photo[0], 0], e[photo[1], 0], e[photo[2], 0], e[photo[0]], photo)
