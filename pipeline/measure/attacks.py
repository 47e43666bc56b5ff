"""Attacks on virtual faces, and the key holder's probe, fitted from examples in plain numpy.

    inverter      R(virtual) -> R(original), learnt without the key from people under keys of the attacker's own
    probe         R(virtual) -> code v, which only the key holder can compare with Q u of a candidate
    known pairs   u -> v under one key, from n pairs of original and virtual that the attacker has

All are regressions y ~ f(x): ridge, or a network of one hidden layer beside it, whichever does better on a held-out
fifth of the examples, so that "the attack failed" does not hang on one kind of model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Regressor = Callable[[F64], F64]  # (N, P) -> (N, D)
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
WIDTHS = (0, 256)  # of the hidden layer; 0: ridge alone
_EPOCHS, _BATCH, _LR, _DECAY = 60, 64, 1e-3, 1e-3


@dataclass(frozen=True, slots=True)
class Fitted:
    """The regressor chosen, and its mean cosine on the held-out fifth of the examples."""

    predict: Regressor
    held_out_cosine: float
    width: int
    ridge: float


def cosines(a: F64, b: F64) -> F64:
    """(N,) cosine of each row of (N, D) with the same row of the other."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / np.maximum(norms, 1e-12))


def fit_regressor(x: F64, y: F64, *, widths: Sequence[int] = WIDTHS, seed: int = 0) -> Fitted:
    """The best of ridge and networks for y (N, D) from x (N, P).

    Raises:
        ValueError: fewer than 10 examples, or not as many of one as of the other.
    """
    if len(x) != len(y) or len(x) < 10:
        raise ValueError(
            f"attack: got {len(x)} inputs and {len(y)} targets, want as many of each, 10 or more"
        )
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    held = np.random.default_rng(seed).permutation(len(x)) < max(2, len(x) // 5)
    tried = []
    for ridge in RIDGES:
        predict = fit_ridge(x[~held], y[~held], ridge)
        tried.append((float(cosines(predict(x[held]), y[held]).mean()), 0, ridge))
    best_ridge = max(tried)[2]
    for width in widths:
        if width:
            predict = fit_network(x[~held], y[~held], width, ridge=best_ridge, seed=seed)
            tried.append((float(cosines(predict(x[held]), y[held]).mean()), width, best_ridge))
    cosine, width, ridge = max(tried)
    final = fit_network(x, y, width, ridge=ridge, seed=seed) if width else fit_ridge(x, y, ridge)
    return Fitted(final, cosine, width, ridge)


def fit_ridge(x: F64, y: F64, ridge: float) -> Regressor:
    """Linear regression with a penalty of `ridge` times the mean variance of x's columns a row."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    a = x - mean_x
    scale = max(float((a**2).mean()), 1e-12) * len(x)
    # The dual form is the cheaper one when there are fewer examples than columns.
    if len(x) < x.shape[1]:
        dual = np.linalg.solve(a @ a.T + ridge * scale * np.eye(len(x)), y - mean_y)
        slope = a.T @ dual
    else:
        slope = np.linalg.solve(a.T @ a + ridge * scale * np.eye(x.shape[1]), a.T @ (y - mean_y))
    return lambda other: np.asarray((np.asarray(other, np.float64) - mean_x) @ slope + mean_y)


def fit_network(x: F64, y: F64, width: int, *, ridge: float, seed: int = 0) -> Regressor:
    """Ridge plus a hidden layer of tanh, trained by Adam on what ridge leaves over. Seeded."""
    base = fit_ridge(x, y, ridge)
    rng = np.random.default_rng(seed)
    mean, deviation = x.mean(0), np.maximum(x.std(0), 1e-9)
    unit = max(float(y.std()), 1e-12)
    inputs, left = (x - mean) / deviation, (y - base(x)) / unit
    w1 = rng.standard_normal((x.shape[1], width)) / np.sqrt(x.shape[1])
    weights = [w1, np.zeros(width), np.zeros((width, y.shape[1]))]
    moments = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    step = 0
    for _ in range(_EPOCHS):
        order = rng.permutation(len(x))
        for rows in np.array_split(order, max(1, len(x) // _BATCH)):
            step += 1
            gradients = _gradients(weights, inputs[rows], left[rows])
            for i, gradient in enumerate(gradients):
                moments[i] = _adam(weights[i], gradient, *moments[i], step)

    def predict(other: F64) -> F64:
        hidden = np.tanh(((np.asarray(other, np.float64) - mean) / deviation) @ weights[0] + weights[1])
        return np.asarray(base(other) + unit * (hidden @ weights[2]))

    return predict


def _gradients(weights: list[F64], x: F64, y: F64) -> list[F64]:
    """Of the mean squared error."""
    hidden = np.tanh(x @ weights[0] + weights[1])
    error = (hidden @ weights[2] - y) * (2.0 / len(x))
    back = (error @ weights[2].T) * (1.0 - hidden**2)
    return [x.T @ back, back.sum(0), hidden.T @ error]


def _adam(weight: F64, gradient: F64, first: F64, second: F64, step: int) -> tuple[F64, F64]:
    """One step of Adam with decoupled decay, in place; the new moments."""
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    change = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    weight -= _LR * (change + _DECAY * weight)
    return first, second


@dataclass(frozen=True, slots=True)
class Inversion:
    """What an inverter gains.

    Attributes:
        cosine: mean of its estimate with the embedding of the original, on people it was not fitted on.
        chance: mean of its estimate with the embeddings of other people.
        rank_1: share of people whose original is the nearest of all to the estimate; 1/N by chance.
        auc: of telling the right original from others by the cosine; 0.5 by chance.
        n_fitted, n_tested: pairs.
    """

    cosine: float
    chance: float
    rank_1: float
    auc: float
    n_fitted: int
    n_tested: int


def measure_inversion(
    virtual: F64, original: F64, virtual_test: F64, original_test: F64, *, seed: int = 0
) -> Inversion:
    """Fits an inverter on pairs of unit embeddings (N, P), (N, D) and tests it on those of others. The attacker has
    no key: give pairs under keys other than those of the tested ones (a key each)."""
    mean = original.mean(0)
    fitted = fit_regressor(virtual, original - mean, seed=seed)
    estimate, truth = fitted.predict(virtual_test), np.asarray(original_test, np.float64) - mean
    estimate = estimate / np.maximum(np.linalg.norm(estimate, axis=1, keepdims=True), 1e-12)
    truth = truth / np.maximum(np.linalg.norm(truth, axis=1, keepdims=True), 1e-12)
    scores = estimate @ truth.T
    own, others = np.diag(scores), scores[~np.eye(len(scores), dtype=bool)]
    return Inversion(
        cosine=float(own.mean()),
        chance=float(others.mean()),
        rank_1=float((scores.argmax(1) == np.arange(len(scores))).mean()),
        auc=area_under_curve(own, others),
        n_fitted=len(virtual),
        n_tested=len(virtual_test),
    )


@dataclass(frozen=True, slots=True)
class Probing:
    """What the key holder reads: cosines of the probe's estimate with the code under the right key, and with the
    codes of the same person under wrong keys; the area under the curve that tells one from the other."""

    right: float
    right_5_percent: float
    wrong: float
    wrong_95_percent: float
    auc: float


def measure_probe(probe: Regressor, virtual: F64, right: F64, wrong: F64) -> Probing:
    """virtual (N, P) embeddings, right (N, n) codes, wrong (N, K, n) codes of the same people under K other keys."""
    read = probe(virtual)
    good = cosines(read, right)
    n, k, d = wrong.shape
    bad = cosines(np.repeat(read, k, 0), wrong.reshape(n * k, d))
    return Probing(
        float(good.mean()), float(np.percentile(good, 5)),
        float(bad.mean()), float(np.percentile(bad, 95)), area_under_curve(good, bad),
    )  # fmt: skip


def known_pairs_curve(
    units: F64, codes: F64, counts: Sequence[int], *, n_test: int = 200, seed: int = 0
) -> dict[int, float]:
    """How well codes of other people under one key are predicted from `count` known pairs: mean cosine on the last
    `n_test` people. units (N, n) before the key, codes (N, n) after it, as the attacker reads them."""
    units, codes = np.asarray(units, np.float64), np.asarray(codes, np.float64)
    found = {}
    for count in counts:
        if count + n_test > len(units):
            raise ValueError(f"known pairs: got {len(units)} people, want {count + n_test}")
        widths = WIDTHS if count >= 200 else (0,)
        fitted = fit_regressor(units[:count], codes[:count], widths=widths, seed=seed)
        found[int(count)] = float(cosines(fitted.predict(units[-n_test:]), codes[-n_test:]).mean())
    return found


def area_under_curve(higher: F64, lower: F64) -> float:
    """Chance that one of `higher` is above one of `lower`, ties counting half."""
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, "left") + np.searchsorted(ordered, higher, "right")
    return float(below.mean() / (2 * len(lower)))
