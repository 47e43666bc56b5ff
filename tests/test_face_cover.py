"""What covers a generated face: on drawn faces, and on generated people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from keyface.engines.open import open_engine
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.paste.place import LEFT_BROW, LEFT_EYE, LIPS, OVAL, RIGHT_BROW, RIGHT_EYE
from keyface.pipeline.people.projector import Projector
from keyface.pipeline.people.virtual import IdentityBasis
from keyface.pipeline.reenact.face_cover import FaceCover, covered_share, face_cover
from keyface.pipeline.reenact.motion import MotionMap
from keyface.pipeline.reenact.puppet import Puppet, ReenactEngines

XY = np.vstack([CANONICAL_XYZ, CANONICAL_XYZ[:10]])[:, :2] * [9, -9] + [128, 120]
SKINS = {"light": (230, 190, 165), "brown": (150, 105, 80), "dark": (75, 50, 40)}


def drawn(skin: tuple[int, int, int] = SKINS["light"]) -> np.ndarray:
    """A head of skin with eyes, brows and lips before something grey."""
    picture = np.full((256, 256, 3), 90, np.uint8)
    cv2.fillPoly(picture, [XY[OVAL].astype(np.int32)], skin)
    dark = tuple(level // 6 for level in skin)
    for index in (RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW):
        cv2.fillConvexPoly(picture, cv2.convexHull(XY[index].astype(np.int32)), dark)
    cv2.fillConvexPoly(
        picture, cv2.convexHull(XY[LIPS].astype(np.int32)), (skin[0], skin[1] // 2, skin[2] // 2)
    )
    return picture


def lit(picture: np.ndarray, right_to_left: float) -> np.ndarray:
    """The light falls off by this factor across the face."""
    across = np.clip((np.arange(256) - XY[:, 0].min()) / np.ptp(XY[:, 0]), 0, 1)
    return (picture * (right_to_left**across)[None, :, None]).astype(np.uint8)


def strand(picture: np.ndarray, of_xy: np.ndarray, width_px: int = 34) -> np.ndarray:
    """A lock of dark hair from the top of the head over a place."""
    out = picture.copy()
    top = (int(of_xy[0]) + 12, int(XY[10, 1]) - 5)
    cv2.line(out, top, (int(of_xy[0]) - 8, int(of_xy[1]) + 30), (40, 28, 22), width_px)
    return out


@pytest.mark.parametrize("skin", SKINS.values(), ids=SKINS)
@pytest.mark.parametrize("light", [1.0, 0.35])
def test_a_free_face_is_not_covered_whatever_its_skin_and_light(
    skin: tuple[int, int, int], light: float
) -> None:
    found = face_cover(lit(drawn(skin), light), XY)
    assert found.excess < 0.5, found


@pytest.mark.parametrize("light", [1.0, 0.35])
def test_a_strand_over_an_eye_is_cover_of_that_eye(light: float) -> None:
    picture = lit(drawn(), light)
    right = face_cover(strand(picture, XY[RIGHT_EYE].mean(0)), XY)
    left = face_cover(strand(picture, XY[LEFT_EYE].mean(0)), XY)
    assert right.excess > 1 and right.right_eye > right.left_eye + 0.2
    assert left.excess > 1 and left.left_eye > left.right_eye + 0.2


def test_a_fringe_to_the_brows_is_cover_of_the_forehead() -> None:
    picture = drawn()
    brows = int(XY[np.r_[RIGHT_BROW, LEFT_BROW], 1].mean())
    picture[:brows] = (60, 45, 35)
    found = face_cover(picture, XY)
    assert found.forehead > 0.9 and found.excess > 1


def test_a_high_hairline_is_no_cover() -> None:
    picture = drawn()
    picture[: int(XY[10, 1]) + 14] = (40, 30, 25)
    assert face_cover(picture, XY).excess < 0.5


@pytest.mark.parametrize("level", [20, 60])
def test_a_beard_is_no_cover(level: int) -> None:
    picture = drawn()
    lips = int(XY[2, 1])
    bearded = picture.copy()
    cv2.fillPoly(bearded, [XY[OVAL].astype(np.int32)], (level, level, level))
    picture[lips:] = bearded[lips:]
    assert face_cover(picture, XY).excess < 0.5


def test_a_cup_before_the_mouth_is_cover() -> None:
    picture = drawn(SKINS["brown"])
    x, y = XY[LIPS].mean(0).astype(int)
    cv2.rectangle(picture, (x - 20, y - 4), (x + 20, y + 50), (250, 250, 250), -1)
    found = face_cover(picture, XY)
    assert found.chin > 0.1 and found.excess > 1


ROSY = (222, 165, 140)
FAIR = (
    (128, 84, 54),
    (222, 198, 152),
)  # hair in its own shadow and in the light: on average hardly darker than skin


def lock(picture: np.ndarray, path_xy: np.ndarray, strands: int, apart_px: float) -> np.ndarray:
    """A lock of fair hair along a path: strands side by side, in the light and in the shadow in turn."""
    out = picture.copy()
    for number in range(strands):
        path = np.rint(path_xy + np.array([apart_px * number, 0])).astype(np.int32)
        cv2.polylines(out, [path], isClosed=False, color=FAIR[number % 2], thickness=3, lineType=cv2.LINE_AA)
    return out


def test_a_fair_lock_over_the_forehead_is_cover() -> None:
    start, end = XY[10] - np.array([2, 0]), XY[RIGHT_BROW].mean(0) + np.array([-12, 6])
    path = start + (end - start) * np.linspace(0, 1, 20)[:, None] ** [1.3, 1]
    found = face_cover(lock(drawn(ROSY), path, strands=5, apart_px=5), XY)
    assert found.strands > 0.13 and found.excess > 1.2
    without = (found.forehead / 0.30, found.face / 0.175, found.right_eye / 0.50)
    assert max(without) < 1, without  # how dark it is does not tell


def test_thin_fair_strands_down_to_the_brow_are_cover() -> None:
    brow = XY[LEFT_BROW].mean(0)
    path = np.linspace(brow - np.array([4, 45]), brow + np.array([2, 5]), 12)
    found = face_cover(lock(drawn(ROSY), path, strands=3, apart_px=8), XY)
    assert found.strands > 0.13 and found.forehead < 0.3


def test_a_lock_as_light_as_the_skin_is_seen_by_its_colour() -> None:
    pale = (200, 176, 138)
    assert abs(grey(pale) - grey(ROSY)) < 6
    picture, brow = drawn(ROSY), XY[LEFT_BROW].mean(0)
    for step in range(4):
        top, end = brow + np.array([7 * step - 8, -45]), brow + np.array([7 * step - 12, 4])
        cv2.line(picture, top.astype(int).tolist(), end.astype(int).tolist(), pale, 3, cv2.LINE_AA)
    found = face_cover(picture, XY)
    assert found.tinted_strands > 0.1 and found.excess > 1
    assert max(found.strands / 0.115, found.forehead / 0.3) < 0.5


def grey(colour: tuple[int, int, int]) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def test_something_coloured_before_one_half_of_the_mouth_is_cover() -> None:
    picture = drawn(ROSY)
    x, y = XY[LIPS].mean(0).astype(int)
    cv2.rectangle(picture, (x + 4, y), (x + 16, y + 60), (170, 60, 50), -1)
    cv2.rectangle(picture, (x + 20, y), (x + 26, y + 60), (170, 60, 50), -1)
    found = face_cover(picture, XY)
    assert found.mouth > 0.0725 and found.excess > 1 and found.chin < 0.04


@pytest.mark.parametrize("skin", SKINS.values(), ids=SKINS)
def test_freckles_are_no_cover(skin: tuple[int, int, int]) -> None:
    picture, random = drawn(skin), np.random.default_rng(3)
    darker = tuple(int(level * factor) for level, factor in zip(skin, (0.86, 0.76, 0.7), strict=True))
    for x, y in random.uniform(XY.min(0), XY.max(0), (260, 2)):
        cv2.circle(picture, (int(x), int(y)), 1, darker, -1, cv2.LINE_AA)
    assert face_cover(picture, XY).excess < 0.8


@pytest.mark.parametrize("skin", SKINS.values(), ids=SKINS)
def test_wrinkles_are_no_cover(skin: tuple[int, int, int]) -> None:
    picture = drawn(skin)
    fold = tuple(int(level * 0.72) for level in skin)
    middle, brows = XY[:, 0].mean(), XY[np.r_[RIGHT_BROW, LEFT_BROW], 1].min()
    for row in range(4):  # over the forehead, arched
        across = np.linspace(-38, 38, 20)
        path = np.c_[middle + across, brows - 6 - 8 * row + (across / 38) ** 2 * 5]
        cv2.polylines(picture, [np.rint(path).astype(np.int32)], False, fold, 2, cv2.LINE_AA)
    for side, eye in ((-1, XY[RIGHT_EYE].mean(0)), (1, XY[LEFT_EYE].mean(0))):
        for turn in (-8, 0, 8):  # crow's feet
            near, far = (eye + np.array([side * x, turn * x / 32]) for x in (20, 32))
            cv2.line(picture, near.astype(int).tolist(), far.astype(int).tolist(), fold, 1, cv2.LINE_AA)
    assert face_cover(picture, XY).excess < 0.8


def test_stubble_is_no_cover() -> None:
    picture, random = drawn(), np.random.default_rng(5)
    below = picture[int(XY[2, 1]) :]
    rough = below * random.uniform(0.7, 1.0, (*below.shape[:2], 1))
    picture[int(XY[2, 1]) :] = rough.astype(np.uint8)
    assert face_cover(picture, XY).excess < 0.8


def test_a_hard_edged_shadow_over_half_of_the_face_is_no_edge_of_hair() -> None:
    picture = drawn()
    shaded = picture.copy()
    shaded[:, : int(XY[:, 0].mean())] = (shaded[:, : int(XY[:, 0].mean())] * 0.8).astype(np.uint8)
    found = face_cover(shaded, XY)
    assert max(found.tinted_strands, found.mouth) < 0.03 and found.excess < 0.8


def test_the_same_face_is_as_covered_in_any_size_and_place() -> None:
    picture = strand(drawn(), XY[LEFT_EYE].mean(0))
    large = cv2.resize(picture, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    turned = cv2.warpAffine(picture, cv2.getRotationMatrix2D((128, 128), 8, 1.0), (256, 256))
    turned_xy = cv2.transform(XY[None], cv2.getRotationMatrix2D((128, 128), 8, 1.0))[0]
    want = face_cover(picture, XY)
    assert face_cover(large, XY * 4).left_eye == pytest.approx(want.left_eye, abs=0.03)
    assert face_cover(turned, turned_xy).left_eye == pytest.approx(want.left_eye, abs=0.1)


def test_a_face_outside_the_picture_shows_no_cover() -> None:
    assert face_cover(drawn(), XY + 1000) == FaceCover()
    assert face_cover(np.zeros((64, 64, 3), np.uint8), XY - 5000) == FaceCover()


def test_the_worst_zone_counts() -> None:
    assert FaceCover(face=0.35).excess == pytest.approx(2)
    assert FaceCover(left_eye=0.5, forehead=0.15).excess == pytest.approx(1)
    assert FaceCover(right_eye=0.5).excess == FaceCover(left_eye=0.5).excess
    assert FaceCover(strands=0.23, mouth=0.0725).excess == pytest.approx(2)
    assert FaceCover(tinted_strands=0.17, strands=0.115).excess == pytest.approx(2)
    assert FaceCover(mouth=0.145, chin=0.04).excess == pytest.approx(2)


def test_the_share_that_the_guard_was_fitted_on() -> None:
    skin = np.full((256, 256, 3), (200, 150, 120), np.uint8)
    assert covered_share(skin, XY) == 0
    fringed = skin.copy()
    fringed[: int(XY[10, 1] + 20)] = (30, 20, 20)  # hair over the forehead
    speaking = skin.copy()
    speaking[int(XY[13, 1]) :] = (30, 20, 20)  # beard and mouth do not count
    assert 0.1 < covered_share(fringed, XY) < 0.7
    assert covered_share(speaking, XY) == 0


# Generated people, by the seed of their code: what one sees in their pictures.
COVERED = {
    2: "curls over the face",
    16: "strands over the forehead",
    17: "waves beside the eyes",
    32: "a fringe and a hand",
    42: "hair beside an eye",
    61: "hair and a hand at the chin",
    88: "a fringe over the forehead",
}
FREE = {
    1: "a short beard",
    3: "a beard",
    14: "brown skin",
    24: "stubble",
    28: "nothing",
    49: "dark, shaded",
}


@pytest.fixture(scope="module")
def excess_of(models: Any) -> Iterator[Callable[[int], float]]:
    """How covered the person of a code is at rest from the front."""
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker

    networks = (open_engine(models.path(n), name=n, threads=1) for n in ("face_mesh", "face_blendshapes"))
    landmarker = LiteRtLandmarker(*networks)
    generator = open_engine(models.path("synthesis_256"), name="synthesis_256", threads=1)
    basis = IdentityBasis.load(models.path("identity_basis"))
    projector = Projector.load(models.path("projector"))
    engines = ReenactEngines(generator, landmarker, None)  # type: ignore[arg-type]
    puppet = Puppet(engines, MotionMap(models.path("motion_map")))

    def measure(seed: int) -> float:
        code = np.random.RandomState(seed).standard_normal(projector.n_code)
        code *= projector.n_code**0.5 / np.linalg.norm(code)
        person = puppet.meet(basis.person_at(projector.coordinates(code)))
        assert person is not None
        at_rest = np.concatenate([np.zeros(2, np.float32), basis.resting])
        crop, mesh = puppet.show(person, at_rest, person.own_mesh)
        assert mesh is not None
        return face_cover(crop, mesh.points_xyz).excess

    yield measure
    generator.close()
    landmarker.close()


@pytest.mark.parametrize("seed", COVERED, ids=COVERED.values())
def test_generated_people_with_something_over_the_face_are_told(
    excess_of: Callable[[int], float], seed: int
) -> None:
    assert excess_of(seed) > 1.2


@pytest.mark.parametrize("seed", FREE, ids=FREE.values())
def test_generated_people_with_free_faces_stay(excess_of: Callable[[int], float], seed: int) -> None:
    assert excess_of(seed) < 0.8
