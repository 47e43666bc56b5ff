"""The projector P: from an embedding and a key to a latent of the generator, in the papers' form and in ours.

Papers (KFAAR IV-B, IVFG 4.1): P(e, k) = MLP([e, k]), k of n bits.

Ours: P(e, k) = F(Q_k normalise(L (e - m))), with L a learnt metric of fewer dimensions, Q_k a secret orthogonal
matrix and F a network that knows no key. Since Q_k is uniform over all rotations, F sees codes that are uniform on
the sphere whoever is behind them. With `fold` b > 0 a second rotation follows an elementwise nonlinearity,

    v = Q_2 s(Q_1 u sqrt(n)),   s(x) = sqrt(1 - b) x + sqrt(b / 6) (x^3 - 3 x),

the Hermite polynomials of degree 1 and 3, so that two codes at cosine t come out at (1 - b) t + b t^3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.configs.projector import ProjectorConfig
from keyface.models.look_limits import LookLimits

N_GROUPS = 3  # of W+ rows: shape, features, colours
ROWS_OF_GROUP = (7, 9, 7)  # 23 rows in all
LOOK_ROUNDS = 3
LIMIT = 2.5  # deviations that a coordinate along an axis of w approaches at most


class Keys(Protocol):
    """Some keys, each as a network sees it."""

    def __len__(self) -> int: ...


class RandomRotations:
    """n secret rotations (n, 2, d, d), Haar-distributed; `pipeline.people.virtual` makes the product's from a key."""

    def __init__(self, n: int, d: int, generator: torch.Generator) -> None:
        normal = torch.randn(n * 2, d, d, generator=generator)
        q, r = torch.linalg.qr(normal)
        self.matrices = (q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None]).reshape(n, 2, d, d)

    def __len__(self) -> int:
        return len(self.matrices)


class Latents(nn.Module):
    """Coordinates to styles: what P's output means. Frozen.

    Args:
        w_mean: (512,); axes: (A, 512) and deviations: (A,) principal axes of w.
        guards: normals (K, 512), steps (K, 512), limits (K,), as in `pipeline.people.virtual.IdentityBasis`.
        mapping: layers (weight (512, 512), bias, gain) of the mapping network, for z.
    """

    w_mean: Tensor
    axes: Tensor
    deviations: Tensor
    normals: Tensor
    steps: Tensor
    limits: Tensor

    def __init__(
        self,
        w_mean: np.ndarray,
        axes: np.ndarray,
        deviations: np.ndarray,
        guards: tuple[np.ndarray, np.ndarray, np.ndarray],
        mapping: list[tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        names = ("w_mean", "axes", "deviations", "normals", "steps", "limits")
        for name, array in zip(names, (w_mean, axes, deviations, *guards), strict=True):
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32)))
        self.mapping = mapping

    def width(self, config: ProjectorConfig) -> int:
        """Numbers that the projector puts out."""
        return {"z": 512, "w": len(self.axes), "w_plus": N_GROUPS * len(self.axes)}[config.latent]

    def styles(self, coordinates: Tensor, config: ProjectorConfig) -> Tensor:
        """(N, width) -> w of the three groups of rows (N, 3, 512), within the guards."""
        if config.latent == "z":
            w = self.w_mean + config.spread * (self._mapped(coordinates) - self.w_mean)
            return self.guarded(w)[:, None].expand(-1, N_GROUPS, -1)
        c = coordinates.reshape(len(coordinates), -1, len(self.axes))
        w = self.w_mean + (c * self.deviations) @ self.axes
        return self.guarded(w).expand(-1, N_GROUPS, -1)

    def guarded(self, w: Tensor) -> Tensor:
        """w (..., 512) moved until no score is above its limit, as `IdentityBasis.person` does."""
        offset = w - self.w_mean
        for _ in range(4):
            for normal, step, limit in zip(self.normals, self.steps, self.limits, strict=True):
                offset = offset - F.relu(offset @ normal - limit)[..., None] * step
        return self.w_mean + offset

    def _mapped(self, z: Tensor) -> Tensor:
        if self.mapping is None:
            raise ValueError("latents: z was asked for, but no mapping network was given")
        x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        for weight, bias, gain in self.mapping:
            x = F.leaky_relu(x @ weight + bias, 0.2) * gain
        return x


