"""`keyface evaluate reenactors`: self-reenactment, times, figures side by side, sheets, and the command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PilImage
from test_evaluate import OneFace, Painted, judge, picture, recogniser, write_clip

from keyface.configs.errors import EngineError, UsageError
from keyface.configs.evaluation import load_evaluation
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Detection, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.faces.geometry import (
    apply_affine,
    ffhq_quad,
    frame_from_quad,
    invert_affine,
    points_5_from_mesh,
    pose_from_mesh,
    similarity_scale,
)
from keyface.pipeline.frame import Frame
from keyface.pipeline.measure.reenactor_pictures import write_self_sheet, write_side_by_side
from keyface.pipeline.measure.reenactor_report import (
    ClipFigures,
    ReenactorReport,
    clip_figures,
    to_json,
    to_markdown,
)
from keyface.pipeline.measure.self_reenactment import SelfEyes, WarpNetworks, masked, measure_self, points_px
from keyface.pipeline.measure.video import Eyes
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.reenact.keypoints import _SHAPES, KeypointModel
from keyface.pipeline.stage_times import StageTimes
from keyface.pipeline.summary import Summary
from keyface.tools import evaluate_command
from keyface.tools.bench_reenact import Runner, measure
from keyface.tools.evaluate_reenactors_command import list_clips

Image = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
CENTRE_XY, WIDTH = (80.0, 62.0), 44.0


# ---------------------------------------------------------------- stand-ins
def mesh_at(centre_xy: tuple[float, float], width: float) -> FaceMesh:
    """MediaPipe's canonical face, seen from the front, the irises in the middle of the eyes."""
    xyz = CANONICAL_XYZ * np.array([1.0, -1.0, -1.0])
    irises = np.repeat(xyz[[159, 386]], 5, axis=0)
    points = np.concatenate([xyz, irises]) * (width / np.ptp(xyz[:, 0]))
    points[:, :2] += np.asarray(centre_xy) - (points[:, :2].min(0) + points[:, :2].max(0)) / 2
    points = points.astype(np.float32)
    return FaceMesh(points, np.full(52, 0.1, np.float32), pose_from_mesh(points), 1.0)


def mesh_in_crop() -> FaceMesh:
    """The same face in its FFHQ crop of 256 px."""
    mesh = mesh_at(CENTRE_XY, WIDTH)
    frame_from_crop = frame_from_quad(ffhq_quad(points_5_from_mesh(mesh.points_xyz)), 256)
    crop_from_frame = invert_affine(frame_from_crop)
    z = mesh.points_xyz[:, 2:] * similarity_scale(crop_from_frame)
    points = np.hstack([apply_affine(crop_from_frame, mesh.points_xy), z]).astype(np.float32)
    return replace(mesh, points_xyz=points, pose_ypr_deg=pose_from_mesh(points))


class Sees:
    """A landmarker that finds the same face in every frame and in its crop; blind where told."""

    def __init__(self, is_blind: Callable[[Image], bool] = lambda _: False) -> None:
        self._is_blind = is_blind

    def detect(self, image_rgb: Image, **_: Any) -> FaceMesh | None:
        if self._is_blind(image_rgb):
            return None
        return mesh_in_crop() if image_rgb.shape[0] == 256 else mesh_at(CENTRE_XY, WIDTH)


class Finds:
    """A detector: one face where the picture is not black."""

    def detect(self, image_rgb: Image) -> list[Detection]:
        if image_rgb.mean() < 3:
            return []
        points = points_5_from_mesh(mesh_at(CENTRE_XY, WIDTH).points_xyz)
        box = np.array([*CENTRE_XY, *CENTRE_XY], np.float32) + np.array([-24, -28, 24, 28], np.float32)
        return [Detection(box, points, 0.9)]


