"""The fault count: its script, its judge, and a short run of the real chain under faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyface.configs.evaluation import load_evaluation
from keyface.engines.open import open_engine
from keyface.pipeline.assemble import make_parts, open_portrait
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import Detection
from keyface.pipeline.faults import script as fault_script_module
from keyface.pipeline.faults.judge import Filmed, LeakJudge, find_judged_faces
from keyface.pipeline.faults.run import SIZE_WH, Clip, load_clip, merge_counts, run_faults
from keyface.pipeline.faults.script import FPS, Shot, fault_script
from keyface.pipeline.faults.stages import CannedReenactor, FaultBoard
from keyface.pipeline.faults.stand_in import choose_stand_in
from keyface.pipeline.live.run import LIVE_IDENTITY, LIVE_TRACKS, LiveOptions
from keyface.pipeline.measure.eyes import Recogniser, Scrfd
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.paste.redact import mosaic
from keyface.pipeline.people.key import Key
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.sample.clip import sample_frames
from keyface.tools.bench_stream_faults import faulty_analysis

FAST = ProcessOptions(threads=1)
JUDGES = ("scrfd_500m", "w600k_mbf", "edgeface_s")
MISSES = ("missed_detections", "missed_everything", "one_face_missed")
SCENES = {"cut", "switch", "size_change", "lost_frames"}


# The script.


def script(seed: int, n: int = 20000) -> list[Shot]:
    return list(fault_script(seed, n, [120, 40, 90]))


def test_a_script_is_decided_by_its_seed() -> None:
    assert script(1, 500) == script(1, 500) != script(2, 500)


def test_all_faults_occur_and_times_rise() -> None:
    shots = script(3)
    kinds = set(itertools.chain.from_iterable(shot.begun for shot in shots))
    assert len(kinds) == 23
    times = [shot.pts_s for shot in shots]
    assert min(np.diff(times)) >= 1 / FPS - 1e-9


def test_bursts_are_long_on_tracked_faces_and_end_in_time_in_a_new_scene() -> None:
    shots = script(4)
    settle = LiveOptions().settle_s
    longest, run, since_s = 0, 0, 0.0
    for before, shot in itertools.pairwise(shots):
        is_new = bool(shot.begun & SCENES) or "noise" in shot.faults or "noise" in before.faults
        is_new = is_new or shot.number != before.number + 1
        if is_new:
            since_s, was_blind = shot.pts_s, True
        is_blind = bool(shot.faults & set(MISSES))
        was_blind = was_blind and is_blind if since_s else False
        run = run + 1 if is_blind else 0
        longest = max(longest, run)
        assert not was_blind or shot.pts_s - since_s < settle, "a new scene whose faces nobody could find"
    assert longest > 60


def test_one_after_the_other_they_never_outlast_the_memory_of_the_chain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    often = {
        kind: (10.0, 1, 75) if kind in MISSES else rate for kind, rate in fault_script_module._RATES.items()
    }
    often |= {kind: (1e9, 1, 1) for kind in (*SCENES, "noise")}
    monkeypatch.setattr(fault_script_module, "_RATES", often)
    run, longest = 0, 0
    for shot in fault_script(5, 3000, [10_000]):
        run = run + 1 if shot.faults & set(MISSES) else 0
        longest = max(longest, run)
    assert 75 < longest <= 125 and longest / FPS < LIVE_TRACKS.max_gap_s


# The judge.


class OneFace:
    """A detector that always finds the same face."""

    def __init__(self, box: tuple[float, ...]) -> None:
        self.box = np.array(box, np.float32)

    def detect(self, image_rgb: np.ndarray) -> list[Detection]:
        x0, y0, x1, y1 = self.box
        points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
        return [Detection(self.box, points * (x1 - x0, y1 - y0) + (x0, y0), 0.9)]


class Average:
    """A recogniser of colours: the mean of each of 8 x 8 blocks."""

    def __init__(self) -> None:
        self.inputs, self.outputs = {"x": None}, {"y": None}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        means = inputs["x"][0].reshape(3, 8, 14, 8, 14).mean((2, 4)).ravel()
        return {"y": means - means.mean()}


@pytest.fixture
def picture(texture: Callable[..., np.ndarray]) -> np.ndarray:
    return texture((160, 120))


def judge(**options: Any) -> tuple[LeakJudge, OneFace]:
    detector = OneFace((40, 30, 100, 90))
    eyes = [Recogniser(name, Average(), (127.5,) * 3, (127.5,) * 3, 0.9) for name in "ab"]
    return LeakJudge(detector, eyes, **options), detector


def test_the_judge_counts_what_is_as_it_was(picture: np.ndarray) -> None:
    made, detector = judge()
    filmed = Filmed(picture, find_judged_faces(detector, picture), {"frame": 7})
    assert made.see(picture, filmed)
    assert (made.count.raw_frames, made.count.unchanged, made.count.faces) == (1, 1, 1)
    assert made.count.examples == [{"frame": 7, "why": ["unchanged"]}]


def test_the_judge_counts_a_face_that_is_half_covered(picture: np.ndarray) -> None:
    made, detector = judge()
    filmed = Filmed(picture, find_judged_faces(detector, picture), {})
    assert made.see(mosaic(picture, (40, 65, 100, 90), enlarge=1.0), filmed)


def test_the_judge_counts_a_face_that_is_only_darker(picture: np.ndarray) -> None:
    made, detector = judge(look_every=1)
    filmed = Filmed(picture, find_judged_faces(detector, picture), {})
    darker = (picture * 0.9).astype(np.uint8)
    assert made.see(darker, filmed) and made.count.recognised == 1
    assert made.count.matched == {"a": 1, "b": 1}


def test_the_judge_does_not_count_mosaics_slates_and_small_faces(picture: np.ndarray) -> None:
    made, detector = judge(look_every=1)
    filmed = Filmed(picture, find_judged_faces(detector, picture), {})
    assert not made.see(mosaic(picture, (40, 30, 100, 90)), filmed)
    assert not made.see(picture, None)
    assert (made.count.frames, made.count.slates, made.count.looked) == (1, 1, 1)
    assert find_judged_faces(OneFace((10, 10, 45, 48)), picture) == ()


def test_pictures_of_another_size_are_refused(picture: np.ndarray) -> None:
    made, detector = judge()
    with pytest.raises(ValueError, match="went in as"):
        made.see(picture[:-2], Filmed(picture, find_judged_faces(detector, picture), {}))


def test_counts_add_up() -> None:
    one = {"frames": 3, "matched": {"a": 1}, "examples": [1]}
    assert merge_counts(one, {"frames": 4, "matched": {"a": 2, "b": 5}, "examples": [2]}) == {
        "frames": 7, "matched": {"a": 3, "b": 5}, "examples": [1, 2],
    }  # fmt: skip


# The real chain.


@pytest.fixture(scope="module")
def eyes(models: Any) -> Iterator[tuple[Scrfd, list[Recogniser]]]:
    """The independent detector and recognisers."""
    if any(models.status(name) != "ok" for name in JUDGES):
        pytest.skip("the judges are not here: run `keyface models pull evaluate`")
    limits = load_evaluation().recognisers
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(open_engine(models.path(name), name=name, threads=1, any_thread=True))
            for name in JUDGES
        }
        recognisers = [
            Recogniser.of(models.manifest[name], engines[name], limits[name].far_0_1_percent)
            for name in JUDGES[1:]
        ]  # fmt: skip
        yield Scrfd(engines[JUDGES[0]], sizes=(320,)), recognisers


def generated_clip(models: Any, number: int, detector: Scrfd, n: int = 40) -> Clip:
    from keyface.pipeline.sample.performance import Performance

    with open_portrait(models, number, FAST) as portrait:
        frames = itertools.islice(sample_frames(portrait, Performance(2.0), size_px=SIZE_WH[1]), n)
        pictures = tuple(
            np.ascontiguousarray(np.pad(frame.image_rgb, ((0, 0), (40, 40), (0, 0)), constant_values=110))
            for frame in frames
        )
    return Clip(f"generated {number}", pictures, tuple(find_judged_faces(detector, p) for p in pictures))


def canned(models: Any, clips: list[Clip]) -> Callable[[FaultBoard], ChainParts]:
    picture, mesh = choose_stand_in(models, clips, FAST)

    def make(board: FaultBoard) -> ChainParts:
        analyse = faulty_analysis(models, board, "auto")
        return ChainParts(
            analyse=analyse, observer=None, reenact=CannedReenactor(picture, mesh), paste=Paster()
        )

    return make


def real(models: Any) -> Callable[[FaultBoard], ChainParts]:
    def make(board: FaultBoard) -> ChainParts:
        with Key(bytes(range(32))) as key:
            parts = make_parts(models, key, FAST, identity=LIVE_IDENTITY)
        return replace(parts, analyse=faulty_analysis(models, board, "auto"))

    return make


def assert_no_raw_face(
    make: Callable[[FaultBoard], ChainParts], clips: list[Clip], eyes: Any, *, seed: int, n_frames: int
) -> None:
    detector, recognisers = eyes
    made = LeakJudge(detector, recognisers)
    report, injected = run_faults(make, clips, made, seed=seed, n_frames=n_frames)
    assert made.count.raw_frames == 0, made.count.examples
    assert made.count.faces > 0.6 * n_frames and (made.count.looked > 0) == bool(recognisers)
    # a starved machine may leave frames out, but not many
    assert made.count.frames > 0.9 * n_frames and report.dropped < 0.1 * n_frames
    assert report.replaced > 0.2 * n_frames, "mosaics everywhere would prove nothing"
    assert {"missed_detections", "exception_analyse", "cut"} <= set(injected)
    assert set(report.faults) == {"analyse", "reenact", "paste"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_raw_face_under_faults_generated_people(models: Any, eyes: Any) -> None:
    clips = [generated_clip(models, number, eyes[0]) for number in (1, 6, 9)]
    # Generated people are all alike to recognisers: pixels alone count.
    assert_no_raw_face(canned(models, clips), clips, (eyes[0], []), seed=11, n_frames=1300)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_raw_face_under_faults_real_people(models: Any, eyes: Any, shared_dir: Path) -> None:
    folder = shared_dir / "data" / "videos" / "real"
    names = ("clm_cap12", "lp_d3", "st_AOC", "intel_head-pose-face-detection-female-and-male")
    clips = [load_clip(folder / f"{name}.mp4", eyes[0], most=60) for name in names]
    assert_no_raw_face(canned(models, clips), clips, eyes, seed=12, n_frames=1300)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_raw_face_under_faults_with_real_rendering(models: Any, eyes: Any) -> None:
    clips = [generated_clip(models, number, eyes[0]) for number in (2, 5)]
    assert_no_raw_face(real(models), clips, (eyes[0], []), seed=16, n_frames=400)
