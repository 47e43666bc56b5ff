"""`keyface evaluate`: measures agree with what was done to a clip, and bad input is told clearly."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import SourceError, UsageError
from keyface.configs.evaluation import Target, load_evaluation
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, Detection, FaceMesh
from keyface.pipeline.measure.evaluation import SCHEMA, Evaluation, evaluate, to_json
from keyface.pipeline.measure.eyes import ARCFACE_POINTS_5, Recogniser
from keyface.pipeline.measure.media import compare_media
from keyface.pipeline.measure.reference import ClipReader
from keyface.pipeline.measure.video import Eyes, measure_video
from keyface.tools import evaluate_command

Image = npt.NDArray[np.uint8]
SIZE_WH = (160, 120)
BOX = np.array([50, 30, 110, 90], np.float32)
POINTS = (ARCFACE_POINTS_5 * (60 / 112) + BOX[:2]).astype(np.float32)


# ---------------------------------------------------------------- stand-ins
class OneFace:
    """Finds one face where the picture is not black."""

    def detect(self, image_rgb: Image) -> list[Detection]:
        if image_rgb[30:90, 50:110].mean() < 3:
            return []
        return [Detection(BOX, POINTS, 0.9)]


class Painted:
    """Reads jawOpen off the brightness of the face, and a mesh that is always the same."""

    def detect(self, image_rgb: Image, *, box_xyxy: F32 | None = None, **_: Any) -> FaceMesh | None:
        shapes = np.zeros(52, np.float32)
        shapes[BLENDSHAPE_NAMES.index("jawOpen")] = image_rgb[30:90, 50:110].mean() / 255
        return FaceMesh(np.zeros((478, 3), np.float32), shapes, np.zeros(3, np.float32), 1.0)


def fine_structure(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    grey = inputs["image"][0].mean(0)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 3)
    return {"embedding": cv2.resize(fine, (28, 28), interpolation=cv2.INTER_AREA).reshape(1, -1)}


def recogniser(name: str, threshold: float = 0.5) -> Recogniser:
    inputs = (TensorSpec("image", "float32", (1, 3, 112, 112)),)
    outputs = (TensorSpec("embedding", "float32", (1, 784)),)
    engine = FakeEngine(inputs, outputs, fine_structure)
    return Recogniser(name, engine, (127.5,) * 3, (127.5,) * 3, threshold)


@pytest.fixture
def eyes() -> Eyes:
    return Eyes(OneFace(), [recogniser(name) for name in ("first", "second", "third")], Painted())


def picture(index: int, identity: int = 1) -> Image:
    """A still background and a textured face whose brightness goes up and down."""
    rng = np.random.default_rng(identity)
    image = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, np.uint8)
    coarse = cv2.resize(rng.integers(0, 120, (20, 20, 3), np.uint8), (60, 60), interpolation=cv2.INTER_CUBIC)
    light = 60 + 40 * np.sin(index / 3)
    image[30:90, 50:110] = np.clip(coarse.astype(np.float32) + light, 0, 255).astype(np.uint8)
    return image


def write_clip(
    path: Path,
    pictures: list[Image],
    *,
    pts: list[int] | None = None,
    tone_hz: float = 0.0,
    codec: str = "aac",
) -> Path:
    """25 frames a second, near lossless; `tone_hz` adds sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "4"})
        video.width, video.height, video.pix_fmt = *SIZE_WH, "yuv444p"
        video.time_base = Fraction(1, 25)
        audio = container.add_stream(codec, rate=44100, layout="mono") if tone_hz else None
        for index, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (pts[index] if pts else index), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            t = np.arange(int(44100 * len(pictures) / 25)) / 44100
            tone = (0.2 * np.sin(2 * np.pi * tone_hz * t)).astype(np.float32)
            for start in range(0, len(tone) // 1024 * 1024, 1024):
                chunk = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], "fltp", "mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = 44100, start, Fraction(1, 44100)
                container.mux(audio.encode(chunk))
            container.mux(audio.encode())
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "original.mp4", [picture(i) for i in range(30)], tone_hz=440)


