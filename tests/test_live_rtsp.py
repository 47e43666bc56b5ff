"""RTSP with a real server on loopback: what arrives, how old it is, and every way in which it can fail."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from live_reading import AT_ONCE_S, QUICK, SECRETS, Reading, url_source
from rtsp_server import FPS, RtspServer, age_s, need_server, number_of, write_clip

from keyface.configs.errors import SourceError
from keyface.pipeline.live import source_read
from keyface.pipeline.live.audio import AUDIO_RATE_HZ, AudioPiece
from keyface.pipeline.live.source import LiveSourceOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CALM = replace(QUICK, open_timeout_s=8.0, silence_s=8.0)  # nothing is lost because the machine is busy
WIDE_WH = (320, 180)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    need_server()
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / "square", (320, 240)), write_clip(folder / "wide", WIDE_WH)]


def ages_ms(reading: Reading, *, last: int) -> list[float]:
    """Of frames that are not suspect; each must be readable."""
    seen = list(zip(reading.frames, reading.times_s, strict=False))[-last:]
    ages = [age_s(frame.image_rgb, at_s) for frame, at_s in seen if not frame.is_suspect]
    assert ages and None not in ages
    return [1e3 * age for age in ages if age is not None]


def wait_until_young(reading: Reading, *, last: int = 20, below_ms: float = 500.0) -> None:
    """Nothing waits in a buffer: what comes is new, if not at once, then soon."""

    def is_young() -> bool:
        try:
            return statistics.median(ages_ms(reading, last=last)) < below_ms
        except AssertionError:
            return False

    reading.wait(is_young)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_every_frame_arrives_soon(clips: list[Path], transport: str) -> None:
    options = replace(CALM, rtsp_transport=transport, longest_backlog_s=10.0)
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, options)) as reading:
        reading.wait(lambda: len(reading.frames) >= 2 * FPS + 20)
        wait_until_young(reading)  # the burst of what was kept while the stream was examined is over
    numbers = [number_of(frame.image_rgb) for frame in reading.frames]
    steps = pairwise(number for number in numbers if number is not None)
    # A server that was held up goes on with the key frame of the moment.
    missing = sum((b - a) % 300 != 1 and b % FPS != 0 for a, b in steps)
    assert missing == 0 or transport == "udp"
    assert reading.source.status.size_wh == (320, 240) and 25 < reading.source.status.fps < 35
    assert reading.source.status.skipped == 0
    assert all(b.pts_s > a.pts_s for a, b in pairwise(reading.frames))


def test_a_picture_that_changes_its_size_keeps_its_shape(clips: list[Path]) -> None:
    with RtspServer(clips) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait_for_more(10)
        server.tell("next")
        reading.wait(lambda: not reading.frames[-1].image_rgb[:25].any())  # bars above and below
        reading.wait_for_more(20)
    assert {frame.image_rgb.shape for frame in reading.frames} == {(240, 320, 3)}
    inner = reading.frames[-1].image_rgb[30:210]
    assert number_of(inner) is not None and not reading.frames[-1].image_rgb[-25:].any()
    assert reading.source.status.reconnects == 0


@pytest.mark.parametrize("how", ["kill", "garbage"])
def test_a_server_that_dies_is_found_again(clips: list[Path], how: str) -> None:
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait_for_more(10)
        server.fail(how)
        reading.wait(lambda: reading.source.status.state == "lost")
        time.sleep(0.7)
        server.restore()
        reading.wait(lambda: reading.source.status.reconnects >= 1)
        reading.wait_for_more(2 * FPS)
        wait_until_young(reading)
        assert not [secret for secret in SECRETS if secret in reading.source.status.problem]
    assert all(b.pts_s > a.pts_s for a, b in pairwise(reading.frames))


def test_a_server_that_stalls_is_lost_and_found(clips: list[Path]) -> None:
    options = replace(CALM, silence_s=3.0, open_timeout_s=4.0)
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, options)) as reading:
        reading.wait_for_more(10)
        server.freeze()
        frozen_s = time.monotonic()
        reading.wait(lambda: reading.source.status.state == "lost")
        assert 0.5 < time.monotonic() - frozen_s < 15
        assert "sent nothing for 3 s" in reading.source.status.problem
        time.sleep(5.0)  # attempts to connect run into the wall
        server.thaw()
        reading.wait(lambda: reading.source.status.reconnects >= 1)
        reading.wait_for_more(2 * FPS)
        wait_until_young(reading)


def test_a_short_stall_costs_no_connection_and_leaves_no_delay(clips: list[Path]) -> None:
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait_for_more(2 * FPS)
        server.freeze()
        time.sleep(0.8)
        server.thaw()
        reading.wait_for_more(2 * FPS)
        wait_until_young(reading)
    assert reading.source.status.reconnects == 0


@pytest.mark.parametrize("state", ["streaming", "stalled", "connecting"])
def test_stop_ends_everything_at_once(clips: list[Path], state: str) -> None:
    patient = LiveSourceOptions(open_timeout_s=30, silence_s=30)
    with RtspServer(clips[:1]) as server:
        if state == "connecting":
            server.freeze()
        with Reading(url_source(server.url, patient)) as reading:
            if state == "connecting":
                time.sleep(0.5)
            else:
                reading.wait_for_more(5)
            if state == "stalled":
                server.freeze()
                time.sleep(0.5)
            assert reading.stop() < AT_ONCE_S
            assert reading.error is None


def test_noise_in_the_pictures_is_never_shown_as_sound(clips: list[Path]) -> None:
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait_for_more(FPS)
        server.tell("garbage")
        time.sleep(1.5)
        server.tell("serve")
        n = len(reading.frames)
        reading.wait(lambda: sum(not frame.is_suspect for frame in reading.frames[n:]) >= FPS)
    unreadable = [frame for frame in reading.frames if number_of(frame.image_rgb) is None]
    assert all(frame.is_suspect for frame in unreadable)
    assert any(frame.is_suspect for frame in reading.frames)


def test_a_server_that_comes_back_with_noise_first_is_found_when_that_is_over(clips: list[Path]) -> None:
    """Examined while it sends noise, a stream stays closed to libav: it must be opened again."""
    options = replace(CALM, silence_s=30.0, open_timeout_s=4.0)
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, options)) as reading:
        reading.wait_for_more(10)
        server.kill()
        server.start()
        server.tell("garbage")
        time.sleep(5.0)
        server.tell("serve")
        reading.wait(lambda: reading.source.status.reconnects >= 1)
        n = len(reading.frames)
        reading.wait(lambda: sum(not frame.is_suspect for frame in reading.frames[n:]) >= 10)


def test_sound_without_a_picture_counts_as_silence(clips: list[Path]) -> None:
    options = replace(CALM, with_audio=True, silence_s=5.0)
    with RtspServer(clips[:1], audio=True) as server, Reading(url_source(server.url, options)) as reading:
        reading.wait_for_more(10)
        server.tell("silent")
        reading.wait(lambda: reading.source.status.state == "lost")
        assert "without a picture" in reading.source.status.problem
        server.tell("serve")
        reading.wait(lambda: reading.source.status.reconnects >= 1)


def test_a_source_that_gets_later_by_itself_goes_on(clips: list[Path]) -> None:
    """It looks like a backlog, which is passed over; but there is none, so that must end."""
    with (
        RtspServer(clips[:1]) as server,
        Reading(url_source(server.url, CALM)) as reading,
    ):
        reading.wait_for_more(FPS)
        server.tell("late")
        time.sleep(4.0)
        reading.wait_for_more(2 * FPS)


def test_a_decoder_that_is_too_slow_does_not_fall_behind(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    upright = source_read.Connection._upright

    def slowly(self: object, frame: object) -> object:
        time.sleep(0.1)  # three times as long as a frame lasts
        return upright(self, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(source_read.Connection, "_upright", slowly)
    with RtspServer(clips[:1]) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait(lambda: len(reading.frames) >= 10)
        time.sleep(6.0)
        # Without passing packets over it would be more than 4 s by now.
        wait_until_young(reading, last=10, below_ms=3000)
        assert reading.source.status.skipped > 0


# Passwords.


def test_a_password_opens_and_is_never_told(clips: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    with RtspServer(clips[:1], auth="hidden-user:hidden-password") as server:
        with Reading(url_source(server.url, CALM)) as reading:
            reading.wait_for_more(5)
            server.fail("garbage")
            reading.wait(lambda: reading.source.status.state == "lost")
            server.restore()
            reading.wait(lambda: reading.source.status.reconnects >= 1)
            told = f"{reading.source.status}{reading.source.address!r}"
        wrong = server.url.replace("hidden-password", "hidden-password-2")
        with pytest.raises(SourceError, match="refuses the user or the password") as caught:
            next(iter(url_source(wrong, CALM)))
    out, err = capfd.readouterr()
    chain = f"{caught.value}{caught.value.__cause__}"
    assert not [secret for secret in SECRETS if secret in f"{told}{chain}{out}{err}"]


def test_a_wrong_path_is_said(clips: list[Path]) -> None:
    with RtspServer(clips[:1]) as server, pytest.raises(SourceError, match="nothing at this path"):
        next(iter(url_source(server.url.replace("hidden-path", "hidden-path/2"), CALM)))


# Sound.


def tones_at_s(pieces: list[AudioPiece], origin_s: float) -> list[float]:
    """`time.monotonic()` of each begin of the server's tone, without those just after something is missing."""
    began: list[float] = []
    quiet_until_s = end_s = 0.0
    for piece in pieces:
        if piece.pts_s > end_s + 1e-3:
            quiet_until_s = origin_s + piece.pts_s + 0.2
        end_s = piece.end_s
        loud = np.flatnonzero(np.abs(piece.samples[:, 0]) > 0.1)
        for at in loud:
            at_s = origin_s + piece.pts_s + at / AUDIO_RATE_HZ
            if at_s > quiet_until_s:
                began.append(at_s)
            quiet_until_s = at_s + 0.2
    return began


