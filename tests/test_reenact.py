"""Reenactment with a stand-in generator: what is asked of it, what is refused, and who stands in for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from fake_puppet import (
    JAW,
    REST,
    SIDE,
    Basis,
    MakeMesh,
    People,
    Script,
    World,
    item,
    make_face,
    open_reenactor,
    reasons,
)

from keyface.configs.errors import EngineError
from keyface.pipeline.face import Face
from keyface.pipeline.guard import check_reenactment
from keyface.pipeline.reenact.puppet import Puppet
from keyface.pipeline.reenact.reenactor import ReenactOptions, Reenactor


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


# What is replaced.


def test_a_face_is_replaced_and_laid_on_the_driver(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    given = item(face())
    out = make().process(given)
    check_reenactment(given, out)
    assert out.analysed is given and out.must_redact == ()
    (virtual,) = out.virtual
    assert virtual.track_id == 0 and virtual.crop_rgb.shape == (SIDE, SIDE, 3)
    carried = virtual.mesh.points_xy @ virtual.frame_from_crop[:, :2].T + virtual.frame_from_crop[:, 2]
    driver = given.faces[0].mesh
    assert driver is not None
    np.testing.assert_allclose(carried, driver.points_xy, atol=0.5)


@pytest.mark.parametrize(("level", "pixel"), [(-1.0, 0), (0.0, 128), (1.0, 255), (7.5, 255), (-3.0, 0)])
def test_pixels_are_the_generators_levels(world: World, level: float, pixel: int) -> None:
    world.image = level
    puppet = Puppet(world.open_engines(), Script())  # type: ignore[arg-type]
    image = puppet.render(np.zeros((23, 512), np.float32))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and (image == pixel).all()


def test_the_driver_is_followed_relative_to_the_resting_face(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make(rehearsals=0)
    reenactor.process(item(face(yaw=15.0, pitch=-9.0, jawOpen=1.0)))
    np.testing.assert_allclose(world.shown[:2], [0.5, -0.3], atol=1e-6)
    assert world.shown[2 + JAW] == pytest.approx(1.3)  # more than wanted, since the map delivers less
    np.testing.assert_allclose(np.delete(world.shown[2:], JAW), 0.1, atol=1e-6)


def test_a_cut_resets_the_filter(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    shown = []
    for is_cut in (False, True):
        reenactor = make(correction=0.0)
        reenactor.process(item(face(yaw=0.0)))
        reenactor.process(item(face(yaw=3.0), index=1, is_cut=is_cut))
        shown.append(float(world.shown[0]) * 30)
    assert shown[0] < 2.8 and shown[1] == pytest.approx(3.0, abs=1e-4)


# What is refused, and why.


def test_faces_without_landmarks_are_refused_before_anything_is_rendered(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    blank = replace(face(0), mesh=None)
    predicted = replace(face(1), mesh=None, is_predicted=True)
    given = item(blank, predicted)
    out = make().process(given)
    check_reenactment(given, out)
    assert reasons(out) == ["no_landmarks", "predicted_only"] and not out.virtual and not world.asked
    assert out.must_redact[0].box_xyxy == tuple(blank.box_xyxy) and out.must_redact[1].track_id == 1


@pytest.mark.parametrize(
    ("yaw", "pitch", "is_shown"),
    [
        (55, 0, True),
        (-55, 0, True),
        (57, 0, False),
        (-57, 0, False),
        (0, 45, True),
        (0, 47, False),
        (0, -47, False),
    ],
)
def test_extreme_poses_are_refused_and_nearly_extreme_ones_followed_to_the_limit(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World, yaw: float, pitch: float,
    is_shown: bool,
) -> None:  # fmt: skip
    out = make(correction=0.0, rehearsals=0).process(item(face(yaw=yaw, pitch=pitch)))
    if not is_shown:
        assert reasons(out) == ["extreme_pose"] and not out.virtual and not world.asked
        return
    assert not reasons(out)
    want = np.clip([yaw, pitch], [-40, -30], [40, 30])
    np.testing.assert_allclose(30 * world.shown[:2], want, atol=1e-4)


def test_an_image_that_is_not_finite_is_an_engine_error(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.process(item(face()))
    world.image = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        reenactor.process(item(face(), index=1))


def test_the_puppet_itself_refuses_an_image_that_is_not_finite(world: World) -> None:
    class Unchecked:
        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            return {"image": np.full((1, 3, SIDE, SIDE), np.inf, np.float32)}

    engines = replace(world.open_engines(), generator=Unchecked())
    with pytest.raises(EngineError, match="not finite"):
        Puppet(engines, Script()).render(np.zeros((23, 512), np.float32))  # type: ignore[arg-type]


def test_a_rendering_without_a_face_is_refused_after_a_second_look(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.process(item(face()))
    world.forget()
    world.blind = lambda call: call == 0
    assert not reasons(reenactor.process(item(face(), index=1)))
    assert world.hints == [True, False], "the second look takes no hint"
    world.forget()
    world.blind = lambda _: True
    out = reenactor.process(item(face(), index=2))
    assert reasons(out) == ["reenactment_failed"] and not out.virtual
    world.blind = lambda _: False
    assert not reasons(reenactor.process(item(face(), index=3))), "the next frame is tried again"


def test_a_rendering_that_does_not_fit_the_driver_is_refused(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    world.bend = 1.05
    assert not reasons(reenactor.process(item(face())))
    for index, bend in ((20, 3.0), (40, -1.0)):  # far apart in time: no filter makes it milder
        world.bend = bend
        assert reasons(reenactor.process(item(face(), index=index))) == ["implausible"]


def test_one_bad_face_does_not_spoil_the_others(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    given = item(face(0), face(1, yaw=80.0), replace(face(2), mesh=None))
    out = make().process(given)
    check_reenactment(given, out)
    assert [virtual.track_id for virtual in out.virtual] == [0]
    assert [(r.track_id, r.reason) for r in out.must_redact] == [(1, "extreme_pose"), (2, "no_landmarks")]


# The pose correction.


def test_rehearsals_make_the_first_frame_right(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.bias_deg = (6.0, -5.0)
    for rehearsals, most_deg in ((0, 9.0), (4, 0.3)):
        out = make(rehearsals=rehearsals).process(item(face(yaw=10.0)))
        error = out.virtual[0].mesh.pose_ypr_deg[:2] - np.array([10.0, 0.0])
        assert np.abs(error).max() < most_deg
        assert (np.abs(error).max() < 1.0) == bool(rehearsals)
    assert sum(controls is not None for controls in world.asked) == 2 + 4 + 1  # likeness, rehearsals, frame


def test_the_correction_settles_and_does_not_swing(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.gain, world.bias_deg = 1.3, (-4.0, 4.0)
    reenactor = make(rehearsals=0)
    errors = []
    for index in range(60):
        out = reenactor.process(item(face(yaw=12.0), index=index))
        errors.append(float(out.virtual[0].mesh.pose_ypr_deg[1]))
    assert errors[0] > 3.5 and abs(errors[-1]) < 0.1 and min(errors) > -0.1


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_correction_is_bounded(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World, sign: int
) -> None:
    world.gain, world.bias_deg = 0.0, (0.0, 0.0)  # a generator that does not turn at all
    reenactor = make()
    for index in range(80):
        reenactor.process(item(face(yaw=sign * 39.0), index=index))
    assert 30 * float(world.shown[0]) == pytest.approx(sign * 49.0, abs=0.1)  # 39 asked, 10 added
    assert np.array_equal(world.shown[2:], REST), "expressions are not corrected"


def test_a_failed_rendering_drops_the_correction(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.bias_deg = (6.0, 0.0)
    reenactor = make()
    reenactor.process(item(face()))
    assert 30 * float(world.shown[0]) == pytest.approx(-6.0, abs=0.3)
    world.blind = lambda _: True
    reenactor.process(item(face(), index=1))
    world.blind = lambda _: False
    reenactor.process(item(face(), index=2))
    assert float(world.shown[0]) == pytest.approx(0.0, abs=1e-6)


# Who stands in for whom.


def test_candidates_that_look_like_the_person_are_skipped(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.similarity = (0.5, 0.1, 0.07, *(0.0,) * 9)
    out = make().process(item(face()))
    assert not reasons(out) and list(dict.fromkeys(world.candidates)) == [0, 1, 2]
    assert world.candidates[-1] == 2


def test_the_most_unlike_is_taken_when_none_is_as_unlike_as_wanted(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.similarity = (0.6, 0.24, 0.2, 0.23, *(0.21,) * 8)
    assert not reasons(make().process(item(face()))) and world.candidates[-1] == 2


def test_candidates_without_a_face_are_skipped(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.faceless = (0, 1, 2)
    assert not reasons(make().process(item(face()))) and world.candidates[-1] == 3


def test_when_nobody_suits_the_face_is_refused_and_the_search_is_not_repeated(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.similarity = (0.9, *(0.27,) * 11)
    reenactor = make()
    assert reasons(reenactor.process(item(face()))) == ["too_alike"]
    assert set(world.candidates) == set(range(ReenactOptions().casting.max_candidates))
    world.forget()
    assert reasons(reenactor.process(item(face(), index=1))) == ["too_alike"]
    assert not world.candidates, "each frame would cost a dozen renderings"


def test_somebody_unknown_is_refused_until_he_is_known(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.known = {0: None}
    reenactor = make()
    assert reasons(reenactor.process(item(face()))) == ["reenactment_failed"] and not world.asked
    world.known = {0: 0}
    assert not reasons(reenactor.process(item(face(), index=1)))


def test_who_somebody_is_depends_on_what_was_known_when_the_frame_came(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.process(item(face(0), index=50))  # no look-ahead: up to the frame itself
    reenactor.process(item(face(1), index=51, known_until_s=2.6))
    assert world.asked_until == [2.0, 2.6]


def test_a_person_has_one_face_in_all_tracks_and_is_met_once(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.similarity = (0.9, *(0.0,) * 11)
    reenactor = make()
    reenactor.process(item(face(0)))
    world.forget()
    reenactor.process(item(face(2), index=1))  # the same person under another track
    assert set(world.candidates) == {1} and world.has_met_nobody


def test_each_track_has_its_own_filter_and_correction(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    world.bias_deg = (5.0, 0.0)
    reenactor = make()
    reenactor.process(item(face(0, yaw=-20.0), face(2, yaw=20.0)))
    out = reenactor.process(item(face(0, yaw=-20.0), face(2, yaw=20.0), index=1))
    yaws = [float(virtual.mesh.pose_ypr_deg[0]) for virtual in out.virtual]
    np.testing.assert_allclose(yaws, [-20.0, 20.0], atol=0.5)


# Opening and closing.


def test_the_cast_stays_for_the_next_clip_and_tracks_do_not(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World
) -> None:
    reenactor = make()
    reenactor.process(item(face(0)))
    reenactor.close()
    assert sorted(world.closed) == ["landmarker", "recogniser"]
    reenactor.open()
    world.forget()
    world.asked_until.clear()
    assert not reasons(reenactor.process(item(face(0))))
    assert world.asked_until and world.has_met_nobody


def test_closing_twice_or_before_opening_is_allowed(world: World) -> None:
    people: Any = People(world)
    reenactor = Reenactor(world.open_engines, Script(), Basis(), people, people)  # type: ignore[arg-type]
    reenactor.close()
    reenactor.open()
    reenactor.close()
    reenactor.close()
    assert world.n_opened == 1 and len(world.closed) == 2


# What pasting does to the pose.


def test_what_pasting_takes_from_the_pose_is_asked_for_in_addition(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def three_degrees_less(*_: object) -> np.ndarray:
        return np.array([0.0, 3.0 / 30 - float(world.shown[1])], np.float32)

    monkeypatch.setattr("keyface.pipeline.reenact.reenactor.pose_missed", three_degrees_less)
    reenactor = make()
    reenactor.process(item(face()))
    assert 30 * float(world.shown[1]) == pytest.approx(3.0, abs=0.3)


def test_what_is_asked_for_because_of_pasting_is_bounded(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "keyface.pipeline.reenact.reenactor.pose_missed", lambda *_: np.array([0.5, -0.5], np.float32)
    )
    reenactor = make()
    for index in range(60):
        reenactor.process(item(face(), index=index))
    assert np.abs(30 * world.shown[:2]).max() <= ReenactOptions().max_correction_deg + 0.5
