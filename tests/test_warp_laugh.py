"""The second source picture of the warping reenactor, with stand-in networks: when it is made, and without one."""

from __future__ import annotations

import numpy as np
import pytest
from fake_puppet import REST, MakeMesh, Script
from fake_warp import WarpWorld
from test_warp_puppet import AT_REST, meet, source_is_blind

from keyface.pipeline.face import BLENDSHAPE_NAMES
from keyface.pipeline.reenact.warp_puppet import WarpPuppet, laughing


@pytest.fixture
def world(mesh_at: MakeMesh) -> WarpWorld:
    return WarpWorld(mesh_at((14, 16, 50, 54)))


@pytest.fixture
def puppet(world: WarpWorld) -> WarpPuppet:
    return WarpPuppet(world.open_engines(), Script(), REST, world.keypoints)  # type: ignore[arg-type]


def test_who_laughs_opens_mouth_and_closes_eyes_and_is_else_at_rest() -> None:
    found = laughing(REST)
    named = dict(zip(BLENDSHAPE_NAMES, found[2:], strict=True))
    assert found.dtype == np.float32 and (found[:2] == 0).all()
    assert named["jawOpen"] == 0.5 and named["eyeBlinkLeft"] == named["eyeBlinkRight"] == 1.0
    assert named["browInnerUp"] == REST[BLENDSHAPE_NAMES.index("browInnerUp")]
    assert (AT_REST[2:] == REST).all(), "who was given is not changed"


def test_until_there_is_a_second_picture_the_first_is_its_own(puppet: WarpPuppet, world: WarpWorld) -> None:
    person = meet(puppet, world)
    world.image = -1.0
    puppet.show(person, AT_REST, None)
    world.image = 1.0
    puppet.show(person, AT_REST, None)
    first, again = world.seen["warp_decode"]
    np.testing.assert_array_equal(first["second"], first["image"])
    np.testing.assert_allclose(again["second"], 1.0, atol=1e-6)
    np.testing.assert_array_equal(again["image"], first["image"])
    assert (first["opening"] == 0).all() and (again["opening"] == 1).all()
    for run in world.seen["warp_motion"]:
        np.testing.assert_array_equal(run["second_points"], run["source_points"])  # the world has one mesh


def test_a_second_picture_without_a_face_is_left_out_and_not_tried_again(
    puppet: WarpPuppet, world: WarpWorld
) -> None:
    person = meet(puppet, world)
    puppet.show(person, AT_REST, None)
    world.blind = source_is_blind(world)
    for _ in range(3):
        assert not isinstance(puppet.show(person, AT_REST, None), str)
    assert world.runs()["generator"] == 2
    for run in world.seen["warp_decode"]:
        np.testing.assert_array_equal(run["second"], run["image"])
        assert (run["opening"] == 0).all(), "no teeth to lay there"


def test_the_second_picture_can_wait_until_nobody_waits_for_it(puppet: WarpPuppet, world: WarpWorld) -> None:
    person = meet(puppet, world)
    puppet.shows_before_second = 8
    for n_shown in range(1, 12):
        puppet.show(person, AT_REST, None)
        assert world.runs()["generator"] == (1 if n_shown < 9 else 2)
