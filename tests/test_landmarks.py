"""Landmark back-ends: the crop, the hints, plausibility, and parity with MediaPipe itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import EngineError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.open import open_engine
from keyface.pipeline.face import BLENDSHAPE_NAMES, FaceMesh
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.faces.geometry import (
    apply_affine,
    box_from_mesh,
    euler_ypr_deg,
    head_rotation,
    points_5_from_mesh,
    pose_from_mesh,
)
from keyface.pipeline.faces.landmarks import (
    BLENDSHAPE_INPUT_INDEX,
    LiteRtLandmarker,
    Roi,
    box_from_points_5,
    roi_from_box,
    roi_from_points,
)
from keyface.pipeline.faces.landmarks_face_alignment import (
    MESH_INDEX_OF_68,
    FaceAlignmentLandmarker,
    mesh_from_68,
)
from keyface.pipeline.faces.landmarks_mediapipe import MediaPipeLandmarker
from keyface.pipeline.faces.plausible import is_plausible

Array = npt.NDArray[Any]
MeshAt = Callable[..., FaceMesh]
SIZE = (640, 480)
IMAGE = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
MOUTH = np.isin(np.arange(478), [61, 291])[:, None]
BOX = np.array([200, 100, 320, 250], np.float32)


# ---------------------------------------------------------------- the crop
def test_roi_maps_its_corners() -> None:
    roi = Roi((100.0, 50.0), 40.0, 0.0)
    corners = apply_affine(roi.frame_from_crop(256), np.array([[0, 0], [256, 256]]))
    np.testing.assert_allclose(corners, [[80, 30], [120, 70]], atol=1e-4)


def test_roi_turns_with_the_eyes(mesh_at: MeshAt) -> None:
    points = mesh_at(BOX).points_xyz
    upright = roi_from_points(points)
    assert upright.angle_rad == pytest.approx(0, abs=0.01)
    turn = np.radians(30)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    turned = points.copy()
    turned[:, :2] = points[:, :2] @ rotation.T
    assert roi_from_points(turned).angle_rad == pytest.approx(turn, abs=0.01)
    eyes = apply_affine(roi_from_points(turned).frame_from_crop(), np.array([[50, 99], [200, 99]]))
    assert np.arctan2(*(eyes[1] - eyes[0])[::-1]) == pytest.approx(turn, abs=0.01)


def test_roi_of_a_detection_is_near_that_of_its_mesh(mesh_at: MeshAt) -> None:
    mesh = mesh_at(BOX)
    from_mesh = roi_from_points(mesh.points_xyz)
    for points_5 in (None, points_5_from_mesh(mesh.points_xyz)):
        from_box = roi_from_box(box_from_mesh(mesh.points_xyz), points_5)
        np.testing.assert_allclose(from_box.centre_xy, from_mesh.centre_xy, atol=0.05 * from_mesh.side_px)
        assert from_box.side_px == pytest.approx(from_mesh.side_px, rel=0.1)
        assert from_box.angle_rad == pytest.approx(from_mesh.angle_rad, abs=0.02)


def test_box_guessed_from_five_points(mesh_at: MeshAt) -> None:
    mesh = mesh_at(BOX)
    box = box_from_mesh(mesh.points_xyz)
    np.testing.assert_allclose(box_from_points_5(points_5_from_mesh(mesh.points_xyz)), box, atol=30)


# ---------------------------------------------------------------- LiteRT, with engines that are not there
class FakeMesh:
    """Always sees the same face in its crop: 478 points of a canonical face of 160 px."""

    def __init__(self, logit: float = 8.0) -> None:
        self.logit = logit
        points = np.vstack([CANONICAL_XYZ, np.repeat(CANONICAL_XYZ[[33, 263]], 5, 0)]) * [9, -9, -9]
        self.points = points + np.array([128, 128, 0])
        self.crops: list[Array] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.crops.append(inputs["input_12"][0])
        return {
            "Identity": self.points.astype(np.float32).reshape(1, 1, 1, 1434),
            "Identity_1": np.full((1, 1, 1, 1), self.logit, np.float32),
            "Identity_2": np.zeros((1, 1), np.float32),
        }


def litert(
    fake: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    blend: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
    **options: Any,
) -> LiteRtLandmarker:
    mesh = FakeEngine(
        (TensorSpec("input_12", "float32", (1, 256, 256, 3)),),
        (
            TensorSpec("Identity", "float32", (1, 1, 1, 1434)),
            TensorSpec("Identity_1", "float32", (1, 1, 1, 1)),
            TensorSpec("Identity_2", "float32", (1, 1)),
        ),
        fake,
    )
    blendshapes = FakeEngine(
        (TensorSpec("serving_default_input_points:0", "float32", (1, 146, 2)),),
        (TensorSpec("StatefulPartitionedCall:0", "float32", (52,)),),
        blend,
    )
    return LiteRtLandmarker(mesh, blendshapes, **options)


def test_points_come_back_in_picture_pixels() -> None:
    fake = FakeMesh()
    mesh = litert(fake, refine=False).detect(IMAGE, box_xyxy=BOX)
    assert mesh is not None
    roi = roi_from_box(BOX)
    expected = apply_affine(roi.frame_from_crop(), fake.points)
    np.testing.assert_allclose(mesh.points_xy, expected, atol=1e-3)
    np.testing.assert_allclose(mesh.points_xyz[:, 2], fake.points[:, 2] * roi.side_px / 256, atol=1e-3)
    assert mesh.score == pytest.approx(1 / (1 + np.exp(-8)))
    assert mesh.points_xyz.shape == (478, 3) and mesh.blendshapes.shape == (52,)
    np.testing.assert_allclose(mesh.pose_ypr_deg, pose_from_mesh(mesh.points_xyz), atol=1e-4)


def test_crop_is_rgb_between_zero_and_one() -> None:
    fake = FakeMesh()
    image = IMAGE.copy()
    image[..., 0], image[..., 2] = 255, 51
    litert(fake, refine=False).detect(image, box_xyxy=BOX)
    np.testing.assert_allclose(fake.crops[0][128, 128], [1.0, 0.0, 0.2], atol=1e-6)


def test_refine_looks_twice_but_not_with_a_previous_mesh(mesh_at: MeshAt) -> None:
    fake = FakeMesh()
    landmarker = litert(fake)
    landmarker.detect(IMAGE, box_xyxy=BOX)
    assert len(fake.crops) == 2
    landmarker.detect(IMAGE, previous=mesh_at(BOX), box_xyxy=BOX)
    assert len(fake.crops) == 3


def test_blendshape_input_is_the_146_points_in_pixels() -> None:
    seen: list[Array] = []

    def blend(inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(inputs["serving_default_input_points:0"])
        return {"StatefulPartitionedCall:0": np.full(52, 1.5, np.float32)}

    mesh = litert(FakeMesh(), blend).detect(IMAGE, box_xyxy=BOX)
    assert mesh is not None
    np.testing.assert_array_equal(seen[-1][0], mesh.points_xy[BLENDSHAPE_INPUT_INDEX])
    assert mesh.blendshapes.max() == 1.0  # clipped
    assert len(set(BLENDSHAPE_INPUT_INDEX.tolist())) == 146 and BLENDSHAPE_INPUT_INDEX.max() == 477


def test_low_presence_is_no_face() -> None:
    assert litert(FakeMesh(logit=-1.0)).detect(IMAGE, box_xyxy=BOX) is None
    assert litert(FakeMesh(logit=-1.0), min_score=0.1).detect(IMAGE, box_xyxy=BOX) is not None


def test_no_hint_is_an_error() -> None:
    with pytest.raises(ValueError, match="no hint"):
        litert(FakeMesh()).detect(IMAGE)


def test_output_that_is_not_finite_raises() -> None:
    fake = FakeMesh()
    fake.points = fake.points * np.nan
    with pytest.raises(EngineError, match="not finite"):
        litert(fake).detect(IMAGE, box_xyxy=BOX)


@pytest.mark.parametrize("box", [(-500, -500, -400, -380), (10, 10, 10, 10), (0, 0, 9000, 9000)])
def test_odd_boxes_do_not_break_it(box: tuple[int, ...]) -> None:
    mesh = litert(FakeMesh()).detect(IMAGE, box_xyxy=np.array(box, np.float32))
    assert mesh is None or np.isfinite(mesh.points_xyz).all()


# ---------------------------------------------------------------- plausibility
def changed(mesh: FaceMesh, points_xyz: Array) -> FaceMesh:
    return FaceMesh(points_xyz.astype(np.float32), mesh.blendshapes, mesh.pose_ypr_deg, mesh.score)


def test_a_face_where_it_should_be_is_plausible(mesh_at: MeshAt) -> None:
    assert is_plausible(mesh_at(BOX), BOX, SIZE)
    assert is_plausible(mesh_at(BOX), BOX + np.array([20, -20, 20, -20]), SIZE)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("off its box", lambda p: p + np.array([90, 0, 0])),
        ("too large", lambda p: (p - p.mean(0)) * 2.2 + p.mean(0)),
        ("too small", lambda p: (p - p.mean(0)) * 0.4 + p.mean(0)),
        ("mouth above the eyes", lambda p: np.where(MOUTH, p - np.array([0, 90, 0]), p)),
        ("collapsed", lambda p: p * 0 + p.mean(0)),
        ("not finite", lambda p: p * np.nan),
    ],
)
def test_what_is_no_face(mesh_at: MeshAt, what: str, change: Callable[[Array], Array]) -> None:
    mesh = mesh_at(BOX)
    assert not is_plausible(changed(mesh, change(mesh.points_xyz)), BOX, SIZE), what


def test_a_face_mostly_outside_is_not_plausible(mesh_at: MeshAt) -> None:
    box = BOX - [0, 200, 0, 200]
    assert not is_plausible(mesh_at(box), box, SIZE)


# ---------------------------------------------------------------- face-alignment, with a stand-in
class StandIn:
    """What face_alignment offers, without its network."""

    LandmarksType = SimpleNamespace(TWO_D=1)
    answer: Any = None
    made_with: dict[str, Any]

    def __init__(self) -> None:
        self.boxes: list[Any] = []

    def FaceAlignment(self, kind: int, **options: Any) -> StandIn:
        StandIn.made_with = {"kind": kind, **options}
        return self

    def get_landmarks_from_image(self, image: Array, detected_faces: Any) -> Any:
        self.boxes.append(detected_faces)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "face_alignment", module)  # type: ignore[arg-type]
    return module


def test_68_points_become_a_mesh(stand_in: StandIn, mesh_at: MeshAt) -> None:
    truth = mesh_at(BOX)
    stand_in.answer = [truth.points_xy[MESH_INDEX_OF_68]]
    landmarker = FaceAlignmentLandmarker(device="cpu")
    assert StandIn.made_with == {"kind": 1, "device": "cpu", "flip_input": False}
    mesh = landmarker.detect(IMAGE, box_xyxy=BOX)
    assert mesh is not None and stand_in.boxes == [[BOX.tolist()]]
    side = BOX[3] - BOX[1]
    off = np.linalg.norm(mesh.points_xy[:468] - truth.points_xy[:468], axis=1)
    assert off.max() < 0.03 * side and is_plausible(mesh, BOX, SIZE)
    np.testing.assert_allclose(mesh.pose_ypr_deg, truth.pose_ypr_deg, atol=5)
    np.testing.assert_allclose(
        points_5_from_mesh(mesh.points_xyz), points_5_from_mesh(truth.points_xyz), atol=2
    )
    known = {"jawOpen", "eyeBlinkLeft", "eyeBlinkRight"}
    assert all(v == 0 for n, v in zip(BLENDSHAPE_NAMES, mesh.blendshapes, strict=True) if n not in known)
    landmarker.close()


def test_68_points_follow_an_open_mouth(stand_in: StandIn, mesh_at: MeshAt) -> None:
    points = mesh_at(BOX).points_xy[MESH_INDEX_OF_68]
    points[[55, 56, 57, 58, 59, 65, 66, 67]] += [0, 25]
    stand_in.answer = [points]
    mesh = FaceAlignmentLandmarker().detect(IMAGE, points_5=points_5_from_mesh(mesh_at(BOX).points_xyz))
    assert mesh is not None and mesh.blendshapes[BLENDSHAPE_NAMES.index("jawOpen")] > 0.4
    np.testing.assert_allclose(mesh_from_68(points.astype(np.float64))[14, :2], points[66], atol=3)


def test_face_alignment_without_a_face(stand_in: StandIn) -> None:
    landmarker = FaceAlignmentLandmarker()
    for stand_in.answer in (None, [], [np.full((68, 2), np.nan)]):
        assert landmarker.detect(IMAGE, box_xyxy=BOX) is None


@pytest.mark.parametrize("answer", [RuntimeError("out of memory"), [np.zeros((5, 2))]])
def test_face_alignment_failures(stand_in: StandIn, answer: Any) -> None:
    stand_in.answer = answer
    with pytest.raises(EngineError, match="face-alignment"):
        FaceAlignmentLandmarker().detect(IMAGE, box_xyxy=BOX)


def test_face_alignment_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(EngineError, match="not installed"):
        FaceAlignmentLandmarker()


def test_face_alignment_offline(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(stand_in, "FaceAlignment", unreachable)
    with pytest.raises(EngineError, match="first run"):
        FaceAlignmentLandmarker()


# ---------------------------------------------------------------- the networks themselves
@pytest.fixture(scope="module")
def photos(shared_dir: Path) -> list[Array]:
    paths = sorted((shared_dir / "data/photos/ffhq256").iterdir())[:8]
    return [np.asarray(cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB)) for p in paths]


@pytest.fixture(scope="module")
def real_litert(models: Any) -> Iterator[LiteRtLandmarker]:
    mesh, blendshapes = (open_engine(models.path(n), threads=1) for n in ("face_mesh", "face_blendshapes"))
    landmarker = LiteRtLandmarker(mesh, blendshapes)
    yield landmarker
    landmarker.close()


@pytest.fixture(scope="module")
def reference(models: Any, photos: list[Array]) -> list[tuple[Array, Array, Array]]:
    """MediaPipe's own points (px), blendshapes and rotation for each photo."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(models.path("face_landmarker"))),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    landmarker = vision.FaceLandmarker.create_from_options(options)
    found = []
    for photo in photos:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(photo))
        result = landmarker.detect(image)
        height, width = photo.shape[:2]
        points = np.array([[p.x * width, p.y * height, p.z * width] for p in result.face_landmarks[0]])
        matrix = np.array(result.facial_transformation_matrixes[0])[:3, :3]
        found.append((points, np.array([c.score for c in result.face_blendshapes[0]]), matrix))
    landmarker.close()
    return found


