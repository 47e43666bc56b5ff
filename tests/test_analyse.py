"""The analyse stage: when the detector runs, whom it believes, what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import EngineError, StageError, UsageError
from keyface.pipeline.face import F32, AnalysedFrame, Detection, FaceMesh
from keyface.pipeline.faces.analyse import AnalyseOptions, Analyser
from keyface.pipeline.faces.geometry import iou_matrix, points_5_from_mesh
from keyface.pipeline.faces.track import TrackOptions
from keyface.pipeline.frame import Frame

MeshAt = Callable[..., FaceMesh]
Array = npt.NDArray[Any]
FPS = 25.0
WIDTH, HEIGHT = 640, 360


class World:
    """Where faces are, frame by frame, and what detector and landmarker make of it.

    A face is a box and two scores: the detector's and the mesh's; 0 means not seen.
    """

    def __init__(self, mesh_at: MeshAt) -> None:
        self.mesh_at = mesh_at
        self.faces: list[tuple[F32, float, float]] = []
        self.false_alarms: list[Detection] = []
        self.n_detections = self.n_near = self.n_meshes = 0
        self.is_closed = False
        self.input_scale = 1.0
        self.failure: Exception | None = None

    def put(self, *faces: tuple[float, float, float] | tuple[float, float, float, float, float]) -> None:
        """Faces as centre x, y, side[, detection score, mesh score]."""
        self.faces = []
        for cx, cy, side, *scores in faces:
            box = np.array([cx - 0.4 * side, cy - side / 2, cx + 0.4 * side, cy + side / 2], np.float32)
            self.faces.append((box, *(scores or (0.9, 0.99))))  # type: ignore[arg-type]

    # detector
    def detect(self, image_rgb: Array, *, min_score: float | None = None) -> list[Detection]:
        self.n_detections += 1
        if self.failure is not None:
            raise self.failure
        found = [*map(self._detection, self.faces), *self.false_alarms]
        return [d for d in found if d.score > 0 and d.score >= (min_score or 0.5)]

    def detect_near(
        self, image_rgb: Array, box_xyxy: F32, *, min_score: float, input_px: int = 160
    ) -> list[Detection]:
        self.n_near += 1
        found = [self._detection(face) for face in self.faces if face[1] >= min_score]
        return [d for d in found if iou_matrix(d.box_xyxy[None], box_xyxy[None])[0, 0] > 0.1]

    def _detection(self, face: tuple[F32, float, float]) -> Detection:
        return Detection(face[0], points_5_from_mesh(self.mesh_at(face[0]).points_xyz), face[1])

    # landmarker
    def find(
        self,
        image_rgb: Array,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None:
        self.n_meshes += 1
        centre = points_5_from_mesh(previous.points_xyz).mean(0) if previous is not None else None
        if box_xyxy is not None:
            centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
        assert centre is not None
        for box, _, score in self.faces:
            if score > 0 and np.linalg.norm((box[:2] + box[2:]) / 2 - centre) < box[3] - box[1]:
                return self.mesh_at(box, score=score)
        return None

    def close(self) -> None:
        self.is_closed = True


class Landmarks:
    """The landmarker's side of a `World`."""

    def __init__(self, world: World) -> None:
        self.detect = world.find
        self.close = world.close


class Play:
    def __init__(self, world: World, **options: Any) -> None:
        self.world = world
        self.analyser = Analyser(
            AnalyseOptions(**options), open_detector=lambda: world, open_landmarker=lambda: Landmarks(world)
        )
        self.analyser.open()
        self.index = 0

    def step(self, image_rgb: Array | None = None, *, is_suspect: bool = False) -> AnalysedFrame:
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8) if image_rgb is None else image_rgb
        frame = Frame(image, self.index, self.index / FPS, is_suspect=is_suspect)
        self.index += 1
        return self.analyser.process(frame)


@pytest.fixture
def world(mesh_at: MeshAt) -> World:
    return World(mesh_at)


def test_steady_face_is_followed_by_landmarks(world: World) -> None:
    play = Play(world, detect_every=5)
    for i in range(33):
        world.put((200 + 3 * i, 180, 100))
        face = play.step().faces[0]
        assert face.track_id == 0 and face.mesh is not None and not face.is_predicted and face.age == i
        assert iou_matrix(face.box_xyxy[None], world.faces[0][0][None])[0, 0] > 0.85
    assert world.n_detections <= 3 + 7  # the first frames, then every fifth
    assert world.n_near == 0


