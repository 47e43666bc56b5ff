"""Tracks: motion, assignment, gaps, appearance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface.pipeline.face import Detection, Face, FaceMesh
from keyface.pipeline.faces.track import DETECTION_SIGMA, BoxFilter, Tracker, TrackOptions, cut_portrait

IMAGE = np.zeros((400, 600, 3), np.uint8)
FPS = 25.0


def box(cx: float, cy: float, side: float = 60.0) -> npt.NDArray[np.float32]:
    return np.array([cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2], np.float32)


def detection(cx: float, cy: float, side: float = 60.0, score: float = 0.9) -> Detection:
    return Detection(box(cx, cy, side), np.tile(np.array([cx, cy], np.float32), (5, 1)), score)


class Run:
    """Plays lists of detections through a tracker, as the analyser does."""

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker or Tracker()
        self.index = 0

    def step(
        self, *detections: Detection, is_cut: bool = False, image: Any = IMAGE, is_sure: bool = True
    ) -> tuple[Face, ...]:
        self.tracker.advance(self.index / FPS, is_cut=is_cut)
        pairs, newcomers = self.tracker.assign(detections)
        for track, found in pairs:
            track.see(
                found.box_xyxy, sigma=DETECTION_SIGMA, score=found.score, points_5=found.points_5, mesh=None
            )
        for found in newcomers:
            self.tracker.begin(found, None, image, is_sure=is_sure)
        self.index += 1
        return self.tracker.finish(image)


def only(faces: tuple[Face, ...]) -> Face:
    assert len(faces) == 1
    return faces[0]


def test_filter_follows_constant_speed() -> None:
    filtered = BoxFilter(box(100, 100))
    for i in range(1, 30):
        filtered.predict(1 / FPS)
        filtered.update(box(100 + 6 * i, 100 - 3 * i), DETECTION_SIGMA)
    filtered.predict(1 / FPS)
    np.testing.assert_allclose(filtered.box_xyxy, box(100 + 6 * 30, 100 - 3 * 30), atol=1.5)


def test_filter_calms_noise() -> None:
    rng = np.random.default_rng(0)
    filtered = BoxFilter(box(200, 200))
    raw, smooth = [], []
    for _ in range(200):
        measured = box(200 + rng.normal(0, 3), 200 + rng.normal(0, 3), 60 * np.exp(rng.normal(0, 0.05)))
        filtered.predict(1 / FPS)
        filtered.update(measured, DETECTION_SIGMA)
        raw.append(measured)
        smooth.append(filtered.box_xyxy)
    assert np.std(smooth[50:], axis=0).mean() < 0.85 * np.std(raw[50:], axis=0).mean()


def test_filter_of_an_unseen_face_comes_to_rest() -> None:
    filtered = BoxFilter(box(100, 100))
    for i in range(1, 20):
        filtered.predict(1 / FPS)
        filtered.update(box(100 + 10 * i, 100), DETECTION_SIGMA)
    at_loss = filtered.box_xyxy[0]
    for _ in range(50):
        filtered.predict(1 / FPS, is_coasting=True)
    travelled = filtered.box_xyxy[0] - at_loss
    assert 20 < travelled < 10 * FPS * 0.4


def test_jump_measures_implausible_motion() -> None:
    filtered = BoxFilter(box(100, 100))
    for _ in range(10):
        filtered.predict(1 / FPS)
        filtered.update(box(100, 100), 0.015)
    filtered.predict(1 / FPS)
    assert filtered.jump(box(101, 100)) == pytest.approx(0, abs=0.05)
    assert filtered.jump(box(140, 100)) > 0.4
    assert filtered.jump(box(100, 100, 120)) > 0.5


@given(
    st.lists(st.tuples(st.floats(-50, 650), st.floats(-50, 450), st.floats(1, 500)), min_size=1, max_size=20)
)
def test_filter_stays_finite(measures: list[tuple[float, float, float]]) -> None:
    filtered = BoxFilter(box(*measures[0]))
    for measured in measures:
        filtered.predict(0.5)
        filtered.update(box(*measured), DETECTION_SIGMA)
        assert np.isfinite(filtered.box_xyxy).all()
        assert (filtered.box_xyxy[2:] > filtered.box_xyxy[:2]).all()


def test_ids_stay_when_faces_pass_each_other() -> None:
    run = Run()
    ids: list[tuple[int, int]] = []
    for i in range(40):
        left, right = 60 + 12 * i, 540 - 12 * i
        faces = run.step(detection(left, 150), detection(right, 210))
        by_height = sorted(faces, key=lambda f: float(f.box_xyxy[1]))
        ids.append((by_height[0].track_id, by_height[1].track_id))
    assert set(ids) == {(0, 1)}


def test_order_of_detections_does_not_matter() -> None:
    run = Run()
    run.step(detection(100, 100), detection(300, 100))
    faces = run.step(detection(302, 100), detection(102, 100))
    assert {f.track_id: round(float(f.box_xyxy[0])) > 200 for f in faces} == {0: False, 1: True}


def covered(mosaic_xyxy: np.ndarray, face_xyxy: np.ndarray) -> float:
    """The share of a face that lies under a mosaic."""
    low, high = np.maximum(mosaic_xyxy[:2], face_xyxy[:2]), np.minimum(mosaic_xyxy[2:], face_xyxy[2:])
    return float(np.prod(np.maximum(high - low, 0)) / np.prod(face_xyxy[2:] - face_xyxy[:2]))


def test_a_jump_in_a_missed_cut_does_not_carry_the_mosaic_away() -> None:
    run = Run()
    for _ in range(10):
        run.step(detection(100, 200))
    run.step(detection(125, 190))  # another scene, much alike: no cut was noticed
    for _ in range(12):
        face = only(run.step())
        assert face.is_predicted and covered(face.box_xyxy, box(110, 200)) > 0.9


def test_occluded_face_is_predicted_and_grows_then_returns() -> None:
    run = Run()
    for i in range(10):
        run.step(detection(100 + 4 * i, 200))
    sides = []
    for i in range(20):
        face = only(run.step())
        assert face.is_predicted and face.mesh is None and face.points_5 is None and face.track_id == 0
        sides.append(float(face.box_xyxy[2] - face.box_xyxy[0]))
        assert i > 8 or covered(face.box_xyxy, box(140 + 4 * i, 200)) > 0.9
    assert sides == sorted(sides) and sides[-1] > 1.5 * 60
    back = only(run.step(detection(170, 200)))
    assert back.track_id == 0 and not back.is_predicted


def test_lost_after_the_gap() -> None:
    run = Run(Tracker(TrackOptions(max_gap_s=0.4)))
    run.step(detection(200, 200))
    seen = [len(run.step()) for _ in range(15)]
    assert seen == [1] * 10 + [0] * 5


def test_leaving_the_frame_ends_a_track() -> None:
    run = Run()
    for i in range(12):
        run.step(detection(400 + 20 * i, 200))
    assert sum(len(run.step()) for _ in range(20)) < 10


def test_doubtful_newcomer_needs_a_second_sight() -> None:
    run = Run()
    assert run.step(detection(200, 200), is_sure=False) == ()
    assert only(run.step(detection(200, 200))).track_id == 0
    run = Run()
    run.step(detection(200, 200), is_sure=False)
    assert all(run.step() == () for _ in range(20))


def test_mesh_makes_a_newcomer_sure(mesh_at: Callable[..., FaceMesh]) -> None:
    tracker = Tracker()
    tracker.advance(0.0)
    tracker.begin(detection(200, 200), mesh_at(box(200, 200)), IMAGE, is_sure=False)
    assert only(tracker.finish(IMAGE)).mesh is not None


def test_two_tracks_on_one_face_become_one() -> None:
    run = Run()
    for _ in range(3):
        run.step(detection(200, 200))
    run.tracker.advance(run.index / FPS)
    run.tracker.tracks[0].see(box(200, 200), sigma=0.05, score=0.9, points_5=None, mesh=None)
    run.tracker.begin(detection(204, 200), None, IMAGE)
    assert only(run.tracker.finish(IMAGE)).track_id == 0


# ---------------------------------------------------------------- appearance
def colour(image_rgb: npt.NDArray[np.uint8], found: Detection) -> npt.NDArray[np.float32]:
    """Embedding of a painted face: the colour in its middle."""
    x, y = found.points_5[2].astype(int)
    return image_rgb[y, x].astype(np.float32)


def painted(*faces: tuple[Detection, tuple[int, int, int]]) -> npt.NDArray[np.uint8]:
    image = IMAGE.copy()
    for found, rgb in faces:
        x0, y0, x1, y1 = found.box_xyxy.astype(int)
        image[y0:y1, x0:x1] = rgb
    return image


RED, GREEN = (200, 10, 10), (10, 200, 10)


def test_known_face_gets_its_id_back_after_a_gap() -> None:
    run = Run(Tracker(reidentify=colour))
    here, there = detection(100, 100), detection(450, 300)
    run.step(here, image=painted((here, RED)))
    for _ in range(40):
        run.step()
    assert only(run.step(there, image=painted((there, GREEN)))).track_id == 1
    for _ in range(40):
        run.step()
    assert only(run.step(there, image=painted((there, RED)))).track_id == 0


def test_cut_ends_motion_but_not_identity() -> None:
    run = Run(Tracker(reidentify=colour))
    a, b = detection(100, 100), detection(450, 300)
    run.step(a, b, image=painted((a, RED), (b, GREEN)))
    faces = run.step(a, b, image=painted((a, GREEN), (b, RED)), is_cut=True)
    assert {f.track_id: float(f.box_xyxy[0]) > 200 for f in faces} == {0: True, 1: False}


def test_without_appearance_a_cut_gives_new_ids() -> None:
    run = Run()
    run.step(detection(100, 100))
    assert only(run.step(detection(100, 100), is_cut=True)).track_id == 1


def test_face_faster_than_its_track_keeps_its_id() -> None:
    run = Run(Tracker(reidentify=colour))
    here, there = detection(100, 100), detection(500, 300)
    run.step(here, image=painted((here, RED)))
    faces = run.step(there, image=painted((there, RED)))
    assert only(faces).track_id == 0 and not faces[0].is_predicted


def test_embeddings_are_only_made_when_there_is_a_question() -> None:
    calls = []

    def counted(image_rgb: npt.NDArray[np.uint8], found: Detection) -> npt.NDArray[np.float32]:
        calls.append(found)
        return colour(image_rgb, found)

    run = Run(Tracker(reidentify=counted))
    for i in range(30):
        run.step(detection(100 + i, 100), detection(300, 200))
    assert calls == []


@pytest.mark.parametrize("centre", [(300, 200), (0, 0), (599, 399), (-200, -200)])
def test_portrait_shows_the_face(centre: tuple[int, int]) -> None:
    found = detection(*centre, side=300)
    image = painted((Detection(np.clip(found.box_xyxy, 0, 600), found.points_5, 0.9), RED))
    portrait = cut_portrait(image, found, 1.0)
    assert max(portrait.image_rgb.shape[:2]) <= 224
    if centre == (300, 200):
        np.testing.assert_array_equal(colour(portrait.image_rgb, portrait.detection), RED)
