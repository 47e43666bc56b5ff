"""The warping reenactor with stand-in networks: what it asks of them, and that nothing broken is ever shown."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from fake_puppet import JAW, REST, SIDE, MakeMesh, Script, World, item, make_face, open_reenactor, reasons
from fake_warp import WarpWorld

from keyface.configs.errors import EngineError
from keyface.pipeline import guard
from keyface.pipeline.face import BLENDSHAPE_NAMES, Face, ReenactedFrame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.people.key import Key
from keyface.pipeline.reenact.puppet import Person, Puppet
from keyface.pipeline.reenact.reenactor import Pace, Reenactor
from keyface.pipeline.reenact.warp_puppet import WarpPuppet, make_actor
from keyface.pipeline.stage import StagePlan

AT_REST = np.concatenate([np.zeros(2), REST]).astype(np.float32)


@pytest.fixture
def world(mesh_at: MakeMesh) -> WarpWorld:
    return WarpWorld(mesh_at((14, 16, 50, 54)))


@pytest.fixture
def make(world: WarpWorld) -> Callable[..., Reenactor]:
    """`make(max_yaw_deg=30, ...)`: an opened Reenactor of the world."""
    return partial(open_reenactor, world)


@pytest.fixture
def face(mesh_at: MakeMesh) -> Callable[..., Face]:
    """`face(track_id, yaw, pitch, jaw=0.5)`."""
    return partial(make_face, mesh_at)


@pytest.fixture
def puppet(world: WarpWorld) -> WarpPuppet:
    made = make_actor(world.open_engines(), Script(), REST, world.keypoints)  # type: ignore[arg-type]
    assert isinstance(made, WarpPuppet)
    return made


def meet(puppet: WarpPuppet, world: World, candidate: int = 3) -> Person:
    person = puppet.meet(np.full(512, candidate, np.float32))
    assert person is not None
    world.forget()
    return person


def controls(yaw_deg: float = 0.0, pitch_deg: float = 0.0, **blendshapes: float) -> np.ndarray:
    out = AT_REST.copy()
    out[:2] = yaw_deg / 30, pitch_deg / 30
    for name, value in blendshapes.items():
        out[2 + BLENDSHAPE_NAMES.index(name)] = value
    return out


# What is asked of the networks.


def test_a_person_is_rendered_twice_and_then_moved(puppet: WarpPuppet, world: WarpWorld) -> None:
    person = meet(puppet, world)
    wanted = controls(12.0, -6.0, jawOpen=0.8)
    shown = puppet.show(person, wanted, None)
    assert not isinstance(shown, str) and shown[1] is not None
    assert world.runs() == {"generator": 1, "warp_source": 1, "warp_motion": 1, "warp_decode": 1}
    np.testing.assert_array_equal(world.asked[0], AT_REST)  # the source: at rest, looking ahead
    for _ in range(3):
        puppet.show(person, wanted, shown[1])
    assert world.runs() == {"generator": 2, "warp_source": 1, "warp_motion": 4, "warp_decode": 4}
    # the second source, made when the person is shown again: laughing with closed eyes, the head as it was
    laugh = next(
        row for row, by in zip(world.asked[2:], world.rendered_by[2:], strict=True) if by == "generator"
    )
    np.testing.assert_array_equal(laugh[:2], 0)
    for name in ("jawOpen", "mouthSmileLeft", "mouthUpperUpRight", "eyeBlinkLeft", "eyeBlinkRight"):
        assert laugh[2 + BLENDSHAPE_NAMES.index(name)] > 0.4


def test_the_networks_get_the_persons_own_shape_and_the_wanted_motion(
    puppet: WarpPuppet, world: WarpWorld
) -> None:
    person, wanted = meet(puppet, world), controls(15.0, jawOpen=0.6)
    world.image = -1.0
    puppet.show(person, wanted, None)
    (source,), (motion,), (decode,) = (world.seen[f"warp_{name}"] for name in ("source", "motion", "decode"))
    assert world.keypoints is not None
    # the stand-in landmarker measures what was asked of the generator, and sees the mesh of the world
    mesh = replace(world.mesh, blendshapes=REST, pose_ypr_deg=np.zeros(3, np.float32))
    shape = world.keypoints.source(mesh, SIDE)
    np.testing.assert_allclose(source["points"][0], shape.points, atol=1e-6)
    np.testing.assert_allclose(source["image"], -1.0, atol=1e-6)
    np.testing.assert_array_equal(motion["source_points"], source["points"])
    driving = world.keypoints.driving(shape, wanted)
    np.testing.assert_allclose(motion["driving_points"][0], driving, atol=1e-5)
    for run in (motion, decode):
        np.testing.assert_allclose(run["controls"][0], np.concatenate([wanted, AT_REST]), atol=1e-6)
    np.testing.assert_array_equal(decode["image"], source["image"])
    assert (decode["features"] == 3).all()
    for name in ("grid_64", "grid_128", "grid_256", "raster_64", "raster_128", "grid_face", "grid_teeth"):
        assert name in decode


@pytest.mark.parametrize(("level", "pixel"), [(-1.0, 0), (0.0, 128), (1.0, 255), (7.5, 255)])
def test_pixels_are_the_decoders_levels(
    puppet: WarpPuppet, world: WarpWorld, level: float, pixel: int
) -> None:
    person = meet(puppet, world)
    world.level = level
    shown = puppet.show(person, AT_REST, None)
    assert not isinstance(shown, str)
    crop = shown[0]
    assert crop.dtype == np.uint8 and crop.flags.c_contiguous and crop.shape == (SIDE, SIDE, 3)
    assert (crop == pixel).all()


def test_each_person_has_features_of_his_own_which_go_with_him(puppet: WarpPuppet, world: WarpWorld) -> None:
    one, other = meet(puppet, world, 1), meet(puppet, world, 2)
    for person in (one, other, one):
        puppet.show(person, AT_REST, None)
    assert [int(run["features"][0, 0, 0, 0]) for run in world.seen["warp_decode"]] == [1, 2, 1]
    assert world.runs()["warp_source"] == 2 and len(puppet._sources) == 2
    del one, person
    gc.collect()
    assert len(puppet._sources) == 1, "what a person was shown from goes with the person"


def test_expressions_are_asked_for_as_wanted(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    """The motion map is asked for more than is wanted, since it delivers less; the warp is not."""
    make(rehearsals=0).process(item(face(yaw=15.0, pitch=-9.0, jawOpen=1.0)))
    np.testing.assert_allclose(world.shown[:2], [0.5, -0.3], atol=1e-6)
    assert world.shown[2 + JAW] == pytest.approx(1.0)
    np.testing.assert_allclose(np.delete(world.shown[2:], JAW), 0.1, atol=1e-6)


def test_without_keypoints_the_generator_renders_every_frame(world: WarpWorld) -> None:
    actor = make_actor(world.open_engines(), Script(), REST, None)  # type: ignore[arg-type]
    assert type(actor) is Puppet


def test_networks_that_are_not_there_are_told(world: WarpWorld) -> None:
    engines = replace(world.open_engines(), warp=None)
    with pytest.raises(ValueError, match="no engines that warp"):
        make_actor(engines, Script(), REST, world.keypoints)  # type: ignore[arg-type]


# In the stage.


def test_a_face_is_replaced_by_the_decoders_picture(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    world.similarity = (0.5, 0.1, 0.07, *(0.0,) * 9)  # the first two are too like the driver
    reenactor = make()
    for index in range(3):
        given = item(face(), index=index)
        out = reenactor.process(given)
        guard.check_reenactment(given, out)
        assert not reasons(out) and (out.virtual[0].crop_rgb == 159).all()
    assert world.rendered_by[-3:] == ["decode"] * 3 and world.candidates[-1] == 2
    assert world.runs()["warp_source"] == 3, "one for each candidate who was looked at"


def test_the_pose_correction_learns_from_what_is_shown(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    world.bias_deg = (6.0, -5.0)
    out = make().process(item(face(yaw=10.0)))
    error = out.virtual[0].mesh.pose_ypr_deg[:2] - np.array([10.0, 0.0])
    assert np.abs(error).max() < 1.0


def test_a_live_search_waits_for_one_rendering_a_frame(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    world.similarity = (0.5, *(0.0,) * 11)
    reenactor = make()
    reenactor.pace = Pace(is_stepwise=True)
    for index in range(60):
        world.forget_runs()
        out = reenactor.process(item(face(), index=index))
        runs = world.runs()
        assert runs["generator"] <= 1 and runs["warp_source"] <= 1 and runs["warp_decode"] <= 1
        if out.virtual:
            break
        assert reasons(out) == ["choosing"]
    assert out.virtual and index > 6


def test_opened_again_the_same_people_are_shown_from_a_new_rendering(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    reenactor = make()
    reenactor.process(item(face()))
    reenactor.close()
    assert sorted(world.closed) == ["landmarker", "recogniser"]
    reenactor.open()
    world.forget()
    assert not reasons(reenactor.process(item(face())))
    assert world.has_met_nobody and world.runs()["warp_source"] == 1
    assert world.runs()["generator"] == 2, "both sources, since a rehearsal has shown the first"


def test_with_the_key_go_the_features(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    reenactor = make()
    reenactor.process(item(face()))
    actor = reenactor._puppet
    assert isinstance(actor, WarpPuppet) and len(actor._sources) == 1
    key = Key.generate()
    reenactor.rotate(key, keeps_old=False)
    key.close()
    gc.collect()
    assert len(actor._sources) == 0


# What goes wrong: a mosaic with a reason, never a broken face.


def guarded(reenactor: Reenactor, given: Any) -> ReenactedFrame:
    """What the chain makes of it: the stage with its check and its rescue; each face is accounted for."""
    plan = StagePlan(
        name="reenact",
        stage=Opened(reenactor),
        check=guard.check_reenactment,
        rescue=guard.rescue_reenactment,
    )
    with InlineChain([plan]) as chain:
        out = chain.process(given)
    assert isinstance(out, ReenactedFrame)
    done = {virtual.track_id for virtual in out.virtual} | {r.track_id for r in out.must_redact}
    assert done == {face.track_id for face in given.faces}
    return out


class Opened:
    """A stage that is open already and stays so."""

    def __init__(self, stage: Reenactor) -> None:
        self.process = stage.process

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("broken", ["pose", "blendshapes"])
def test_motion_that_is_not_finite_is_refused_and_forgotten(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld, broken: str
) -> None:
    reenactor = make()
    assert not reasons(guarded(reenactor, item(face())))
    bad = face()
    assert bad.mesh is not None
    pose, blendshapes = bad.mesh.pose_ypr_deg.copy(), bad.mesh.blendshapes.copy()
    (pose if broken == "pose" else blendshapes)[0] = np.nan
    world.forget()
    mesh = replace(bad.mesh, pose_ypr_deg=pose, blendshapes=blendshapes)
    out = guarded(reenactor, item(replace(bad, mesh=mesh), index=1))
    assert reasons(out) == ["implausible"] and not out.virtual and not world.rendered_by
    assert not reasons(guarded(reenactor, item(face(), index=2))), "the next frame is as if it had not been"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_puppet_itself_refuses_motion_that_is_not_finite(
    puppet: WarpPuppet, world: WarpWorld, value: float
) -> None:
    person, wanted = meet(puppet, world), AT_REST.copy()
    wanted[30] = value
    assert puppet.show(person, wanted, None) == "implausible"
    assert not world.rendered_by and not world.seen["warp_source"]


@pytest.mark.parametrize(("yaw", "pitch"), [(61, 0), (-61, 0), (0, 51), (0, -51)])
def test_a_pose_beyond_what_may_be_asked_is_refused(
    puppet: WarpPuppet, world: WarpWorld, yaw: float, pitch: float
) -> None:
    assert puppet.show(meet(puppet, world), controls(yaw, pitch), None) == "extreme_pose"
    assert not world.rendered_by
    assert puppet.show(meet(puppet, world), controls(yaw * 0.97, pitch * 0.97), None) != "extreme_pose"


def test_a_driver_beyond_the_limits_is_mosaicked(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    out = guarded(make(), item(face(0, yaw=57.0), face(1)))
    assert [(r.track_id, r.reason) for r in out.must_redact] == [(0, "extreme_pose")]
    assert [virtual.track_id for virtual in out.virtual] == [1]


def source_is_blind(world: WarpWorld) -> Callable[[int], bool]:
    """A landmarker that finds nothing in what the generator renders of a person who was told how to look."""
    return lambda _: world.rendered_by[-1] == "generator" and world.asked[-1] is not None


def test_without_a_face_in_the_source_there_is_nothing_to_show(puppet: WarpPuppet, world: WarpWorld) -> None:
    person = meet(puppet, world)
    world.blind = source_is_blind(world)
    for _ in range(3):
        assert puppet.show(person, AT_REST, person.own_mesh) == "reenactment_failed"
    assert world.runs() == {"generator": 1, "warp_source": 0, "warp_motion": 0, "warp_decode": 0}
    assert world.hints == [True, False], "the second look takes no hint"


def test_a_source_without_a_face_is_a_mosaic(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    reenactor = make()
    guarded(reenactor, item(face()))
    reenactor.close()
    reenactor.open()  # the same people, from a new rendering
    world.blind = source_is_blind(world)
    for index in range(3):
        out = guarded(reenactor, item(face(), index=index))
        assert reasons(out) == ["reenactment_failed"] and not out.virtual


def test_candidates_without_a_source_are_not_chosen(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    world.blind = lambda call: source_is_blind(world)(call) and world.candidates[-1] < 2
    assert not reasons(guarded(make(), item(face()))) and world.candidates[-1] == 2


@pytest.mark.parametrize("points", ["not finite", "one place"])
def test_a_source_whose_mesh_says_nothing_is_refused(
    puppet: WarpPuppet, world: WarpWorld, points: str
) -> None:
    person = meet(puppet, world)
    bad = world.mesh.points_xyz.copy()
    bad[:] = np.nan if points == "not finite" else 5.0
    world.mesh = replace(world.mesh, points_xyz=bad)
    assert puppet.show(person, AT_REST, None) == "reenactment_failed"
    assert not world.seen["warp_source"]


OUTPUTS = {
    "warp_source": ("details", (1, 1, 32, 32)),
    "warp_motion": ("grid_128", (1, 32, 32, 2)),
    "warp_decode": ("picture", (1, 3, SIDE, SIDE)),
}


@pytest.mark.parametrize("network", list(OUTPUTS))
@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_an_output_that_is_not_finite_never_becomes_a_picture(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld, network: str,
    value: float | None,
) -> None:  # fmt: skip
    reenactor = make()
    guarded(reenactor, item(face()))
    reenactor.close()
    reenactor.open()
    output, shape = OUTPUTS[network]
    world.changes[network][output] = None if value is None else np.full(shape, value, np.float32)
    with pytest.raises(EngineError, match=r"not finite|did not return"):
        reenactor.process(item(face()))
    out = guarded(reenactor, item(face(), index=1))
    assert reasons(out) == ["stage_failed"] and not out.virtual
    world.changes[network].clear()
    assert not reasons(guarded(reenactor, item(face(), index=2))), "and then it is shown again"


@pytest.mark.parametrize("name", ["features", "details"])
@pytest.mark.parametrize("value", [None, np.nan])
def test_the_puppet_itself_refuses_features_that_are_missing_or_not_finite(
    world: WarpWorld, name: str, value: float | None
) -> None:
    world.is_unchecked = True
    puppet = WarpPuppet(world.open_engines(), Script(), REST, world.keypoints)  # type: ignore[arg-type]
    person = meet(puppet, world)
    world.changes["warp_source"][name] = None if value is None else np.full((1, 1, 9, 9), value, np.float32)
    for _ in range(2):
        with pytest.raises(EngineError, match=rf"the {name} are (missing|not finite)"):
            puppet.show(person, AT_REST, None)
    assert not world.seen["warp_decode"] and len(world.seen["warp_source"]) == 2
    world.changes["warp_source"].clear()
    assert not isinstance(puppet.show(person, AT_REST, None), str)


def test_the_puppet_itself_refuses_a_picture_that_is_not_finite(world: WarpWorld) -> None:
    world.is_unchecked = True
    puppet = WarpPuppet(world.open_engines(), Script(), REST, world.keypoints)  # type: ignore[arg-type]
    person = meet(puppet, world)
    world.level = float("inf")
    with pytest.raises(EngineError, match="warp_decode: the image is not finite"):
        puppet.show(person, AT_REST, None)


def test_a_picture_without_a_face_is_refused_after_a_second_look(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    reenactor = make()
    guarded(reenactor, item(face()))
    world.forget()
    world.blind = lambda call: call == 0
    assert not reasons(guarded(reenactor, item(face(), index=1))) and world.hints == [True, False]
    world.blind = lambda _: True
    out = guarded(reenactor, item(face(), index=2))
    assert reasons(out) == ["reenactment_failed"] and not out.virtual
    world.blind = lambda _: False
    assert not reasons(guarded(reenactor, item(face(), index=3)))


def test_a_picture_that_does_not_fit_the_driver_is_refused(
    make: Callable[..., Reenactor], face: Callable[..., Face], world: WarpWorld
) -> None:
    reenactor = make()
    guarded(reenactor, item(face()))
    world.bend = 0.4
    out = guarded(reenactor, item(face(), index=1))
    assert reasons(out) == ["implausible"] and not out.virtual
