"""Verification figures from scores of pairs: equal error rate, area under the curve, and how sure they are.

A score is a cosine; `mated` pairs should match, `other` pairs should not. Every figure can be weighted, which is
how the bootstrap draws people anew without drawing scores anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
N_BOOTSTRAP = 400


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of pairs, and whose they are.

    Attributes:
        values: (N,) cosines.
        people: (N, 2) numbers of the two people, the same twice for a pair of one person.
    """

    values: F64
    people: npt.NDArray[np.int64]

    def weights(self, counts: F64) -> F64:
        """(N,) how often each pair occurs when person p occurs counts[p] times."""
        first, second = self.people[:, 0], self.people[:, 1]
        return np.where(first == second, counts[first], counts[first] * counts[second])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval from the bootstrap, and what it rests on.

    Attributes:
        value: None when nothing could be measured.
        low, high: 2.5 % and 97.5 % quantiles over people drawn anew with replacement; None likewise. For shares
            of 0 and 1 see `estimate_share`.
        count: photos or pairs; people: different people among them.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int
    people: int


class EqualError:
    """Equal error rate of given scores, for any weights of the pairs.

    The rate is read where the false accept rate (share of `other` at or above the threshold) and the false
    reject rate (share of `mated` below it) cross, between the two neighbouring thresholds by a straight line.

    Raises:
        ValueError: one side is empty.
    """

    def __init__(self, mated: F64, other: F64) -> None:
        if not len(mated) or not len(other):
            raise ValueError(f"equal error: got {len(mated)} mated and {len(other)} other scores")
        wanted = np.unique(np.concatenate([mated, other]))
        self._steps = np.concatenate([wanted, [wanted[-1] + 1e-6]])
        self._mated, self._other = _Below(mated, self._steps), _Below(other, self._steps)

    def __call__(
        self, mated_weights: F64 | None = None, other_weights: F64 | None = None
    ) -> tuple[float, float]:
        """(rate in [0, 1], threshold). Scores that separate fully give 0 and the middle of the gap."""
        rejects, accepts = self._mated(mated_weights), 1.0 - self._other(other_weights)
        gap = rejects - accepts  # rises from -1 to 1
        after = int(np.argmax(gap >= 0))
        before = after - 1
        low, high = float(self._steps[before]), float(self._steps[after])
        if gap[after] == 0 and rejects[after] == 0:
            return 0.0, (low + high) / 2
        part = float(-gap[before] / (gap[after] - gap[before]))
        rate = float(rejects[before] + part * (rejects[after] - rejects[before]))
        return rate, low + part * (high - low)


class AreaUnderCurve:
    """Area under the receiver operating characteristic of given scores, for any weights of the pairs: the
    probability that a mated pair scores above another pair, ties counting half (Mann and Whitney).

    Raises:
        ValueError: one side is empty.
    """

    def __init__(self, mated: F64, other: F64) -> None:
        if not len(mated) or not len(other):
            raise ValueError(f"area: got {len(mated)} mated and {len(other)} other scores")
        self._below, self._up_to = _Below(other, mated), _Below(other, mated, is_inclusive=True)

    def __call__(self, mated_weights: F64 | None = None, other_weights: F64 | None = None) -> float:
        """The area, [0, 1]."""
        middle = (self._below(other_weights) + self._up_to(other_weights)) / 2
        return float(np.average(middle, weights=mated_weights))


class _Below:
    """Weighted share of values below each of some steps; what does not depend on the weights is kept."""

    def __init__(self, values: F64, steps: F64, *, is_inclusive: bool = False) -> None:
        self._order = np.argsort(values, kind="stable")
        self._at = np.searchsorted(values[self._order], steps, "right" if is_inclusive else "left")

    def __call__(self, weights: F64 | None) -> F64:
        own = np.ones(len(self._order)) if weights is None else weights[self._order]
        total = np.concatenate([[0.0], np.cumsum(own)])
        return np.asarray(total[self._at] / total[-1], np.float64)


def pairs_within(vectors: F64, people: npt.NDArray[np.int64], others: F64 | None = None) -> Scores:
    """Scores of all pairs of two different photos of one person.

    Args:
        vectors: (N, D) unit vectors; people: (N,) numbers.
        others: (N, D) of the same photos under another key; None: the same vectors. With it the photo itself
            counts too, and each ordered pair once.
    """
    second = vectors if others is None else others
    is_wanted = people[:, None] == people[None]
    is_wanted = np.triu(is_wanted, 1) if others is None else is_wanted
    return _pairs(vectors @ second.T, is_wanted, people)