def test_nobody(world: World) -> None:
    play = Play(world)
    assert all(play.step().faces == () for _ in range(12))
    assert world.n_meshes == 0


def test_face_that_vanishes_is_predicted_then_gone(world: World) -> None:
    play = Play(world)
    world.put((200, 180, 100))
    for _ in range(8):
        play.step()
    world.put()
    frames = [play.step() for _ in range(40)]
    predicted = [f.faces[0] for f in frames if f.faces]
    assert 24 <= len(predicted) <= 27
    assert all(f.is_predicted and f.mesh is None and f.track_id == 0 for f in predicted)


def test_detector_has_the_last_word(world: World) -> None:
    """A mesh that stays on nothing is not believed beyond the next detection."""
    play = Play(world, detect_every=4)
    world.put((200, 180, 100))
    for _ in range(6):
        play.step()
    world.put((200, 180, 100, 0.0, 0.99))
    states = [play.step().faces[0].is_predicted for _ in range(6)]
    assert states[-1] and states.index(True) < 4
    assert world.n_near > 0  # not without a closer look


def test_weak_detection_keeps_a_track(world: World) -> None:
    play = Play(world)
    world.put((200, 180, 100))
    for _ in range(6):
        play.step()
    world.put((200, 180, 100, 0.4, 0.99))
    assert all(play.step().faces[0].mesh is not None for _ in range(12))


def test_face_without_landmarks_is_still_a_face(world: World) -> None:
    play = Play(world)
    world.put((200, 180, 100, 0.9, 0.0))
    for _ in range(20):
        face = play.step().faces[0]
        assert face.mesh is None and not face.is_predicted
    assert world.n_detections < 12  # closer looks do


def test_tiny_face_gets_no_mesh(world: World) -> None:
    play = Play(world, min_mesh_px=20)
    world.put((200, 180, 15))
    assert play.step().faces[0].mesh is None and world.n_meshes == 0


@pytest.mark.parametrize(
    ("score", "near", "first", "second"),
    [(0.9, 0.9, 1, 1), (0.7, 0.7, 1, 1), (0.4, 0.55, 1, 1), (0.7, 0.0, 0, 1), (0.5, 0.0, 0, 0)],
)
def test_newcomers_in_doubt(world: World, score: float, near: float, first: int, second: int) -> None:
    """`near` is the score in the closer look."""
    play = Play(world)
    world.put((200, 180, 100, near, 0.0))
    alarm = world._detection(world.faces[0])
    world.false_alarms = [Detection(alarm.box_xyxy, alarm.points_5, score)]
    world.detect = lambda image_rgb, *, min_score=None: world.false_alarms  # type: ignore[method-assign]
    assert len(play.step().faces) == first
    assert len(play.step().faces) == second


def test_photo_takes_doubtful_faces_at_once(world: World) -> None:
    world.put((200, 180, 100, 0.0, 0.0))
    found = world._detection(world.faces[0])
    world.false_alarms = [Detection(found.box_xyxy, found.points_5, 0.7)]
    assert len(Play(world, is_still=True).step().faces) == 1


def test_implausible_mesh_is_dropped(world: World, mesh_at: MeshAt) -> None:
    play = Play(world)
    world.put((200, 180, 100))
    small = mesh_at((190, 170, 210, 190))
    world.find = lambda *args, **hints: small  # type: ignore[method-assign]
    play = Play(world)
    face = play.step().faces[0]
    assert face.mesh is None and not face.is_predicted


def test_jump_asks_the_detector(world: World) -> None:
    play = Play(world, detect_every=100)
    world.put((200, 180, 100))
    for _ in range(6):
        play.step()
    before = world.n_detections + world.n_near
    world.put((260, 180, 100))
    face = play.step().faces[0]
    assert world.n_detections + world.n_near > before
    assert face.track_id == 0 and not face.is_predicted


def test_many_faces_keep_their_ids(world: World) -> None:
    play = Play(world)
    for i in range(20):
        world.put(*[(60 + 85 * k + i, 100 + 10 * k, 60) for k in range(6)])
        faces = play.step().faces
        assert sorted(f.track_id for f in faces) == list(range(6))
        by_x = sorted(faces, key=lambda f: float(f.box_xyxy[0]))
        assert [f.track_id for f in by_x] == sorted(f.track_id for f in faces)


