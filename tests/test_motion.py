"""The motion map against plain loops, the One-Euro filter, the resting face, and the transfer of expressions."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from property_cases import examples
from safetensors.numpy import load_file, save_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import BLENDSHAPE_NAMES, FaceMesh
from keyface.pipeline.reenact.motion import (
    MotionMap,
    OneEuro,
    OneEuroOptions,
    RestingFace,
    amplified,
    controls_of,
    transfer,
)

SHIPPED = Path(__file__).resolve().parent.parent / "models/weights/motion.safetensors"
SHARES = hnp.arrays(np.float32, 52, elements=st.floats(0, 1, width=32))
RESTS = hnp.arrays(np.float32, 52, elements=st.floats(0, np.float32(0.9), width=32))


# Controls and the map.


def test_controls_are_pose_without_roll_and_blendshapes() -> None:
    blendshapes = np.linspace(0, 1, 52, dtype=np.float32)
    pose = np.array([15.0, -30.0, 77.0], np.float32)
    controls = controls_of(FaceMesh(np.zeros((478, 3), np.float32), blendshapes, pose, 1.0))
    assert controls.dtype == np.float32 and controls.shape == (54,)
    np.testing.assert_allclose(controls[:2], [0.5, -1.0])
    assert np.array_equal(controls[2:], blendshapes)


@pytest.fixture(scope="module")
def shipped() -> MotionMap:
    return MotionMap(SHIPPED)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in load_file(str(SHIPPED)).items()}


def silu(x: float) -> float:
    return x / (1.0 + math.exp(-x))


def affine(weight: np.ndarray, x: list[float], bias: np.ndarray | None = None) -> list[float]:
    return [
        math.fsum(float(weight[row, k]) * x[k] for k in range(len(x)))
        + (0.0 if bias is None else float(bias[row]))
        for row in range(len(weight))
    ]


def plain_coefficients(t: dict[str, np.ndarray], w: np.ndarray, controls: np.ndarray) -> list[float]:
    """linear(c) + out silu(fc2 silu(fc1 [c, traits (w - w_mean)])), c from the centre, number by number."""
    c = [float(a) - float(b) for a, b in zip(controls, t["centre"], strict=True)]
    offset = [float(a) - float(b) for a, b in zip(w, t["w_mean"], strict=True)]
    hidden = c + affine(t["traits"], offset)
    for layer in ("fc1", "fc2"):
        hidden = [silu(x) for x in affine(t[f"{layer}.weight"], hidden, t[f"{layer}.bias"])]
    linear, out = affine(t["linear.weight"], c), affine(t["out.weight"], hidden)
    return [a + b for a, b in zip(linear, out, strict=True)]


def example(seed: int, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    w = tensors["w_mean"] + 0.5 * random.standard_normal(512)
    controls = np.concatenate([random.uniform(-1, 1, 2), random.uniform(0, 1, 52)])
    return w.astype(np.float32), controls.astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_coefficients_equal_the_formula(
    shipped: MotionMap, tensors: dict[str, np.ndarray], seed: int
) -> None:
    w, controls = example(seed, tensors)
    got = shipped.coefficients(w, controls)
    want = np.array(plain_coefficients(tensors, w, controls))
    assert got.shape == (96,) and got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, float(np.abs(want).max())))


def test_w_plus_moves_sixteen_styles_by_the_change_of_coefficients(
    shipped: MotionMap, tensors: dict[str, np.ndarray]
) -> None:
    w, wanted = example(2, tensors)
    own = shipped.coefficients(w, example(3, tensors)[1])
    got = shipped.w_plus(w, wanted, own)
    assert got.shape == (23, 512) and got.dtype == np.float32
    change = np.array(plain_coefficients(tensors, w, wanted)) - own.astype(np.float64)
    want = np.repeat(w[None].astype(np.float64), 23, axis=0)
    for direction in range(96):
        want[:16] += change[direction] * tensors["basis"][direction].reshape(16, 512)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * max(1.0, float(np.abs(want).max())))
    assert np.array_equal(got[16:], np.repeat(w[None], 7, axis=0)), "fine styles are the person's own"


def test_asking_for_what_is_shown_already_changes_nothing(
    shipped: MotionMap, tensors: dict[str, np.ndarray]
) -> None:
    w, controls = example(4, tensors)
    got = shipped.w_plus(w, controls, shipped.coefficients(w, controls))
    assert np.array_equal(got, np.repeat(w[None], 23, axis=0))


@settings(max_examples=examples(40))
@given(seed=st.integers(0, 10**6), scale=st.floats(0, 1e6))
def test_wild_inputs_stay_finite(seed: int, scale: float) -> None:
    motion = MotionMap(SHIPPED)
    random = np.random.RandomState(seed)
    w = (scale * random.standard_normal(512)).astype(np.float32)
    assert np.isfinite(motion.coefficients(w, random.uniform(-9, 9, 54).astype(np.float32))).all()


@pytest.mark.parametrize("fault", ["missing", "shape"])
@pytest.mark.parametrize("name", ["centre", "fc2.bias", "basis"])
def test_a_file_with_other_contents_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    broken = load_file(str(SHIPPED))
    if fault == "missing":
        del broken[name]
    else:
        broken[name] = np.ascontiguousarray(broken[name][..., :-1])
    save_file(broken, str(tmp_path / "motion.safetensors"))
    with pytest.raises(ModelStoreError, match=f"{name} is .*Install keyface again"):
        MotionMap(tmp_path / "motion.safetensors")


# The One-Euro filter.


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@settings(max_examples=examples(60))
@given(value=st.floats(-100, 100, width=32), steps=st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=30))
def test_constant_in_constant_out(value: float, steps: list[float]) -> None:
    smooth, t_s = OneEuro(), 0.0
    for dt_s in steps:
        t_s += dt_s
        assert smooth(vector(value, -value), t_s) == pytest.approx(vector(value, -value), rel=1e-6)


@settings(max_examples=examples(100))
@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40),
    steps=st.lists(st.floats(-0.2, 0.7), min_size=40, max_size=40),
)
def test_never_beyond_what_came_in_whatever_the_times(values: list[float], steps: list[float]) -> None:
    smooth, t_s = OneEuro(), 0.0
    for n, (value, dt_s) in enumerate(zip(values, steps, strict=False), 1):
        t_s += dt_s
        got = float(smooth(vector(value), t_s)[0])
        assert min(values[:n]) - 1e-4 <= got <= max(values[:n]) + 1e-4


def test_a_step_is_followed_fast_and_without_overshoot() -> None:
    smooth = OneEuro()
    track = [float(smooth(vector(0.0 if i < 10 else 1.0), i / 25)[0]) for i in range(30)]
    assert track[9] == 0.0 and track[10] > 0.7 and track[12] > 0.95
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(track)) and max(track) <= 1.0


def test_noise_at_rest_is_damped_more_than_motion_lags() -> None:
    random = np.random.RandomState(1)
    noise = 0.01 * random.standard_normal(500)
    smooth = OneEuro()
    rest = np.array([float(smooth(vector(0.3 + noise[i]), i / 25)[0]) for i in range(500)])
    assert rest[50:].std() < 0.6 * noise[50:].std()
    smooth = OneEuro()
    wave = [0.5 + 0.5 * math.sin(2 * math.pi * 2.0 * i / 25) for i in range(100)]  # speech: 2 Hz
    followed = [float(smooth(vector(v), i / 25)[0]) for i, v in enumerate(wave)]
    assert np.corrcoef(wave[25:], followed[25:])[0, 1] > 0.99
    assert np.ptp(followed[25:]) > 0.9 * np.ptp(wave[25:])


def test_channels_do_not_touch_each_other() -> None:
    both, alone = OneEuro(), OneEuro()
    for i in range(20):
        pair = both(vector(math.sin(i), 5.0 * i), i / 25)
        assert pair[0] == alone(vector(math.sin(i)), i / 25)[0]


@pytest.mark.parametrize(
    "t_s", [0.9, 1.0, 1.0 + 1e-15, 1.6, -3.0], ids=["back", "same", "as good as same", "gap", "far back"]
)
def test_after_a_gap_or_when_time_does_not_rise_the_value_is_taken_as_it_is(t_s: float) -> None:
    smooth = OneEuro()
    for i in range(26):
        smooth(vector(0.0), i / 25)
    assert smooth(vector(1.0), t_s) == pytest.approx(1.0)
    assert smooth(vector(1.0), t_s + 0.04) == pytest.approx(1.0), "and filtering goes on from there"


def test_reset_forgets_value_and_speed() -> None:
    used, fresh = OneEuro(), OneEuro()
    for i in range(10):
        used(vector(float(i)), i / 25)
    used.reset()
    for i, value in enumerate((0.2, 0.9, 0.3)):
        assert used(vector(value), 10 + i / 25) == fresh(vector(value), 10 + i / 25)


def test_a_result_is_not_changed_by_later_calls() -> None:
    smooth = OneEuro(OneEuroOptions(min_cutoff_hz=1.0, beta=0.0))
    source = vector(0.5)
    first = smooth(source, 0.0)
    source[0] = 9.0
    kept = first.copy()
    smooth(vector(1.0), 0.04)
    assert np.array_equal(first, kept) and kept[0] == 0.5


def test_time_between_frames_decides_the_smoothing() -> None:
    """alpha = 1 / (1 + 1 / (2 pi f dt)), Casiez et al. 2012, eq. 5 and 6."""
    for dt_s in (0.02, 0.04, 0.2):
        smooth = OneEuro(OneEuroOptions(min_cutoff_hz=2.0, beta=0.0))
        smooth(vector(0.0), 0.0)
        want = 1.0 / (1.0 + 1.0 / (2 * math.pi * 2.0 * dt_s))
        assert float(smooth(vector(1.0), dt_s)[0]) == pytest.approx(want, rel=1e-5)


# The resting face.

POPULATION = np.linspace(0.0, 0.4, 52, dtype=np.float32)
GAZE = [i for i, name in enumerate(BLENDSHAPE_NAMES) if name.startswith("eyeLook")]
FACE = [i for i in range(52) if i not in GAZE]


def watched(blendshapes: np.ndarray, seconds: float, *, is_frontal: bool = True) -> RestingFace:
    rest = RestingFace(POPULATION)
    for i in range(round(25 * seconds)):
        rest.update(blendshapes, i / 25, is_frontal=is_frontal)
    return rest


def test_begins_with_people_at_large() -> None:
    np.testing.assert_allclose(RestingFace(POPULATION).blendshapes, POPULATION)


@settings(max_examples=examples(40))
@given(
    frames=st.lists(SHARES, min_size=1, max_size=20),
    steps=st.lists(st.floats(-1.0, 1.5), min_size=20, max_size=20),
    frontal=st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_stays_in_range_and_near_people_at_large(
    frames: list[np.ndarray], steps: list[float], frontal: list[bool]
) -> None:
    rest, t_s = RestingFace(POPULATION), 0.0
    for blendshapes, dt_s, is_frontal in zip(frames * 8, steps * 8, frontal * 8, strict=False):
        t_s += dt_s
        rest.update(blendshapes, t_s, is_frontal=is_frontal)
        found = rest.blendshapes
        assert found.dtype == np.float32 and np.isfinite(found).all()
        assert found.min() >= 0.0 and found.max() <= 0.9
        assert np.abs(found - POPULATION).max() <= 0.22 + 1e-6


def test_learns_a_person_slowly_and_gaze_never() -> None:
    wide = np.clip(POPULATION + 0.1, 0, 1)
    soon, late = watched(wide, 1.0).blendshapes, watched(wide, 60.0).blendshapes
    assert np.abs(soon - POPULATION).max() < 0.03, "one second says little"
    np.testing.assert_allclose(late[FACE], wide[FACE], atol=0.02)
    assert np.array_equal(late[GAZE], POPULATION[GAZE])


def test_who_smiles_throughout_keeps_smiling() -> None:
    smile = BLENDSHAPE_NAMES.index("mouthSmileLeft")
    smiling = POPULATION.copy()
    smiling[smile] = 0.9
    rest = watched(smiling, 120.0).blendshapes
    assert rest[smile] <= POPULATION[smile] + 0.22 + 1e-6
    assert transfer(smiling, rest, POPULATION)[smile] > 0.7


@pytest.mark.parametrize("n_open", [4, 8])
def test_rest_is_a_low_quantile_not_the_mean(n_open: int) -> None:
    """A mouth open 40 % of the time is not an open mouth, nor is one of somebody who talks all the time."""
    rest, jaw = RestingFace(POPULATION), BLENDSHAPE_NAMES.index("jawOpen")
    for i in range(25 * 60):
        talking = POPULATION.copy()
        talking[jaw] = POPULATION[jaw] + (0.5 if i % 10 < n_open else 0.0)
        rest.update(talking, i / 25, is_frontal=True)
    assert abs(float(rest.blendshapes[jaw] - POPULATION[jaw])) < 0.05


def test_turned_faces_and_jumps_in_time_teach_nothing() -> None:
    away = np.clip(POPULATION + 0.2, 0, 1)
    np.testing.assert_allclose(watched(away, 30.0, is_frontal=False).blendshapes, POPULATION)
    rest = RestingFace(POPULATION)
    for t_s in (0.0, 5.0, 3.0, 3.0, 100.0, 98.0):
        rest.update(away, t_s, is_frontal=True)
    np.testing.assert_allclose(rest.blendshapes, POPULATION)


# The transfer.


@settings(max_examples=examples(200))
@given(rest=RESTS, virtual=RESTS, blendshapes=SHARES)
def test_transfer_keeps_the_ends_the_rest_and_the_range(
    rest: np.ndarray, virtual: np.ndarray, blendshapes: np.ndarray
) -> None:
    out = transfer(blendshapes, rest, virtual)
    assert out.dtype == np.float32 and out.min() >= 0.0 and out.max() <= 1.0
    np.testing.assert_allclose(transfer(np.ones(52, np.float32), rest, virtual), 1.0, atol=1e-5)
    np.testing.assert_allclose(transfer(rest, rest, virtual), virtual, atol=1e-5)
    shown = transfer(np.zeros(52, np.float32), rest, virtual)
    # Who cannot go below rest shows the virtual person's rest, everyone else reaches 0.
    np.testing.assert_allclose(shown, np.where(rest > 0, 0.0, virtual), atol=1e-6)


@settings(max_examples=examples(200))
@given(rest=RESTS, virtual=RESTS, one=SHARES, other=SHARES)
def test_transfer_is_monotone(
    rest: np.ndarray, virtual: np.ndarray, one: np.ndarray, other: np.ndarray
) -> None:
    low = transfer(np.minimum(one, other), rest, virtual)
    high = transfer(np.maximum(one, other), rest, virtual)
    assert (high - low >= -1e-5).all()


@given(blendshapes=SHARES, rest=RESTS)
def test_transfer_between_equal_rests_changes_nothing(blendshapes: np.ndarray, rest: np.ndarray) -> None:
    small = (rest > 0) & (rest < 1e-3)  # divided by at least 1e-3
    out = transfer(blendshapes, rest, rest)
    np.testing.assert_allclose(out[~small], blendshapes[~small], atol=1e-5)


@given(SHARES, RESTS)
def test_amplified_keeps_the_rest_and_never_asks_for_less(blendshapes: np.ndarray, rest: np.ndarray) -> None:
    asked = amplified(blendshapes, rest)
    assert np.isfinite(asked).all() and asked.min() >= 0.0 and asked.max() <= 1.3
    np.testing.assert_allclose(amplified(rest, rest), rest, atol=1e-6)
    above = blendshapes >= rest
    assert (asked[above] >= blendshapes[above] - 1e-6).all()
