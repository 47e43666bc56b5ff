"""`keyface-stream`: from a live source to its sinks, with faults, losses and stops, and never a raw face."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_chain import BOX, MakeClip, fake_parts, is_mosaic, read_video
from fault_chain import (
    FACE_PX,
    HEIGHT,
    RAW_CORRELATION,
    TEXTURE,
    WIDTH,
    Step,
    correlation,
    mesh_of,
    no_threads_left,
    paste,
    place,
    raw_frame,
    render,
)
from mjpeg_server import mjpeg_server

from keyface.configs.errors import SinkError, SourceError, StageError, UsageError
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.identity import Identities, IdentityOptions
from keyface.pipeline.key import Key
from keyface.pipeline.live import LiveOptions, LiveReport, live_analysis, run_live
from keyface.pipeline.live_address import parse_source
from keyface.pipeline.live_sink import NullSink, RecordingSink
from keyface.pipeline.live_source import LiveSource, LiveSourceOptions
from keyface.tools import stream_command
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(120)

QUICK = LiveSourceOptions(open_timeout_s=2.0, silence_s=0.5, first_pause_s=0.05, longest_pause_s=0.2)
SECRETS = ("hidden-user", "hidden-password", "hidden-path", "hidden-token")


class Screen(NullSink):
    """Keeps what it gets, and fails the test on a raw face."""

    def __init__(self, slow_s: float = 0.0) -> None:
        super().__init__()
        self.frames: list[SafeFrame] = []
        self.size_wh: tuple[int, int] | None = None
        self.endings: list[bool] = []
        self.is_closed = False
        self._slow_s = slow_s

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        self.size_wh = size_wh

    def write(self, frame: SafeFrame) -> None:
        super().write(frame)
        self.frames.append(frame)
        time.sleep(self._slow_s)

    def close(self) -> None:
        self.is_closed = True

    def finish(self, *, is_complete: bool) -> None:
        self.endings.append(is_complete)

    def assert_no_raw_face(self) -> None:
        for frame in self.frames:
            assert correlation(frame.image_rgb) < RAW_CORRELATION, f"raw face at {frame.pts_s:.2f} s"

    def slates(self) -> list[SafeFrame]:
        return [frame for frame in self.frames if is_slate(frame)]


def is_slate(frame: SafeFrame) -> bool:
    """True when it has the plain dark border of a slate."""
    return bool((frame.image_rgb[:4] == 24).all())


def filmed(number: int) -> np.ndarray:
    return raw_frame(number).image_rgb


def find_texture(frame: Frame) -> AnalysedFrame:
    """Finds the face where it is seen, whatever the frame's number."""
    green = np.ascontiguousarray(frame.image_rgb[:, :, 1])
    match = cv2.matchTemplate(green, TEXTURE[:, :, 1].copy(), cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(match)
    if best < 0.2:
        return AnalysedFrame(frame, ())
    box = np.array((x, y, x + FACE_PX, y + FACE_PX), np.float32)
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = (box[:2] + box[2:]) / 2
    return AnalysedFrame(frame, (Face(1, box, None, 0.9, False, mesh_of(points)),))


def texture_parts(**faults: Any) -> ChainParts:
    return ChainParts(
        analyse=Step(find_texture, faults.get("analyse")),
        observer=None,
        reenact=Step(render, faults.get("reenact")),
        paste=Step(paste, faults.get("paste")),
    )


def url_source(url: str) -> LiveSource:
    return LiveSource(parse_source(url), QUICK)


class Steering:
    """An `on_tick` that runs one step after the other, each when its condition holds, and then stops."""

    def __init__(self, *steps: tuple[Callable[[LiveReport], bool], Callable[[], object]]) -> None:
        self._steps = list(steps)

    def __call__(self, report: LiveReport) -> None:
        if not self._steps:
            raise KeyboardInterrupt
        is_time, act = self._steps[0]
        if is_time(report):
            act()
            self._steps.pop(0)


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
    assert len(images) == len(screen.frames) and screen.endings == [True] and screen.is_closed
    assert times_s == sorted(set(times_s))
    shown = [frame for frame in screen.frames if frame.redactions]
    assert len(shown) == report.frames_out and all(is_mosaic(frame.image_rgb) for frame in shown)
    for image, frame in zip(images, screen.frames, strict=True):
        assert np.abs(image.astype(int) - frame.image_rgb).mean() < 8  # the recording shows the same
    assert no_threads_left()


def test_a_slow_chain_drops_at_the_front_only_and_stays_young() -> None:
    def slow(index: int, output: Any) -> Any:
        time.sleep(0.08)
        return output

    screen = Screen(slow_s=0.02)
    source = LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(WIDTH, HEIGHT), fps=50))
    parts = texture_parts(reenact=slow)
    report, ending = run_live(source, [screen], parts, LiveOptions(duration_s=2.5))
    assert ending == "duration" and report.dropped > 40
    assert report.fps_in > 25 and 5 < report.fps_out < 13
    assert report.age.p95_ms < 600  # three stages and one frame waiting before each
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
            (lambda r: r.reconnects == 1 and r.frames_out > 15, lambda: setattr(server, "mode", "stall")),
            (lambda r: r.state == "lost", back),
            (lambda r: r.reconnects == 2, lambda: None),
        )
        report, ending = run_live(url_source(server.url), [screen], texture_parts(), on_tick=steer)
    assert ending == "interrupted" and report.reconnects == 2
    assert len(screen.slates()) == report.slates > 3
    assert len(screen.frames) == report.slates + report.frames_out
    screen.assert_no_raw_face()
    times_s = [frame.pts_s for frame in screen.frames]
    assert sum(b <= a for a, b in pairwise(times_s)) <= 4  # at the edges of slates
    assert no_threads_left()