def test_cut_is_reported_and_detected_on(world: World) -> None:
    play = Play(world, detect_every=100)
    rng = np.random.default_rng(3)
    first, second = (
        np.kron(rng.integers(0, 255, (6, 10, 3)).astype(np.uint8) // k, np.ones((60, 64, 1), np.uint8))
        for k in (1, 3)
    )
    world.put((200, 180, 100))
    for _ in range(6):
        assert not play.step(first).is_cut
    world.put((450, 200, 80))
    after = play.step(second)
    assert after.is_cut and len(after.faces) == 1 and not after.faces[0].is_predicted


def test_damaged_frame_is_detected_on(world: World) -> None:
    play = Play(world, detect_every=100)
    world.put((200, 180, 100))
    for _ in range(6):
        play.step()
    before = world.n_detections
    play.step(is_suspect=True)
    assert world.n_detections == before + 1


@pytest.mark.parametrize(
    ("pause_s", "is_asked", "is_cut"), [(0.1, False, False), (0.3, True, False), (0.6, True, True)]
)
def test_after_a_pause_the_detector_is_asked_and_after_a_long_one_nobody_is_followed(
    world: World, pause_s: float, is_asked: bool, is_cut: bool
) -> None:
    play = Play(world, detect_every=100, longest_gap_s=0.5)
    world.put((200, 180, 100))
    for _ in range(6):
        play.step()
    before, play.index = world.n_detections, play.index + round(pause_s * FPS)
    world.put((200, 180, 100, 0.0 if is_cut else 0.9, 0.99))  # a mesh fits what the detector does not find
    after = play.step()
    assert (world.n_detections > before) == is_asked
    assert after.is_cut == is_cut and bool(after.faces) == (not is_cut)


def test_failures_are_raised_not_hidden(world: World) -> None:
    play = Play(world)
    world.put((200, 180, 100))
    world.failure = EngineError("detector failed.")
    with pytest.raises(EngineError, match="detector failed"):
        play.step()


def test_open_and_close(world: World) -> None:
    play = Play(world)
    world.put((200, 180, 100))
    play.step()
    play.analyser.close()
    play.analyser.close()
    assert world.is_closed
    with pytest.raises(StageError, match="not open"):
        play.step()
    play.analyser.open()  # a new source: ids begin again
    assert play.step().faces[0].track_id == 0


@pytest.mark.parametrize("options", [{"detect_every": 0}, {"keep_score": 0.9}, {"landmarker": "dlib"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"want|Legal"):
        AnalyseOptions(**options)


# ---------------------------------------------------------------- with the networks, on real clips
@pytest.fixture(scope="module")
def analyser(models: Any) -> Iterator[Analyser]:
    yield Analyser.from_store(models)


def frames(path: Path, n: int) -> list[Array]:
    import av

    with av.open(str(path)) as container:
        return [
            f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(n), strict=False)
        ]


def play_clip(analyser: Analyser, images: list[Array], fps: float = 25.0) -> list[AnalysedFrame]:
    analyser.open()
    try:
        return [analyser.process(Frame(image, i, i / fps)) for i, image in enumerate(images)]
    finally:
        analyser.close()


@pytest.mark.parametrize(
    ("clip", "n_faces", "min_mesh_share"),
    [
        ("lp_d3", 1, 1.0),
        ("lp_s20", 1, 1.0),
        ("intel_head-pose-face-detection-female-and-male", 2, 0.95),
        ("intel_classroom", 4, 0.0),  # faces of 20 px
    ],
)
def test_real_clips(
    analyser: Analyser, shared_dir: Path, clip: str, n_faces: int, min_mesh_share: float
) -> None:
    results = play_clip(analyser, frames(shared_dir / f"data/videos/real/{clip}.mp4", 40))
    faces = [face for result in results for face in result.faces]
    assert {len(result.faces) for result in results} == {n_faces}
    assert {face.track_id for face in faces} == set(range(n_faces))
    assert np.mean([face.mesh is not None for face in faces]) >= min_mesh_share
    assert not any(result.is_cut for result in results)


def test_real_cuts_keep_identities(analyser: Analyser, shared_dir: Path) -> None:
    folder = shared_dir / "data/videos/real"
    one, other = frames(folder / "lp_d3.mp4", 40), frames(folder / "lp_d10.mp4", 20)
    results = play_clip(analyser, [*one[:12], *other[:12], *one[28:], *other[8:]])
    assert [r.faces[0].track_id for r in results] == [0] * 12 + [1] * 12 + [0] * 12 + [1] * 12
    assert [i for i, r in enumerate(results) if r.is_cut] == [12, 24, 36]


def test_real_occlusion_is_bridged(analyser: Analyser, shared_dir: Path) -> None:
    images = frames(shared_dir / "data/videos/real/lp_d3.mp4", 40)
    covered = [np.pad(image, ((0, 500), (200, 400), (0, 0)), constant_values=90) for image in images]
    for image in covered[12:24]:
        image[:512, 200:712] = (90, 95, 100)
    results = play_clip(analyser, covered)
    assert {f.track_id for r in results for f in r.faces} == {0} and all(r.faces for r in results)
    assert all(r.faces[0].is_predicted for r in results[13:24])
    assert all(r.faces[0].mesh is not None for r in (*results[:12], *results[25:]))


def test_no_face_in_an_animation(analyser: Analyser, shared_dir: Path) -> None:
    results = play_clip(analyser, frames(shared_dir / "data/videos/noface/pyfeat_no_face.mp4", 40))
    assert not any(result.faces for result in results)


# ---------------------------------------------------------------- unseen faces of a live picture
LIVE = {"detect_every": 1, "track": TrackOptions(max_gap_s=3.0, max_followed_s=10.0, max_growth=1.2)}


def test_a_face_that_only_the_landmarks_follow_keeps_its_mosaic(world: World) -> None:
    play = Play(world, **LIVE)
    for step in range(6):
        world.put((200 + 2 * step, 180, 80))
        play.step()
    for step in range(6, 206):  # eight seconds in which the detector finds nothing, and the face walks away
        world.put((200 + 2 * step, 180, 80, 0.0, 0.99))
        (face,) = play.step().faces
        assert face.is_predicted and face.mesh is None
        x0, y0, x1, y1 = face.box_xyxy
        assert x0 <= 170 + 2 * step and x1 >= 230 + 2 * step and y0 <= 145 and y1 >= 215
    for _ in range(60):
        faces = play.step().faces
    assert not faces, "after ten seconds it is given up"


def test_a_face_that_nobody_finds_keeps_its_mosaic_for_three_seconds(world: World) -> None:
    play = Play(world, **LIVE)
    for _ in range(6):
        world.put((200, 180, 80))
        play.step()
    world.put()
    sizes = []
    for _ in range(74):
        (face,) = play.step().faces
        assert face.is_predicted
        sizes.append(float(face.box_xyxy[2] - face.box_xyxy[0]) / 64)
    later = [play.step().faces for _ in range(6)]
    assert later[-3:] == [(), (), ()]
    assert np.diff(sizes).min() > -0.01 and 2.1 < sizes[-1] < 2.5, "it grows, to a limit"


def test_places_that_are_not_finite_are_no_places(world: World) -> None:
    play = Play(world, **LIVE)
    world.put((200, 180, 80))
    play.step()
    nothing = np.full(4, np.nan, np.float32)
    world.false_alarms = [Detection(nothing, np.full((5, 2), np.nan, np.float32), 0.99)]
    for _ in range(5):
        (face,) = play.step().faces
        assert np.isfinite(face.box_xyxy).all()


def test_a_mesh_that_is_not_finite_is_no_mesh(world: World, mesh_at: MeshAt) -> None:
    play = Play(world, **LIVE)
    world.put((200, 180, 80))
    play.step()

    def nowhere(*_: Any, **__: Any) -> FaceMesh:
        mesh = mesh_at((168, 140, 232, 220))
        return FaceMesh(np.full_like(mesh.points_xyz, np.nan), mesh.blendshapes, mesh.pose_ypr_deg, 0.99)

    found = world.find
    play.analyser._landmarker.detect = nowhere  # type: ignore[union-attr,method-assign]
    for _ in range(3):
        (face,) = play.step().faces
        assert face.mesh is None and np.isfinite(face.box_xyxy).all()
    play.analyser._landmarker.detect = found  # type: ignore[union-attr,method-assign]
    (face,) = play.step().faces
    assert face.mesh is not None


def test_pace_may_be_changed_while_it_runs(world: World) -> None:
    play = Play(world, detect_every=1)
    world.put((200, 180, 80))
    for _ in range(8):
        play.step()
    before = world.n_detections
    assert before == 8
    play.analyser.detect_every = 3
    play.analyser.detect_scale = 0.75
    for _ in range(9):
        play.step()
    assert world.n_detections == before + 3 and world.input_scale == 0.75
