"""The obeying stages: pause, panic, boxes, another key, quality; and the guard of new scenes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fault_chain import HEIGHT, WIDTH, paste, raw_frame, render
from live_chain import Screen, find_texture, is_slate, texture_parts
from live_sink_cases import until

from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, Redaction
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.quality import QualityGovernor
from keyface.pipeline.live.run import LiveOptions, LiveReport, run_live
from keyface.pipeline.live.source import LiveSource
from keyface.pipeline.live.stages import LiveAnalysis, LivePaste, LiveReenactment, SceneGuard
from keyface.pipeline.people.key import Key
from keyface.pipeline.reenact.reenactor import Pace

pytestmark = pytest.mark.timeout(240)


class Actor:
    """A reenactment that can change its key: the new face is ready after `n_frames`."""

    def __init__(self, n_frames: int = 3) -> None:
        self.pace = Pace()
        self.left = 0
        self.n_frames = n_frames
        self.rotations: list[bool] = []
        self.key: Key | None = None

    @property
    def is_rotating(self) -> bool:
        return self.left > 0

    def rotate(self, key: Key, *, keeps_old: bool) -> None:
        key.derive("test/v1", 32)  # not closed yet
        self.key = key
        self.rotations.append(keeps_old)
        self.left = self.n_frames if keeps_old else 0

    def open(self) -> None:
        pass

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        self.left = max(0, self.left - 1)
        return render(item)

    def close(self) -> None:
        pass


class Step:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.process = work

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


def analysed(index: int = 0) -> AnalysedFrame:
    return find_texture(raw_frame(index))


# Controls, stage by stage.


def test_mosaics_from_the_next_frame_on_and_faces_again_after() -> None:
    controls = LiveControls()
    stage = LiveReenactment(Actor(), controls, QualityGovernor())
    assert len(stage.process(analysed()).virtual) == 1
    controls.mode = "mosaic"
    out = stage.process(analysed(1))
    assert not out.virtual and [r.reason for r in out.must_redact] == ["requested"]
    controls.mode = "live"
    assert len(stage.process(analysed(2)).virtual) == 1


@pytest.mark.parametrize("mode", ["mosaic", "slate"])
def test_a_face_on_its_way_is_mosaicked_at_the_paste(mode: Any) -> None:
    controls = LiveControls()
    item = render(analysed())
    stage = LivePaste(Step(paste), controls)
    assert stage.process(item).replaced == (1,)
    controls.mode = mode
    safe = stage.process(item)
    assert safe.replaced == () and (1, "requested") in [(r.track_id, r.reason) for r in safe.redactions]


def test_what_had_to_be_mosaicked_still_is_in_a_panic() -> None:
    controls = LiveControls(mode="mosaic")
    item = render(analysed())
    everything = replace(
        item,
        must_redact=LiveReenactment(Actor(), controls, QualityGovernor()).process(analysed()).must_redact,
    )
    assert set(everything.must_redact) <= set(LivePaste(Step(paste), controls).process(everything).redactions)


def test_boxes_are_drawn_on_the_safe_picture_only() -> None:
    controls = LiveControls()
    item = render(analysed())
    stage = LivePaste(Step(paste), controls)
    plain = stage.process(item)
    controls.shows_boxes = True
    boxed = stage.process(item)
    changed = (plain.image_rgb != boxed.image_rgb).any(-1)
    x0, y0, x1, y1 = (int(v) for v in item.analysed.faces[0].box_xyxy)
    assert 0 < changed.sum() <= 2 * (x1 - x0 + y1 - y0 + 4)
    assert not changed[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].any()
    assert boxed.replaced == plain.replaced and boxed.redactions == plain.redactions


def test_a_key_is_taken_once_wiped_and_confirmed_when_it_is_in_use() -> None:
    controls, actor = LiveControls(), Actor(n_frames=3)
    stage = LiveReenactment(actor, controls, QualityGovernor())
    stage.process(analysed())
    controls.request_key(Key.generate())
    states = []
    for index in range(1, 6):
        stage.process(analysed(index))
        states.append((controls.state().is_rotating, controls.state().rotations))
    assert actor.rotations == [True]
    assert states == [(True, 0), (True, 0), (False, 1), (False, 1), (False, 1)]
    assert actor.key is not None
    with pytest.raises(ValueError, match="closed"):
        actor.key.derive("test/v1", 32)


def test_in_a_panic_the_old_face_is_not_kept() -> None:
    controls, actor = LiveControls(mode="mosaic"), Actor()
    controls.request_key(Key.generate())
    LiveReenactment(actor, controls, QualityGovernor()).process(analysed())
    assert actor.rotations == [False]


def test_quality_sets_the_pace_of_rendering_and_search() -> None:
    quality, actor = QualityGovernor(), Actor()

    class Analysis(Step):
        detect_every = 2
        detect_scale = 1.0

    analysis = Analysis(find_texture)
    guarded = LiveAnalysis(analysis, analysis, quality, 0.0)
    acting = LiveReenactment(actor, LiveControls(), quality)
    seen = []
    for step in (0, 2, 5):
        quality.fix(step)
        acting.process(guarded.process(raw_frame(step)))
        seen.append((actor.pace.render_every, analysis.detect_every, analysis.detect_scale))
    assert seen == [(1, 2, 1.0), (3, 2, 1.0), (4, 3, 0.75)], "never more often than asked for at the start"
    assert actor.pace.is_stepwise


# New scenes.


def empty(pts_s: float, *, is_cut: bool = False, height: int = HEIGHT) -> AnalysedFrame:
    return AnalysedFrame(Frame(np.zeros((height, WIDTH, 3), np.uint8), 0, pts_s), (), is_cut=is_cut)


def with_face(pts_s: float, *, is_predicted: bool = False) -> AnalysedFrame:
    face = Face(1, np.array([10, 10, 60, 60], np.float32), None, 0.9, is_predicted, None)
    return replace(empty(pts_s), faces=(face,))


def covers_all(out: AnalysedFrame) -> bool:
    return any(r.box_xyxy == (0.0, 0.0, WIDTH, out.frame.image_rgb.shape[0]) for r in out.must_redact)


def test_a_scene_without_a_face_is_mosaicked_for_a_while() -> None:
    guard = SceneGuard(1.0)
    assert [covers_all(guard.apply(empty(t / 10))) for t in range(14)] == [True] * 10 + [False] * 4


def test_a_face_that_is_found_settles_the_scene_and_a_predicted_one_does_not() -> None:
    guard = SceneGuard(1.0)
    assert covers_all(guard.apply(empty(0.0)))
    assert covers_all(guard.apply(with_face(0.1, is_predicted=True)))
    assert not covers_all(guard.apply(with_face(0.2)))
    assert not covers_all(guard.apply(empty(0.3)))


@pytest.mark.parametrize(
    "newcomer",
    [empty(2.1, is_cut=True), empty(3.5), empty(2.35), empty(2.1, height=HEIGHT + 8), empty(0.5)],
    ids=["cut", "gap", "short gap", "another size", "back in time"],
)
def test_what_makes_a_scene_new(newcomer: AnalysedFrame) -> None:
    guard = SceneGuard(1.0)
    guard.apply(with_face(1.9))
    assert not covers_all(guard.apply(empty(2.0)))
    assert covers_all(guard.apply(newcomer))


def test_few_frames_a_second_are_no_gaps() -> None:
    guard = SceneGuard(1.0)
    covered = [covers_all(guard.apply(empty(t / 2))) for t in range(40)]
    assert covered[0] and not any(covered[20:])
    assert covers_all(guard.apply(empty(39 / 2 + 3))), "but a long pause is one"


def test_what_is_not_seen_does_not_settle_a_scene() -> None:
    guard = SceneGuard(1.0)
    guard.apply(with_face(0.0))
    shown = [0.04, 0.45, *(0.45 + t / 25 for t in range(1, 30))]  # lost frames: others may be there now
    covered = [covers_all(guard.apply(empty(t))) for t in shown]
    assert not covered[0] and all(covered[1:24])


def test_a_damaged_frame_settles_nothing_and_unsettles_nothing() -> None:
    """What is mosaicked in it are places of faces seen before, perhaps in another scene."""
    redaction = Redaction((10.0, 10.0, 60.0, 60.0), "implausible", 1)

    def damaged(pts_s: float) -> AnalysedFrame:
        rng = np.random.default_rng(round(pts_s * 100))
        frame = Frame(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), 0, pts_s)
        return replace(empty(pts_s), frame=frame, must_redact=(redaction,))

    new = SceneGuard(1.0)
    assert covers_all(new.apply(damaged(0.0), is_damaged=True))
    assert covers_all(new.apply(damaged(0.04), is_damaged=True))
    known = SceneGuard(1.0)
    for index in range(10):
        known.apply(with_face(index / 25))
    assert not covers_all(known.apply(damaged(0.4), is_damaged=True))
    assert not covers_all(known.apply(with_face(0.44)))


def test_a_face_that_is_lost_in_a_change_of_the_picture_makes_the_scene_new() -> None:
    def shown(level: int, pts_s: float, *, found: bool) -> AnalysedFrame:
        frame = Frame(np.full((HEIGHT, WIDTH, 3), level, np.uint8), 0, pts_s)
        return replace(with_face(pts_s, is_predicted=not found), frame=frame)

    for level, found, is_new in ((90, False, False), (100, True, False), (100, False, True)):
        guard = SceneGuard(1.0)
        for index in range(10):
            guard.apply(shown(90 + index % 2, index / 25, found=True))
        assert covers_all(guard.apply(shown(level, 0.4, found=found))) == is_new


def test_after_a_frame_that_could_not_be_analysed_the_scene_is_new() -> None:
    def fails_once(frame: Frame) -> AnalysedFrame:
        if frame.index == 1:
            raise RuntimeError("broken")
        return with_face(frame.pts_s) if frame.index == 0 else empty(frame.pts_s)

    stage = LiveAnalysis(Step(fails_once), object(), QualityGovernor(), 1.0)
    stage.open()
    frames = [replace(raw_frame(index), pts_s=index / 25) for index in range(3)]
    assert not covers_all(stage.process(frames[0]))
    with pytest.raises(RuntimeError):
        stage.process(frames[1])
    assert covers_all(stage.process(frames[2]))


# In a running stream.


def steered(
    screen: Screen, controls: LiveControls, *acts: tuple[float, Callable[[], object]], duration_s: float
) -> LiveReport:
    waiting = list(acts)

    def on_tick(report: LiveReport) -> None:
        while waiting and report.stream_s >= waiting[0][0]:
            waiting.pop(0)[1]()

    source = LiveSource(parse_source("test"))
    report, ending = run_live(
        source,
        [screen],
        texture_parts(),
        LiveOptions(duration_s=duration_s),
        controls=controls,
        on_tick=on_tick,
    )
    assert ending == "duration"
    return report


def test_a_pause_shows_nothing_but_the_slate() -> None:
    controls, screen = LiveControls(), Screen()
    marks: list[int] = []

    def pause() -> None:
        controls.is_paused = True
        n = len(screen.frames)
        # What was handed to the sink before has arrived when slates have.
        assert until(lambda: sum(is_slate(frame) for frame in screen.frames[n:]) >= 2)
        marks.append(len(screen.frames))

    def go_on() -> None:
        assert until(lambda: len(screen.frames) > marks[0] + 2)
        marks.append(len(screen.frames))
        controls.is_paused = False
        assert until(lambda: not is_slate(screen.frames[-1]))

    report = steered(screen, controls, (0.5, pause), (1.5, go_on), duration_s=2.5)
    paused = screen.frames[marks[0] : marks[1]]
    assert paused and all(is_slate(frame) for frame in paused)
    assert not is_slate(screen.frames[-1])
    assert report.slates >= len(paused)


def test_the_report_tells_quality_and_rotations() -> None:
    controls = LiveControls(quality=3)

    def rotate() -> None:
        controls.request_key(Key(bytes(range(32))))
        assert until(lambda: controls.state().rotations)

    report = steered(Screen(), controls, (0.3, rotate), duration_s=1.2)
    told = report.to_json()
    assert told["quality"] == 3 and told["quality_changes"] == 0 and told["rotations"] == 1
