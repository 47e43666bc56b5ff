"""Figures of a projector on people it was not trained on, by the recognisers of training: to compare configurations
with each other. The real figures, after reenactment and by other recognisers, come from `keyface evaluate images`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from keyface.models.projector import Latents, Projector
from keyface.models.projector_data import Photos

F64 = npt.NDArray[np.float64]


def equal_error(same: F64, different: F64) -> tuple[float, float, float]:
    """Equal error rate, area under the ROC curve, and threshold, of scores."""
    same, different = np.sort(same), np.sort(different)
    thresholds = np.sort(np.concatenate([same, different]))
    rejected = np.searchsorted(same, thresholds) / len(same)
    accepted = 1 - np.searchsorted(different, thresholds) / len(different)
    at = int(np.argmin(np.abs(rejected - accepted)))
    auc = np.searchsorted(different, same).mean() / len(different)
    return float(rejected[at] + accepted[at]) / 2, float(auc), float(thresholds[at])


def pairs_of(photos: Photos, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """(N, 2) rows: two photos of each person who has two."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(photos.person == p) for p in np.unique(photos.person)]
    return np.array([rng.choice(r, 2, replace=False) for r in rows if len(r) > 1])


def judge_projector(
    projector: Projector,
    latents: Latents,
    recognise: Callable[[Tensor, Tensor], Tensor],
    photos: Photos,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The papers' measures, mean over the recognisers; `recognise` is a surrogate or the product itself,
    and gets the rows of the photos that people are pasted over.

    `threshold` is the recognisers' own at equal error on the original photos; anonymity and diversity are the shares
    of pairs below it.
    """
    rows = pairs_of(photos, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    e = torch.from_numpy(photos.embeddings[:, 0])[torch.from_numpy(rows)]
    with torch.no_grad():
        one = projector.draw_keys(1, generator)
        coordinates = [projector(e.flatten(0, 1), one)]
        coordinates += [projector(pair, projector.draw_keys(1, generator)) for pair in e]
        found = recognise(
            latents.styles(torch.cat(coordinates), projector.config),
            torch.from_numpy(rows.ravel()).repeat(2),
        ).numpy()
    n, r = len(rows), found.shape[1]
    same_key, own_key = found.reshape(2, n, 2, r, 128).astype(np.float64)
    originals = photos.embeddings[rows].astype(np.float64)
    originals = np.tile(originals, (1, 1, r // originals.shape[2], 1))
    figures = [_figures(same_key[:, :, i], own_key[:, :, i], originals[:, :, i]) for i in range(r)]
    mean = {name: round(float(np.mean([f[name] for f in figures])), 4) for name in figures[0]}
    return mean | {"rms": round(float(torch.cat(coordinates).square().mean().sqrt()), 3), "people": n}


def _figures(same_key: F64, own_key: F64, originals: F64) -> dict[str, float]:
    """All (N, 2, 128)."""
    _, _, threshold = equal_error(*_scores(originals))
    eer_b, auc_b, _ = equal_error(*_scores(same_key))
    eer_a, auc_a, _ = equal_error(*_scores(own_key))
    diversity = (same_key[:, 0] * own_key[:, 0]).sum(1)
    anonymity = (same_key[:, 0] * originals[:, 0]).sum(1)
    return {
        "eer_b": eer_b, "auc_b": auc_b, "eer_a": eer_a, "auc_a": auc_a,
        "diversity": float((diversity < threshold).mean()), "anonymity": float((anonymity < threshold).mean()),
        "same": float(_scores(same_key)[0].mean()), "different": float(_scores(same_key)[1].mean()),
        "two_keys": float(diversity.mean()), "original": float(anonymity.mean()),
    }  # fmt: skip


def _scores(x: F64) -> tuple[F64, F64]:
    """Cosines of the two of each person, and of different people."""
    between = x[:, 0] @ x[:, 1].T
    return np.diag(between), between[~np.eye(len(x), dtype=bool)]