def test_pose_is_mediapipes(photos: list[Array], reference: list[tuple[Array, Array, Array]]) -> None:
    for photo, (points, _, matrix) in zip(photos, reference, strict=True):
        ours = head_rotation(points, (photo.shape[1], photo.shape[0]))
        np.testing.assert_allclose(ours, matrix / np.linalg.norm(matrix, axis=0), atol=1e-4)
        assert np.abs(euler_ypr_deg(ours)).max() < 60


def test_landmarks_are_mediapipes(
    photos: list[Array], reference: list[tuple[Array, Array, Array]], real_litert: LiteRtLandmarker
) -> None:
    """They start from another detector's box, so not the same; the same networks, so near."""
    for photo, (points, blendshapes, _) in zip(photos, reference, strict=True):
        mesh = real_litert.detect(photo, box_xyxy=box_from_mesh(points), points_5=points_5_from_mesh(points))
        assert mesh is not None and mesh.score > 0.9
        side = np.ptp(points[:, 1])
        assert np.linalg.norm(mesh.points_xy - points[:, :2], axis=1).mean() < 0.02 * side
        assert np.abs(mesh.blendshapes - blendshapes).mean() < 0.06
        np.testing.assert_allclose(mesh.pose_ypr_deg, pose_from_mesh(points), atol=5)


def test_mediapipe_landmarker_agrees(models: Any, photos: list[Array], real_litert: LiteRtLandmarker) -> None:
    landmarker = MediaPipeLandmarker(models.path("face_landmarker"))
    try:
        for photo in photos[:4]:
            ours = real_litert.detect(photo, box_xyxy=np.array([60, 60, 200, 220], np.float32))
            assert ours is not None
            theirs = landmarker.detect(photo, previous=ours)
            assert theirs is not None
            off = np.linalg.norm(ours.points_xy - theirs.points_xy, axis=1).mean()
            assert off < 0.02 * np.ptp(ours.points_xy[:, 1])
        assert landmarker.detect(np.zeros((64, 64, 3), np.uint8), box_xyxy=np.array([9, 9, 50, 50])) is None
    finally:
        landmarker.close()
        landmarker.close()


def test_mediapipe_landmarker_refuses_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.task"
    path.write_bytes(b"not a task")
    with pytest.raises(EngineError, match=r"wrong\.task"):
        MediaPipeLandmarker(path)
