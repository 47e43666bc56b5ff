"""Seeded generated people, rendered once at rest and embedded: what the surrogate learns from.

People look ahead with a calm face, as the product's virtual people do before they take on the driver's motion. What
G(w) shows by itself is guessed from w by ridge regression over the first people, which are rendered as they are,
so that the others need one rendering each.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from keyface.configs.errors import UsageError
from keyface.models.arrays import read_arrays, write_arrays
from keyface.models.population import F32, Mapping
from keyface.models.projector import N_GROUPS, Latents, RotationProjector
from keyface.models.surrogate import RenderedPeople

SHARD = 250
N_GUESSED_FROM = 500
N_CONTROLS = 54
GUESS_RIDGE = 60.0
SEED = 1000
SHARE_ALONG_AXES, SHARE_OF_W = 0.66, 0.81  # the rest mixes three people in W+

Measure = Callable[[F32], F32 | None]  # W+ (23, 512), as it is -> controls (54,), None without a face
Embed = Callable[[F32, F32], F32 | None]  # styles (3, 512), guessed controls (54,) -> (2, 128) at rest


@dataclass(frozen=True, slots=True)
class Guess:
    """controls (54,) of G(w) ~ [(w - mean) V^T / s, 1] @ slope (A + 1, 54)."""

    slope: F32

    def controls(self, w: F32, latents: Latents) -> F32:
        """(54,) for w (512,)."""
        found: F32 = _design(w[None], latents)[0] @ self.slope
        return found


def draw_styles(rng: np.random.Generator, latents: Latents, mapping: Mapping) -> F32:
    """(3, 512) of one person within the guards, psi 0.6 to 1.15: along the axes, through the mapping network, or
    another person along the axes for each group of rows."""
    kind, psi = rng.random(), rng.uniform(0.6, 1.15)
    n = N_GROUPS if kind >= SHARE_OF_W else 1
    if SHARE_ALONG_AXES <= kind < SHARE_OF_W:
        w = latents.w_mean.numpy() + min(psi, 1.0) * (
            mapping(rng.standard_normal((1, 512)).astype(np.float32)) - latents.w_mean.numpy()
        )
    else:
        code = rng.standard_normal((n, len(latents.axes)))
        code *= np.sqrt(code.shape[1]) / np.linalg.norm(code, axis=1, keepdims=True)
        w = latents.w_mean.numpy() + psi * (code * latents.deviations.numpy()) @ latents.axes.numpy()
    guarded: F32 = latents.guarded(torch.from_numpy(w.astype(np.float32))).numpy()
    return np.repeat(guarded, N_GROUPS // len(guarded), 0)


def fit_guess(folder: Path, latents: Latents, mapping: Mapping, measure: Measure) -> Guess:
    """The guess kept in a folder; measured and kept there the first time."""
    path = folder / "guess.npz"
    if path.exists():
        return Guess(_read(path, "slope")["slope"])
    folder.mkdir(parents=True, exist_ok=True)
    rng, people, found = np.random.default_rng(SEED - 1), [], []
    for _ in range(N_GUESSED_FROM):
        w = draw_styles(rng, latents, mapping)[0]
        controls = measure(np.repeat(w[None], 23, 0))
        if controls is not None:
            people.append(w)
            found.append(controls)
    x = _design(np.stack(people), latents)
    penalty = GUESS_RIDGE * np.diag(np.append(np.ones(x.shape[1] - 1), 0.0))
    slope = np.linalg.solve(x.T @ x + penalty, x.T @ np.stack(found)).astype(np.float32)
    write_arrays(path, slope=slope)
    return Guess(slope)


def render_people(
    folder: Path,
    latents: Latents,
    mapping: Mapping,
    guess: Guess,
    embed: Embed,
    *,
    count: int,
    seconds: float = float("inf"),
    on_person: Callable[[int], None] = lambda done: None,
) -> int:
    """Makes `count` people in files of 250, those that are there already not again; returns how many there are."""
    start, done = time.monotonic(), 0
    for shard in range(-(-count // SHARD)):
        path = folder / f"people-{shard:04}.npz"
        if not path.exists():
            if time.monotonic() - start >= seconds:
                break
            rng, styles, found = np.random.default_rng(SEED + shard), [], []
            for _ in range(SHARD):
                drawn = draw_styles(rng, latents, mapping)
                embeddings = embed(drawn, guess.controls(drawn[0], latents))
                if embeddings is not None:
                    styles.append(drawn.astype(np.float16))
                    found.append(embeddings)
                on_person(done + len(found))
            write_arrays(path, w=np.stack(styles), embeddings=np.stack(found).astype(np.float32))
        done += len(_read(path, "w")["w"])
        on_person(done)
    return done


def render_projected(
    folder: Path,
    latents: Latents,
    guess: Guess,
    embed: Embed,
    projector: RotationProjector,
    *,
    count: int,
    seconds: float = float("inf"),
) -> int:
    """As `render_people`, in files after those: virtual people of a projector in pairs whose codes are as near as
    those of two photos of one person (cosine 0.35 to 0.95), since that is where the surrogate has to be right."""
    start, done, n = time.monotonic(), 0, projector.config.n_code
    for shard in range(-(-count // SHARD)):
        path = folder / f"projected-{shard:04}.npz"
        if not path.exists():
            if time.monotonic() - start >= seconds:
                break
            rng, styles, found = np.random.default_rng(5 * SEED + shard), [], []
            for _ in range(SHARD // 2):
                codes = torch.from_numpy(_near_pair(rng, n) * np.float32(n**0.5))
                with torch.no_grad():
                    coordinates = float(rng.uniform(0.7, 1.0)) * projector.network(codes)
                    pair = latents.styles(coordinates, projector.config).numpy()
                both = [embed(w, guess.controls(w[0], latents)) for w in pair]
                if both[0] is not None and both[1] is not None:
                    styles += list(pair.astype(np.float16))
                    found += [both[0], both[1]]
            write_arrays(path, w=np.stack(styles), embeddings=np.stack(found).astype(np.float32))
        done += len(_read(path, "w")["w"])
    return done


def _near_pair(rng: np.random.Generator, n: int) -> F32:
    """(2, n) unit vectors."""
    first, other = (v / np.linalg.norm(v) for v in rng.standard_normal((2, n)))
    cosine = rng.uniform(0.35, 0.95)
    across = other - first * (first @ other)
    second = cosine * first + (1 - cosine**2) ** 0.5 * across / np.linalg.norm(across)
    return np.stack([first, second]).astype(np.float32)


def load_people(folder: Path) -> RenderedPeople:
    """All people of a folder, in a seeded order that keeps neighbours (2 i, 2 i + 1) together.

    Raises:
        UsageError: there are none, or a file is damaged.
    """
    w, embeddings = [], []
    for kind in ("people", "projected"):
        for shard in itertools.count():
            path = folder / f"{kind}-{shard:04}.npz"
            if not path.exists():
                break
            kept = _read(path, "w", "embeddings")
            n = len(kept["w"]) // 2 * 2
            w.append(kept["w"][:n].astype(np.float32))
            embeddings.append(kept["embeddings"][:n])
    if not w:
        raise UsageError(f"{folder} holds no rendered people.", "Ask for some: --renders 7000")
    pairs = np.random.default_rng(SEED).permutation(sum(len(part) for part in w) // 2)
    order = np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()
    return RenderedPeople(np.concatenate(w)[order], np.concatenate(embeddings)[order])


def _design(w: F32, latents: Latents) -> F32:
    x = (w - latents.w_mean.numpy()) @ latents.axes.numpy().T / latents.deviations.numpy()
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1).astype(np.float32)


def _read(path: Path, *names: str) -> dict[str, npt.NDArray[np.float32]]:
    try:
        return read_arrays(path, *names)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
