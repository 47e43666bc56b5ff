"""Virtual identities: the secret rotation, its golden values, and people that keep within the guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from property_cases import examples
from safetensors.numpy import load_file, save_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.projector import Projector
from keyface.pipeline.people.virtual import (
    N_NEAR,
    TRUNCATION,
    IdentityBasis,
    VirtualIdentities,
    secret_rotation,
)

SHIPPED = Path(__file__).resolve().parent.parent / "models/weights/identity.safetensors"
SHIPPED_PROJECTOR = SHIPPED.with_name("projector.safetensors")
SEED = bytes(range(32))
# No outside code computes these: they pin today's people. Whoever changes one changes everybody's face, and
# owes users a new version of ROTATION_PURPOSE and a line in the changelog.
GOLDEN_ROW_0 = (-0.05454043990971025, 0.10947052389006641, -0.02436913141973928, 0.09950259954690462)
GOLDEN_ROW_127_END = (-0.09091216923331473, 0.13144220570911838, -0.09347271564740049)
GOLDEN_CANDIDATE_3_ROW_5 = (0.03512024737215498, 0.04802540266050778, 0.0157014307824522)
GOLDEN_CODE = (1.360925, 0.7584516, -0.0450271, -3.3147061)
GOLDEN_W = (0.5700839, 0.5587524, 0.5274543, 0.4780155)
GOLDEN_W_NORM = 17.909920


def unit(*seeds: int) -> np.ndarray:
    """(n, 128) unit vectors."""
    vectors = np.array([np.random.RandomState(seed).standard_normal(128) for seed in seeds])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fake_basis(**changes: Any) -> IdentityBasis:
    """A small world with plain numbers: w is the code in its first 128 dimensions, and no guard."""
    values: dict[str, Any] = {
        "mean_embedding": np.zeros(128, np.float32),
        "cohort": np.zeros((64, 128), np.float32),
        "w_mean": np.zeros(512, np.float32),
        "axes": np.eye(128, 512, dtype=np.float32),
        "deviations": np.ones(128, np.float32),
        "resting": np.zeros(52, np.float32),
        "guard_normals": np.zeros((0, 512), np.float32),
        "guard_steps": np.zeros((0, 512), np.float32),
        "guard_limits": np.zeros(0, np.float32),
    }
    return IdentityBasis(**(values | changes))


def plain_projector(n: int = 128, **changes: np.ndarray) -> Projector:
    """A projector that leaves everything as it is, but for the bend of its bound: code in, coordinates out."""
    values = {
        "metric": np.eye(n, 128),
        "mean": np.zeros(128),
        "fold": np.zeros(1),
        "radius": np.full(1, 100.0),
        "network.linear.weight": np.eye(128, n),
        "network.linear.bias": np.zeros(128),
        "network.bounds.normals": np.zeros((0, 128)),
        "network.bounds.steps": np.zeros((0, 128)),
        "network.bounds.limits": np.zeros(0),
    }
    return Projector(values | changes)


def plain(secret: bytes | bytearray = SEED, basis: IdentityBasis | None = None) -> VirtualIdentities:
    return VirtualIdentities(Key(secret), basis or fake_basis(), plain_projector())


@pytest.fixture(scope="module")
def shipped() -> IdentityBasis:
    return IdentityBasis.load(SHIPPED)


@pytest.fixture(scope="module")
def projector() -> Projector:
    return Projector.load(SHIPPED_PROJECTOR)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# The rotation.


def test_rotation_is_the_golden_one() -> None:
    rotation = secret_rotation(SEED)
    np.testing.assert_allclose(rotation[0, :4], GOLDEN_ROW_0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(rotation[127, -3:], GOLDEN_ROW_127_END, rtol=0, atol=1e-9)
    np.testing.assert_allclose(secret_rotation(SEED, 3)[5, :3], GOLDEN_CANDIDATE_3_ROW_5, rtol=0, atol=1e-9)


@settings(max_examples=examples(25))
@given(seed=st.binary(min_size=32, max_size=32), candidate=st.integers(0, 2**32 - 1))
def test_any_seed_gives_an_orthogonal_matrix(seed: bytes, candidate: int) -> None:
    rotation = secret_rotation(seed, candidate)
    assert rotation.shape == (128, 128) and rotation.dtype == np.float64
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(128), atol=1e-12)


def test_rotations_look_haar_distributed() -> None:
    """Entries have mean 0 and variance 1/128; the trace has mean 0 and variance 1 (Diaconis and Shahshahani)."""
    rotations = np.stack([secret_rotation(bytes([number]) * 32) for number in range(60)])
    entries = rotations.ravel() * np.sqrt(128)
    assert abs(entries.mean()) < 0.01 and entries.std() == pytest.approx(1.0, abs=0.01)
    assert np.mean(entries**4) == pytest.approx(3 * 128 / 130, abs=0.05)
    traces = np.trace(rotations, axis1=1, axis2=2)
    assert abs(traces.mean()) < 0.5 and 0.7 < traces.std() < 1.35


@pytest.mark.parametrize(("n_bytes", "candidate"), [(0, 0), (31, 0), (33, 0), (32, -1)])
def test_rotation_refuses_bad_arguments(n_bytes: int, candidate: int) -> None:
    with pytest.raises(ValueError, match="rotation: got"):
        secret_rotation(bytes(n_bytes), candidate)


# Codes.


def formula_basis() -> IdentityBasis:
    """A basis of plain formulas with two guards; the shipped one is pinned by its SHA-256 in the manifest."""
    k, d = np.arange(128)[:, None], np.arange(512)[None]
    axes = (np.sqrt(2 / 512) * np.cos(np.pi * (d + 0.5) * (k + 1) / 512)).astype(np.float32)
    guards = (axes[:2] + 0.3 * axes[[1, 0]]).astype(np.float32)
    return fake_basis(
        mean_embedding=(0.04 * np.sin(np.arange(128))).astype(np.float32),
        w_mean=np.cos(np.arange(512) / 7).astype(np.float32),
        axes=axes,
        deviations=(3.0 / np.sqrt(1 + np.arange(128))).astype(np.float32),
        guard_normals=guards,
        guard_steps=guards / np.float32(1.09),
        guard_limits=np.array([-1.0, -2.0], np.float32),
    )


def test_a_fixed_key_and_embedding_give_the_golden_person() -> None:
    virtual = plain(basis=formula_basis())
    embedding = np.cos(np.arange(128) ** 1.5).astype(np.float32)
    code, w = virtual.code(embedding), virtual.w(embedding)
    assert w.shape == (512,) and w.dtype == np.float32
    np.testing.assert_allclose(code[:4], GOLDEN_CODE, rtol=0, atol=1e-4)
    np.testing.assert_allclose(w[:4], GOLDEN_W, rtol=0, atol=1e-4)
    assert float(np.linalg.norm(w)) == pytest.approx(GOLDEN_W_NORM, abs=1e-3)


def test_every_key_bit_turns_everything_elsewhere() -> None:
    """Cosines of codes under keys that differ in one bit are those of random directions: 0 +- 1/sqrt(128)."""
    embedding = unit(1)[0]
    code = plain().code(embedding)
    cosines = []
    for bit in range(0, 256, 3):
        flipped = bytearray(SEED)
        flipped[bit // 8] ^= 1 << (bit % 8)
        cosines.append(cosine(code, plain(flipped).code(embedding)))
    assert np.abs(cosines).max() < 0.36  # four deviations
    assert abs(np.mean(cosines)) < 0.04 and 0.06 < np.std(cosines) < 0.12


def test_later_candidates_differ_as_keys_do() -> None:
    virtual = plain()
    numbers = [0, *range(N_NEAR + 1, N_NEAR + 12)]
    codes = np.stack([virtual.code(unit(1)[0], candidate) for candidate in numbers]) / np.sqrt(128)
    between = (codes @ codes.T)[np.triu_indices(12, 1)]
    assert np.abs(between).max() < 0.36 and between.std() < 0.12
    assert np.array_equal(virtual.code(unit(1)[0], numbers[5]) / np.sqrt(128), codes[5])


def test_the_next_candidates_are_near_the_first_and_not_the_same() -> None:
    virtual = plain()
    codes = np.stack([virtual.code(unit(1)[0], candidate) for candidate in range(N_NEAR + 1)])
    near = [cosine(codes[0], code) for code in codes[1:]]
    assert min(near) > 0.65 and max(near) < 0.85
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), np.sqrt(128), rtol=1e-5)


@settings(max_examples=examples(40))
@given(
    secret=st.binary(min_size=32, max_size=32), seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))
)
def test_angles_between_people_are_kept_under_any_key(secret: bytes, seeds: tuple[int, int]) -> None:
    a, b = unit(*seeds)
    virtual = plain(secret)
    assert cosine(virtual.code(a), virtual.code(b)) == pytest.approx(cosine(a, b), abs=1e-5)


def test_people_at_large_are_centred_before_they_are_turned(
    shipped: IdentityBasis, projector: Projector
) -> None:
    """What all faces share says nothing of a person and must not fill the code."""
    virtual = VirtualIdentities(Key(SEED), shipped, projector)
    mean = load_file(str(SHIPPED_PROJECTOR))["mean"].astype(np.float32)
    shared = [v / np.linalg.norm(v) for v in 0.5 * unit(1, 2) + mean]
    assert cosine(virtual.code(shared[0]), virtual.code(shared[1])) < cosine(*shared)


EMBEDDINGS = hnp.arrays(np.float32, 128, elements=st.floats(-8, 8, width=32)).filter(
    lambda e: float(np.linalg.norm(e)) > 1e-3
)


@settings(max_examples=examples(60))
@given(embedding=EMBEDDINGS, scale=st.floats(0.01, 100.0))
def test_codes_have_one_length_and_ignore_that_of_the_embedding(embedding: np.ndarray, scale: float) -> None:
    projector = Projector.load(SHIPPED_PROJECTOR)
    virtual = VirtualIdentities(Key(SEED), IdentityBasis.load(SHIPPED), projector)
    code = virtual.code(embedding)
    assert code.dtype == np.float32
    assert code.shape == (projector.n_code,)
    assert float(np.linalg.norm(code)) == pytest.approx(np.sqrt(projector.n_code), rel=1e-5)
    np.testing.assert_allclose(virtual.code(np.float32(scale) * embedding), code, atol=2e-3)


@pytest.mark.parametrize(
    "embedding",
    [
        np.full(128, np.nan, np.float32),
        np.full(128, np.inf, np.float32),
        np.zeros(128, np.float32),
        np.ones(127, np.float32),
        np.ones((1, 128), np.float32),
    ],
    ids=["nan", "inf", "zero", "short", "two-dimensional"],
)
def test_what_is_no_embedding_is_refused(embedding: np.ndarray) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="embedding"):
        plain().code(embedding)


def test_the_mean_embedding_is_refused() -> None:
    mean = unit(9)[0]
    with pytest.raises(ValueError, match="cannot be keyed"):
        VirtualIdentities(Key(SEED), fake_basis(), plain_projector(mean=mean)).code(mean)


def test_close_forgets_the_secret_and_what_was_made_of_it() -> None:
    virtual = plain()
    before = virtual.code(unit(1)[0])
    virtual.close()
    for candidate in (0, 1):
        with pytest.raises(ValueError, match="0 bytes"):
            virtual.code(unit(1)[0], candidate)
    values = [getattr(virtual, name) for name in vars(virtual)]
    assert not any(isinstance(value, bytes) and value for value in values)
    assert not any(isinstance(value, dict) and value for value in values)
    assert len(before) == 128


def test_the_key_may_be_closed_once_people_can_be_made() -> None:
    key = Key(SEED)
    virtual = VirtualIdentities(key, fake_basis(), plain_projector())
    want = virtual.code(unit(1)[0])
    key.close()
    assert np.array_equal(virtual.code(unit(1)[0]), want)


# People.


def test_a_person_is_the_mean_and_the_truncated_axes() -> None:
    w_mean = np.linspace(-1, 1, 512, dtype=np.float32)
    deviations = np.arange(128, 0, -1, dtype=np.float32)
    code = unit(3)[0]
    w = fake_basis(w_mean=w_mean, deviations=deviations).person(code)
    want = w_mean.astype(np.float64)
    for axis in range(128):
        want[axis] += TRUNCATION * float(deviations[axis]) * float(code[axis])
    np.testing.assert_allclose(w, want, atol=1e-5)


def test_a_guard_moves_only_who_is_beyond_it_and_along_its_step_only() -> None:
    normal = np.zeros((1, 512), np.float32)
    normal[0, 0] = 1.0
    step = normal.copy()
    step[0, 200] = 0.5  # a learned direction takes along what goes with the trait
    basis = fake_basis(guard_normals=normal, guard_steps=step, guard_limits=np.array([0.6], np.float32))
    inside, outside = np.zeros(128, np.float32), np.zeros(128, np.float32)
    inside[0], outside[0] = 0.7, 1.6  # scores 0.525 and 1.2
    assert basis.person(inside)[[0, 200]] == pytest.approx([0.525, 0.0])
    assert basis.person(outside)[[0, 200]] == pytest.approx([0.6, -0.3])


def scores(basis: IdentityBasis, w: np.ndarray) -> np.ndarray:
    return np.asarray(basis.guard_normals.astype(np.float64) @ (w - basis.w_mean))


def test_no_guard_lets_another_be_broken() -> None:
    """Two guards, each of which raises the other's score when it lowers its own."""
    normals = np.eye(2, 512, dtype=np.float32)
    steps = normals.copy()
    steps[0, 1] = steps[1, 0] = -0.4
    basis = fake_basis(guard_normals=normals, guard_steps=steps, guard_limits=np.zeros(2, np.float32))
    code = np.zeros(128, np.float32)
    code[:2] = 4.0
    assert scores(basis, basis.person(code)).max() <= 1e-3


