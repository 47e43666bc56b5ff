"""The live chain: losses, faults and stops, and never a raw face."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_chain import BOX, MakeClip, fake_parts, is_mosaic, read_video
from fault_chain import (
    HEIGHT,
    RAW_CORRELATION,
    WIDTH,
    correlation,
    no_threads_left,
    place,
    raw_frame,
)
from live_chain import Screen, Steering, filmed, find_texture, is_slate, texture_parts, url_source
from mjpeg_server import mjpeg_server

from keyface.configs.errors import SinkError, SourceError, StageError, UsageError
from keyface.pipeline.face import AnalysedFrame
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.run import LiveOptions, live_analysis, run_live
from keyface.pipeline.live.sink_recording import RecordingSink
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions
from keyface.pipeline.people.identity import Identities, IdentityOptions
from keyface.pipeline.people.key import Key

pytestmark = pytest.mark.timeout(240)


# Wiring.


def test_a_file_goes_to_all_sinks_whole(make_clip: MakeClip, tmp_path: Path) -> None:
    released: list[bool] = []
    screen, recording = Screen(), RecordingSink(tmp_path / "out.mp4")
    source = LiveSource(parse_source(str(make_clip(n_frames=15))))
    parts = fake_parts(BOX, released=released)
    report, ending = run_live(source, [screen, recording], parts)
    assert ending == "source_ended" and report.state == "ended" and released == [True]
    assert report.frames_in == report.frames_out + report.dropped == 15
    assert report.redacted == {"requested": report.frames_out}
    images, times_s = read_video(tmp_path / "out.mp4")
    on_screen, on_disk = report.outputs
    assert len(screen.frames) == on_screen.written and screen.endings == [True] and screen.is_closed
    assert len(images) == on_disk.written == len(screen.frames) + on_screen.dropped - on_disk.dropped
    assert times_s == sorted(set(times_s))
    shown = [frame for frame in screen.frames if frame.redactions]
    assert len(shown) == report.frames_out and all(is_mosaic(frame.image_rgb) for frame in shown)
    for image in images:  # the recording shows the same
        assert min(np.abs(image.astype(int) - frame.image_rgb).mean() for frame in screen.frames) < 8
    assert no_threads_left()


def test_a_slow_chain_drops_at_the_front_only_and_stays_young() -> None:
    def slow(index: int, output: Any) -> Any:
        time.sleep(0.08)
        return output

    screen = Screen(slow_s=0.02)
    source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(WIDTH, HEIGHT), fps=50))
    parts = texture_parts(reenact=slow)
    report, ending = run_live(source, [screen], parts, LiveOptions(duration_s=4.0))
    assert ending == "duration" and report.fps_out < 13
    assert report.fps_in > 1.5 * report.fps_out  # the source does not wait for the chain
    assert report.dropped > 0.3 * report.frames_in
    assert (
        report.age.p95_ms < 1500
    )  # three stages and one frame waiting before each; in a queue it would be 3 s
    assert report.frames_in - report.frames_out - report.dropped <= 8  # those under way at the end
    assert no_threads_left()


def test_live_analysis_takes_newcomers_at_first_sight() -> None:
    options = live_analysis()
    assert options.detect_every == 1 and options.sure_score == options.doubt_score
    assert live_analysis(2).detect_every == 2
    with pytest.raises(UsageError):
        live_analysis(3)


def test_a_person_is_known_after_some_looks_only() -> None:
    class Constant:
        def embed(self, *_: object) -> np.ndarray:
            return np.full(128, 128**-0.5, np.float32)

        def close(self) -> None:
            pass

    options = IdentityOptions(min_looks=3, interval_s=0.0)
    people = Identities(lambda: Constant(), options)  # type: ignore[arg-type, return-value]
    people.open()
    known = []
    for index in range(4):
        frame = raw_frame(index)
        people.observe(frame, find_texture(frame).faces[0])
        known.append(people.person_of(1, until_pts_s=frame.pts_s))
    assert known == [None, None, 0, 0]


# Losses.


def test_a_lost_source_is_a_slate_until_it_is_back() -> None:
    screen = Screen()
    with mjpeg_server(filmed) as server:

        def cut() -> None:
            server.mode = "refuse"
            server.hang_up()

        def back() -> None:
            server.mode = "serve"

        steer = Steering(
            (lambda r: r.frames_out > 5, cut),
            (lambda r: r.state == "lost" and r.slates > 3, back),
            (lambda r: r.reconnects >= 1 and r.frames_out > 15, lambda: setattr(server, "mode", "stall")),
            (lambda r: r.state == "lost", back),
            (lambda r: r.reconnects >= 2, lambda: None),
        )
        report, ending = run_live(url_source(server.url), [screen], texture_parts(), on_tick=steer)
    assert ending == "interrupted" and report.reconnects >= 2
    assert len(screen.slates()) == report.slates > 3
    assert len(screen.frames) == report.slates + report.frames_out
    screen.assert_no_raw_face()
    times_s = [frame.pts_s for frame in screen.frames]
    assert sum(b <= a for a, b in pairwise(times_s)) <= 2 * report.reconnects  # at the edges of slates
    assert no_threads_left()


def test_a_source_that_cannot_be_opened_ends_with_its_sentence(tmp_path: Path) -> None:
    recording = RecordingSink(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="refuses the connection"):
        run_live(url_source("http://127.0.0.1:1/x"), [recording], texture_parts())
    assert not list(tmp_path.iterdir()) and no_threads_left()


# Faults.


def raising(first: int, last: int) -> Callable[[int, Any], Any]:
    """Fails on these of the frames that get so far, however many are dropped before."""
    numbers = itertools.count()

    def fault(index: int, output: Any) -> Any:
        if first <= next(numbers) <= last:
            raise RuntimeError("boom")
        return output

    return fault


@pytest.mark.parametrize("stage", ["analyse", "reenact", "paste"])
def test_a_failing_stage_shows_mosaics_and_goes_on(stage: str, tmp_path: Path) -> None:
    screen, recording = Screen(), RecordingSink(tmp_path / "out.mp4")
    with mjpeg_server(filmed) as server:
        parts = texture_parts(**{stage: raising(5, 15)})
        steer = Steering((lambda r: r.frames_in > 40 and r.frames_out > 25, lambda: None))
        report, _ = run_live(url_source(server.url), [screen, recording], parts, on_tick=steer)
    assert report.faults.get(stage, 0) >= 1
    screen.assert_no_raw_face()
    images, _ = read_video(tmp_path / "out.mp4")
    assert len(images) == report.outputs[1].written > 10
    assert max(correlation(image) for image in images) < RAW_CORRELATION


@pytest.mark.parametrize(
    "bad",
    [
        lambda out: None,
        lambda out: Frame(filmed(0), 0, 0.0),
        lambda out: AnalysedFrame(raw_frame(0), ()),
        lambda out: AnalysedFrame(out.frame, out.faces * 2),
    ],
)
def test_outputs_that_cannot_be_trusted_are_mosaicked(bad: Callable[[Any], Any]) -> None:
    screen = Screen()
    with mjpeg_server(filmed) as server:
        parts = texture_parts(analyse=lambda index, out: bad(out) if index % 3 else out)
        steer = Steering((lambda r: r.frames_out > 15, lambda: None))
        run_live(url_source(server.url), [screen], parts, on_tick=steer)
    screen.assert_no_raw_face()


def test_a_stage_that_hangs_is_a_slate_and_then_the_end() -> None:
    release = threading.Event()

    def hang(index: int, output: Any) -> Any:
        if index >= 5:
            release.wait(20)
        return output

    screen = Screen()
    source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(WIDTH, HEIGHT)))
    options = LiveOptions(stage_timeout_s=3.0, stop_timeout_s=0.5)
    try:
        with pytest.raises(StageError, match="'reenact' did not come back"):
            run_live(source, [screen], texture_parts(reenact=hang), options)
    finally:
        release.set()
    assert len(screen.slates()) >= 2 and screen.endings == [False]
    assert no_threads_left()


class Broken(Screen):
    def write(self, frame: SafeFrame) -> None:
        raise SinkError("The screen broke.")


def test_a_sink_that_fails_is_left_out(
    make_clip: MakeClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, recording, broken = Screen(), RecordingSink(tmp_path / "out.mp4"), Broken()
    source = LiveSource(parse_source(str(make_clip(n_frames=60))))
    report, ending = run_live(source, [other, broken, recording], fake_parts(BOX))
    assert ending == "source_ended" and report.frames_out > 5
    assert [sink.state for sink in report.outputs] == ["closed", "failed", "closed"]
    assert "broke" in report.outputs[1].problem and report.outputs[1].written == 0
    assert [r.getMessage() for r in caplog.records if "broke" in r.getMessage()] == [
        "An output has failed and is left out: The screen broke."
    ]
    assert (other.endings, broken.endings) == ([True], [False])
    assert len(read_video(tmp_path / "out.mp4")[0]) == report.outputs[2].written > 5
    assert len(other.frames) + report.outputs[0].dropped == report.frames_out + report.slates
    assert no_threads_left()


def test_the_last_sink_that_fails_ends_the_stream(make_clip: MakeClip) -> None:
    one, two = Broken(), Broken()
    source = LiveSource(parse_source(str(make_clip(n_frames=40))))
    with pytest.raises(SinkError, match="broke"):
        run_live(source, [one, two], fake_parts(BOX))
    assert one.endings == two.endings == [False] and one.is_closed and two.is_closed
    assert no_threads_left()


# The real chain.


@pytest.mark.timeout(560)
def test_a_generated_person_is_never_seen(models: Any, tmp_path: Path) -> None:
    """Real networks: the person is mosaicked until known, and then somebody else."""
    from real_chain import Likeness, open_looker, portraits

    from keyface.pipeline.assemble import make_parts, open_portrait
    from keyface.pipeline.live.run import LIVE_IDENTITY
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.sample.clip import write_sample_clip
    from keyface.pipeline.sample.performance import Performance

    options = ProcessOptions(threads=1)
    clip = tmp_path / "person.mp4"
    with open_portrait(models, 38, options) as portrait:
        write_sample_clip(clip, portrait, Performance(2.0), size_px=320)
    screen = Screen()
    source = LiveSource(parse_source(str(clip)), LiveSourceOptions(is_looped=True))
    with Key(bytes(range(32))) as secret:
        parts = make_parts(models, secret, options, analyse=live_analysis(), identity=LIVE_IDENTITY)
        steer = Steering((lambda r: r.replaced >= 12 and r.stream_s > 4, lambda: None))
        report, _ = run_live(source, [screen], parts, LiveOptions(duration_s=200), on_tick=steer)
    assert report.replaced >= 12 and report.faults == {}
    shown = [frame for frame in screen.frames if not is_slate(frame)]
    assert all(frame.replaced or frame.redactions for frame in shown)
    originals = read_video(clip)[0]
    for frame in shown:  # whichever frame of the loop it was: the middle of the face is another one
        middle = frame.image_rgb[130:230, 110:210].astype(int)
        nearest = min(np.abs(middle - raw[130:230, 110:210]).mean() for raw in originals)
        assert nearest > 3.0, f"raw face at {frame.pts_s:.2f} s"
    assert shown[0].redactions and not shown[0].replaced
    replaced = [frame.image_rgb for frame in shown if frame.replaced]
    with open_looker(models) as looker:
        gallery = looker.only(portraits(models, range(100, 106)))
        likeness = Likeness(np.stack([one.embedding for one in gallery]))
        original = looker.only([originals[0]])
        seen = [face for image in replaced[:: max(1, len(replaced) // 12)] for face in looker.faces(image)]
        before = looker.only(originals[1:24:5])
        to_original = likeness.between(original * len(seen), seen).mean()
        to_himself = likeness.between(original * len(before), before).mean()
        assert to_original < to_himself - 0.3, "nearer to himself than to the other"


def test_place_is_inside_the_picture() -> None:
    """The stand-in for a face lies wholly in the picture, or searching for it would prove nothing."""
    for index in range(200):
        x0, y0, x1, y1 = place(index)
        assert min(x0, y0) >= 0 and x1 <= WIDTH and y1 <= HEIGHT
        if index % 20 == 0:
            assert correlation(filmed(index)) > 0.9