def judge(a: Path, b: Path, eyes: Eyes, every: int = 1) -> Evaluation:
    return evaluate(measure_video(a, b, eyes, every=every), load_evaluation().targets)


def outcome(result: Evaluation, figure: str) -> str:
    return next(str(v.outcome) for v in result.verdicts if v.figure == figure)


# ---------------------------------------------------------------- whole clips
def test_a_clip_against_itself_leaks_in_every_frame(original: Path, eyes: Eyes) -> None:
    result = judge(original, original, eyes)
    assert result.leak_frames == tuple(range(30))
    assert (result.n_faces, result.n_tracks, result.outcome) == (30, 1, "fail")
    assert result.figures["unchanged_rate"] == 1.0
    assert outcome(result, "leak_frames") == "fail"
    assert all(outcome(result, n) == "pass" for n in ("jaw_open", "flicker", "detection_rate", "yaw_error"))
    assert outcome(result, "blink") == "not measured"
    assert result.figures["flicker"] == pytest.approx(1.0)


def test_another_face_in_the_same_light_passes(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    pictures = [picture(i, identity=2) for i in range(30)]
    other = write_clip(tmp_path / "other.mp4", pictures, tone_hz=440)
    result = judge(original, other, eyes)
    assert result.leak_frames == ()
    assert result.figures["jaw_open"] == pytest.approx(1.0, abs=0.01)
    assert result.figures["unchanged_rate"] == 0.0
    assert result.figures["background_difference"] < 2.0  # type: ignore[operator]
    assert result.measures.media.audio == "identical"
    assert result.outcome == "pass"


def test_one_raw_frame_among_many_is_found(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    pictures = [picture(i, identity=1 if i == 17 else 2) for i in range(30)]
    result = judge(original, write_clip(tmp_path / "slip.mp4", pictures, tone_hz=440), eyes)
    assert result.leak_frames == (17,)
    assert result.outcome == "fail"


def test_a_frozen_face_has_no_correlation(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    frozen = write_clip(tmp_path / "frozen.mp4", [picture(5, identity=2)] * 30, tone_hz=440)
    result = judge(original, frozen, eyes)
    assert abs(result.figures["jaw_open"] or 0.0) < 0.3
    assert outcome(result, "jaw_open") == "fail"


def test_faces_that_vanish_lower_the_detection_rate(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    pictures = [picture(i, identity=2) for i in range(30)]
    for image in pictures[:15]:
        image[30:90, 50:110] = 0
    result = judge(original, write_clip(tmp_path / "half.mp4", pictures, tone_hz=440), eyes)
    assert result.figures["detection_rate"] == pytest.approx(0.5)
    assert outcome(result, "detection_rate") == "fail"


def test_lost_frames_are_told_and_not_compared(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    short = write_clip(tmp_path / "short.mp4", [picture(i, identity=2) for i in range(24)], tone_hz=440)
    result = judge(original, short, eyes)
    assert result.figures["frame_count_difference"] == -6
    assert result.n_faces == 24
    assert {outcome(result, n) for n in ("frame_count_difference", "duration_difference")} == {"fail"}
    assert any("30 frames" in r and "24" in r for r in result.remarks)


def test_every_nth_frame_still_has_flicker(original: Path, eyes: Eyes) -> None:
    result = judge(original, original, eyes, every=7)
    assert result.leak_frames == (0, 7, 14, 21, 28)
    assert result.figures["flicker"] == pytest.approx(1.0)


def test_no_face_means_nothing_measured(tmp_path: Path, eyes: Eyes) -> None:
    black = write_clip(tmp_path / "black.mp4", [np.zeros((120, 160, 3), np.uint8)] * 12)
    result = judge(black, black, eyes)
    assert (result.n_faces, result.outcome) == (0, "not measured")
    assert outcome(result, "detection_rate") == "not measured"
    assert any("No face" in r for r in result.remarks)


def test_json_has_no_path_and_can_be_read_back(original: Path, eyes: Eyes) -> None:
    told = json.loads(json.dumps(to_json(judge(original, original, eyes))))
    assert told["schema"] == SCHEMA
    assert told["leak_frames"] == list(range(30))
    assert told["leaks"][0]["recognised_by"] == ["first", "second", "third"]
    assert str(original.parent) not in json.dumps(told)
    assert {v["outcome"] for v in told["verdicts"]} <= {"pass", "fail", "not measured"}


def test_leaks_are_dumped_side_by_side(tmp_path: Path, original: Path, eyes: Eyes) -> None:
    measure_video(original, original, eyes, every=10, dump=tmp_path / "crops")
    crops = sorted((tmp_path / "crops").iterdir())
    assert [c.name for c in crops] == ["000000_0.png", "000010_0.png", "000020_0.png"]
    assert cv2.imread(str(crops[0])).shape == (256, 512, 3)


# ---------------------------------------------------------------- media
def compared(a: Path, b: Path) -> Any:
    readers = ClipReader(a), ClipReader(b)
    for reader in readers:
        for _ in reader.read(lambda _: False):
            pass
    return compare_media(*readers)


def test_timestamps_that_move_are_drift(tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(12)]
    even = write_clip(tmp_path / "even.mp4", pictures)
    late = write_clip(tmp_path / "late.mp4", pictures, pts=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14])
    assert compared(even, even).timestamp_drift_frames == 0
    assert compared(even, late).timestamp_drift_frames == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("tone_hz", "codec", "n", "expected"),
    [(440, "aac", 25, ("identical", 0)), (440, "libmp3lame", 25, ("transcoded", 0)),
     (0, "aac", 25, ("lost", 1)), (440, "aac", 15, ("lost", 1))],
)  # fmt: skip
def test_audio(tmp_path: Path, tone_hz: float, codec: str, n: int, expected: tuple[str, int]) -> None:
    pictures = [picture(i) for i in range(25)]
    a = write_clip(tmp_path / "a.mp4", pictures, tone_hz=440)
    b = write_clip(tmp_path / "b.mp4", pictures[:n], tone_hz=tone_hz, codec=codec)
    result = compared(a, b)
    assert (result.audio, result.audio_tracks_lost) == expected


def test_pictures_one_frame_late_are_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [np.full((120, 160, 3), int(v), np.uint8) for v in rng.integers(0, 255, 30)]
    a = write_clip(tmp_path / "a.mp4", pictures)
    b = write_clip(tmp_path / "b.mp4", [pictures[0], *pictures[:-1]])
    assert compared(a, a).content_lag_frames == 0
    assert compared(a, b).content_lag_frames == 1


def test_unreadable_files_are_source_errors(tmp_path: Path, eyes: Eyes, original: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    for bad in (broken, tmp_path / "missing.mp4"):
        with pytest.raises(SourceError, match=bad.name):
            measure_video(original, bad, eyes)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match="no video"):
        measure_video(sound, original, eyes)
    with pytest.raises(ValueError, match="every"):
        measure_video(original, original, eyes, every=0)


# ---------------------------------------------------------------- settings
def test_settings_name_three_recognisers_and_every_figure_of_the_report(original: Path, eyes: Eyes) -> None:
    config = load_evaluation()
    assert len(config.recognisers) >= 3 and "sface" not in config.recognisers
    for limits in config.recognisers.values():
        assert limits.equal_error > 0 and 0 < limits.far_0_1_percent < 1 and limits.true_accepts > 0.9
    assert config.provenance["impostor_pairs"] > 100_000  # type: ignore[operator]
    possible = set(judge(original, original, eyes, every=10).figures)
    possible |= {"jaw_open", "blink", "smile", "gaze_h", "gaze_v", "pout", "brow"}
    assert set(config.targets) <= possible


@pytest.mark.parametrize(
    ("comparison", "met", "missed"),
    [("at_most", 1.0, 1.1), ("at_least", 1.0, 0.9), ("below", 0.99, 1.0), ("equal", 1.0, 0.0)],
)
def test_targets(comparison: Any, met: float, missed: float) -> None:
    target = Target("x", comparison, 1.0, "px", "")
    assert target.is_met(met) and not target.is_met(missed) and not target.is_met(float("nan"))


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    text = "[provenance]\n[recognisers.a]\nfar_0_1_percent = 0.3\n[targets]\n[speed]\n"
    text += "[image_recognisers]\n[image_targets]\n[reenactor_targets]\n"
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(UsageError, match="equal_error"):
        load_evaluation(tmp_path / "e.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_evaluation(tmp_path / "none.toml")


# ---------------------------------------------------------------- command line
def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *words])


def test_command_refuses_bad_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--every"):
        evaluate_command.run(parse("video", "a", "b", "--every", "0"))
    with pytest.raises(UsageError, match="not a folder"):
        evaluate_command.run(parse("videos", str(tmp_path / "no"), str(tmp_path)))
    with pytest.raises(UsageError, match="namesake"):
        evaluate_command.run(parse("videos", str(tmp_path), str(tmp_path)))


def cover(source: Path, target: Path, change: Callable[[Image], None]) -> Path:
    """The same clip with something done to every frame, near lossless."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as out:
        frames = clip.streams.video[0]
        stream = out.add_stream("libx264", rate=frames.average_rate, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = frames.width, frames.height, "yuv420p"
        stream.time_base = frames.time_base
        for frame in clip.decode(frames):
            image = frame.to_ndarray(format="rgb24")
            change(image)
            changed = av.VideoFrame.from_ndarray(image, format="rgb24")
            changed.pts, changed.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(changed))
        out.mux(stream.encode())
    return target


@pytest.mark.slow
@pytest.mark.shared
def test_real_clip_leaks_itself_and_not_its_mosaic(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = shared_dir / "data/videos/real/intel_head-pose-face-detection-male.mp4"
    with evaluate_command.open_eyes() as (eyes, config):
        itself = evaluate(measure_video(clip, clip, eyes, every=10), config.targets)

        def mosaic(image: Image) -> None:
            for found in eyes.detector.detect(image):
                x0, y0, x1, y1 = np.clip(found.box_xyxy + np.array([-12, -12, 12, 12]), 0, None).astype(int)
                part = image[y0:y1, x0:x1]
                small = cv2.resize(part, (7, 7), interpolation=cv2.INTER_AREA)
                part[:] = cv2.resize(small, part.shape[1::-1], interpolation=cv2.INTER_NEAREST)

        covered = cover(clip, tmp_path / "mosaic.mp4", mosaic)
        hidden = evaluate(measure_video(clip, covered, eyes, every=10), config.targets)
    assert itself.n_faces == len(itself.leak_frames) == 7
    assert itself.figures["yaw_error"] == 0 and itself.figures["detection_rate"] == 1
    assert all(row["recognised_rate"] == 1 for row in itself.recognisers.values())
    assert hidden.n_faces == 7 and hidden.leak_frames == ()
    assert all(row["recognised_rate"] == 0 for row in hidden.recognisers.values())
    assert hidden.figures["frame_count_difference"] == 0

    code = evaluate_command.run(
        parse("video", str(clip), str(covered), "--every", "20", "--json", "--strict")
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 1  # a mosaic hides, but nobody can read an expression off it
    assert told["leak_frames"] == [] and told["machine"]["cores"] >= 1 and "numpy" in told["versions"]


@pytest.mark.slow
@pytest.mark.shared
def test_no_face_in_a_real_clip(shared_dir: Path) -> None:
    clip = shared_dir / "data/videos/noface/pyfeat_no_face.mp4"
    with evaluate_command.open_eyes() as (eyes, config):
        result = evaluate(measure_video(clip, clip, eyes, every=40), config.targets)
    assert result.measures.n_frames_compared == 3
    assert result.outcome in ("not measured", "fail")  # a painted figure may pass for a face
