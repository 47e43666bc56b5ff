"""Likeness: two recognisers are asked, each against generated people of its own, and the larger answer counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_puppet import Likeness as FakeRecogniser
from fake_puppet import MakeMesh, World, item, make_face, open_reenactor, reasons
from fake_warp import WarpWorld
from safetensors.numpy import save_file

from keyface.configs.errors import EngineError, ModelStoreError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.assemble import model_names
from keyface.pipeline.face import Face
from keyface.pipeline.faces.recognise import MOBILEFACENET, SFACE, Recogniser
from keyface.pipeline.people.book import Pin
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.reenact.likeness import Likeness, Look, load_cohort, z_score
from keyface.pipeline.reenact.puppet import ReenactEngines, SecondRecogniser


@pytest.fixture(params=[World, WarpWorld], ids=["latent", "warp"])
def world(request: pytest.FixtureRequest, mesh_at: MakeMesh) -> World:
    made: World = request.param(mesh_at((14, 16, 50, 54)))
    made.second_similarity = (0.0,) * 12
    return made


@pytest.fixture
def face(mesh_at: MakeMesh) -> Face:
    return make_face(mesh_at)


def at(cosine: float) -> np.ndarray:
    """(128,) of that cosine to e_0."""
    out = np.zeros(128, np.float32)
    out[:2] = cosine, math.sqrt(1 - cosine**2)
    return out


def cohort(mean: float, deviation: float) -> np.ndarray:
    """(64, 128) whose cosines with e_0 have this mean and deviation."""
    return np.outer(np.repeat([mean - deviation, mean + deviation], 32), np.eye(128)[0]).astype(np.float32)


def likeness(second: np.ndarray | None) -> Likeness:
    nobody: Any = None
    other = None if second is None else SecondRecogniser(nobody, second)
    return Likeness(ReenactEngines(nobody, nobody, nobody, second=other), cohort(0.0, 0.1))


def test_a_score_is_in_deviations_above_generated_people() -> None:
    assert z_score(at(0.5), at(1.0), cohort(0.2, 0.1)) == pytest.approx(3.0, abs=1e-5)
    assert z_score(at(0.1), at(1.0), cohort(0.2, 0.0)) == pytest.approx(-5.0, abs=1e-4), "never by nothing"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_no_number_clears_nobody(broken: float) -> None:
    virtual = np.full(128, broken, np.float32)
    assert z_score(virtual, at(1.0), cohort(0.0, 0.1)) == math.inf
    assert z_score(at(0.0), at(1.0), np.full((64, 128), np.nan, np.float32)) == math.inf


@pytest.mark.parametrize(
    ("first", "second", "average", "want"),
    [
        (0.3, 0.0, 0.0, 3.0),  # the first sees it in the same frame
        (0.0, 0.3, 0.0, 1.0),  # the second does: 0.1 above its people's mean, whose deviation is 0.1
        (0.2, 0.5, 0.0, 3.0),
        (-0.1, 0.0, 0.4, 3.6),  # against the average alone
    ],
)
def test_the_largest_score_counts(first: float, second: float, average: float, want: float) -> None:
    made = likeness(cohort(0.2, 0.1))
    now = Look(at(1.0), at(1.0))
    # The average leans from the driver of this frame towards e_2.
    virtual = at(first)
    driver = np.zeros(128, np.float32)
    driver[[0, 2]] = 1.0, 0.0
    if average:
        virtual[2] = average
        driver[[0, 2]] = 0.0, 1.0
        people = cohort(0.0, 0.1)
        people[:, 2] = np.tile([0.02, 0.06], 32)
        made = Likeness(made._engines, people)
        want = (average - 0.04) / 0.02
    assert made.pasted(Look(virtual, at(second)), driver, now) == pytest.approx(want, abs=1e-3)


def test_with_one_recogniser_the_other_is_not_missed_and_with_two_it_is() -> None:
    one, two = Look(at(0.1), None), Look(at(1.0), at(1.0))
    assert likeness(None).pasted(one, at(1.0), two) == pytest.approx(1.0, abs=1e-5)
    assert likeness(cohort(0.0, 0.1)).pasted(one, at(1.0), two) == math.inf


def test_who_only_the_second_finds_too_alike_is_passed_over(world: World, face: Face) -> None:
    world.second_similarity = (0.5, 0.1, 0.07, *(0.0,) * 9)
    assert not reasons(open_reenactor(world).process(item(face)))
    assert list(dict.fromkeys(world.candidates)) == [0, 1, 2] and world.kept == [(0, 2)]


def test_the_second_has_generated_people_of_its_own(world: World, face: Face) -> None:
    world.second_similarity = (0.5, 0.1, 0.07, *(0.0,) * 9)
    world.second_cohort = cohort(0.45, 0.1)
    assert not reasons(open_reenactor(world).process(item(face))) and world.kept == [(0, 0)]


def test_when_the_second_finds_everybody_too_alike_nobody_is_shown(world: World, face: Face) -> None:
    world.second_similarity = (0.27,) * 12
    assert reasons(open_reenactor(world).process(item(face))) == ["too_alike"] and not world.kept


def test_who_the_book_names_is_held_to_the_second_too(world: World, face: Face) -> None:
    world.pins[0] = Pin(5, np.full(512, 5, np.float32))
    world.second_similarity = (0.0,) * 5 + (0.27,) + (0.0,) * 6
    assert reasons(open_reenactor(world).process(item(face))) == ["too_alike"]
    assert world.refused == [0] and set(world.candidates) == {5}


def test_who_becomes_too_alike_is_mosaicked_from_the_next_look_on_and_shown_again(
    world: World, face: Face
) -> None:
    reenactor = open_reenactor(world, look_every=3)
    seen = []
    for index in range(16):
        world.second_similarity = ((0.31,) if 4 <= index < 10 else (0.29,)) * 12 if index else (0.0,) * 12
        seen.append(bool(reasons(reenactor.process(item(face, index=index)))))
    first = seen.index(True)
    assert 4 <= first < 4 + 3 and sum(seen) == 6 and all(seen[first : first + 6])


def test_the_driver_of_the_same_frame_is_looked_at_once(world: World, face: Face) -> None:
    reenactor = open_reenactor(world)
    reenactor.process(item(face))
    assert reenactor._engines is not None and reenactor._engines.second is not None
    for recogniser in (reenactor._engines.recogniser, reenactor._engines.second.recogniser):
        assert isinstance(recogniser, FakeRecogniser)
        assert recogniser.seen.count("driver") == 1 and recogniser.seen.count("pasted") >= 2


def test_a_second_recogniser_that_fails_is_a_fault_like_any_other(world: World, face: Face) -> None:
    reenactor = open_reenactor(world)

    def fail(*_: Any) -> np.ndarray:
        raise EngineError("mobilefacenet: out of memory.")

    assert reenactor._engines is not None and reenactor._engines.second is not None
    reenactor._engines.second.recogniser.embed = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="out of memory"):
        reenactor.process(item(face))


def test_both_are_closed(world: World) -> None:
    open_reenactor(world).close()
    assert {"recogniser", "second recogniser"} <= set(world.closed)


# -- the networks


@pytest.mark.parametrize(("form", "want"), [(SFACE, 200.0), (MOBILEFACENET, (200 - 123.675) / 58.395)])
def test_each_network_gets_its_picture_as_it_learnt_it(form: Any, want: float) -> None:
    fed = []

    def run(inputs: Any) -> Any:
        fed.append(inputs[form.input])
        return {form.output: np.arange(128, dtype=np.float32)[None]}

    engine = FakeEngine(
        (TensorSpec(form.input, "float32", (1, 3, 112, 112)),),
        (TensorSpec(form.output, "float32", (1, 128)),),
        run,
    )
    points = np.array([[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]], np.float32)
    embedding = Recogniser(engine, form).embed(np.full((112, 112, 3), 200, np.uint8), points)
    assert fed[0].shape == (1, 3, 112, 112) and fed[0][0, 0, 56, 56] == pytest.approx(want, abs=1e-3)
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)


def test_both_reenactors_need_the_second_recogniser_and_a_mosaic_does_not() -> None:
    needed = {"mobilefacenet", "recogniser_cohort"}
    assert needed <= set(model_names(ProcessOptions(reenactor="latent")))
    assert needed <= set(model_names(ProcessOptions(reenactor="warp")))
    assert not needed & set(model_names(ProcessOptions(redact_only=True)))


@pytest.mark.parametrize("broken", [None, np.zeros((64, 64)), np.full((64, 128), np.nan), np.zeros((1, 128))])
def test_another_cohort_is_refused(tmp_path: Path, broken: np.ndarray | None) -> None:
    tensors = {"other": np.zeros(3)} if broken is None else {"mobilefacenet": broken}
    save_file(tensors, str(tmp_path / "cohort.safetensors"))
    with pytest.raises(ModelStoreError, match="mobilefacenet"):
        load_cohort(tmp_path / "cohort.safetensors")


def test_the_carried_cohort_is_of_unit_length(models: Any) -> None:
    made = load_cohort(models.path("recogniser_cohort"))
    assert made.shape == (64, 128)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=2e-3)
    assert 0.05 < (made @ made.T)[np.triu_indices(64, 1)].mean() < 0.3
