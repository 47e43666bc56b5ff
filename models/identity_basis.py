"""Makes models/weights/identity.safetensors: the statistics that virtual identities are made from.

Nothing is trained by gradient here: a mean embedding, principal axes of w, a resting expression, and linear
scores of w ("guards") for what a pasted face should not have. The scores come from labels given by hand to
seeded samples (models/labels/guards.toml) and from the measured share of the face that is covered, by ridge
regression in whitened coordinates of w:

    u = diag(1/s) V (w - m),   score(w) = normal . (w - m),   step = Cov(w) normal / (normal . Cov(w) normal)

so that a step changes the score by 1 with the least change of the person in the population's own metric.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from keyface.configs.errors import UsageError
from keyface.models.population import F32, N_AXES, Population
from keyface.models.samples import Samples, is_mixed

N_EMBEDDED = 240  # samples looked at for the mean embedding
N_COHORT = 64  # generated people against whom likeness is normalised
N_GUARD_AXES = 160
RIDGE = 300.0
LIMIT_PERCENTILE = 30.0  # of the scores of samples without the label
COVER_LIMIT_PERCENTILE = 20.0  # of the scores of all samples
COVER_UNKNOWN = 0.5  # for a sample in which no face is found
JAW_OPEN, SMILE, BLINK = 25, (44, 45), (9, 10)

U8 = npt.NDArray[np.uint8]
Embed = Callable[[U8], F32 | None]
MeasureCover = Callable[[U8], float | None]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Labels:
    """Which samples have what, seen by eye: `samples_with` name -> indices; samples at `n_seen` and beyond and
    mixed ones were not looked at."""

    seed: int
    n_seen: int
    samples_with: Mapping[str, tuple[int, ...]]

    def seen(self) -> npt.NDArray[np.int64]:
        """Indices of the samples that were looked at."""
        return np.array([i for i in range(self.n_seen) if not is_mixed(i)], np.int64)


@dataclass(frozen=True, slots=True)
class Guard:
    """normal (512,), step (512,), limit; quality: of the score, cross-validated five-fold, as area under the ROC
    curve (labels) or correlation (measures)."""

    normal: F32
    step: F32
    limit: float
    quality: float


def load_labels(path: Path) -> Labels:
    """Reads a file of labels.

    Raises:
        UsageError: it cannot be read, or names a sample that was not looked at.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
        labels = Labels(
            int(raw["sampler"]["seed"]),
            int(raw["sampler"]["n_seen"]),
            {name: tuple(int(i) for i in found) for name, found in raw["samples_with"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file of labels: {error!r}.", "See models/labels/guards.toml."
        ) from error
    seen = set(labels.seen().tolist())
    for name, indices in labels.samples_with.items():
        foreign = sorted(set(indices) - seen)
        if foreign or not indices or len(set(indices)) == len(seen):
            raise UsageError(
                f"{path}: {name} names {len(indices)} samples, {foreign or 'none'} of which were not looked at.",
                "Name some of the samples that were looked at, not all.",
            )
    return labels


def fit_guards(samples: Samples, labels: Labels, population: Population) -> dict[str, Guard]:
    """One guard for each label, in the file's order.

    Raises:
        UsageError: the labels were given to other samples.
    """
    if samples.seed != labels.seed or len(samples.images) < labels.n_seen:
        raise UsageError(
            f"The labels are about {labels.n_seen} samples of seed {labels.seed}, "
            f"there are {len(samples.images)} of seed {samples.seed}.",
            f"Make them: keyface train samples --count {labels.n_seen}",
        )
    seen = labels.seen()
    w = samples.w_plus[seen, 0]
    return {
        name: _fit_guard(w, np.isin(seen, indices), population)
        for name, indices in labels.samples_with.items()
    }


def fit_cover_guard(samples: Samples, cover: MeasureCover, population: Population) -> Guard:
    """The guard against covered faces.

    Args:
        cover: uint8 (256, 256, 3) -> share covered [0, 1], None where no face is found.
    """
    plain = samples.plain()
    shares = [cover(samples.images[i]) for i in plain]
    return guard_of_measure(
        samples.w_plus[plain, 0], np.array([COVER_UNKNOWN if s is None else s for s in shares]), population
    )


def guard_of_measure(w: F32, share: Floats, population: Population) -> Guard:
    """Guard for a share [0, 1] measured on people w (N, 512); its root is what is regressed."""
    value = np.sqrt(share)
    value = (value - value.mean()) / max(float(value.std()), 1e-9)
    whitened = _whitened(w, population)

    def fit(x: Floats, y: Floats) -> Floats:
        return np.asarray(np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y))

    score = _cross_validated(whitened, value, fit)
    return _guard(
        fit(whitened, value), w, population, COVER_LIMIT_PERCENTILE, float(np.corrcoef(score, value)[0, 1])
    )


def _fit_guard(w: F32, has: npt.NDArray[np.bool_], population: Population) -> Guard:
    whitened = _whitened(w, population)
    score = _cross_validated(whitened, has, _ridge)
    auc = float((score[has][:, None] > score[~has][None]).mean())
    return _guard(_ridge(whitened, has), w, population, LIMIT_PERCENTILE, auc, ~has)


def _whitened(w: F32, population: Population) -> Floats:
    coordinates = (w - population.mean) @ population.axes.T / population.deviations
    return np.asarray(coordinates[:, :N_GUARD_AXES])


def _guard(
    slope: Floats,
    w: F32,
    population: Population,
    percentile: float,
    quality: float,
    counts: npt.NDArray[np.bool_] | None = None,
) -> Guard:
    """The guard of a slope in whitened coordinates; its limit is a percentile of the scores of those who count."""
    k = N_GUARD_AXES
    normal = (slope / population.deviations[:k]) @ population.axes[:k]
    step = (slope * population.deviations[:k]) @ population.axes[:k]
    step = step / (step @ normal)
    score = (w - population.mean) @ normal
    limit = float(np.percentile(score if counts is None else score[counts], percentile))
    return Guard(normal.astype(np.float32), step.astype(np.float32), limit, quality)


def _ridge(x: Floats, has: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(K,) slope of +1 for samples that have it and -1 for others, both sides weighing the same."""
    k = x.shape[1]
    design = np.c_[x, np.ones(len(x))]
    penalty = np.eye(k + 1) * RIDGE
    penalty[-1, -1] = 0.0
    weight = np.where(has, (~has).sum() / max(has.sum(), 1), 1.0)
    normal_matrix = (design * weight[:, None]).T @ design + penalty * weight.sum() / len(x)
    solved = np.linalg.solve(normal_matrix, (design * weight[:, None]).T @ (2.0 * has - 1.0))
    return np.asarray(solved[:k], np.float64)


def _cross_validated(x: Floats, y: npt.NDArray[Any], fit: Callable[[Any, Any], Floats]) -> Floats:
    """Scores that each fifth gets from the other four."""
    fold = np.arange(len(x)) % 5
    score = np.zeros(len(x))
    for k in range(5):
        score[fold == k] = x[fold == k] @ fit(x[fold != k], y[fold != k])
    return score


def generated_embeddings(samples: Samples, embed: Embed, n: int = N_EMBEDDED) -> F32:
    """(K, 128) unit embeddings of the first plain samples.

    Args:
        embed: uint8 (256, 256, 3) -> (128,) of norm 1, None where no face is found.

    Raises:
        UsageError: no face was found in any.
    """
    found = [embed(samples.images[i]) for i in samples.plain() if i < n]
    kept = [e for e in found if e is not None]
    if not kept:
        raise UsageError("No face was found in the samples.", "Make them anew: keyface train samples")
    return np.asarray(np.stack(kept), np.float32)


def resting_expression(rows: F32) -> F32:
    """(52,) median blendshapes of real faces (M, 56) that look ahead, with mouth closed, eyes open, no smile.

    Raises:
        UsageError: there is no such face.
    """
    shapes = rows[:, 4:]
    calm = (np.abs(rows[:, 1]) < 12) & (np.abs(rows[:, 2]) < 12) & (shapes[:, JAW_OPEN] < 0.05)
    calm &= (shapes[:, SMILE].mean(1) < 0.12) & (shapes[:, BLINK].mean(1) < 0.3)
    if not calm.any():
        raise UsageError("The controls hold no face at rest.", "Take in more photos: keyface train controls")
    return np.asarray(np.median(shapes[calm], 0), np.float32)


def save_identity_basis(
    out: Path, *, embeddings: F32, resting: F32, population: Population, guards: Mapping[str, Guard]
) -> None:
    """Half precision, under the names that `pipeline.people.virtual.IdentityBasis` reads."""
    tensors = {
        "mean_embedding": embeddings.mean(0),
        "cohort": embeddings[np.arange(N_COHORT) % len(embeddings)],
        "w_mean": population.mean,
        "axes": population.axes[:N_AXES],
        "deviations": population.deviations[:N_AXES],
        "resting": resting,
        "guard_normals": np.stack([g.normal for g in guards.values()]),
        "guard_steps": np.stack([g.step for g in guards.values()]),
        "guard_limits": np.array([g.limit for g in guards.values()], np.float32),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    save_file({name: np.ascontiguousarray(t, np.float16) for name, t in tensors.items()}, str(partial))
    partial.replace(out)
