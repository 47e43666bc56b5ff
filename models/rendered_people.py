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
from keyface.models.look_limits import LookLimits, fit_look_limits, limit_motion, stricter_guard
from keyface.models.population import F32, Mapping
from keyface.models.projector import N_GROUPS, Latents, RotationProjector
from keyface.models.surrogate import RenderedPeople

SHARD = 250
N_GUESSED_FROM = 500
N_CONTROLS = 54
GUESS_RIDGE = 60.0
CHILD = 1  # of the guards of the identity basis
SEED = 1000
SHARE_ALONG_AXES, SHARE_OF_W = 0.66, 0.81  # the rest mixes three people in W+

# W+ (23, 512), as it is -> controls (54,), brightness of the face, contrast about the eyes; None without a face
Measure = Callable[[F32], F32 | None]
Embed = Callable[[F32, F32], F32 | None]  # styles (3, 512), guessed controls (54,) -> (2, 128) at rest
EmbedPasted = Callable[[F32, F32, int], F32 | None]  # the same, and which driver -> (2, 128) pasted over him


@dataclass(frozen=True, slots=True)
class Guess:
    """controls (54,) of G(w) ~ [(w - mean) V^T / s, 1] @ slope (A + 1, 54); looks: what keeps faces well seen."""

    slope: F32
    looks: LookLimits

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


def fit_guess(folder: Path, latents: Latents, mapping: Mapping, measure: Measure, at_rest: F32) -> Guess:
    """The guess kept in a folder; measured and kept there the first time."""
    path = folder / "guess.npz"
    if path.exists():
        kept = _read(path, "slope", "normals", "steps", "limits")
        return Guess(kept["slope"], LookLimits(kept["normals"], kept["steps"], kept["limits"]))
    folder.mkdir(parents=True, exist_ok=True)
    rng, people, found = np.random.default_rng(SEED - 1), [], []
    for _ in range(N_GUESSED_FROM):
        w = draw_styles(rng, latents, mapping)[0]
        measured = measure(np.repeat(w[None], 23, 0))
        if measured is not None:
            people.append(w)
            found.append(measured)
    x, y = _design(np.stack(people), latents), np.stack(found)
    penalty = GUESS_RIDGE * np.diag(np.append(np.ones(x.shape[1] - 1), 0.0))
    slope = np.linalg.solve(x.T @ x + penalty, x.T @ y[:, :N_CONTROLS]).astype(np.float32)
    looks = stricter_guard(
        fit_look_limits(x[:, :-1], y[:, N_CONTROLS:]), latents.axes.numpy(), latents.deviations.numpy(),
        latents.normals[CHILD].numpy(), float(latents.limits[CHILD]),
    )  # fmt: skip
    looks = limit_motion(looks, slope, at_rest)
    write_arrays(path, slope=slope, normals=looks.normals, steps=looks.steps, limits=looks.limits)
    return Guess(slope, looks)


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


def render_pasted(
    folder: Path,
    latents: Latents,
    guess: Guess,
    embed: EmbedPasted,
    projector: RotationProjector,
    *,
    count: int,
    n_drivers: int,
    seconds: float = float("inf"),
) -> int:
    """As `render_people`, in files after those, pasted over drivers: virtual people of a projector, in pairs that are
    those of two photos of one person (codes at cosine 0.35 to 0.95, two drivers) or of one photo under two keys (any
    codes, one driver), since that is where the surrogate has to be right."""
    start, done = time.monotonic(), 0
    for shard in range(-(-count // SHARD)):
        path = folder / f"pasted-{shard:04}.npz"
        if not path.exists():
            if time.monotonic() - start >= seconds:
                break
            rng, styles, found, drivers = np.random.default_rng(5 * SEED + shard), [], [], []
            for i in range(SHARD // 2):
                pair = _projected_pair(rng, latents, projector, is_near=i % 2 == 0)
                over = (
                    rng.integers(1, n_drivers + 1, size=2)
                    if i % 2 == 0
                    else [rng.integers(1, n_drivers + 1)] * 2
                )
                both = [
                    embed(w, guess.controls(w[0], latents), int(d)) for w, d in zip(pair, over, strict=True)
                ]
                if both[0] is not None and both[1] is not None:
                    styles += list(pair.astype(np.float16))
                    found += [both[0], both[1]]
                    drivers += list(over)
            write_arrays(
                path,
                w=np.stack(styles),
                embeddings=np.stack(found).astype(np.float32),
                driver=np.array(drivers),
            )
        done += len(_read(path, "w")["w"])
    return done


def _projected_pair(
    rng: np.random.Generator, latents: Latents, projector: RotationProjector, *, is_near: bool
) -> F32:
    """(2, 3, 512) styles; three in ten of the pairs are drawn along the axes, not by the projector."""
    n = projector.config.n_code
    along_axes = rng.random() < 0.3
    codes = _pair(rng, len(latents.axes) if along_axes else n, is_near=is_near)
    scale = float(rng.uniform(0.8, 1.1))
    with torch.no_grad():
        bounds = projector.network.bounds
        if along_axes and bounds is not None:
            coordinates = bounds(torch.from_numpy(codes) * (scale * codes.shape[1] ** 0.5))
        else:
            coordinates = scale * projector.network(torch.from_numpy(codes) * n**0.5)
        return np.asarray(latents.styles(coordinates, projector.config).numpy())


def _pair(rng: np.random.Generator, n: int, *, is_near: bool) -> F32:
    """(2, n) unit vectors."""
    first, other = (v / np.linalg.norm(v) for v in rng.standard_normal((2, n)))
    if not is_near:
        return np.stack([first, other]).astype(np.float32)
    cosine = rng.uniform(0.35, 0.95)
    across = other - first * (first @ other)
    second = cosine * first + (1 - cosine**2) ** 0.5 * across / np.linalg.norm(across)
    return np.stack([first, second]).astype(np.float32)


def load_people(folder: Path) -> RenderedPeople:
    """All people of a folder, in a seeded order that keeps neighbours (2 i, 2 i + 1) together.

    Raises:
        UsageError: there are none, or a file is damaged.
    """
    w, embeddings, drivers = [], [], []
    for kind in ("people", "pasted"):
        for shard in itertools.count():
            path = folder / f"{kind}-{shard:04}.npz"
            if not path.exists():
                break
            kept = _read(path, "w", "embeddings", *(["driver"] if kind == "pasted" else []))
            n = len(kept["w"]) // 2 * 2
            w.append(kept["w"][:n].astype(np.float32))
            embeddings.append(kept["embeddings"][:n])
            drivers.append(np.asarray(kept.get("driver", np.zeros(n)))[:n].astype(np.int64))
    if not w:
        raise UsageError(f"{folder} holds no rendered people.", "Ask for some: --renders 7000")
    pairs = np.random.default_rng(SEED).permutation(sum(len(part) for part in w) // 2)
    order = np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()
    return RenderedPeople(*(np.concatenate(parts)[order] for parts in (w, embeddings, drivers)))


def _design(w: F32, latents: Latents) -> F32:
    x = (w - latents.w_mean.numpy()) @ latents.axes.numpy().T / latents.deviations.numpy()
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1).astype(np.float32)


def _read(path: Path, *names: str) -> dict[str, npt.NDArray[np.float32]]:
    try:
        return read_arrays(path, *names)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
