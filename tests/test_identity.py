"""Who is behind a track: averaging, weights, the lock per track, and people who come back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.configs.errors import EngineError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.face import Face
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.frame import Frame
from keyface.pipeline.people.identity import Identities, IdentityOptions

MakeMesh = Callable[..., Any]
OPTIONS = IdentityOptions(interval_s=0.0)


class FakeRecogniser:
    """Answers with the person whose number the picture's first pixel is, plus what noise it is told."""

    def __init__(self) -> None:
        self.n_seen, self.noise, self.is_closed = 0, 0.0, False
        self._random = np.random.RandomState(5)

    def embed(self, image_rgb: np.ndarray, points_5: np.ndarray) -> np.ndarray:
        assert points_5.shape == (5, 2) and not self.is_closed
        self.n_seen += 1
        return person(int(image_rgb[0, 0, 0]), self.noise, self._random)

    def close(self) -> None:
        self.is_closed = True


def person(number: int, noise: float = 0.0, random: np.random.RandomState | None = None) -> np.ndarray:
    """(128,) unit: one axis per person."""
    vector = np.eye(128)[number]
    if random is not None and noise:
        vector = vector + noise * random.standard_normal(128) / np.sqrt(128)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def frame(index: int, number: int = 0, *, fps: float = 25.0) -> Frame:
    return Frame(np.full((4, 4, 3), number, np.uint8), index, index / fps)


@pytest.fixture
def recogniser() -> FakeRecogniser:
    return FakeRecogniser()


@pytest.fixture
def make(recogniser: FakeRecogniser) -> Callable[..., Identities]:
    """`make(enough=3, ...)`: opened Identities."""

    def identities(**changes: Any) -> Identities:
        made = Identities(lambda: recogniser, replace(OPTIONS, **changes))  # type: ignore[arg-type, return-value]
        made.open()
        return made

    return identities


