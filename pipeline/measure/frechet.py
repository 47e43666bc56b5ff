"""The Frechet distance between two sets of features (Heusel et al. 2017, "FID").

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

with means m and covariances S (divided by N - 1). With centred features A and B, S1 = A'A / (N1 - 1) and S2
likewise, the eigenvalues of S1 S2 are the squared singular values of A B' / sqrt((N1 - 1)(N2 - 1)). So
tr (S1 S2)^(1/2) is the sum of these singular values, exactly, and no root of a large singular matrix is taken.
"""

from __future__ import annotations

import numpy as np

from keyface.pipeline.measure.verification import F64


def frechet_distance(first: F64, second: F64) -> float:
    """d^2 of features (N1, D) and (N2, D).

    With fewer pictures than dimensions the covariances are singular; the distance is still defined, and biased
    upwards. Compare only distances of equal counts.

    Raises:
        ValueError: fewer than two rows, or different D.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"frechet: got features {first.shape} and {second.shape}")
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_gap = a.mean(0) - b.mean(0)
    a, b = (a - a.mean(0)) / np.sqrt(len(a) - 1), (b - b.mean(0)) / np.sqrt(len(b) - 1)
    shared = float(np.linalg.svd(_short(a) @ _short(b).T, compute_uv=False).sum())
    return float(mean_gap @ mean_gap + (a**2).sum() + (b**2).sum() - 2 * shared)


def _short(centred: F64) -> F64:
    """A matrix of at most D rows with the same X'X, so that the product to decompose is small."""
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"), np.float64)