def test_a_source_that_cannot_be_opened_ends_with_its_sentence(tmp_path: Path) -> None:
    recording = RecordingSink(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="refuses the connection"):
        run_live(url_source("http://127.0.0.1:1/x"), [recording], texture_parts())
    assert not list(tmp_path.iterdir()) and no_threads_left()


# Faults.


def raising(first: int, last: int) -> Callable[[int, Any], Any]:
    def fault(index: int, output: Any) -> Any:
        if first <= index <= last:
            raise RuntimeError("boom")
        return output

    return fault


@pytest.mark.parametrize("stage", ["analyse", "reenact", "paste"])
def test_a_failing_stage_shows_mosaics_and_goes_on(stage: str, tmp_path: Path) -> None:
    screen, recording = Screen(), RecordingSink(tmp_path / "out.mp4")
    with mjpeg_server(filmed) as server:
        parts = texture_parts(**{stage: raising(10, 25)})
        steer = Steering((lambda r: r.frames_in > 40 and r.frames_out > 12, lambda: None))
        report, _ = run_live(url_source(server.url), [screen, recording], parts, on_tick=steer)
    assert report.faults.get(stage, 0) >= 1
    screen.assert_no_raw_face()
    images, _ = read_video(tmp_path / "out.mp4")
    assert len(images) == len(screen.frames)
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


def test_a_sink_that_fails_ends_the_stream(make_clip: MakeClip, tmp_path: Path) -> None:
    class Broken(Screen):
        def write(self, frame: SafeFrame) -> None:
            raise SinkError("The screen broke.")

    other, recording = Screen(), RecordingSink(tmp_path / "out.mp4")
    source = LiveSource(parse_source(str(make_clip())))
    with pytest.raises(SinkError, match="broke"):
        run_live(source, [other, recording, Broken()], fake_parts(BOX))
    assert other.endings == [False] and not (tmp_path / "out.mp4").exists()
    assert no_threads_left()


# The command.


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key.generate().save(path)
    return path


@pytest.fixture
def fake_networks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def make_parts(store: object, key: Key | None, options: object, **live: Any) -> ChainParts:
        made.append({"key": "" if key is None else key.fingerprint, **live})
        return fake_parts(BOX)

    monkeypatch.setattr("keyface.pipeline.assemble.make_parts", make_parts)
    monkeypatch.setattr("keyface.engines.store.ModelStore.ensure", lambda *_, **__: {})
    return made


def stream(*arguments: str | Path) -> int:
    return stream_command.main([str(argument) for argument in arguments])


