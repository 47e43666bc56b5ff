"""HLS, recordings on web servers, and RTMP: what a server sends faster than it is to be shown is paced."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hls_server import SIZE_WH, HlsServer, hls_server, write_segments
from live_reading import AT_ONCE_S, QUICK, SECRETS, Reading, url_source
from live_sink_cases import is_bound, until
from rtsp_server import FPS, free_port, number_of

from keyface.pipeline.live.audio import AUDIO_RATE_HZ

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CALM = replace(QUICK, open_timeout_s=8.0, silence_s=8.0)
N_SEGMENTS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hls")
    write_segments(made, N_SEGMENTS)
    return made


@pytest.fixture
def server(folder: Path) -> Iterator[HlsServer]:
    with hls_server(folder) as made:
        yield made


def wait_for_real_time(reading: Reading, n: int) -> None:
    """Until `n` frames on end came about as far apart as they are to be shown, and not in bursts.

    A busy machine may upset the pace for a while; a reader that has none never gets there.
    """

    def is_real_time() -> bool:
        if len(reading.frames) < n:
            return False
        spans_s = [b - a for a, b in pairwise(reading.times_s[-n:])]
        return 0.7 / FPS < np.mean(spans_s) < 2.0 / FPS and np.quantile(spans_s, 0.1) > 0.1 / FPS

    reading.wait(is_real_time, 90)


def test_live_hls_is_shown_at_its_own_pace(server: HlsServer) -> None:
    with Reading(url_source(server.url("live.m3u8"), CALM)) as reading:
        reading.wait(lambda: len(reading.frames) >= 3 * FPS)
        wait_for_real_time(reading, 2 * FPS)
        reading.stop()
    numbers = [number_of(frame.image_rgb) for frame in reading.frames]
    assert numbers[0] is not None and numbers[0] >= FPS, "began with the oldest segment"
    steps = [(b - a) % 300 for a, b in pairwise(number for number in numbers if number is not None)]
    assert steps.count(1) > 0.95 * len(steps)
    assert reading.source.status.reconnects == 0
    assert reading.source.status.size_wh == SIZE_WH


def test_live_hls_that_stalls_is_lost_and_found(server: HlsServer) -> None:
    options = replace(CALM, silence_s=2.0)
    with Reading(url_source(server.url("live.m3u8"), options)) as reading:
        reading.wait_for_more(10)
        server.mode = "stall"
        reading.wait(lambda: reading.source.status.state == "lost")
        assert not [secret for secret in SECRETS if secret in reading.source.status.problem]
        server.mode = "serve"
        reading.wait(lambda: reading.source.status.reconnects >= 1)


def test_stop_ends_the_wait_for_a_segment(server: HlsServer) -> None:
    with Reading(url_source(server.url("live.m3u8"), replace(CALM, silence_s=20))) as reading:
        reading.wait_for_more(10)
        server.mode = "stall"
        time.sleep(3.0)
        assert reading.stop() < AT_ONCE_S


@pytest.mark.parametrize("name", ["all.m3u8", "clip.mp4"])
def test_a_recording_on_a_server_keeps_its_pace(server: HlsServer, name: str) -> None:
    with Reading(url_source(server.url(name), CALM)) as reading:
        reading.wait(lambda: len(reading.frames) >= 2 * FPS)
        wait_for_real_time(reading, FPS)
    assert not any(frame.is_suspect for frame in reading.frames)


@pytest.mark.parametrize("is_looped", [False, True])
def test_a_recording_on_a_server_ends_or_begins_again(
    tmp_path: Path, is_looped: bool, server: HlsServer
) -> None:
    write_segments(tmp_path, 1)
    with hls_server(tmp_path) as short:
        options = replace(CALM, is_looped=is_looped)
        with Reading(url_source(short.url("clip.mp4"), options)) as reading:
            if is_looped:
                reading.wait(lambda: len(reading.frames) > FPS + 5)
            else:
                reading.wait(lambda: reading.is_over)
                assert len(reading.frames) == FPS and reading.error is None
                assert reading.source.status.state == "ended"
        assert reading.source.status.reconnects == 0


def test_sound_of_hls_fits_its_pictures(server: HlsServer) -> None:
    source = url_source(server.url("live.m3u8"), replace(CALM, with_audio=True))
    assert source.audio is not None
    reader = source.audio.reader()
    with Reading(source) as reading:
        reading.wait(lambda: len(reading.frames) >= 4 * FPS)
    pieces = reader.take()
    loud_s = [
        piece.pts_s + np.flatnonzero(np.abs(piece.samples[:, 0]) > 0.1)[0] / AUDIO_RATE_HZ
        for piece in pieces
        if (np.abs(piece.samples[:, 0]) > 0.1).any()
    ]
    began_s = [b for a, b in pairwise([-1.0, *loud_s]) if b - a > 0.3]
    assert len(began_s) >= 2
    shown_s = [f.pts_s for f in reading.frames if number_of(f.image_rgb) in range(0, 300, FPS)]
    # A second begins with a tone and with a picture whose number it divides; sound comes a little ahead.
    for tone_s in (at_s for at_s in began_s if at_s < reading.frames[-1].pts_s - 0.2):
        assert min(abs(tone_s - at_s) for at_s in shown_s) < 0.15


def test_rtmp_with_sound(folder: Path) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no RTMP server to test with: run tests/install_media_servers.sh (Debian, Ubuntu)")
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/hidden-token"
    command = [ffmpeg, "-loglevel", "quiet", "-re", "-stream_loop", "-1", "-i", str(folder / "clip.mp4")]
    command += ["-c", "copy", "-f", "flv", "-listen", "1", url]
    servers: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))

    serve()
    assert until(lambda: is_bound(port))
    source = url_source(url, replace(CALM, with_audio=True))
    assert source.audio is not None
    reader = source.audio.reader()
    try:
        with Reading(source) as reading:
            reading.wait(lambda: len(reading.frames) >= 2 * FPS)
            numbers = [number_of(frame.image_rgb) for frame in reading.frames]
            assert None not in numbers
            servers[0].kill()
            servers[0].wait(10)
            reading.wait(lambda: reading.source.status.state == "lost")
            assert "hidden" not in reading.source.status.problem
            serve()
            reading.wait(lambda: reading.source.status.reconnects >= 1)
            reading.wait_for_more(FPS)
    finally:
        for process in servers:
            process.kill()
            process.wait(10)
    assert source.audio.is_present and len(reader.take()) > 10