@settings(max_examples=examples(200))
@given(secret=st.binary(min_size=32, max_size=32), seed=st.integers(0, 10**6), candidate=st.integers(0, 5))
def test_nobody_is_beyond_a_guard(secret: bytes, seed: int, candidate: int) -> None:
    basis = IdentityBasis.load(SHIPPED)
    virtual = VirtualIdentities(Key(secret), basis, Projector.load(SHIPPED_PROJECTOR))
    w = virtual.w(unit(seed)[0], candidate)
    assert np.isfinite(w).all()
    assert (scores(basis, w) <= basis.guard_limits + 1e-3).all()


def test_people_stay_apart(shipped: IdentityBasis, projector: Projector) -> None:
    """Guards and truncation must not make all people one: cosines of their offsets from the mean."""
    virtual = VirtualIdentities(Key(SEED), shipped, projector)
    offsets = np.stack([virtual.w(e) - shipped.w_mean for e in unit(*range(40))])
    offsets /= np.linalg.norm(offsets, axis=1, keepdims=True)
    between = (offsets @ offsets.T)[np.triu_indices(40, 1)]
    assert between.mean() < 0.35 and between.max() < 0.85


# The file.


def test_shipped_basis_is_sound(shipped: IdentityBasis) -> None:
    np.testing.assert_allclose(shipped.axes @ shipped.axes.T, np.eye(128), atol=1e-3)
    assert (np.diff(shipped.deviations) <= 1e-3).all() and shipped.deviations.min() > 0
    assert shipped.resting.min() >= 0 and shipped.resting.max() < 0.9
    assert 0 < np.linalg.norm(shipped.mean_embedding) < 1
    own = np.einsum("kd,kd->k", shipped.guard_normals, shipped.guard_steps)
    np.testing.assert_allclose(own, 1.0, atol=1e-3)


@pytest.mark.parametrize("name", ["mean_embedding", "w_mean", "axes", "deviations", "resting", "guard_steps"])
@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_file_with_other_contents_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    tensors = load_file(str(SHIPPED))
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = np.ascontiguousarray(tensors[name][..., :-1])
    save_file(tensors, str(tmp_path / "identity.safetensors"))
    with pytest.raises(ModelStoreError, match=f"{name} is .*Install keyface again"):
        IdentityBasis.load(tmp_path / "identity.safetensors")