def spec(name: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def mean_difference() -> FakeEngine:
    """Stands for LPIPS: a tenth of the mean difference."""

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {"distance": np.abs(inputs["image_a"] - inputs["image_b"]).mean((1, 2, 3)) / 10}

    size = (None, 3, None, None)
    return FakeEngine((spec("image_a", *size), spec("image_b", *size)), (spec("distance", None),), run)


def networks(move: Callable[[F32], F32]) -> WarpNetworks:
    """The network that decodes gives `move(image)`; keypoints turn with the pose only."""
    image, controls = spec("image", None, 3, 256, 256), spec("controls", None, 108)
    look = (spec("features", None, 4, 64, 64), spec("details", None, 2, 128, 128))
    second = spec("second", None, 3, 256, 256)
    names = ("source_points", "second_points", "driving_points")
    points = tuple(spec(name, None, 478, 3) for name in names)
    motion = (
        *(spec(f"grid_{side}", None, side, side, 2) for side in (64, 128, 256)),
        spec("raster_64", None, 3, 64, 64),
        spec("raster_128", None, 2, 128, 128),
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in _SHAPES.items()}
    picture = spec("picture", None, 3, 256, 256)
    return WarpNetworks(
        KeypointModel(tensors),
        FakeEngine((image, spec("points", None, 478, 3)), look),
        FakeEngine((*points, controls), motion),
        FakeEngine(
            (image, second, *look, *motion, controls), (picture,), lambda x: {"picture": move(x["image"])}
        ),
    )


def still(image: F32) -> F32:
    return image


def a_picture(light: int) -> Image:
    """A face of blotches on a still ground, lighter or darker."""
    rng = np.random.default_rng(3)
    image = cv2.resize(
        rng.integers(60, 120, (15, 20, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC
    )
    image[30:95, 50:110] = np.clip(image[30:95, 50:110].astype(np.int16) + light, 0, 255).astype(np.uint8)
    return image


@pytest.fixture
def steady(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "steady.mp4", [a_picture(20)] * 21)


@pytest.fixture
def changing(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "changing.mp4", [a_picture(2 * i) for i in range(21)])


def eyes(is_blind: Callable[[Image], bool] = lambda _: False) -> SelfEyes:
    return SelfEyes(Finds(), Sees(is_blind), mean_difference())


# ---------------------------------------------------------------- self-reenactment
def test_a_clip_that_does_not_change_is_reenacted_by_leaving_it(steady: Path) -> None:
    measured = measure_self(steady, eyes(), networks(still), every=5)
    assert [f.frame for f in measured.frames] == [5, 10, 15, 20] and measured.n_unseen == 0
    figures = measured.figures()
    # the first frame was cut out by its own mesh, the others where the product would lay it
    assert figures["self_lpips_crop"] == pytest.approx(figures["self_lpips_crop_still"], abs=2e-4)
    assert figures["self_lpips_crop"] < 0.002 and figures["self_lpips_face"] < 0.002  # type: ignore[operator]
    there, made = measured.pictures[0]
    assert there.shape == made.shape == (256, 256, 3)


def test_a_reenactor_that_follows_is_nearer_than_a_still_picture(changing: Path) -> None:
    """The stand-in knows that the face is lighter by 40 levels of 255 in frame 20."""
    follows = measure_self(changing, eyes(), networks(lambda x: np.minimum(x + 40 / 127.5, 1)), every=20)
    (frame,) = follows.frames
    assert frame.frame == 20
    assert frame.face < 0.3 * frame.still_face and frame.face < frame.crop
    stays = measure_self(changing, eyes(), networks(still), every=20).frames[0]
    assert stays.face == pytest.approx(stays.still_face, rel=0.05)


def test_frames_without_a_face_are_counted_and_a_cut_ends_it(tmp_path: Path) -> None:
    other = 255 - a_picture(0)
    other[:60] = (250, 10, 10)
    clip = write_clip(tmp_path / "cut.mp4", [a_picture(10)] * 10 + [other] * 10)
    assert [f.frame for f in measure_self(clip, eyes(), networks(still), every=3).frames] == [3, 6, 9]
    marked = a_picture(10)
    marked[:10, :10] = 255
    clip = write_clip(tmp_path / "marked.mp4", [a_picture(10)] * 4 + [marked] * 8)
    blind = measure_self(clip, eyes(lambda image: image[:8, :8].mean() > 200), networks(still), every=2)
    assert [f.frame for f in blind.frames] == [2] and blind.n_unseen == 4


def test_only_the_time_asked_for_is_looked_at(steady: Path) -> None:
    assert [f.frame for f in measure_self(steady, eyes(), networks(still), every=4, until_s=0.5).frames] == [
        4,
        8,
        12,
    ]


def test_a_clip_without_a_face_has_no_figures(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "black.mp4", [np.zeros((120, 160, 3), np.uint8)] * 8)
    measured = measure_self(clip, eyes(), networks(still))
    assert set(measured.figures().values()) == {None} and measured.pictures == []


def test_a_picture_that_is_not_finite_is_an_error(steady: Path) -> None:
    with pytest.raises(EngineError):
        measure_self(steady, eyes(), networks(lambda x: x * np.nan))


def test_points_and_masks_fit_the_crop() -> None:
    corners = np.zeros((478, 3), np.float32)
    corners[0], corners[1] = (-1, -1, 0.5), (1, 1, 0)
    assert points_px(corners)[:2].tolist() == [[-0.5, -0.5, 64], [255.5, 255.5, 0]]
    face = np.zeros((256, 256), bool)
    face[100:150, 100:150] = True
    shown = masked(np.full((256, 256, 3), 200, np.uint8), face)
    assert shown[120, 120, 0] == 200 and (shown[~face] == 127).all()


# ---------------------------------------------------------------- times
class Stub:
    """Both stages of a chain: two faces are found in each frame, and the first is shown in every other frame."""

    def __init__(self, *, is_analysis: bool) -> None:
        self._is_analysis = is_analysis

    def open(self) -> None:
        """Nothing to get."""

    def process(self, item: Any) -> Any:
        mesh = mesh_at(CENTRE_XY, WIDTH)
        if self._is_analysis:
            boxes = np.array([[56, 34, 104, 90], [4, 4, 24, 24]], np.float32)
            points = points_5_from_mesh(mesh.points_xyz)
            return AnalysedFrame(
                item, tuple(Face(i, box, points, 0.9, False, mesh) for i, box in enumerate(boxes))
            )
        if item.frame.index % 2:
            return ReenactedFrame(item, ())
        eye = np.eye(2, 3, dtype=np.float32)
        shown = [VirtualFace(f.track_id, np.zeros((8, 8, 3), np.uint8), mesh, eye) for f in item.faces]
        return ReenactedFrame(item, tuple(shown))

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize(("faces", "n_shown"), [("largest", 8), ("all", 16)])
def test_only_frames_that_show_a_virtual_face_are_timed(faces: Any, n_shown: int) -> None:
    runner = Runner()
    parts = ChainParts(
        analyse=Stub(is_analysis=True), observer=None, reenact=Stub(is_analysis=False), paste=Paster()
    )
    frames = [Frame(a_picture(0), index, index / 25) for index in range(20)]
    assert measure(frames, {"one": (parts, runner)}, n_skipped=4, faces=faces) == (16, (160, 120))
    assert runner.durations["total"].times().count == 8
    assert runner.replaced == n_shown


# ---------------------------------------------------------------- figures
def test_figures_of_a_clip_are_those_of_its_evaluation_and_of_the_chain(tmp_path: Path) -> None:
    judges = Eyes(OneFace(), [recogniser(name) for name in ("a", "b", "c")], Painted())
    driver, made = (
        write_clip(tmp_path / f"{i}.mp4", [picture(k, identity=i) for k in range(30)]) for i in (1, 2)
    )
    summary = Summary(
        source="", output="", kind="video", frames=30, faces=1, replaced=27, redacted_frames=3, redacted={},
        faults={}, duration_s=1.2, wall_s=1.0, fps=30.0, first_frame_s=None, stages={"reenact": took(12.5)},
    )  # fmt: skip
    figures = clip_figures(judge(driver, made, judges), summary)
    assert figures["pose_error"] == 0 and figures["mosaic_rate"] == 0.1 and figures["stage_ms"] == 12.5
    by_judge = [figures[f"identity_{name}"] for name in "abc"]
    assert figures["identity_least"] == min(v for v in by_judge if v is not None) > 0.9
    assert figures["jaw_open"] == pytest.approx(1.0, abs=0.01) and "identity_consistency" not in figures


def took(p50_ms: float, count: int = 3) -> StageTimes:
    return StageTimes(count, p50_ms, 2 * p50_ms, 3 * p50_ms, 1.0)


def report(**changes: Any) -> ReenactorReport:
    common = {"expression_mean": 0.8, "jaw_open": 0.95, "blink": 0.9, "pose_error": 2.0, "flicker": 1.1}
    latent = {"identity_a": 0.8, "identity_b": 0.9, "identity_least": 0.8}
    warp = {"identity_a": 0.9, "identity_b": 0.95, "identity_least": 0.9, "self_lpips_crop": 0.12}
    rows = (
        ClipFigures("x.mp4", "latent", {**common, **latent}),
        ClipFigures("x.mp4", "warp", {**common, **warp, "pose_error": 1.0}),
        ClipFigures("y.mp4", "latent", {**common, **latent, "blink": None}),
        ClipFigures("y.mp4", "warp", {**common, **warp, "pose_error": 2.5, "blink": None}),
    )
    times = {"latent": took(50), "warp": took(20)}
    made = ReenactorReport(
        rows, times, load_evaluation().reenactor_targets, {"z.mp4": "no video"}, {"every": 5}
    )
    return replace(made, **changes)


def test_means_are_over_the_clips_in_which_something_was_measured() -> None:
    means = report().means("warp")
    assert means["pose_error"] == 1.75 and means["blink"] == 0.9 and means["frame_ms"] == 20
    assert report().means("latent")["frame_ms"] == 50


def test_all_targets_are_met_by_figures_that_meet_them() -> None:
    verdicts = {v.figure: v for v in report().verdicts()}
    assert set(verdicts) == set(load_evaluation().reenactor_targets)
    assert verdicts["frame_ms_ratio"].value == pytest.approx(0.4)
    assert verdicts["identity_gain"].value == pytest.approx(0.05)
    assert {v.outcome for v in verdicts.values()} == {"pass"}


def test_what_is_worse_than_latent_or_than_its_target_fails() -> None:
    rows = report().rows
    worse = replace(rows[1], figures={**rows[1].figures, "identity_b": 0.7, "self_lpips_crop": 0.5})
    found = report(rows=(rows[0], worse), times={"latent": took(20), "warp": took(19)})
    outcomes = {v.figure: v.outcome for v in found.verdicts()}
    assert {name for name, outcome in outcomes.items() if outcome == "fail"} == {
        "identity_gain", "self_lpips_crop", "frame_ms_ratio",
    }  # fmt: skip


def test_without_the_other_reenactor_nothing_is_compared() -> None:
    alone = report(rows=report().rows[1::2], times={"warp": took(0, 0)})
    outcomes = {v.figure: v.outcome for v in alone.verdicts()}
    assert outcomes["frame_ms_ratio"] == outcomes["identity_gain"] == outcomes["frame_ms"] == "not measured"
    assert outcomes["pose_error"] == "pass"
    assert report(rows=report().rows[::2]).verdicts() == ()


def test_the_table_says_which_is_better_where() -> None:
    text = to_markdown(report())
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert "| figure | latent | warp | better | clips in which warp is better |" in text
    assert lines["pose error, mean of yaw, pitch, roll, degrees"].endswith("| 2.00 | 1.75 | warp | 1 of 2 |")
    assert lines["correlation of jawOpen"].endswith("| 0.950 | 0.950 | even | 0 of 2 |")
    assert lines["self-reenactment, LPIPS, whole crop"].endswith("| - | 0.120 | - | - |")
    assert "z.mp4: left out: no video" in text
    assert text.count("| x.mp4 |") == 2


def test_json_can_be_read_back() -> None:
    told = json.loads(json.dumps(to_json(report())))
    assert told["reenactors"]["warp"]["frame_ms"] == 20 and told["timed_frames"] == {"latent": 3, "warp": 3}
    assert [row["reenactor"] for row in told["clips"]] == ["latent", "warp"] * 2
    assert told["failed"] == {"z.mp4": "no video"} and len(told["verdicts"]) == len(report().targets)


# ---------------------------------------------------------------- sheets
def size_of(path: Path) -> tuple[int, int]:
    with PilImage.open(path) as picture:
        return picture.size


def test_sheets_have_a_row_for_each_and_a_column_for_each_moment(tmp_path: Path, changing: Path) -> None:
    outputs = {"latent": changing, "warp": changing}
    assert write_side_by_side(tmp_path / "a.jpg", changing, outputs, Finds(), columns=4)
    assert size_of(tmp_path / "a.jpg") == (4 * 230 + 6, 3 * 252 + 6)
    pairs = [(a_picture(0), a_picture(5))] * 9
    assert write_self_sheet(tmp_path / "b.jpg", pairs, columns=3)
    assert size_of(tmp_path / "b.jpg") == (3 * 230 + 6, 2 * 252 + 6)


def test_without_a_face_there_is_no_sheet(tmp_path: Path) -> None:
    black = write_clip(tmp_path / "black.mp4", [np.zeros((120, 160, 3), np.uint8)] * 8)
    assert not write_side_by_side(tmp_path / "a.jpg", black, {"latent": black}, Finds())
    assert not write_self_sheet(tmp_path / "b.jpg", [])
    assert list(tmp_path.glob("*.jpg")) == []


# ---------------------------------------------------------------- command line
def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", "reenactors", *words])


def test_clips_are_found_and_names_must_differ(tmp_path: Path, steady: Path) -> None:
    (tmp_path / "notes.txt").write_text("no clip")
    assert list_clips([tmp_path]) == list_clips([steady]) == [steady]
    with pytest.raises(UsageError, match="two clips are called 'steady'"):
        list_clips([tmp_path, steady])
    with pytest.raises(UsageError, match="there is no such clip"):
        list_clips([tmp_path / "absent.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no clip in the folders"):
        list_clips([tmp_path / "empty"])


@pytest.mark.parametrize("words", [("--every", "0"), ("--timed", "-1")])
def test_bad_numbers_are_refused(words: tuple[str, str], steady: Path) -> None:
    with pytest.raises(UsageError, match="--every"):
        evaluate_command.run(parse(str(steady), "--key-file", "k", *words))


def test_a_generated_clip_by_both_reenactors(
    models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "warp_decode" not in models.manifest.models:
        pytest.skip("the store has no network 'warp_decode' yet: make it with keyface train warp")
    from keyface.pipeline.assemble import open_portrait
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.sample.clip import write_sample_clip
    from keyface.pipeline.sample.performance import Performance

    clip, out = tmp_path / "sample.mp4", tmp_path / "out"
    with open_portrait(models, 38, ProcessOptions(threads=1)) as portrait:
        write_sample_clip(clip, portrait, Performance(2.0), size_px=256)
    Key(bytes(range(32))).save(tmp_path / "key")
    capsys.readouterr()
    words = (
        "--key-file",
        str(tmp_path / "key"),
        "--out",
        str(out),
        "--every",
        "4",
        "--timed",
        "5",
        "--end",
        "1",
    )
    assert evaluate_command.run(parse(str(clip), *words, "--json", "--quiet")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == {} and told["timed_frames"] == {"latent": 5, "warp": 5}
    for name in ("latent", "warp"):
        figures = told["reenactors"][name]
        assert figures["pose_error"] < 6 and figures["frame_ms"] > 0 and figures["mosaic_rate"] < 0.5
        assert 0.5 < figures["identity_least"] <= 1 and 0.3 < figures["flicker"] < 3
    assert 0 < told["reenactors"]["warp"]["self_lpips_face"] < 0.5
    assert told["reenactors"]["latent"].get("self_lpips_crop") is None
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names == {
        "figures.json", "figures.md", "clips/latent/sample.mp4", "clips/warp/sample.mp4", "sheets/sample.jpg",
        "sheets/sample-self.jpg",
    }  # fmt: skip
