"""Attacks and probe: they find what there is to find, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from keyface.pipeline.measure import attacks
from keyface.pipeline.people.virtual import secret_rotation


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_ridge_is_the_same_in_both_of_its_forms() -> None:
    """The primal and the dual solution agree where one column more or less decides which is used."""
    x, y = unit(40, 39, 1), unit(40, 5, 2)
    few = attacks.fit_ridge(np.c_[x, np.zeros((40, 2))], y, 0.1)(np.c_[x, np.zeros((40, 2))])
    scaled = attacks.fit_ridge(x, y, 0.1 * 39 / 41)(x)
    np.testing.assert_allclose(few, scaled, atol=1e-10)


def test_a_network_finds_what_a_line_cannot() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (800, 2))
    y = np.c_[np.sign(x[:, 0] * x[:, 1]), np.abs(x[:, 0])]
    line = attacks.fit_ridge(x[:600], y[:600], 0.01)(x[600:])
    fitted = attacks.fit_regressor(x[:600], y[:600])
    assert fitted.width == 256
    error = ((fitted.predict(x[600:]) - y[600:]) ** 2).mean()
    assert error < 0.6 * ((line - y[600:]) ** 2).mean()


def test_fitting_is_seeded() -> None:
    x, y = unit(60, 8), unit(60, 3, 1)
    first, second = (attacks.fit_network(x, y, 16, ridge=0.1, seed=3)(x) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("n_x", "n_y"), [(9, 9), (20, 19)])
def test_too_few_or_unpaired_examples_are_refused(n_x: int, n_y: int) -> None:
    with pytest.raises(ValueError, match="attack: got"):
        attacks.fit_regressor(unit(n_x, 4), unit(n_y, 4))


def test_an_inverter_inverts_one_matrix_for_all() -> None:
    """Without a key's matrix for each person there is nothing to hide behind: the attack must see that."""
    original = unit(600, 32)
    virtual = original @ secret_rotation(bytes(32), 0, 32).T
    found = attacks.measure_inversion(virtual[:500], original[:500], virtual[500:], original[500:])
    assert found.cosine > 0.95 and found.rank_1 > 0.95 and found.auc > 0.99
    assert abs(found.chance) < 0.05 and (found.n_fitted, found.n_tested) == (500, 100)


def test_an_inverter_gains_nothing_when_everybody_has_a_key() -> None:
    original = unit(500, 32)
    virtual = np.stack([secret_rotation(i.to_bytes(32, "big"), 0, 32) @ e for i, e in enumerate(original)])
    found = attacks.measure_inversion(virtual[:400], original[:400], virtual[400:], original[400:])
    assert abs(found.cosine - found.chance) < 0.06 and found.rank_1 < 0.06 and 0.4 < found.auc < 0.6


def test_a_probe_tells_the_right_key_from_wrong_ones() -> None:
    codes = unit(400, 16)
    mixing = np.random.default_rng(1).standard_normal((16, 64))
    virtual = codes @ mixing + 0.3 * np.random.default_rng(2).standard_normal((400, 64))
    fitted = attacks.fit_regressor(virtual[:300], codes[:300])
    wrong = unit(500, 16, 5).reshape(100, 5, 16)
    found = attacks.measure_probe(fitted.predict, virtual[300:], codes[300:], wrong)
    assert found.right > 0.9 and found.right_5_percent > 0.8
    assert abs(found.wrong) < 0.1 and found.wrong_95_percent < 0.6 and found.auc > 0.999


def test_known_pairs_solve_a_rotation_once_there_are_as_many_as_dimensions() -> None:
    units = unit(400, 32)
    codes = units @ secret_rotation(bytes(32), 0, 32).T
    curve = attacks.known_pairs_curve(units, codes, (10, 64), n_test=100)
    assert curve[10] < 0.6 and curve[64] > 0.97


def test_known_pairs_want_people_to_test_on() -> None:
    with pytest.raises(ValueError, match="known pairs: got 50 people, want 110"):
        attacks.known_pairs_curve(unit(50, 4), unit(50, 4), (10,), n_test=100)


def test_area_under_the_curve_counts_ties_half() -> None:
    assert attacks.area_under_curve(np.array([1.0, 2.0]), np.array([0.0, 1.0])) == pytest.approx(0.875)