def pairs_between(vectors: F64, people: npt.NDArray[np.int64], others: F64 | None = None) -> Scores:
    """Scores of all pairs of two different people; arguments as in `pairs_within`."""
    second = vectors if others is None else others
    is_wanted = people[:, None] != people[None]
    is_wanted = np.triu(is_wanted, 1) if others is None else is_wanted
    return _pairs(vectors @ second.T, is_wanted, people)


def pairs_aligned(vectors: F64, others: F64, people: npt.NDArray[np.int64]) -> Scores:
    """Scores of each photo with its own counterpart, row by row."""
    values = np.einsum("nd,nd->n", vectors, others, dtype=np.float64)
    return Scores(values, np.stack([people, people], 1))


def _pairs(cosines: F64, is_wanted: npt.NDArray[np.bool_], people: npt.NDArray[np.int64]) -> Scores:
    row, column = np.nonzero(is_wanted)
    return Scores(cosines[row, column].astype(np.float64), np.stack([people[row], people[column]], 1))


def estimate(
    figure: Callable[[Sequence[F64]], float], parts: Sequence[Scores], *, n_people: int, seed: int = 0
) -> Estimate:
    """A figure of one or more sets of scores, with a bootstrap over people.

    Args:
        figure: weights of each part, in order -> value; nan when it cannot be formed.
        n_people: people are numbered below it.
    """
    count = sum(len(part.values) for part in parts)
    who = len(np.unique(np.concatenate([p.people.ravel() for p in parts]))) if count else 0
    if any(not len(part.values) for part in parts):
        return Estimate(None, None, None, count, who)
    value = figure([np.ones(len(part.values)) for part in parts])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(N_BOOTSTRAP):
        counts = np.bincount(rng.integers(0, n_people, n_people), minlength=n_people).astype(np.float64)
        weights = [part.weights(counts) for part in parts]
        if all(w.sum() > 0 for w in weights):
            drawn.append(figure(weights))
    kept = np.array([v for v in drawn if np.isfinite(v)])
    if not np.isfinite(value) or not len(kept):
        return Estimate(float(value) if np.isfinite(value) else None, None, None, count, who)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), count, who)


def estimate_mean(scores: Scores, n_people: int) -> Estimate:
    """Mean score."""
    return estimate(lambda w: float(np.average(scores.values, weights=w[0])), [scores], n_people=n_people)


def estimate_below(scores: Scores, threshold: float, n_people: int) -> Estimate:
    """Share of scores below a threshold: the unsuccessful match rate."""
    is_below = (scores.values < threshold).astype(np.float64)
    return estimate_share(Scores(is_below, scores.people), n_people)


def estimate_share(hits: Scores, n_people: int) -> Estimate:
    """Mean of scores that are 0 or 1.

    Where all are alike a bootstrap knows no spread. The interval then ends at the exact (Clopper and Pearson) bound
    for as many independent trials as there are people: 0.025^(1/n), or 1 less that.
    """
    found = estimate_mean(hits, n_people)
    if not found.people or found.value not in (0.0, 1.0):
        return found
    bound = 0.025 ** (1 / found.people)
    low, high = (bound, 1.0) if found.value == 1.0 else (0.0, 1 - bound)
    return Estimate(found.value, low, high, found.count, found.people)


def estimate_equal_error(mated: Scores, other: Scores, n_people: int) -> Estimate:
    """Equal error rate."""
    if not len(mated.values) or not len(other.values):
        return estimate(lambda _: float("nan"), [mated, other], n_people=n_people)
    rate = EqualError(mated.values, other.values)
    return estimate(lambda w: rate(w[0], w[1])[0], [mated, other], n_people=n_people)


def estimate_area(mated: Scores, other: Scores, n_people: int) -> Estimate:
    """Area under the curve."""
    if not len(mated.values) or not len(other.values):
        return estimate(lambda _: float("nan"), [mated, other], n_people=n_people)
    area = AreaUnderCurve(mated.values, other.values)
    return estimate(lambda w: area(w[0], w[1]), [mated, other], n_people=n_people)
