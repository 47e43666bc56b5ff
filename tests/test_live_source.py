"""Live sources: addresses, the pace of files, connections that stall and die, and what is never printed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from fake_chain import MakeClip
from live_reading import AT_ONCE_S, QUICK, SECRETS, Reading, url_source
from live_sink_cases import until
from mjpeg_server import NOT_FOUND, UNAUTHORISED, MjpegServer, mjpeg_server

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.live import source_open
from keyface.pipeline.live.address import SourceAddress, parse_source
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions, pattern_at
from keyface.pipeline.live.source_read import _Gaps

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def server(moving_image: Callable[..., np.ndarray]) -> Iterator[MjpegServer]:
    with mjpeg_server(moving_image) as made:
        yield made


def test_options_are_checked() -> None:
    bad_ones = (
        {"size_wh": (4, 480)}, {"fps": 0.0}, {"silence_s": 0.0}, {"camera_format": "-i x"},
        {"rtsp_transport": "http"}, {"open_timeout_s": float("inf")},
    )  # fmt: skip
    for bad in bad_ones:
        with pytest.raises(UsageError):
            LiveSourceOptions(**bad)  # type: ignore[arg-type]


# The test pattern and files.


def test_the_pattern_moves_at_its_pace() -> None:
    reading = Reading(LiveSource(parse_source("test"), LiveSourceOptions(size_wh=(64, 48), fps=50)))
    reading.wait(lambda: len(reading.frames) >= 10)
    assert reading.stop() < AT_ONCE_S
    times_s = [frame.pts_s for frame in reading.frames]
    assert all(b > a for a, b in pairwise(times_s))
    assert reading.frames[0].image_rgb.shape == (48, 64, 3)
    assert (reading.frames[0].image_rgb != reading.frames[9].image_rgb).mean() > 0.1
    assert reading.source.status.state == "ended"
    assert np.array_equal(pattern_at(0.0, (64, 48)), reading.frames[0].image_rgb)


def test_a_file_keeps_its_pace_and_its_times(make_clip: MakeClip) -> None:
    began_s = time.monotonic()
    source = LiveSource(parse_source(str(make_clip(n_frames=12))))
    frames = list(source)
    assert 0.4 < time.monotonic() - began_s < 20
    assert [round(frame.pts_s, 3) for frame in frames] == [round(n / 25, 3) for n in range(12)]
    assert (source.status.size_wh, source.status.fps, source.status.state) == ((96, 64), 25.0, "ended")


def test_a_looped_file_goes_on_until_stopped(make_clip: MakeClip) -> None:
    options = LiveSourceOptions(is_looped=True, size_wh=(48, 32))
    reading = Reading(LiveSource(parse_source(str(make_clip(n_frames=3))), options))
    reading.wait(lambda: len(reading.frames) > 8)
    assert reading.stop() < AT_ONCE_S
    assert [round(f.pts_s * 25) for f in reading.frames[:9]] == list(range(9))
    assert {f.image_rgb.shape for f in reading.frames} == {(32, 48, 3)}


def test_a_file_waits_for_the_chain(make_clip: MakeClip) -> None:
    source = LiveSource(parse_source(str(make_clip())), is_ready=threading.Event())
    reading = Reading(source)
    time.sleep(0.2)
    assert not reading.frames and source.status.size_wh == (96, 64)
    assert source.is_ready is not None
    source.is_ready.set()
    reading.wait(lambda: len(reading.frames) == 12)


def test_a_file_that_waits_for_the_chain_can_be_stopped(make_clip: MakeClip) -> None:
    reading = Reading(LiveSource(parse_source(str(make_clip())), is_ready=threading.Event()))
    assert reading.stop() < AT_ONCE_S


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        next(iter(LiveSource(parse_source(str(tmp_path / "no.mp4")))))


# Cameras.


@pytest.fixture
def camera(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A camera that plays a clip; returns the options of each opening."""
    clip = make_clip(codec="mjpeg", pix_fmt="yuvj420p", name="camera.avi")
    (tmp_path / "video0").touch()
    openings: list[dict[str, Any]] = []
    real_open = av.open

    def open_camera(target: str, **options: Any) -> Any:
        openings.append({"target": target, **options})
        if "framerate" in options["options"]:
            raise av.ArgumentError(errno.EINVAL, "no such rate")
        return real_open(str(clip))

    monkeypatch.setattr(source_open.sys, "platform", "linux")
    monkeypatch.setattr(source_open.av, "open", open_camera)
    return openings


def test_a_camera_is_asked_and_taken_as_it_is(camera: list[dict[str, Any]], tmp_path: Path) -> None:
    address = SourceAddress("camera", str(tmp_path / "video0"), "camera 0")
    options = LiveSourceOptions(size_wh=(48, 32), fps=30, first_pause_s=0.01, longest_pause_s=0.02)
    reading = Reading(LiveSource(address, options))
    reading.wait(lambda: reading.source.status.reconnects >= 1)  # the clip ends: unplugged, and back
    reading.stop()
    assert camera[0]["format"] == "v4l2" and camera[0]["options"]["video_size"] == "48x32"
    assert "nonblock" in camera[0]["options"]["fflags"] and camera[0]["timeout"]
    assert set(camera[1]["options"]) == {"fflags", "video_size"}  # what it can do is still asked for
    assert {frame.image_rgb.shape for frame in reading.frames} == {(32, 48, 3)}