@pytest.fixture
def face(mesh_at: MakeMesh) -> Callable[..., Face]:
    """`face(track_id, side_px=100, pose=(0, 0, 0))`."""

    def make(
        track_id: int = 0, *, side_px: float = 100.0, pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> Face:
        box = np.array([10, 10, 10 + 0.8 * side_px, 10 + side_px], np.float32)
        mesh = replace(mesh_at(box), pose_ypr_deg=np.array(pose, np.float32))
        return Face(track_id, box, None, 0.9, False, mesh)

    return make


def test_a_track_is_the_weighted_mean_of_its_looks(
    make: Callable[..., Identities], face: Callable[..., Face]
) -> None:
    identities = make()
    looks = [(0, face()), (1, face(pose=(40.0, 0.0, 0.0))), (2, face(pose=(0.0, -30.0, 0.0)))]
    for index, (number, seen) in enumerate(looks):
        identities.observe(frame(index, number), seen)
    want = 1.0 * person(0) + 0.15 * person(1) + 0.15 * person(2)
    number = identities.person_of(0)
    assert number is not None
    np.testing.assert_allclose(identities.embedding_of(number), want / np.linalg.norm(want), atol=1e-6)


@pytest.mark.parametrize(
    ("side_px", "pose", "weight"),
    [
        (100, (0, 0, 90), 1.0),  # roll is taken out by the alignment
        (100, (24, 19, 0), 1.0),
        (100, (-24, -19, 0), 1.0),
        (100, (-26, 0, 0), 0.15),
        (100, (0, 21, 0), 0.15),
        (30, (0, 0, 0), 0.15),
    ],
)
def test_turned_and_small_faces_count_little(
    make: Callable[..., Identities], face: Callable[..., Face], side_px: float,
    pose: tuple[float, float, float], weight: float,
) -> None:  # fmt: skip
    identities = make()
    identities.observe(frame(0, 0), face())
    identities.observe(frame(1, 1), face(side_px=side_px, pose=pose))
    number = identities.person_of(0)
    assert number is not None
    average = identities.embedding_of(number)
    assert float(average[1] / average[0]) == pytest.approx(weight, abs=1e-5)


def test_averaging_takes_the_noise_out(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    recogniser.noise = 1.0
    identities = make(enough=10)
    for index in range(10):
        identities.observe(frame(index), face())
    number = identities.person_of(0)
    assert number is not None
    assert float(identities.embedding_of(number) @ person(0)) > 0.93  # one look has about 0.71


def test_looks_keep_their_distance_in_time_and_end_when_there_are_enough(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make(interval_s=0.1, enough=4)
    for index in range(25):
        identities.observe(frame(index), face())
    assert recogniser.n_seen == 4  # at 0, 0.12, 0.24, 0.36 s
    for index in range(25):
        identities.observe(frame(index), face(1, pose=(60.0, 0.0, 0.0)))
    assert recogniser.n_seen == 4 + 9  # poor ones never are enough, 25 frames of 40 ms give 9


def test_poor_looks_end_too(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make(enough=4)
    for index in range(50):
        identities.observe(frame(index), face(pose=(60.0, 0.0, 0.0)))
    assert recogniser.n_seen == 12


def test_predicted_faces_and_faces_without_landmarks_teach_nothing(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    identities.observe(frame(0), replace(face(), is_predicted=True))
    identities.observe(frame(1), replace(face(), mesh=None))
    assert recogniser.n_seen == 0 and identities.person_of(0) is None


def test_embeddings_that_are_not_finite_are_ignored(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    good = recogniser.embed
    for index, value in enumerate((np.nan, np.inf, None, np.nan)):
        broken = np.full(128, value if value is not None else 0.0, np.float32)
        recogniser.embed = good if value is None else (lambda *_, b=broken: b)  # type: ignore[method-assign]
        identities.observe(frame(index, 7), face())
    number = identities.person_of(0)
    assert number is not None and np.array_equal(identities.embedding_of(number), person(7))


def test_only_useless_embeddings_make_nobody(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    recogniser.embed = lambda *_: np.full(128, np.nan, np.float32)  # type: ignore[method-assign]
    identities.observe(frame(0), face())
    assert identities.person_of(0) is None
    recogniser.embed = lambda *_: np.zeros(128, np.float32)  # type: ignore[method-assign]
    identities.observe(frame(1), face())
    assert identities.person_of(0) is None


def test_a_track_is_fixed_when_it_is_first_asked_for(
    make: Callable[..., Identities], face: Callable[..., Face]
) -> None:
    identities = make()
    identities.observe(frame(0, 3), face())
    first = identities.person_of(0)
    assert first is not None
    before = identities.embedding_of(first).copy()
    for index in range(1, 9):
        identities.observe(frame(index, 4), face())
    assert identities.person_of(0) == first and np.array_equal(identities.embedding_of(first), before)


def test_a_person_is_found_again_in_another_track_and_others_are_not(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    recogniser.noise = 0.5
    for track_id, number in enumerate((5, 6, 5, 7, 6)):
        for index in range(8):
            identities.observe(frame(20 * track_id + index, number), face(track_id))
    assert [identities.person_of(track_id) for track_id in range(5)] == [0, 1, 0, 2, 1]


@pytest.mark.parametrize(("similarity", "is_same"), [(0.45, False), (0.66, True)])
def test_the_threshold_decides_whether_two_tracks_are_one_person(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser,
    similarity: float, is_same: bool,
) -> None:  # fmt: skip
    identities = make()
    alike = np.float32(similarity) * person(0) + np.float32(math.sqrt(1 - similarity**2)) * person(1)
    for track_id, embedding in enumerate((person(0), alike)):
        recogniser.embed = lambda *_, e=embedding: e  # type: ignore[method-assign]
        identities.observe(frame(track_id), face(track_id))
    assert (identities.person_of(0) == identities.person_of(1)) is is_same


def test_only_looks_up_to_the_given_time_count(
    make: Callable[..., Identities], face: Callable[..., Face]
) -> None:
    identities = make()
    for index, number in enumerate((1, 1, 2, 2, 2)):
        identities.observe(frame(index, number), face())
    assert identities.person_of(9, until_pts_s=0.05) is None
    assert identities.person_of(0, until_pts_s=-1.0) is None, "not fixed by a call that knows nothing"
    number = identities.person_of(0, until_pts_s=1 / 25)
    assert number is not None and np.array_equal(identities.embedding_of(number), person(1))


@settings(max_examples=examples(60))
@given(until=st.integers(0, 12), n_ahead=st.integers(0, 20))
def test_how_far_the_other_thread_is_does_not_matter(until: int, n_ahead: int) -> None:
    """Whoever asks at frame `until` gets the same person, however many later frames have been observed."""
    answers = []
    for n_seen in (until + 1, until + 1 + n_ahead):
        recogniser = FakeRecogniser()
        recogniser.noise = 0.8
        identities = Identities(lambda r=recogniser: r, IdentityOptions())  # type: ignore[misc]
        identities.open()
        for index in range(n_seen):
            identities.observe(frame(index), _front_face())
        number = identities.person_of(0, until_pts_s=until / 25)
        assert number is not None
        answers.append(identities.embedding_of(number))
    assert np.array_equal(*answers)


def _front_face() -> Face:
    from keyface.pipeline.face import FaceMesh

    points = np.random.RandomState(0).uniform(0, 100, (478, 3)).astype(np.float32)
    mesh = FaceMesh(points, np.zeros(52, np.float32), np.zeros(3, np.float32), 0.9)
    return Face(0, np.array([0, 0, 100, 100], np.float32), None, 0.9, False, mesh)


def test_people_stay_known_in_the_next_clip_and_tracks_do_not(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    for track_id, number in enumerate((8, 9)):
        identities.observe(frame(0, number), face(track_id))
        assert identities.person_of(track_id) == track_id
    identities.close()
    assert recogniser.is_closed
    recogniser.is_closed = False
    identities.open()
    assert identities.person_of(0) is None
    identities.observe(frame(0, 9), face(0))
    assert identities.person_of(0) == 1


def test_nothing_is_learnt_before_opening_or_after_closing(
    make: Callable[..., Identities], face: Callable[..., Face], recogniser: FakeRecogniser
) -> None:
    identities = make()
    identities.close()
    identities.close()
    identities.observe(frame(0), face())
    assert recogniser.n_seen == 0 and identities.person_of(0) is None


def test_observing_and_asking_from_two_threads(
    make: Callable[..., Identities], face: Callable[..., Face]
) -> None:
    """500 tracks of 20 people: each is asked for while the next are observed; answers never change."""
    identities = make(enough=4)
    seen = face()
    is_known = [threading.Event() for _ in range(500)]
    answers: dict[int, int | None] = {}

    def ask() -> None:
        for track_id, event in enumerate(is_known):
            assert event.wait(20)
            answers[track_id] = identities.person_of(track_id, until_pts_s=1.0)
            assert answers[track_id] == identities.person_of(track_id)

    asking = threading.Thread(target=ask)
    asking.start()
    for track_id, event in enumerate(is_known):
        for index in range(3):
            identities.observe(frame(index, track_id % 20), replace(seen, track_id=track_id))
        event.set()
    asking.join(20)
    assert not asking.is_alive()
    assert answers == {track_id: track_id % 20 for track_id in range(500)}


# The recogniser itself.


def recogniser_of(answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> tuple[Recogniser, FakeEngine]:
    engine = FakeEngine(
        (TensorSpec("data", "float32", (1, 3, 112, 112)),), (TensorSpec("fc1", "float32", (1, 128)),), answer
    )
    return Recogniser(engine), engine


ARCFACE_POINTS = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32)


def test_recogniser_gives_the_network_rgb_planes_and_returns_a_unit_vector() -> None:
    got: list[np.ndarray] = []

    def answer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        got.append(inputs["data"])
        return {"fc1": np.full((1, 128), 3.0, np.float32)}

    recogniser, engine = recogniser_of(answer)
    image = np.zeros((112, 112, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 200, 100, 50
    embedding = recogniser.embed(image, ARCFACE_POINTS)
    assert embedding.shape == (128,) and embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, 1 / np.sqrt(128), rtol=1e-5)
    np.testing.assert_allclose(got[0][0, :, 56, 56], [200, 100, 50], atol=1)
    recogniser.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"data": got[0]})


def test_recogniser_that_answers_nan_is_an_engine_error() -> None:
    recogniser, _ = recogniser_of(lambda _: {"fc1": np.full((1, 128), np.nan, np.float32)})
    with pytest.raises(EngineError, match="not finite"):
        recogniser.embed(np.zeros((112, 112, 3), np.uint8), ARCFACE_POINTS)
