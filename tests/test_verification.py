"""pipeline/measure/verification.py, unlinkability.py and frechet.py against distributions with known answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from keyface.pipeline.measure.frechet import frechet_distance
from keyface.pipeline.measure.unlinkability import unlinkability
from keyface.pipeline.measure.verification import (
    AreaUnderCurve,
    EqualError,
    Scores,
    estimate_area,
    estimate_below,
    estimate_equal_error,
    estimate_mean,
    pairs_aligned,
    pairs_between,
    pairs_within,
)

F64 = npt.NDArray[np.float64]


def normal(mean: float, count: int, seed: int) -> F64:
    return np.random.default_rng(seed).normal(mean, 1.0, count)


def unit(vectors: F64) -> F64:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ---------------------------------------------------------------- equal error and area
def test_two_normal_distributions_have_the_error_and_area_of_the_textbook() -> None:
    from scipy.stats import norm

    mated, other = normal(2.0, 60_000, 1), normal(0.0, 60_000, 2)
    rate, threshold = EqualError(mated, other)()
    assert rate == pytest.approx(norm.cdf(-1.0), abs=0.004)  # d' = 2: both errors are the tail beyond 1
    assert threshold == pytest.approx(1.0, abs=0.03)
    assert AreaUnderCurve(mated, other)() == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.003)


def test_separate_scores_have_no_error_and_a_threshold_in_the_gap() -> None:
    mated, other = np.array([0.8, 0.9]), np.array([0.1, 0.4, 0.2])
    assert EqualError(mated, other)() == (0.0, pytest.approx(0.6))
    assert AreaUnderCurve(mated, other)() == 1.0
    assert EqualError(other, mated)()[0] == pytest.approx(1.0, abs=1e-6)
    assert AreaUnderCurve(other, mated)() == 0.0


def test_equal_scores_are_a_coin_toss() -> None:
    same = np.full(10, 0.5)
    assert AreaUnderCurve(same, same)() == 0.5
    assert EqualError(same, same)()[0] == pytest.approx(0.5)


def test_a_small_case_counted_by_hand() -> None:
    mated, other = np.array([0.3, 0.6, 0.7, 0.9]), np.array([0.1, 0.2, 0.4, 0.65])
    # Of 16 pairs 0.3 beats 2, 0.6 beats 3, 0.7 and 0.9 beat 4; at 0.6 each side has one of four wrong.
    assert AreaUnderCurve(mated, other)() == pytest.approx(13 / 16)
    assert EqualError(mated, other)()[0] == pytest.approx(0.25)


def test_weights_count_like_repeated_scores() -> None:
    rng = np.random.default_rng(3)
    mated, other = rng.normal(1, 1, 30), rng.normal(0, 1, 40)
    times = rng.integers(1, 4, 30), rng.integers(1, 4, 40)
    repeated = np.repeat(mated, times[0]), np.repeat(other, times[1])
    weights = times[0].astype(float), times[1].astype(float)
    assert AreaUnderCurve(mated, other)(*weights) == pytest.approx(AreaUnderCurve(*repeated)())
    assert EqualError(mated, other)(*weights)[0] == pytest.approx(EqualError(*repeated)()[0])


def test_no_scores_are_refused() -> None:
    for kind in (EqualError, AreaUnderCurve):
        with pytest.raises(ValueError, match="got 0 mated and 2 other"):
            kind(np.zeros(0), np.zeros(2))


# ---------------------------------------------------------------- pairs and bootstrap
def test_pairs_within_and_between_people_are_counted_right() -> None:
    people = np.array([0, 0, 0, 1, 1, 2])
    vectors = unit(np.random.default_rng(4).normal(size=(6, 5)))
    assert len(pairs_within(vectors, people).values) == 3 + 1
    assert len(pairs_between(vectors, people).values) == 15 - 4
    others = unit(np.random.default_rng(5).normal(size=(6, 5)))
    across = pairs_within(vectors, people, others)
    assert len(across.values) == 9 + 4 + 1
    assert len(pairs_between(vectors, people, others).values) == 36 - 14
    assert set(map(tuple, across.people.tolist())) == {(0, 0), (1, 1), (2, 2)}
    aligned = pairs_aligned(vectors, others, people)
    assert aligned.values == pytest.approx(np.diag(vectors @ others.T))


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        centre = rng.normal(0, 1, 40)  # what a person's photos have in common
        people = np.repeat(np.arange(40), 3)
        scores = Scores(centre[people] + rng.normal(0, 0.3, 120), np.stack([people, people], 1))
        found = estimate_mean(scores, 40)
        assert found.low is not None and found.high is not None
        assert (found.count, found.people) == (120, 40)
        hits += found.low <= 0.0 <= found.high
    assert 50 <= hits <= 60  # 95 % of 60 is 57


def test_figures_have_intervals_around_them() -> None:
    rng = np.random.default_rng(6)
    people = np.repeat(np.arange(30), 3)
    centres = unit(rng.normal(size=(30, 16)))[people]
    vectors = unit(centres + 0.15 * rng.normal(size=(90, 16)))
    mated, other = pairs_within(vectors, people), pairs_between(vectors, people)
    for found, low in (
        (estimate_equal_error(mated, other, 30), 0.0),
        (estimate_area(mated, other, 30), 0.9),
        (estimate_below(other, 0.5, 30), 0.8),
    ):
        assert found.value is not None and found.low is not None and found.high is not None
        assert low <= found.low <= found.value <= found.high <= 1.0
        assert found.people == 30


def test_a_share_of_all_or_none_is_not_taken_for_certain() -> None:
    people = np.repeat(np.arange(30), 2)
    scores = Scores(np.full(60, 0.2), np.stack([people, people], 1))
    every, none = estimate_below(scores, 0.5, 30), estimate_below(scores, 0.1, 30)
    # Of 30 people without an exception one can say with 97.5 % that fewer than 11.6 % are exceptions.
    assert (every.value, every.high) == (1.0, 1.0) and every.low == pytest.approx(1 - 0.1157, abs=1e-3)
    assert (none.value, none.low) == (0.0, 0.0) and none.high == pytest.approx(0.1157, abs=1e-3)


def test_nothing_to_measure_is_no_value() -> None:
    none = Scores(np.zeros(0), np.zeros((0, 2), np.int64))
    for found in (estimate_mean(none, 3), estimate_equal_error(none, none, 3), estimate_area(none, none, 3)):
        assert found.value is None and found.count == 0


# ---------------------------------------------------------------- unlinkability
def test_nothing_is_linked_when_both_distributions_are_one() -> None:
    found = unlinkability(normal(0, 20_000, 1), normal(0, 20_000, 2))
    assert found.d_sys < 0.04
    assert found.d_sys == pytest.approx(found.chance, abs=0.02)
    same = np.tile(np.linspace(0, 1, 50), 10)
    assert unlinkability(same, same).d_sys == 0.0


def test_all_is_linked_when_they_do_not_meet() -> None:
    found = unlinkability(normal(20, 500, 1), normal(0, 500, 2))
    assert found.d_sys == 1.0
    assert found.chance < 0.2
    assert set(found.local[[0, -1]]) == {0.0, 1.0}


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("omega", [1.0, 0.25])
def test_two_normal_distributions_have_the_integral_of_the_definition(shift: float, omega: float) -> None:
    from scipy.integrate import trapezoid
    from scipy.stats import norm

    s = np.linspace(-8, 12, 40_001)
    odds = omega * norm.pdf(s, shift) / norm.pdf(s)
    local = np.where(odds > 1, 2 * odds / (1 + odds) - 1, 0.0)
    wanted = float(trapezoid(norm.pdf(s, shift) * local, s))
    found = unlinkability(normal(shift, 40_000, 1), normal(0, 40_000, 2), omega=omega)
    assert found.d_sys == pytest.approx(wanted, abs=0.02)


def test_uniform_distributions_that_share_half() -> None:
    rng = np.random.default_rng(7)
    found = unlinkability(rng.uniform(0.5, 1.5, 50_000), rng.uniform(0, 1, 50_000))
    # Half of the mated scores lie where no other falls (D = 1), half where both are equally dense (D = 0).
    assert found.d_sys == pytest.approx(0.5, abs=0.02)
    assert found.local[found.centres > 1.02] == pytest.approx(1.0)


def test_too_few_scores_say_nothing_about_linking() -> None:
    with pytest.raises(ValueError, match="got 5 and 100 scores"):
        unlinkability(np.zeros(5), np.zeros(100))


# ---------------------------------------------------------------- Frechet distance
def reference_distance(a: F64, b: F64) -> float:
    from scipy.linalg import sqrtm

    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(sqrtm(first @ second)).real)


@pytest.mark.parametrize("counts", [(200, 200), (60, 300), (300, 25)])
def test_distance_is_that_of_the_reference(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(8)
    a = rng.normal(size=(counts[0], 20)) @ rng.normal(size=(20, 20)) + 1
    b = rng.normal(size=(counts[1], 20)) @ rng.normal(size=(20, 20))
    assert frechet_distance(a, b) == pytest.approx(reference_distance(a, b), rel=1e-6)


def test_distance_with_more_dimensions_than_pictures() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(12, 64)), rng.normal(size=(15, 64)) + 0.3
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    # The reference's root of a singular matrix is itself only good to about 1e-3 here.
    assert frechet_distance(a, b) == pytest.approx(reference_distance(a, b), rel=2e-3)


def test_distance_of_shifted_features_is_the_squared_shift() -> None:
    a = np.random.default_rng(10).normal(size=(50, 8))
    assert frechet_distance(a, a + 2.0) == pytest.approx(8 * 4.0)
    with pytest.raises(ValueError, match="got features"):
        frechet_distance(a, a[:, :4])
