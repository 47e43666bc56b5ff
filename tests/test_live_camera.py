"""Cameras on three systems: what is asked of the driver, and what is done when it cannot do it."""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.device
import pytest

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.live import source_open
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions
from keyface.pipeline.live.source_open import camera_settings

pytestmark = pytest.mark.timeout(150)

ALL = LiveSourceOptions(size_wh=(1280, 720), fps=25, camera_format="mjpeg")


@dataclass
class Stand:
    """Stands for `av.open` on a system with cameras: plays a clip, and refuses what `refuses` says."""

    clip: Path
    refuses: Callable[[dict[str, str]], int] = lambda options: 0
    openings: list[dict[str, Any]] = field(default_factory=list)

    def open(self, target: str, **rest: Any) -> Any:
        self.openings.append({"target": target, **rest})
        if number := self.refuses(rest["options"]):
            raise av.OSError(number, "no")
        return REAL_OPEN(str(self.clip))


REAL_OPEN = av.open


@pytest.fixture
def stand(make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Stand:
    made = Stand(make_clip("camera.avi", codec="mjpeg", pix_fmt="yuvj420p"))
    monkeypatch.setattr(source_open.av, "open", made.open)
    return made


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda platform: monkeypatch.setattr(source_open.sys, "platform", platform)


def first_frames(text: str, options: LiveSourceOptions, platform: str) -> list[Any]:
    source: Iterator[Any] = iter(LiveSource(parse_source(text, platform=platform), options))
    return list(itertools.islice(source, 3))


@pytest.mark.parametrize(
    ("platform", "text", "target", "driver", "asked"),
    [
        ("darwin", "1", "1", "avfoundation", {"framerate": "25", "pixel_format": "mjpeg"}),
        ("darwin", "camera:FaceTime HD", "FaceTime HD", "avfoundation", {"video_size": "1280x720"}),
        ("win32", "0", "video=Front camera", "dshow", {"framerate": "25", "vcodec": "mjpeg"}),
        ("win32", "1", "video=@device_pnp_2", "dshow", {"video_size": "1280x720", "rtbufsize": "64M"}),
        ("win32", "camera:USB 2.0 Webcam", "video=USB 2.0 Webcam", "dshow", {"video_size": "1280x720"}),
    ],
)
def test_each_system_is_asked_in_its_own_words(
    stand: Stand, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
    platform: str, text: str, target: str, driver: str, asked: dict[str, str],
) -> None:  # fmt: skip
    devices = [
        av.device.DeviceInfo("Microphone", "", False, ["audio"]),
        av.device.DeviceInfo("Front camera", "", True, ["video"]),
        av.device.DeviceInfo("video=@device_pnp_2", "USB", False, ["video"]),
    ]
    monkeypatch.setattr(source_open.av.device, "enumerate_input_devices", lambda name: devices)
    on(platform)
    frames = first_frames(text, ALL, platform)
    assert len(frames) == 3 and frames[0].image_rgb.shape == (720, 1280, 3)
    opening = stand.openings[0]
    assert (opening["target"], opening["format"]) == (target, driver)
    assert asked.items() <= opening["options"].items()
    assert "nonblock" in opening["options"]["fflags"] and opening["timeout"]


def test_v4l2_is_asked_for_a_format_size_and_rate(
    stand: Stand, on: Callable[[str], None], tmp_path: Path
) -> None:
    on("linux")
    (tmp_path / "video0").touch()
    source = LiveSource(parse_source(f"camera:{tmp_path / 'video0'}"), ALL)
    next(iter(source))
    wanted = {"video_size": "1280x720", "framerate": "25", "input_format": "mjpeg"}
    assert wanted.items() <= stand.openings[0]["options"].items()


@pytest.mark.parametrize("driver", ["v4l2", "avfoundation", "dshow"])
def test_less_and_less_is_asked(driver: str) -> None:
    tries = camera_settings(ALL, driver)
    keys = [set(wanted) - {"fflags", "rtbufsize"} for wanted in tries]
    assert len(keys[0]) == 3 and keys[1] == {"video_size", "framerate"} and keys[-1] == set()
    assert len(tries) == len({tuple(wanted.items()) for wanted in tries})
    assert all("fflags" in wanted for wanted in tries)


def test_without_wishes_a_mac_is_asked_for_a_rate_that_cameras_have() -> None:
    plain = LiveSourceOptions()
    assert camera_settings(plain, "v4l2") == [{"fflags": "nobuffer+nonblock"}]
    assert camera_settings(plain, "avfoundation")[0]["framerate"] == "30"
    raw = LiveSourceOptions(camera_format="nv12")
    assert camera_settings(raw, "dshow")[0]["pixel_format"] == "nv12"


def test_a_camera_without_the_rate_keeps_the_size(stand: Stand, on: Callable[[str], None]) -> None:
    on("darwin")
    stand.refuses = lambda options: errno.EIO if "framerate" in options else 0
    assert len(first_frames("0", ALL, "darwin")) == 3
    assert stand.openings[-1]["options"].keys() == {"fflags", "video_size"}


def test_a_busy_camera_is_not_asked_again(stand: Stand, on: Callable[[str], None]) -> None:
    on("win32")
    stand.refuses = lambda options: errno.EBUSY
    with pytest.raises(SourceError, match="used by another program"):
        first_frames("camera:x", ALL, "win32")
    assert len(stand.openings) == 1


def test_a_camera_that_refuses_everything_says_what_it_said_first(
    stand: Stand, on: Callable[[str], None]
) -> None:
    on("darwin")
    stand.refuses = lambda options: errno.EIO
    with pytest.raises(SourceError, match="cannot be reached or read"):
        first_frames("0", ALL, "darwin")
    assert len(stand.openings) == 5


def test_a_number_beyond_the_last_camera_is_said(
    stand: Stand, on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_open.av.device, "enumerate_input_devices", lambda name: [])
    on("win32")
    with pytest.raises(SourceError, match="there are 0 cameras"):
        first_frames("3", ALL, "win32")


def test_other_systems_have_no_cameras(stand: Stand, on: Callable[[str], None]) -> None:
    on("plan9")
    with pytest.raises(SourceError, match="Linux, macOS and Windows"):
        first_frames("camera:x", ALL, "plan9")


def test_a_camera_brings_no_sound() -> None:
    with pytest.raises(UsageError, match="has no sound"):
        LiveSource(parse_source("0"), LiveSourceOptions(with_audio=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no V4L2 here")
def test_a_file_is_no_camera(tmp_path: Path) -> None:
    """The real driver refuses what is not a device."""
    (tmp_path / "video0").write_bytes(b"no camera")
    with pytest.raises(SourceError, match="camera"):
        next(iter(LiveSource(parse_source(f"camera:{tmp_path / 'video0'}"))))
