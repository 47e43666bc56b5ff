"""Samples, population and identity basis: seeded, resumable, and equal to what the package carries."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_cases import fake_mapping, fake_synthesis

from keyface.configs.errors import UsageError
from keyface.models import identity_basis, population, samples
from keyface.pipeline.people.virtual import IdentityBasis

LABELS = Path(identity_basis.__file__).parent / "labels" / "guards.toml"
GOLDEN_PSI = [0.796219, 0.862904, 0.52294, 0.71931, 0.976161]
GOLDEN_SWITCH: list[int | None] = [2, None, None, None, 6]
MEAN = np.full(512, 0.3, np.float32)


def make(folder: Path, count: int, **more: Any) -> int:
    return samples.make_samples(folder, fake_mapping, fake_synthesis, MEAN, count=count, **more)


def test_recipes_are_a_fixed_list() -> None:
    """Golden: labels given by hand belong to these very samples."""
    first = list(itertools.islice(samples.recipes(), 5))
    assert [r.switch is not None for r in first] == [True, False, False, False, True]
    assert [samples.is_mixed(i) for i in range(5)] == [True, False, False, False, True]
    np.testing.assert_allclose(first[0].z[0, :3], [0.00123, 0.298746, -0.274138], atol=1e-6)
    assert [round(r.psi, 6) for r in first] == GOLDEN_PSI
    assert [r.switch for r in first] == GOLDEN_SWITCH


def test_more_samples_continue_the_same_list(tmp_path: Path) -> None:
    seen: list[int] = []
    assert make(tmp_path / "a", 3) == 3
    assert make(tmp_path / "a", 55, on_sample=seen.append) == 55
    assert make(tmp_path / "b", 55) == 55
    a, b = (samples.load_samples(tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(a.w_plus, b.w_plus)
    np.testing.assert_array_equal(a.images, b.images)
    assert a.images.shape == (55, 256, 256, 3) and a.images.dtype == np.uint8 and a.seed == 7
    assert seen == sorted(seen) and seen[-1] == 55
    assert a.plain().tolist() == [i for i in range(55) if i % 4]


def test_plain_samples_are_one_person_and_mixed_ones_two(tmp_path: Path) -> None:
    make(tmp_path, 8)
    rows = samples.load_samples(tmp_path).w_plus
    for i, w_plus in enumerate(rows):
        assert len(np.unique(w_plus, axis=0)) == (2 if i % 4 == 0 else 1)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    make(tmp_path, 4)

    def refuse(w_plus: Any) -> Any:
        raise AssertionError("rendered again")

    assert samples.make_samples(tmp_path, fake_mapping, refuse, MEAN, count=4) == 4
    assert samples.make_samples(tmp_path, fake_mapping, refuse, MEAN, count=99, seconds=0) == 0
    with pytest.raises(UsageError, match="holds samples of another seed"):
        make(tmp_path, 4, seed=8)


def test_an_interrupted_file_is_made_anew(tmp_path: Path) -> None:
    make(tmp_path, 4)
    whole = samples.load_samples(tmp_path)
    file = tmp_path / "samples-0000.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UsageError, match="damaged samples"):
        samples.load_samples(tmp_path)
    make(tmp_path, 4)
    np.testing.assert_array_equal(samples.load_samples(tmp_path).images, whole.images)


def test_a_folder_without_samples_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no samples\. Make them: keyface train samples --out"):
        samples.load_samples(tmp_path)
    make(tmp_path, 4)
    (tmp_path / "samples-0000.npz").unlink()
    with pytest.raises(UsageError, match="holds no samples"):
        samples.load_samples(tmp_path)


def test_pictures_are_averaged_by_areas() -> None:
    board = np.indices((1024, 1024)).sum(0) % 2 * 2.0 - 1  # every second pixel black
    image = np.broadcast_to(board, (1, 3, 1024, 1024)).astype(np.float32)
    assert set(np.unique(samples.shrunk(image))) <= {127, 128}
    assert (samples.shrunk(image * 0 + 5) == 255).all() and (samples.shrunk(image * 0 - 5) == 0).all()


def test_population_has_the_axes_of_its_people(tmp_path: Path) -> None:
    found = population.load_or_measure(tmp_path, fake_mapping)
    kept = population.load_or_measure(tmp_path, lambda z: z * np.nan)
    np.testing.assert_array_equal(found.axes, kept.axes)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(512), atol=1e-3)
    assert (np.diff(found.deviations) <= 0).all()
    drawn = found.draw(300, np.random.default_rng(0), fake_mapping)
    assert drawn.shape == (300, 512) and drawn.dtype == np.float32
    spread = ((drawn - found.mean) @ found.axes[:20].T / found.deviations[:20]).std(0)
    assert spread.min() > 0.5 and spread.max() < 1.0, "drawn in towards the mean"
    np.testing.assert_array_equal(drawn, found.draw(300, np.random.default_rng(0), fake_mapping))
    (tmp_path / population.FILE).write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be read"):
        population.load_or_measure(tmp_path, fake_mapping)


def test_the_labels_name_samples_that_were_seen() -> None:
    labels = identity_basis.load_labels(LABELS)
    assert (labels.seed, labels.n_seen) == (samples.SEED, samples.COUNT)
    assert list(labels.samples_with) == ["glasses", "child"] and len(labels.seen()) == 675


@pytest.mark.parametrize(
    "text",
    ["", "[sampler]\nseed = 7", "[sampler]\nseed=7\nn_seen=9\n[samples_with]\nhat=[4]",
     "[sampler]\nseed=7\nn_seen=9\n[samples_with]\nhat=[10]", "[sampler]\nseed=7\nn_seen=9\n[samples_with]\nhat=[]",
     "[sampler]\nseed=7\nn_seen=3\n[samples_with]\nhat=[1,2]", "[sampler]\nseed=7\nn_seen=9\nsamples_with=3"],
)  # fmt: skip
def test_useless_labels_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"labels\.toml"):
        identity_basis.load_labels(path)


def plain_samples(n: int) -> samples.Samples:
    ordered = itertools.islice(samples.recipes(), n)
    rows = np.stack([samples.styles(r, fake_mapping, MEAN) for r in ordered])
    return samples.Samples(rows, np.zeros((n, 256, 256, 3), np.uint8), samples.SEED)


def test_a_guard_finds_a_linear_feature_and_steps_out_of_it(tmp_path: Path) -> None:
    people = population.measure_population(fake_mapping, n=3000)
    made = plain_samples(900)
    hidden = people.axes[3] / people.deviations[3] - people.axes[5] / people.deviations[5]
    score = (made.w_plus[:, 0] - people.mean) @ hidden
    seen = identity_basis.Labels(7, 900, {}).seen()
    with_hat = tuple(int(i) for i in seen if score[i] > 1.0)
    (guard,) = identity_basis.fit_guards(
        made, identity_basis.Labels(7, 900, {"hat": with_hat}), people
    ).values()
    assert guard.quality > 0.85
    assert guard.normal @ guard.step == pytest.approx(1.0, abs=1e-3)
    stepped = (made.w_plus[list(with_hat), 0] - 1.0 * guard.step - people.mean) @ hidden
    assert (stepped < score[list(with_hat)]).all()
    with pytest.raises(UsageError, match="The labels are about 901 samples"):
        identity_basis.fit_guards(made, identity_basis.Labels(7, 901, {"hat": with_hat}), people)
    with pytest.raises(UsageError, match="of seed 8"):
        identity_basis.fit_guards(made, identity_basis.Labels(8, 900, {"hat": with_hat}), people)


def test_a_guard_of_a_measure_lowers_what_was_measured() -> None:
    people = population.measure_population(fake_mapping, n=3000)
    w = plain_samples(600).w_plus[:, 0]
    along = ((w - people.mean) @ people.axes[2]) / people.deviations[2]
    guard = identity_basis.guard_of_measure(w, (0.3 + 0.05 * along) ** 2, people)
    assert guard.quality > 0.9
    assert -guard.step @ people.axes[2] < 0
    assert np.mean((w - people.mean) @ guard.normal > guard.limit) == pytest.approx(0.8, abs=0.02)


def test_the_resting_face_is_the_median_of_calm_ones() -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros((60, 56), np.float32)
    rows[:, 1:3] = rng.uniform(-10, 10, (60, 2))
    rows[:, 4:] = 0.04
    rows[30:40, 1] = 40  # turned away
    rows[40:50, 4 + 25] = 0.6  # speaking
    rows[50:, 4 + 44 : 4 + 46] = 0.8  # smiling
    rows[30:, 4 + 3] = 0.9
    np.testing.assert_allclose(identity_basis.resting_expression(rows), 0.04, atol=1e-6)
    with pytest.raises(UsageError, match="no face at rest"):
        identity_basis.resting_expression(rows[30:])


def test_the_saved_basis_is_what_the_product_reads(tmp_path: Path) -> None:
    people = population.measure_population(fake_mapping, n=1000)
    made = plain_samples(40)
    embeddings = identity_basis.generated_embeddings(
        made, lambda image: np.eye(128, dtype=np.float32)[image[0, 0, 0]]
    )
    with pytest.raises(UsageError, match="No face was found"):
        identity_basis.generated_embeddings(made, lambda image: None)
    guards = identity_basis.fit_guards(
        made, identity_basis.Labels(7, 40, {"hat": (1, 2), "cap": (3,), "wig": (5, 6)}), people
    )
    out = tmp_path / "new" / "identity.safetensors"
    identity_basis.save_identity_basis(
        out, embeddings=embeddings, resting=np.zeros(52, np.float32), population=people, guards=guards
    )
    basis = IdentityBasis.load(out)
    np.testing.assert_allclose(basis.mean_embedding, np.eye(128)[0], atol=1e-3)
    carried = load_file(str(Path(identity_basis.__file__).parent / "weights" / "identity.safetensors"))
    assert {k: (v.shape, v.dtype) for k, v in load_file(str(out)).items()} == {
        k: (v.shape, v.dtype) for k, v in carried.items()
    }


def test_the_carried_basis_is_the_one_that_this_code_makes(models: Any) -> None:
    """Mean, axes (up to sign), deviations and guards, to half precision; no picture is needed for them."""
    from keyface.engines.open import open_engine

    carried = load_file(str(models.path("identity_basis")))
    with open_engine(models.path("mapping"), backend="onnxruntime", threads=1) as engine:

        def mapping(z: Any) -> Any:
            return engine.run({"z": z})["w"]

        people = population.measure_population(mapping)
        ordered = itertools.islice(samples.recipes(), samples.COUNT)
        rows = np.stack([samples.styles(r, mapping, people.mean) for r in ordered])
    made = samples.Samples(rows, np.zeros((len(rows), 1, 1, 3), np.uint8), samples.SEED)
    np.testing.assert_allclose(carried["w_mean"], people.mean, atol=1e-3)
    np.testing.assert_allclose(carried["deviations"], people.deviations[:128], atol=2e-3)
    alike = np.abs((carried["axes"].astype(np.float32) * people.axes[:128]).sum(1))
    assert alike.min() > 0.99
    guards = identity_basis.fit_guards(made, identity_basis.load_labels(LABELS), people)
    assert len(carried["guard_limits"]) == len(guards) + 1, "the last one is measured on pictures"
    for k, guard in enumerate(guards.values()):
        assert guard.quality > 0.9
        np.testing.assert_allclose(carried["guard_normals"][k], guard.normal, atol=1e-3)
        np.testing.assert_allclose(carried["guard_steps"][k], guard.step, atol=1e-3)
        assert carried["guard_limits"][k] == pytest.approx(guard.limit, abs=2e-3)