def test_the_command_streams_a_file(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.mp4"
    clip = make_clip(n_frames=60)
    assert stream("--source", clip, "--key-file", key, "--sink", "null", "--sink", out, "--json") == 0
    text, err = capsys.readouterr()
    summary = json.loads(text)
    assert summary["ending"] == "source_ended" and summary["frames_in"] == 60
    assert summary["sinks"] == ["null", str(out)] and summary["size_wh"] == [96, 64]
    assert summary["redacted_frames"] == summary["frames_out"] and summary["age"]["count"]
    assert " in " in err and " age " in err and "dropped" in err
    assert len(read_video(out)[0]) == summary["frames_out"] + summary["slates"]
    assert fake_networks[0]["key"] == Key.load(key).fingerprint
    assert fake_networks[0]["analyse"].detect_every == 1 and fake_networks[0]["identity"].min_looks > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_a_second_with_a_whole_recording(
    number: signal.Signals, tmp_path: Path, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sent_s: list[float] = []

    def send() -> None:
        sent_s.append(time.monotonic())
        os.kill(os.getpid(), number)

    timer = threading.Timer(1.5, send)
    timer.start()
    out = tmp_path / "out.mp4"
    code = stream("--source", "test", "--redact-only", "--sink", out, "--json", "--quiet")
    took_s = time.monotonic() - sent_s[0]
    timer.join()
    summary = json.loads(capsys.readouterr().out)
    assert code == 0 and summary["ending"] == "interrupted" and took_s < 1.0
    assert len(read_video(out)[0]) == summary["frames_out"] + summary["slates"] > 10
    assert no_threads_left()


def test_a_signal_ends_a_stalled_stream_within_a_second(
    fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    moving_image: Callable[..., np.ndarray],
) -> None:  # fmt: skip
    sent_s: list[float] = []

    def send() -> None:
        sent_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with mjpeg_server(moving_image) as server:
        threading.Timer(1.0, lambda: setattr(server, "mode", "stall")).start()
        timer = threading.Timer(2.0, send)
        timer.start()
        code = stream("--source", server.secret_url, "--redact-only", "--sink", "null", "--json")
        took_s = time.monotonic() - sent_s[0]
    text, err = capsys.readouterr()
    assert code == 0 and json.loads(text)["ending"] == "interrupted" and took_s < 1.0
    assert not [secret for secret in SECRETS if secret in text + err]
    assert no_threads_left()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--source", "http://hidden-user:hidden-password@127.0.0.1:1/hidden-path"], 6, "refuses"),
        (["--source", "gopher://hidden-user:hidden-password@host/"], 2, "unknown kind"),
        (["--source", "/dev/video97"], 6, "does not exist"),
        (["--source", "no-such-file.mp4"], 6, "does not exist"),
        (["--source", "test", "--width", "640"], 2, "belong together"),
        (["--source", "test", "--duration", "0"], 2, "--duration"),
        (["--source", "test", "--sink", "out.avi"], 2, "Legal"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], code: int, said: str, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert stream(*arguments, "--redact-only", "--quiet", "--sink", "null") == code
    text, err = capsys.readouterr()
    assert said in err and err.startswith("keyface: ") and len(err.splitlines()) == 1 and not text
    assert not [secret for secret in SECRETS if secret in err]


def test_a_key_is_asked_for(fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "--source", "test", "--sink", "null"]) == 2
    assert "--key-file" in capsys.readouterr().err


def test_the_source_is_not_recorded_over(
    make_clip: MakeClip, fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip()
    before = clip.read_bytes()
    assert stream("--source", clip, "--redact-only", "--sink", clip, "--force") == 2
    assert "source itself" in capsys.readouterr().err and clip.read_bytes() == before


# The real chain.


@pytest.mark.timeout(280)
def test_a_generated_person_is_never_seen(models: Any, tmp_path: Path) -> None:
    """Real networks: the person is mosaicked until known, then replaced, and not recognised by SFace."""
    from real_chain import SAME_PERSON, Likeness, open_looker, portraits

    from keyface.pipeline.assemble import make_parts, open_portrait
    from keyface.pipeline.live import LIVE_IDENTITY
    from keyface.pipeline.performance import Performance
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.sample_clip import write_sample_clip

    options = ProcessOptions(threads=1)
    clip = tmp_path / "person.mp4"
    with open_portrait(models, 38, options) as portrait:
        write_sample_clip(clip, portrait, Performance(2.0), size_px=320)
    screen = Screen()
    source = LiveSource(parse_source(str(clip)), LiveSourceOptions(is_looped=True))
    with Key(bytes(range(32))) as secret:
        parts = make_parts(models, secret, options, analyse=live_analysis(), identity=LIVE_IDENTITY)
        steer = Steering((lambda r: r.replaced >= 12 and r.stream_s > 4, lambda: None))
        report, _ = run_live(source, [screen], parts, LiveOptions(duration_s=100), on_tick=steer)
    assert report.replaced >= 12 and report.faults == {}
    shown = [frame for frame in screen.frames if not is_slate(frame)]
    assert all(frame.replaced or frame.redactions for frame in shown)
    assert shown[0].redactions and not shown[0].replaced
    replaced = [frame.image_rgb for frame in shown if frame.replaced]
    with open_looker(models) as looker:
        gallery = looker.only(portraits(models, range(100, 106)))
        likeness = Likeness(np.stack([one.embedding for one in gallery]))
        original = looker.only([read_video(clip)[0][0]])
        seen = [face for image in replaced[:: max(1, len(replaced) // 12)] for face in looker.faces(image)]
        assert likeness.between(original * len(seen), seen).mean() < SAME_PERSON
        before = looker.only(read_video(clip)[0][1:12:5])
        assert likeness.between(original * len(before), before).mean() > 0.6, "or the test sees nothing"


def test_ctrl_c_from_a_shell(models: Any, tmp_path: Path) -> None:
    """The real program: exit code 0, a whole recording, one JSON object on standard output."""
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "keyface.tools.stream_command", "--source", "test", "--redact-only"]
    program = subprocess.Popen(
        [*command, "--sink", str(out), "--json", "--width", "160", "--height", "120"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stderr is not None
        for line in program.stderr:
            if "live" in line and " out  0.0" not in line:
                break
        sent_s = time.monotonic()
        program.send_signal(signal.SIGINT)
        text, err = program.communicate(timeout=30)
    finally:
        program.kill()
    assert program.returncode == 0, err
    assert time.monotonic() - sent_s < 3.0  # with the end of the interpreter
    summary = json.loads(text)
    assert summary["ending"] == "interrupted"
    assert len(read_video(out)[0]) == summary["frames_out"] + summary["slates"]


def test_place_is_inside_the_picture() -> None:
    """The stand-in for a face lies wholly in the picture, or searching for it would prove nothing."""
    for index in range(200):
        x0, y0, x1, y1 = place(index)
        assert min(x0, y0) >= 0 and x1 <= WIDTH and y1 <= HEIGHT
        if index % 20 == 0:
            assert correlation(filmed(index)) > 0.9
