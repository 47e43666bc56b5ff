"""Sound beside live pictures: as late as they are, muted in a pause, and in step in what is recorded and sent."""

from __future__ import annotations

import socket
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from fake_chain import BOX, MakeClip, fake_parts
from fault_chain import no_threads_left
from live_sink_cases import PUSH_SIZE_WH, Receiver, free_port, tone, until
from rtsp_server import number_of, numbered

from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.audio import AudioTap
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.run import LiveOptions, run_live
from keyface.pipeline.live.sink import make_sink
from keyface.pipeline.live.sound import LiveSound
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions, LiveStatus

pytestmark = pytest.mark.timeout(240)
IN_STEP_S = 0.08
FLASH_S = 0.2


def begun(seconds_ago: float) -> LiveStatus:
    return LiveStatus(origin_s=time.monotonic() - seconds_ago)


# One sink's share.


def test_sound_comes_with_the_picture_of_its_moment() -> None:
    tap = AudioTap()
    sound = LiveSound(tap, begun(10.0))
    pieces = [tone(number * 0.04) for number in range(50)]
    for piece in pieces:
        tap.put(piece)
    assert sound.take(0.5) == pieces[:13]
    assert sound.take(0.5) == []
    assert sound.take(1.0) == pieces[13:25]


def test_two_sinks_hear_the_same() -> None:
    tap = AudioTap()
    one, two = LiveSound(tap, begun(10.0)), LiveSound(tap, begun(10.0))
    piece = tone(0.0)
    tap.put(piece)
    assert one.take(1.0) == two.take(1.0) == [piece]


def test_a_pause_is_silent_and_so_is_what_was_captured_in_it() -> None:
    tap, controls = AudioTap(), LiveControls()
    sound = LiveSound(tap, begun(10.0), controls)
    for number in range(300):  # 12 s of sound, of which 10 s have passed
        tap.put(tone(number * 0.04))

    def levels(until_s: float) -> set[bool]:
        return {bool(np.abs(piece.samples).max() > 0) for piece in sound.take(until_s)}

    assert levels(2.5) == {True}
    controls.mode = "slate"
    assert levels(4.0) == {False}
    controls.mode = "live"
    assert levels(9.8) == {False}  # spoken before the pause ended, fetched after it
    assert levels(12.0) == {False, True} or levels(12.0) == {True}


def test_panic_does_not_mute() -> None:
    tap, controls = AudioTap(), LiveControls(mode="mosaic")
    sound = LiveSound(tap, begun(1.0), controls)
    tap.put(tone(0.0))
    (piece,) = sound.take(1.0)
    assert np.abs(piece.samples).max() > 0.4


# All the way.


