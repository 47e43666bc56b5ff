"""Casting: virtual people whose faces are covered are passed over, and never at the price of likeness."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fake_puppet import MakeMesh, World, item, make_face, open_reenactor, reasons
from fake_warp import WarpWorld

from keyface.pipeline.face import Face
from keyface.pipeline.people.book import Pin
from keyface.pipeline.reenact.casting import CastingOptions
from keyface.pipeline.reenact.face_cover import FaceCover
from keyface.pipeline.reenact.reenactor import Pace, Reenactor

Covers = Callable[..., list[int]]


@pytest.fixture(params=[World, WarpWorld], ids=["latent", "warp"])
def world(request: pytest.FixtureRequest, mesh_at: MakeMesh) -> World:
    made: World = request.param(mesh_at((14, 16, 50, 54)))
    return made


@pytest.fixture
def face(mesh_at: MakeMesh) -> Face:
    return make_face(mesh_at)


@pytest.fixture
def covers(world: World, monkeypatch: pytest.MonkeyPatch) -> Covers:
    """`covers(2.0, 0.5)`: how covered each candidate is, others are free; returns who is looked at."""

    def set_up(*excess: float) -> list[int]:
        looked: list[int] = []

        def measure(image_rgb: np.ndarray, points_xyz: np.ndarray) -> FaceCover:
            assert image_rgb.dtype == np.uint8 and points_xyz.shape[0] == 478
            looked.append(world.candidates[-1])
            values = dict(enumerate(excess))
            return FaceCover(face=0.175 * values.get(looked[-1], 0.0))

        monkeypatch.setattr("keyface.pipeline.reenact.casting.face_cover", measure)
        return looked

    return set_up


@pytest.fixture
def cast(world: World, face: Face) -> Callable[[], int]:
    """Who is shown in the end."""

    def run() -> int:
        assert not reasons(open_reenactor(world).process(item(face)))
        return world.candidates[-1]

    return run


def test_covered_candidates_are_passed_over(covers: Covers, cast: Callable[[], int]) -> None:
    looked = covers(4.0, 1.2, 0.9)
    assert cast() == 2 and looked == [0, 1, 2]


def test_the_first_is_taken_when_his_face_is_free(covers: Covers, cast: Callable[[], int]) -> None:
    looked = covers(1.0, 0.1)
    assert cast() == 0 and looked == [0]


def test_when_all_are_covered_the_least_covered_is_taken(covers: Covers, cast: Callable[[], int]) -> None:
    looked = covers(4.0, 3.0, 2.0, 1.5, 1.5, *(5.0,) * 7)
    assert cast() == 3 and looked == list(range(12))


def test_the_least_covered_is_held_to_the_limit_of_likeness(
    covers: Covers, cast: Callable[[], int], world: World
) -> None:
    covers(4.0, 3.0, 2.0, 1.5, *(5.0,) * 8)
    world.similarity = (0.0, 0.0, 0.2, 0.9, *(0.0,) * 8)
    assert cast() == 1


def test_nobody_more_like_the_driver_takes_the_place_of_a_covered_one(
    covers: Covers, cast: Callable[[], int], world: World
) -> None:
    covers(*(2.0,) * 6)
    world.similarity = (*(0.0,) * 6, *(0.2,) * 6)  # the others are free, and not as unlike as wanted
    assert cast() == 0


def test_when_nobody_is_as_unlike_as_wanted_cover_does_not_count(
    covers: Covers, cast: Callable[[], int], world: World
) -> None:
    covers(0.0, 3.0, 2.0)
    world.similarity = (0.2, 0.15, 0.18, *(0.21,) * 9)
    assert cast() == 1


def test_cover_makes_nobody_fit_who_is_too_alike(covers: Covers, world: World, face: Face) -> None:
    covers(*(2.0, 0.0) * 6)
    world.similarity = (0.9,) * 12
    assert reasons(open_reenactor(world).process(item(face))) == ["too_alike"]


def test_who_is_too_like_once_pasted_is_seen_at_rest_only_when_nobody_better_is_found(
    covers: Covers, cast: Callable[[], int], world: World
) -> None:
    looked = covers()
    world.similarity = (0.5, 0.2, 0.0, *(0.0,) * 9)
    assert cast() == 2 and looked == [2]
    looked.clear()
    world.similarity = (0.9, 0.2, 0.15, *(0.3,) * 9)
    assert cast() == 2 and looked == [2], "the next is more like the driver already"


def test_who_the_book_names_stays_though_his_face_is_covered(
    covers: Covers, cast: Callable[[], int], world: World
) -> None:
    covers(0.0, 0.0, 0.0, 0.0, 0.0, 9.0)
    world.pins[0] = Pin(5, np.full(512, 5, np.float32))
    assert cast() == 5


def test_a_live_picture_comes_to_the_same_choice(
    covers: Covers, world: World, make_live: Callable[[], Reenactor], face: Face
) -> None:
    covers(4.0, 3.0, 2.0, 1.5, *(5.0,) * 8)
    reenactor = make_live()
    for index in range(8 * CastingOptions().max_candidates):
        world.asked.clear()
        out = reenactor.process(item(face, index=index))
        if out.virtual:
            break
        assert reasons(out) == ["choosing"]
    assert out.virtual and world.candidates[-1] == 3


@pytest.fixture
def make_live(world: World) -> Callable[[], Reenactor]:
    def make() -> Reenactor:
        reenactor = open_reenactor(world)
        reenactor.pace = Pace(is_stepwise=True)
        return reenactor

    return make


def test_warped_people_are_judged_by_what_they_are_made_from(
    mesh_at: MakeMesh, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WarpWorld(mesh_at((14, 16, 50, 54)))
    reenactor = open_reenactor(world)
    seen = []

    def measure(image_rgb: np.ndarray, points_xyz: np.ndarray) -> FaceCover:
        seen.append((image_rgb, points_xyz))
        return FaceCover()

    monkeypatch.setattr("keyface.pipeline.reenact.casting.face_cover", measure)
    reenactor.process(item(face))
    actor = reenactor._puppet
    assert actor is not None and len(seen) == 1
    person = next(iter(reenactor._roles.values())).person
    source = actor.source_of(person)
    assert source is not None
    assert seen[0][0] is source[0] and seen[0][1] is source[1].points_xyz
