"""Reenactment of a live picture: searches in steps, renderings shown again, and a change of key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fake_puppet import MakeMesh, World, item, make_face, open_reenactor, reasons

from keyface.configs.errors import EngineError
from keyface.pipeline.face import Face
from keyface.pipeline.people.key import Key
from keyface.pipeline.reenact.reenactor import Pace, ReenactOptions, Reenactor


@pytest.fixture
def world(mesh_at: MakeMesh) -> World:
    return World(mesh_at((14, 16, 50, 54)))


@pytest.fixture
def make(world: World) -> Callable[..., Reenactor]:
    """`make(max_yaw_deg=30, ...)`: an opened Reenactor of the world."""
    return partial(open_reenactor, world)


@pytest.fixture
def face(mesh_at: MakeMesh) -> Callable[..., Face]:
    """`face(track_id, yaw, pitch, jaw=0.5)`."""
    return partial(make_face, mesh_at)


# Live: one step per frame.

LIVE = Pace(is_stepwise=True)


def until_shown(reenactor: Reenactor, face: Callable[..., Face], world: World, *, first: int = 0) -> int:
    """Frames until the face is replaced; asserts that none costs more than one rendering, and none is raw."""
    for index in range(first, first + 100):
        world.asked.clear()
        out = reenactor.process(item(face(), index=index))
        assert len(world.asked) <= 1, "a frame of a live picture must not wait for a search"
        if out.virtual:
            return index - first
        assert reasons(out) == ["choosing"]
    raise AssertionError("nobody was found")


def test_a_search_takes_one_rendering_a_frame_and_ends_as_in_a_file(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.similarity = (0.5, 0.1, 0.07, *(0.0,) * 9)
    reenactor = make()
    reenactor.pace = LIVE
    waited = until_shown(reenactor, face, world)
    assert 3 * 3 <= waited <= 3 * 5 + ReenactOptions().rehearsals + 2
    assert world.candidates[-1] == 2


def test_a_search_in_vain_leaves_a_mosaic(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    n_candidates = ReenactOptions().casting.max_candidates
    world.similarity = (0.9,) * n_candidates
    reenactor = make()
    reenactor.pace = LIVE
    seen = [reasons(reenactor.process(item(face(), index=index))) for index in range(6 * n_candidates)]
    assert ["choosing"] in seen and seen[-1] == ["too_alike"] and [] not in seen


def test_a_search_that_breaks_begins_anew(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    reenactor.process(item(face()))
    world.image = float("nan")
    with pytest.raises(EngineError):
        for index in range(1, 4):  # not every step renders
            reenactor.process(item(face(), index=index))
    world.image = 0.0
    assert until_shown(reenactor, face, world, first=4) > 0


def test_two_people_are_sought_one_after_the_other(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    for index in range(40):
        world.asked.clear()
        out = reenactor.process(item(face(0), face(1), index=index))
        assert sum(controls is None for controls in world.asked) <= 1
    assert {virtual.track_id for virtual in out.virtual} == {0, 1}


def test_renderings_are_shown_again_and_laid_on_the_face_anew(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    for index in range(12):
        reenactor.process(item(face(), index=index))
    world.asked.clear()
    reenactor.pace = Pace(render_every=3)
    matrices = []
    for index in range(12, 24):
        moved = face()
        assert moved.mesh is not None
        shift = np.array([2.0 * (index - 12), 0.0, 0.0], np.float32)
        moved = replace(moved, mesh=replace(moved.mesh, points_xyz=moved.mesh.points_xyz + shift))
        out = reenactor.process(item(moved, index=index))
        matrices.append(out.virtual[0].frame_from_crop[0, 2])
    assert len(world.asked) == 4, "every third frame"
    assert np.diff(matrices) == pytest.approx(np.full(11, 2.0), abs=0.6), "but it follows in every frame"


def test_a_large_movement_is_rendered_at_once(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    for index in range(12):
        reenactor.process(item(face(), index=index))
    reenactor.pace = Pace(render_every=4)
    reenactor.process(item(face(), index=12))
    world.asked.clear()
    for index in range(13, 16):
        reenactor.process(item(face(yaw=20.0), index=index))
    assert len(world.asked) >= 2


def test_after_a_cut_nothing_old_is_shown(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = Pace(render_every=4)
    for index in range(4):
        reenactor.process(item(face(), index=index))
    for index in range(4, 8):
        world.asked.clear()
        reenactor.process(item(face(), index=index, is_cut=True))
        assert len(world.asked) == 1


# Another key.


def test_the_old_face_stays_until_the_new_one_is_ready_and_then_they_swap(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    until_shown(reenactor, face, world)
    world.image = 0.5
    reenactor.process(item(face(), index=29))
    key = Key.generate()
    reenactor.rotate(key)
    key.close()
    assert world.keys == [key] and world.has_left_book and reenactor.is_rotating
    for index in range(30, 80):
        world.asked.clear()
        out = reenactor.process(item(face(), index=index))
        assert len(out.virtual) == 1 and not reasons(out)
        # what is prepared takes a rendering, and what is shown another at most
        assert len(world.asked) <= 2
        if not reenactor.is_rotating:
            break
    assert not reenactor.is_rotating and index > 33


def test_when_nobody_suits_under_the_new_key_the_face_is_mosaicked(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    until_shown(reenactor, face, world)
    world.similarity = (0.9,) * 12
    reenactor.rotate(Key.generate())
    seen = []
    for index in range(30, 120):
        out = reenactor.process(item(face(), index=index))
        seen.append(reasons(out) or ["shown"])
    assert seen[0] == ["shown"] and seen[-1] == ["too_alike"] and not reenactor.is_rotating
    assert ["choosing"] not in seen, "the old face until all candidates were tried"


def test_a_face_that_goes_does_not_hold_up_the_change(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    until_shown(reenactor, face, world)
    reenactor.rotate(Key.generate())
    reenactor.process(item(index=30))
    assert not reenactor.is_rotating
    out = reenactor.process(item(face(), index=31))
    assert reasons(out) == ["choosing"], "the old face does not come back"


def test_a_change_without_the_old_face(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.pace = LIVE
    until_shown(reenactor, face, world)
    reenactor.rotate(Key.generate(), keeps_old=False)
    assert not reenactor.is_rotating
    assert reasons(reenactor.process(item(face(), index=30))) == ["choosing"]