def beep_and_flash(path: Path, seconds: int) -> Path:
    """Numbered frames, bright below for a fifth of a second at the begin of each, with a tone as long."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "12", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *PUSH_SIZE_WH, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for number in range(25 * seconds):
            image = numbered(number, PUSH_SIZE_WH)
            image[60:] = 235 if number % 25 < 25 * FLASH_S else 16
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        t = np.arange(44_100 * seconds) / 44_100
        wave = (0.5 * np.sin(2 * np.pi * 1000 * t) * (t % 1 < FLASH_S)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            chunk = np.ascontiguousarray(wave[None, start : start + 1024])
            sound = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 44_100, start, Fraction(1, 44_100)
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


class Heard(NamedTuple):
    """Of one output: when tones begin, and of each frame the time, the number and whether it is a flash."""

    beeps_s: list[float]
    frames: list[tuple[float, int, bool]]


def beeps_of(levels: list[tuple[float, float]]) -> list[float]:
    """When (time, level) begins to be loud, after having been quiet."""
    loudest = max(level for _, level in levels)
    on = [level > 0.5 * loudest for _, level in levels]
    return [levels[i][0] for i in range(1, len(on)) if on[i] and not on[i - 1]]


def heard_in(path: Path) -> Heard:
    with av.open(str(path), options={"allowed_extensions": "ALL"}) as container:
        images = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    levels: list[tuple[float, float]] = []
    with av.open(str(path), options={"allowed_extensions": "ALL"}) as container:
        for sound in container.decode(audio=0):
            samples = sound.to_ndarray()[0]
            for begin in range(0, len(samples) - 127, 128):
                level = float(np.abs(samples[begin : begin + 128]).max())
                levels.append((float(sound.time) + begin / sound.sample_rate, level))
    frames = [(time_s, number_of(image), bool(image[100:].mean() > 128)) for time_s, image in images]
    return Heard(beeps_of(levels), [(t, n, is_on) for t, n, is_on in frames if n is not None])


def heard_by(receiver: Receiver) -> Heard:
    sounds = [(entry["time_s"], entry["level"]) for entry in receiver.entries("audio")]
    seen = [entry for entry in receiver.entries("video") if entry["number"] is not None]
    frames = [(entry["time_s"], entry["number"], entry["number"] % 25 < 25 * FLASH_S) for entry in seen]
    return Heard(beeps_of(sounds), frames)


def has_heard(receiver: Receiver, *, n_beeps: int, n_frames: int) -> bool:
    if not receiver.entries("audio"):
        return False
    heard = heard_by(receiver)
    return len(heard.beeps_s) >= n_beeps and len(heard.frames) >= n_frames


def assert_in_step(heard: Heard, at_least: int) -> None:
    """Frames that were left out do not matter: each one that is there says by its number when it was filmed."""
    delays_s = [time_s - number / 25 for time_s, number, _ in heard.frames]
    delay_s = float(np.median(delays_s))
    assert np.percentile(np.abs(np.asarray(delays_s) - delay_s), 90) < IN_STEP_S
    assert all(is_on == (number % 25 < 25 * FLASH_S) for _, number, is_on in heard.frames)
    off_s = [beep_s - delay_s - round(beep_s - delay_s) for beep_s in heard.beeps_s]
    assert len(off_s) >= at_least and max(map(abs, off_s)) < IN_STEP_S, off_s


class Late:
    """A step of the chain that takes its time, and not always the same."""

    def __init__(self, stage: Any) -> None:
        self._stage, self._n = stage, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def process(self, item: Any) -> Any:
        self._n += 1
        time.sleep(0.02 + 0.03 * (self._n % 3))
        return self._stage.process(item)


def live_file(path: Path) -> LiveSource:
    return LiveSource(parse_source(str(path)), LiveSourceOptions(with_audio=True))


def late_parts() -> Any:
    parts = fake_parts()
    object.__setattr__(parts, "paste", Late(parts.paste))
    return parts


def test_beeps_meet_their_flashes_in_recordings_and_at_a_receiver(tmp_path: Path) -> None:
    """Real codecs, a chain that is slow and uneven, and three outputs at once."""
    clip = beep_and_flash(tmp_path / "clip.mp4", 9)
    assert_in_step(heard_in(clip), at_least=5)
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    targets = [str(tmp_path / "a.mp4"), str(tmp_path / "b.m3u8"), url]
    with Receiver(url, "mpegts", tmp_path) as receiver:
        report, ending = run_live(live_file(clip), [make_sink(text) for text in targets], late_parts())
        assert until(lambda: has_heard(receiver, n_beeps=2, n_frames=2))
    assert ending == "source_ended" and report.age.p50_ms > 20
    assert_in_step(heard_in(tmp_path / "a.mp4"), at_least=4)
    assert_in_step(heard_in(tmp_path / "b.m3u8"), at_least=4)
    assert_in_step(heard_by(receiver), at_least=2)
    assert no_threads_left()


def test_a_pause_mutes_what_is_recorded(tmp_path: Path) -> None:
    clip = beep_and_flash(tmp_path / "clip.mp4", 9)
    controls = LiveControls()

    def steer(report: Any) -> None:
        controls.mode = "slate" if 2.4 < report.stream_s < 5.4 else "live"

    sink = make_sink(str(tmp_path / "a.mp4"))
    run_live(live_file(clip), [sink], fake_parts(BOX), on_tick=steer, controls=controls)
    beeps_s = heard_in(tmp_path / "a.mp4").beeps_s
    # Those of seconds 4 and 5 are gone; with a second on both sides, in which a busy machine may begin and end it.
    assert not [beep_s for beep_s in beeps_s if 3.85 < beep_s < 5.3]
    assert [beep_s for beep_s in beeps_s if 0.9 < beep_s < 2.2]
    assert [beep_s for beep_s in beeps_s if 5.9 < beep_s < 8.2]


def test_without_being_asked_for_there_is_no_sound(tmp_path: Path) -> None:
    clip = beep_and_flash(tmp_path / "clip.mp4", 2)
    source = LiveSource(parse_source(str(clip)))
    run_live(source, [make_sink(str(tmp_path / "a.mp4"))], fake_parts(BOX), LiveOptions(duration_s=1.0))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_a_source_without_sound_has_none(make_clip: MakeClip, tmp_path: Path) -> None:
    run_live(live_file(make_clip()), [make_sink(str(tmp_path / "a.mp4"))], fake_parts(BOX))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