def mapping_layers(weights: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Layers of the mapping network from the initialisers of its ONNX file."""
    return [(weights[f"fc{i}.weight"], weights[f"fc{i}.bias"], weights[f"fc{i}.gain"]) for i in range(8)]


def w_plus_of(styles: Tensor) -> Tensor:
    """(N, 3, 512) -> (N, 23, 512)."""
    return styles.repeat_interleave(torch.tensor(ROWS_OF_GROUP), 1)


def folded(x: Tensor, fold: float) -> Tensor:
    """s(x) of the module's head, for x of variance 1."""
    return (1 - fold) ** 0.5 * x + (fold / 6) ** 0.5 * (x**3 - 3 * x)


@dataclass(frozen=True)
class Metric:
    """L and m: embedding (128,) -> L (e - m), of `matrix` (n, 128) and `mean` (128,)."""

    matrix: np.ndarray
    mean: np.ndarray


class Bounds(nn.Module):
    """Keeps coordinates along axes of w plausible: within `LIMIT` each; neither dark, bright nor hazy beyond the
    limits; and within `radius` in the root mean square, no further from the mean face than a draw truncated by psi =
    radius."""

    normals: Tensor
    steps: Tensor
    limits: Tensor

    def __init__(self, radius: float, looks: LookLimits) -> None:
        super().__init__()
        self.radius = radius
        for name in ("normals", "steps", "limits"):
            self.register_buffer(name, torch.from_numpy(np.array(getattr(looks, name), np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        x = LIMIT * torch.tanh(x / LIMIT)
        groups = x.reshape(len(x), -1, self.normals.shape[1])
        for _ in range(LOOK_ROUNDS):
            for normal, step, limit in zip(self.normals, self.steps, self.limits, strict=True):
                groups = groups - F.relu(groups @ normal - limit)[..., None] * step
        x = groups.reshape(x.shape)
        rms = (x.square().mean(1, keepdim=True) + 1e-12).sqrt()
        return x * torch.clamp(self.radius / rms, max=1.0)


class Network(nn.Module):
    """A linear map, and an MLP that starts at nothing beside it; outputs are `bounded`."""

    def __init__(
        self, n_in: int, n_out: int, hidden: tuple[int, ...], *, radius: float | None, looks: LookLimits
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip((n_in, *hidden), hidden, strict=False))
        self.out = nn.Linear(hidden[-1], n_out, bias=False) if hidden else None
        self.bounds = None if radius is None else Bounds(radius, looks)
        if self.out is not None:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        found = self.linear(x)
        if self.out is not None:
            for layer in self.hidden:
                x = F.silu(layer(x))
            found = found + self.out(x)
        return found if self.bounds is None else self.bounds(found)


class RotationProjector(nn.Module):
    """Ours. `start` (width, n): the linear map that F begins as."""

    metric: Tensor
    mean: Tensor

    def __init__(
        self,
        config: ProjectorConfig,
        metric: Metric,
        width: int,
        looks: LookLimits,
        start: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("metric", torch.from_numpy(metric.matrix.astype(np.float32)))
        self.register_buffer("mean", torch.from_numpy(metric.mean.astype(np.float32)))
        self.network = Network(config.n_code, width, config.hidden, radius=_radius(config), looks=looks)
        nn.init.zeros_(self.network.linear.bias)
        if start is not None:
            with torch.no_grad():
                self.network.linear.weight.copy_(torch.from_numpy(start.astype(np.float32)))

    def draw_keys(self, n: int, generator: torch.Generator) -> RandomRotations:
        """n random keys."""
        return RandomRotations(n, self.config.n_code, generator)

    def code(self, embedding: Tensor, keys: Keys) -> Tensor:
        """(N, 128) unit embeddings and N keys, or one for all -> (N, n) of norm sqrt(n)."""
        assert isinstance(keys, RandomRotations)
        n = self.config.n_code
        u = F.normalize((embedding - self.mean) @ self.metric.T, dim=1) * n**0.5
        v = (keys.matrices[:, 0] @ u[..., None])[..., 0]
        if self.config.fold:
            v = (keys.matrices[:, 1] @ folded(v, self.config.fold)[..., None])[..., 0]
            v = F.normalize(v, dim=1) * n**0.5
        return v

    def forward(self, embedding: Tensor, keys: Keys) -> Tensor:
        found: Tensor = self.network(self.code(embedding, keys))
        return found


class KeyBits:
    """n keys of bits (n, key_bits), as -1 and 1."""

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits

    def __len__(self) -> int:
        return len(self.bits)


class ConcatenationProjector(nn.Module):
    """The papers': an MLP of the embedding (times sqrt(128), so that it weighs like bits) and the key's bits."""

    def __init__(self, config: ProjectorConfig, width: int, looks: LookLimits) -> None:
        super().__init__()
        self.config = config
        sizes = (128 + config.key_bits, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(sizes[-1], width)
        radius = _radius(config)
        self.bounds = None if radius is None else Bounds(radius, looks)

    def draw_keys(self, n: int, generator: torch.Generator) -> KeyBits:
        """n random keys."""
        return KeyBits(torch.randint(0, 2, (n, self.config.key_bits), generator=generator).float() * 2 - 1)

    def forward(self, embedding: Tensor, keys: Keys) -> Tensor:
        assert isinstance(keys, KeyBits)
        x = torch.cat([embedding * 128**0.5, keys.bits.expand(len(embedding), -1)], 1)
        for layer in self.hidden:
            x = F.leaky_relu(layer(x), 0.2)
        found: Tensor = self.out(x)
        return found if self.bounds is None else self.bounds(found)


def _radius(config: ProjectorConfig) -> float | None:
    return None if config.latent == "z" else config.spread


Projector = RotationProjector | ConcatenationProjector