def test_a_silent_camera_is_lost(camera: list[dict[str, Any]], tmp_path: Path) -> None:
    """Asked without waiting, its driver says "nothing yet" for ever."""
    real = source_open.av.open  # the fixture's

    class Silent:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def demux(self) -> Iterator[object]:
            raise av.BlockingIOError(errno.EAGAIN, "no frame")

    address = SourceAddress("camera", str(tmp_path / "video0"), "camera 0")
    began_s = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_open.av, "open", lambda *a, **k: Silent(real(*a, **k)))
        with pytest.raises(SourceError, match=r"sent nothing for 2 s"):
            next(iter(LiveSource(address, QUICK)))
    assert 1.9 < time.monotonic() - began_s < 20


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (av.OSError(errno.EBUSY, "busy"), "used by another program"),
        (PermissionError(errno.EACCES, "no"), "group 'video'"),
        (av.OSError(errno.ENODEV, "no"), "is no camera"),
    ],
)
def test_a_camera_that_cannot_be_opened(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "video0").touch()

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(source_open.av, "open", refuse)
    monkeypatch.setattr(source_open.sys, "platform", "linux")
    with pytest.raises(SourceError, match=said):
        next(iter(LiveSource(SourceAddress("camera", str(tmp_path / "video0"), "camera 0"))))


def test_a_missing_camera_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_open.sys, "platform", "linux")
    with pytest.raises(SourceError, match="camera 97 does not exist"):
        next(iter(LiveSource(parse_source("97", platform="linux"))))


# Streams.


def test_a_stream_is_read(server: MjpegServer) -> None:
    reading = Reading(url_source(server.secret_url))
    reading.wait(lambda: len(reading.frames) >= 5)
    assert reading.stop() < AT_ONCE_S
    assert reading.source.status.size_wh == (96, 64)
    assert not any(frame.is_suspect for frame in reading.frames)
    assert b"Authorization: Basic" in server.requests[-1] or b"hidden-token" in server.requests[-1]


def test_a_stream_that_hangs_up_comes_back(server: MjpegServer) -> None:
    reading = Reading(url_source(server.url))
    reading.wait(lambda: len(reading.frames) >= 3)
    server.mode = "refuse"
    server.hang_up()
    reading.wait(lambda: reading.source.status.state == "lost")
    server.mode = "serve"
    began_s = time.monotonic()
    reading.wait(lambda: reading.source.status.reconnects >= 1)
    assert time.monotonic() - began_s < 15
    n = len(reading.frames)
    reading.wait(lambda: len(reading.frames) > n)
    reading.stop()
    times_s = [frame.pts_s for frame in reading.frames]
    assert all(b > a for a, b in pairwise(times_s))


def test_a_stream_that_falls_silent_is_lost_and_comes_back(server: MjpegServer) -> None:
    reading = Reading(url_source(server.url))
    reading.wait(lambda: len(reading.frames) >= 3)
    server.mode = "stall"
    reading.wait(lambda: reading.source.status.state == "lost")
    assert "sent nothing for 2 s" in reading.source.status.problem
    server.mode = "serve"
    reading.wait(lambda: reading.source.status.reconnects >= 1)
    reading.stop()


def test_a_stream_of_garbage_is_not_shown_as_sound(server: MjpegServer) -> None:
    reading = Reading(url_source(server.url))
    reading.wait(lambda: len(reading.frames) >= 3)
    server.mode = "garbage"
    time.sleep(1.0)
    n = len(reading.frames)
    server.mode = "serve"
    reading.wait(lambda: len(reading.frames) > n + 3)
    reading.stop()
    height_width = {frame.image_rgb.shape for frame in reading.frames}
    assert height_width == {(64, 96, 3)}


def test_pictures_that_were_cut_off_are_suspect(server: MjpegServer) -> None:
    reading = Reading(url_source(server.url))
    reading.wait(lambda: len(reading.frames) >= 3)
    server.mode = "half"
    reading.wait(lambda: sum(frame.is_suspect for frame in reading.frames) >= 3)
    server.mode = "serve"
    n = len(reading.frames)
    reading.wait(lambda: len(reading.frames) >= n + 5)
    reading.stop()
    assert not reading.frames[2].is_suspect and not reading.frames[-1].is_suspect


@pytest.mark.parametrize("mode", ["stall", "silent"])
def test_stop_ends_a_wait_at_once(server: MjpegServer, mode: str) -> None:
    """With time-outs of half a minute: stop itself must end the wait inside libav."""
    patient = LiveSourceOptions(open_timeout_s=30, silence_s=30)
    server.mode = mode
    reading = Reading(url_source(server.url, patient))
    reading.wait(lambda: server.n_connections == 1)
    time.sleep(0.3)
    assert reading.stop() < AT_ONCE_S
    assert reading.error is None


