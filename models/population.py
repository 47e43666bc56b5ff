"""The people that the generator can make, as statistics of its w: what samples, motion and identity start from.

w = M(z) for standard normal z; with mean m, principal axes V (rows) and deviations s along them,
w ~ m + (s * n) V for standard normal n is nearly the same population, and its coordinates are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import UsageError
from keyface.models.arrays import read_arrays, write_arrays

F32 = npt.NDArray[np.float32]
Mapping = Callable[[F32], F32]  # z (N, 512) -> w (N, 512)

N_DRAWN = 20_000
N_KEPT = 4_000
N_AXES = 128  # of the 512: 88 % of the variance
FILE = "population.npz"


@dataclass(frozen=True, slots=True)
class Population:
    """mean (512,); axes (512, 512), principal axes of w as rows, the strongest first, each of norm 1;
    deviations (512,) along them; people (K, 512), some of the w it was measured on. All float32."""

    mean: F32
    axes: F32
    deviations: F32
    people: F32

    def draw(self, n: int, rng: np.random.Generator, mapping: Mapping) -> F32:
        """(n, 512) people, drawn in by a random truncation of 0.55 to 0.95: half of them through the mapping
        network, half along the first axes as the product makes its own."""
        drawn = []
        for _ in range(n):
            psi = rng.uniform(0.55, 0.95)
            if rng.random() < 0.5:
                offset = mapping(rng.standard_normal((1, 512)).astype(np.float32))[0] - self.mean
            else:
                offset = (rng.standard_normal(N_AXES) * self.deviations[:N_AXES]) @ self.axes[:N_AXES]
            drawn.append(self.mean + psi * offset)
        return np.reshape(drawn, (n, len(self.mean))).astype(np.float32)


def measure_population(mapping: Mapping, *, n: int = N_DRAWN, seed: int = 1) -> Population:
    """Statistics of `n` >= 512 seeded draws. The sign of each axis is the linear algebra library's choice."""
    if n < 512:
        raise ValueError(f"population: got {n} draws, want 512 or more")
    w = mapping(np.random.default_rng(seed).standard_normal((n, 512)).astype(np.float32))
    mean = w.mean(0)
    _, singular, axes = np.linalg.svd(w - mean, full_matrices=False)
    deviations = (singular / np.sqrt(n)).astype(np.float32)
    return Population(mean.astype(np.float32), axes.astype(np.float32), deviations, w[:N_KEPT].copy())


def load_or_measure(folder: Path, mapping: Mapping) -> Population:
    """The population kept in a folder of samples; measured and kept there the first time.

    Raises:
        UsageError: the file there is something else.
    """
    path = folder / FILE
    if path.exists():
        try:
            return Population(**read_arrays(path, "mean", "axes", "deviations", "people"))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
    population = measure_population(mapping)
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(
        path,
        mean=population.mean,
        axes=population.axes,
        deviations=population.deviations,
        people=population.people,
    )
    return population
