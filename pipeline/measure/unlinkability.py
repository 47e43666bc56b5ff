"""Unlinkability of protected faces: Gomez-Barrero, Galbally, Rathgeb and Busch, "General Framework to Evaluate
Unlinkability in Biometric Template Protection Systems", IEEE TIFS 13(6), 2018.

Two protected pictures made under different keys are linked by a score s. H_m: they show one person (mated),
H_nm: two people. With the likelihood ratio LR(s) = p(s|H_m) / p(s|H_nm) and omega = p(H_m) / p(H_nm),

    D(s) = 2 LR(s) omega / (1 + LR(s) omega) - 1   where LR(s) omega > 1, else 0        (local, in [0, 1])
    D_sys = integral p(s|H_m) D(s) ds                                                   (global, in [0, 1])

0 means that no score tells anything, 1 that every score tells all. Densities are histograms with
min(mated / 10, 100) bins over the range of all scores, as in the authors' own program. Noise in the bins makes
D_sys a little greater than 0 even where nothing can be linked, so the value for shuffled labels is given with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyface.pipeline.measure.verification import F64

_MOST_BINS, _SCORES_A_BIN = 100, 10
_SHUFFLES = 20


@dataclass(frozen=True)
class Unlinkability:
    """The measure.

    Attributes:
        d_sys: global measure, [0, 1].
        chance: mean D_sys of the same scores with their labels shuffled.
        centres: (B,) scores; local: (B,) D(s) there.
        n_mated, n_other: scores that it rests on.
    """

    d_sys: float
    chance: float
    centres: F64
    local: F64
    n_mated: int
    n_other: int


def unlinkability(mated: F64, other: F64, *, omega: float = 1.0, seed: int = 0) -> Unlinkability:
    """Local and global measure of linkage scores.

    Args:
        mated: (N,) scores of one person under two keys; other: (M,) of two people under two keys.
        omega: prior ratio p(H_m) / p(H_nm); 1 is the worst case that the paper takes.

    Raises:
        ValueError: fewer than 20 scores on one side, or omega is not positive.
    """
    if min(len(mated), len(other)) < 2 * _SCORES_A_BIN or omega <= 0:
        raise ValueError(f"unlinkability: got {len(mated)} and {len(other)} scores and omega {omega}")
    centres, local, d_sys = _measure(mated, other, omega)
    both = np.concatenate([mated, other])
    rng = np.random.default_rng(seed)
    shuffled = []
    for _ in range(_SHUFFLES):
        order = rng.permutation(both)
        shuffled.append(_measure(order[: len(mated)], order[len(mated) :], omega)[2])
    return Unlinkability(d_sys, float(np.mean(shuffled)), centres, local, len(mated), len(other))


def _measure(mated: F64, other: F64, omega: float) -> tuple[F64, F64, float]:
    n_bins = min(len(mated) // _SCORES_A_BIN, _MOST_BINS)
    both = np.concatenate([mated, other])
    low, high = float(both.min()), float(both.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, n_bins + 1)
    share_mated = np.histogram(mated, edges)[0] / len(mated)
    share_other = np.histogram(other, edges)[0] / len(other)
    # Where only mated scores fall the ratio is infinite and D is 1; where neither does, nothing is told.
    ratio = np.full(n_bins, np.inf)
    np.divide(share_mated, share_other, out=ratio, where=share_other > 0)
    ratio[(share_mated == 0) & (share_other == 0)] = 0.0
    odds = ratio * omega
    local = np.ones(n_bins)
    finite = np.isfinite(odds)
    local[finite] = 2 * odds[finite] / (1 + odds[finite]) - 1
    local[odds <= 1] = 0.0
    return (edges[:-1] + edges[1:]) / 2, local, float((share_mated * local).sum())