def test_a_server_that_says_nothing_is_given_up(server: MjpegServer) -> None:
    server.mode = "silent"
    began_s = time.monotonic()
    with pytest.raises(SourceError, match=r"sent nothing for 1 s") as caught:
        next(iter(url_source(server.secret_url, replace(QUICK, open_timeout_s=1.0))))
    assert time.monotonic() - began_s < 15
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NOT_FOUND, "nothing at this path"),
        (UNAUTHORISED, "user or the password"),
        (
            b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n<p>hi</p>",
            "read as video",
        ),
    ],
)
def test_what_a_server_says_is_told(server: MjpegServer, answer: bytes, said: str) -> None:
    server.answer = answer
    with pytest.raises(SourceError, match=said) as caught:
        next(iter(url_source(server.secret_url)))
    assert not [secret for secret in SECRETS if secret in f"{caught.value}{caught.value.__cause__}"]


@pytest.mark.parametrize("scheme", ["http", "rtsp", "rtmp"])
def test_a_refused_connection_is_one_sentence(scheme: str) -> None:
    url = f"{scheme}://hidden-user:hidden-password@127.0.0.1:1/hidden-path"
    with pytest.raises(SourceError, match="refuses the connection") as caught:
        next(iter(url_source(url)))
    assert str(caught.value).startswith(f"{scheme}://127.0.0.1:1 refuses")
    assert caught.value.__cause__ is None


def test_a_stream_cannot_reach_into_files(tmp_path: Path, make_clip: MakeClip) -> None:
    """A playlist from the network that names a local file is not followed."""
    clip = make_clip("a.ts", codec="mpeg2video")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n".encode()
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\nContent-Length: %d\r\n\r\n"
    with mjpeg_server(lambda _: np.zeros((8, 8, 3), np.uint8)) as server:
        server.answer = head % len(playlist) + playlist
        with pytest.raises(SourceError):
            next(iter(url_source(f"http://127.0.0.1:{server.port}/a.m3u8")))


def test_nothing_is_left_open(server: MjpegServer) -> None:
    def n_open() -> int:
        return len(os.listdir("/dev/fd"))

    for _ in range(2):
        reading = Reading(url_source(server.url))
        reading.wait(lambda reading=reading: len(reading.frames) >= 2)  # type: ignore[misc]
        reading.stop()
    before = n_open()
    for _ in range(5):
        reading = Reading(url_source(server.url))
        reading.wait(lambda reading=reading: len(reading.frames) >= 2)  # type: ignore[misc]
        reading.stop()
    assert until(lambda: n_open() <= before + 2)


# Damage.


def sliced_stream(n_frames: int, lost: int) -> bytes:
    """H.264 with two slices in each picture, without the second one of the picture `lost`."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 96, 64, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {
        "preset": "ultrafast", "tune": "zerolatency",
        "x264-params": "slices=2:sliced-threads=0:threads=1:keyint=10:min-keyint=10:scenecut=0:annexb=1",
    }  # fmt: skip
    packets = []
    for number in range(n_frames):
        image = np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    units = [bytes(packet) for packet in [*packets, *encoder.encode(None)]]
    assert len(units) == n_frames
    units[lost] = units[lost][: units[lost].rindex(b"\0\0\1")]
    return b"".join(units)


def test_a_missing_slice_makes_pictures_suspect_up_to_the_next_key_frame() -> None:
    body = sliced_stream(30, lost=13)
    head = b"HTTP/1.0 200 OK\r\nContent-Type: video/h264\r\nContent-Length: %d\r\n\r\n" % len(body)
    with mjpeg_server(lambda _: np.zeros((8, 8, 3), np.uint8)) as server:
        server.answer = head + body
        with Reading(url_source(server.url)) as reading:
            reading.wait(lambda: reading.source.status.state == "lost")
    suspect = [frame.is_suspect for frame in reading.frames[:29]]
    assert suspect[:13] == [False] * 13
    assert suspect[13:20] == [True] * 7
    assert suspect[20:] == [False] * 9


def test_a_picture_lost_on_the_way_is_known_by_the_gap() -> None:
    """libav repeats the one before without a word, and what follows is drawn over that."""
    gaps = _Gaps()
    packets = [
        SimpleNamespace(dts=90 * ms, pts=None, time_base=Fraction(1, 90_000)) for ms in range(0, 4000, 40)
    ]
    assert not any(gaps.is_after(packet) for packet in packets[:50])
    assert gaps.is_after(packets[51])
    assert not any(gaps.is_after(packet) for packet in packets[52:])


def test_uneven_stamps_are_no_gaps() -> None:
    gaps = _Gaps()
    draw = np.random.default_rng(1)
    stamps = (np.arange(200) * 33.3 + draw.uniform(-5, 5, 200)) * 90
    packets = [SimpleNamespace(dts=int(at), pts=None, time_base=Fraction(1, 90_000)) for at in stamps]
    assert not any(gaps.is_after(packet) for packet in packets)
