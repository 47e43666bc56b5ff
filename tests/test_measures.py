"""The measures behind `keyface evaluate`, one by one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import ModelStoreError
from keyface.configs.evaluation import load_evaluation
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.mobilefacenet import build_mobilefacenet
from keyface.pipeline.face import BLENDSHAPE_NAMES, FaceMesh
from keyface.pipeline.measure.eyes import ARCFACE_POINTS_5, Scrfd, arcface_crop, square_crop
from keyface.pipeline.measure.flicker import measure_flicker
from keyface.pipeline.measure.leak import (
    Change,
    Recognition,
    bar_for,
    destroy_face,
    is_leak,
    measure_change,
)
from keyface.pipeline.measure.motion import MotionPair, measure_consistency, measure_motion
from keyface.tools import fit_thresholds

Image = npt.NDArray[np.uint8]
BOX = np.array([50, 30, 110, 90], np.float32)
POINTS = (ARCFACE_POINTS_5 * (60 / 112) + BOX[:2]).astype(np.float32)


def picture(identity: int = 1) -> Image:
    """160x120, a still background and a texture for a face."""
    rng = np.random.default_rng(identity)
    image = np.full((120, 160, 3), 90, np.uint8)
    coarse = cv2.resize(rng.integers(0, 120, (20, 20, 3), np.uint8), (60, 60), interpolation=cv2.INTER_CUBIC)
    image[30:90, 50:110] = np.clip(coarse.astype(np.float32) + 60, 0, 255).astype(np.uint8)
    return image


def test_change_tells_unchanged_from_changed() -> None:
    a = picture()
    noisy = np.clip(a.astype(int) + np.random.default_rng(0).integers(-2, 3, a.shape), 0, 255).astype(
        np.uint8
    )
    same, noise, other = (measure_change(a, b, BOX) for b in (a, noisy, picture(identity=2)))
    assert same is not None and same.is_unchanged and same.difference == 0
    assert noise is not None and noise.is_unchanged
    assert other is not None and not other.is_unchanged
    assert measure_change(a, a, np.array([158, 118, 400, 400], np.float32)) is None


def test_a_flat_dark_face_without_structure_is_not_called_unchanged() -> None:
    dark = np.full((120, 160, 3), 4, np.uint8)
    change = measure_change(dark, dark + 1, BOX)
    assert change is not None and not change.is_unchanged


@pytest.mark.parametrize(("floor", "bar"), [(-0.2, 0.3), (0.2, 0.3), (0.24, 0.3), (0.25, 0.625), (0.9, 0.95)])
def test_the_bar_rises_where_a_destroyed_face_matches(floor: float, bar: float) -> None:
    assert bar_for(0.3, floor) == pytest.approx(bar)


@pytest.mark.parametrize(
    ("is_unchanged", "matches", "expected"),
    [(True, (0, 0, 0), True), (False, (1, 0, 0), False), (False, (1, 0, 1), True), (False, (1,), True),
     (False, (), False)],
)  # fmt: skip
def test_two_of_three_recognisers_make_a_leak(
    is_unchanged: bool, matches: tuple[int, ...], expected: bool
) -> None:
    change = Change(9.0, 20.0, 0.0, is_unchanged)
    said = {str(i): Recognition(0.9 if hit else 0.1, 0.0, 0.4) for i, hit in enumerate(matches)}
    assert is_leak(change, said) is expected


def test_destroying_a_face_leaves_the_rest() -> None:
    a = picture()
    b = destroy_face(a, BOX)
    assert np.abs(a.astype(int) - b)[35:85, 55:105].mean() > 5
    assert np.array_equal(a[:15], b[:15]) and np.array_equal(a[:, :35], b[:, :35])


def face(jaw: float, ypr: tuple[float, float, float] = (0, 0, 0), smile: float = 0.0) -> FaceMesh:
    shapes = np.zeros(52, np.float32)
    shapes[BLENDSHAPE_NAMES.index("jawOpen")] = jaw
    for side in ("Left", "Right"):
        shapes[BLENDSHAPE_NAMES.index(f"mouthSmile{side}")] = smile
    return FaceMesh(np.zeros((478, 3), np.float32), shapes, np.array(ypr, np.float32), 1.0)


def test_motion_correlates_per_track_and_tells_offsets() -> None:
    jaws = np.linspace(0, 1, 20)
    pairs = [MotionPair(0, face(j), face(j * 0.5, (2, -1, 0.5), smile=0.7)) for j in jaws]
    pairs += [MotionPair(1, face(j), face(1 - j, (2, -1, 0.5), smile=0.7)) for j in jaws[:10]]
    motion = measure_motion(pairs)
    assert motion.correlation == {"jaw_open": pytest.approx(20 / 30 - 10 / 30)}
    assert motion.pose_error_ypr_deg == pytest.approx((2, 1, 0.5))
    assert motion.offset["smile"] == pytest.approx(0.7)
    assert motion.mean_correlation == pytest.approx(1 / 3)


def test_pose_errors_do_not_jump_at_half_a_turn() -> None:
    motion = measure_motion([MotionPair(0, face(0, (0, 179, 0)), face(0, (0, -179, 0)))])
    assert motion.pose_error_ypr_deg == pytest.approx((0, 2, 0))
    assert measure_motion([]).pose_error_ypr_deg is None
    assert motion.correlation == {} and motion.mean_correlation is None


def test_consistency_needs_five_faces() -> None:
    x, y = np.eye(2, dtype=np.float32)
    assert measure_consistency([0] * 5, [x] * 5) == pytest.approx(1.0)
    assert measure_consistency([0] * 6, [x, y] * 3) == pytest.approx(np.sqrt(0.5))
    assert measure_consistency([0] * 4, [x] * 4) is None


def test_noise_is_flicker_and_a_cut_is_not() -> None:
    rng = np.random.default_rng(0)
    a, b = picture(), picture()
    noisy = [np.clip(a.astype(int) + rng.integers(-20, 21, a.shape), 0, 255).astype(np.uint8) for _ in (0, 1)]
    quiet, loud = measure_flicker(a, b, *noisy, BOX) or (0.0, 0.0)
    assert loud > quiet + 5
    assert measure_flicker(a, 255 - b, a, b, BOX) is None


def test_crops_are_upright_and_in_place() -> None:
    image = picture()
    crop = arcface_crop(image, POINTS)
    assert crop.shape == (112, 112, 3)
    inside = cv2.resize(image[30:90, 50:110], (112, 112)).astype(int)
    assert np.abs(crop.astype(int) - inside)[20:90, 20:90].mean() < 8
    large = cv2.resize(image, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    shrunk = arcface_crop(large, (POINTS + 0.5) * 8 - 0.5)
    assert np.abs(crop.astype(int) - shrunk).mean() < 8
    square, matrix = square_crop(large, BOX * 8, 1.0, 60)
    assert np.abs(square.astype(int) - image[30:90, 50:110]).mean() < 12
    assert matrix[0, 0] == pytest.approx(1 / 8)


def test_scrfd_decodes_boxes_points_and_suppresses() -> None:
    cells = {8: 80, 16: 40, 32: 20}
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in cells]
    widths = {"score": 1, "bbox": 4, "kps": 10}
    raw = {
        n: np.zeros((1, cells[int(n.split("_")[1])] ** 2 * 2, widths[n.split("_")[0]]), np.float32)
        for n in names
    }
    for anchor, score in ((0, 0.9), (1, 0.8)):  # two anchors of one cell see one face
        at = (10 * 40 + 20) * 2 + anchor  # stride 16: centre (320, 160)
        raw["score_16"][0, at], raw["bbox_16"][0, at] = score, (2, 2, 2, 2)
        raw["kps_16"][0, at] = (-1, -1, 1, -1, 0, 0, -1, 1, 1, 1)
    engine = FakeEngine(
        (TensorSpec("input.1", "float32", (None, 3, None, None)),),
        tuple(TensorSpec(n, "float32", (None, None, widths[n.split("_")[0]])) for n in names),
        lambda _: raw,
    )
    (found,) = Scrfd(engine).detect(np.zeros((240, 320, 3), np.uint8))
    assert found.box_xyxy == pytest.approx([144, 64, 176, 96])
    assert found.points_5[:2] == pytest.approx(np.array([[152, 72], [168, 72]]))
    assert found.score == pytest.approx(0.9)


def test_thresholds_come_from_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    people = {str(n): rng.normal(size=16) for n in range(40)}
    vectors = {}
    for name, centre in people.items():
        for shot in (1, 2):
            v = centre + rng.normal(size=16) * 0.2
            vectors[f"{name}/{shot}.jpg"] = (v / np.linalg.norm(v)).astype(np.float32)
    pairs = [(f"{n}/1.jpg", f"{n}/2.jpg", True) for n in people]
    pairs += [(f"{n}/1.jpg", f"{(int(n) + 1) % 40}/2.jpg", False) for n in people]
    fitted = fit_thresholds._fit(vectors, pairs)
    table = f"[recognisers.net]\n{fitted}[image_recognisers.net]\n{fitted}is_used_in_training = false\n"
    target = tmp_path / "evaluation.toml"
    kept = "# ---- figures to reach\n\n[targets]\n[speed]\n[image_targets]\n[reenactor_targets]\n"
    target.write_text(f"# head\n[provenance]\n[recognisers.old]\n\n{kept}")
    fit_thresholds._write(target, fit_thresholds._provenance("t", 80, {key: [] for key in vectors}) + table)
    config = load_evaluation(target)
    assert config.recognisers["net"].true_accepts > 0.95
    assert config.provenance["impostor_pairs"] == 80 * 79 // 2 - 40


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    for junk in (b"", b"PK\x03\x04 a zip", b"\x80\x02K\x01." * 5):
        (tmp_path / "model.pt").write_bytes(junk)
        with pytest.raises(ModelStoreError, match="mobilefacenet"):
            build_mobilefacenet({"x": tmp_path / "model.pt"}, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