def test_sound_comes_on_the_clock_of_the_pictures(clips: list[Path]) -> None:
    with RtspServer(clips[:1], audio=True) as server:
        source = url_source(server.url, replace(CALM, with_audio=True))
        assert source.audio is not None
        reader = source.audio.reader()
        with Reading(source) as reading:
            reading.wait(lambda: len(reading.frames) > 4 * FPS)
            server.kill()
            server.start()
            reading.wait(lambda: source.status.reconnects >= 1)
            reading.wait_for_more(4 * FPS)
    assert source.audio.is_present
    pieces = reader.take()
    assert all(b.pts_s > a.end_s - 1e-6 for a, b in pairwise(pieces))
    # Where the server was away, and where the machine was too busy to send.
    assert sum(b.pts_s > a.end_s + 1e-3 for a, b in pairwise(pieces)) <= 0.1 * len(pieces)
    assert source.status.origin_s is not None
    delays = [(at_s + 0.5) % 1.0 - 0.5 for at_s in tones_at_s(pieces, source.status.origin_s)]
    assert len(delays) >= 3
    picture_s = min(ages_ms(reading, last=len(reading.frames))) / 1e3
    # The tone was sent with the picture of a full second; both were as long on their way, where nothing held them up.
    assert abs(min(delays) - picture_s) < 0.15


def test_sound_is_not_asked_for_when_nobody_wants_it(clips: list[Path]) -> None:
    with RtspServer(clips[:1], audio=True) as server, Reading(url_source(server.url, CALM)) as reading:
        reading.wait_for_more(5)
        assert reading.source.audio is None


def test_a_stream_without_sound_says_so(clips: list[Path]) -> None:
    with RtspServer(clips[:1]) as server:
        source = url_source(server.url, replace(CALM, with_audio=True))
        with Reading(source) as reading:
            reading.wait_for_more(5)
        assert source.audio is not None and not source.audio.is_present
