"""Live sinks: safe frames only, a stand-in for the virtual camera, a window, recordings."""

from __future__ import annotations

import contextlib
import sys
import time
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fake_chain import read_video

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live import sink_camera, sink_window
from keyface.pipeline.live.sink import NullSink, make_sink
from keyface.pipeline.live.sink_camera import VirtualCameraSink
from keyface.pipeline.live.sink_recording import RecordingSink
from keyface.pipeline.live.sink_window import WindowSink
from keyface.pipeline.paste.redact import redact_frame, slate_frame

pytestmark = pytest.mark.timeout(150)
SIZE_WH = (96, 64)


def safe(pts_s: float = 0.0, level: int = 90) -> SafeFrame:
    image = np.full((SIZE_WH[1], SIZE_WH[0], 3), level, np.uint8)
    image[..., 0] = 200
    return redact_frame(Frame(image, 0, pts_s), [])


class StandIn(types.ModuleType):
    """pyvirtualcam as far as it is used, which checks what its back-ends check."""

    class PixelFormat:
        RGB = "RGB3"

    def __init__(self) -> None:
        super().__init__("pyvirtualcam")
        self.cameras: list[Any] = []
        self.fail: str | None = None
        outer = self

        class Camera:
            def __init__(
                self, width: int, height: int, fps: float, *, fmt: str = "", device: str | None = None
            ) -> None:
                if outer.fail:
                    raise RuntimeError(outer.fail)
                assert isinstance(width, int) and isinstance(height, int) and fmt == "RGB3"
                self.shape, self.fps, self.device = (height, width, 3), fps, device or "/dev/video9"
                self.sent: list[np.ndarray] = []
                self.is_closed = False
                outer.cameras.append(self)

            def send(self, frame: np.ndarray) -> None:
                assert not self.is_closed
                assert frame.dtype == np.uint8 and frame.shape == self.shape and frame.flags.c_contiguous
                if outer.fail:
                    raise RuntimeError(outer.fail)
                self.sent.append(frame.copy())

            def close(self) -> None:
                self.is_closed = True

        self.Camera = Camera


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    return module


# All of them.


def test_names_make_sinks(tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    assert isinstance(make_sink("null"), NullSink)
    assert isinstance(make_sink("window"), WindowSink)
    assert isinstance(make_sink("virtual"), VirtualCameraSink)
    assert isinstance(make_sink(str(tmp_path / "a.MP4")), RecordingSink)


@pytest.mark.parametrize("text", ["a.avi", "screen", ""])
def test_an_unknown_sink_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Legal: virtual"):
        make_sink(text)


def test_a_recording_replaces_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        make_sink(str(path))
    assert isinstance(make_sink(str(path), may_replace=True), RecordingSink)
    with pytest.raises(SinkError, match="folder"):
        make_sink(str(tmp_path / "no" / "a.mp4"))


@pytest.mark.parametrize("text", ["null", "window", "virtual", "a.mp4"])
def test_only_safe_frames_are_taken(
    text: str, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sink_window.cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(sink_window.cv2, "destroyWindow", lambda *_: None)
    sink = make_sink(text if text != "a.mp4" else str(tmp_path / text))
    sink.open(SIZE_WH, 25.0)
    raw = Frame(np.zeros((64, 96, 3), np.uint8), 0, 0.0)
    for bad in (raw, raw.image_rgb, None):
        with pytest.raises(TypeError, match="want SafeFrame"):
            sink.write(bad)  # type: ignore[arg-type]
    sink.close()
    sink.finish(is_complete=True)
    assert not list(tmp_path.iterdir())


# The virtual camera.


def test_the_virtual_camera_gets_pictures(stand_in: StandIn) -> None:
    sink = make_sink("virtual:/dev/video7")
    sink.open(SIZE_WH, 30.0)
    sink.write(safe(0.0))
    sink.write(slate_frame(Frame(np.zeros((64, 96, 3), np.uint8), 1, 0.1), "Starting."))
    (camera,) = stand_in.cameras
    assert (camera.device, camera.fps) == ("/dev/video7", 30.0) and "/dev/video7" in sink.name
    assert np.array_equal(camera.sent[0], safe().image_rgb)  # RGB, as it is
    sink.close()
    sink.close()
    sink.finish(is_complete=True)
    assert camera.is_closed and len(camera.sent) == 2


def test_a_missing_device_says_what_to_install(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_camera.sys, "platform", "linux")
    stand_in.fail = "'v4l2loopback' backend: no device"
    sink = make_sink("virtual")
    with pytest.raises(SinkError, match=r"no device.*modprobe v4l2loopback"):
        sink.open(SIZE_WH, 30.0)
    sink.close()


def test_a_device_that_goes_away_is_an_error(stand_in: StandIn) -> None:
    sink = make_sink("virtual")
    sink.open(SIZE_WH, 30.0)
    stand_in.fail = "gone"
    with pytest.raises(SinkError, match="gone"):
        sink.write(safe())
    sink.close()
    assert stand_in.cameras[0].is_closed


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(SinkError, match=r"pip install 'keyface\[stream\]'"):
        make_sink("virtual")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_is_obs(platform: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_camera.sys, "platform", platform)
    stand_in.fail = "'obs' backend: not installed"
    sink = make_sink("virtual")
    with pytest.raises(SinkError, match="Install OBS Studio"):
        sink.open(SIZE_WH, 30.0)


def test_the_real_package_drives_a_back_end_of_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyvirtualcam itself, with a back-end beside its own that checks what it is given."""
    reason = "pyvirtualcam is not installed: pip install 'keyface[stream]'"
    pyvirtualcam = pytest.importorskip("pyvirtualcam", reason=reason)
    made: list[Any] = []

    class Backend:
        def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None) -> None:
            self.size, self.fps, self.name = width * height * 3, fps, device or "stand-in"
            self.fourcc, self.n_closed = fourcc, 0
            self.sent: list[np.ndarray] = []
            made.append(self)

        def send(self, frame: np.ndarray) -> None:
            assert frame.dtype == np.uint8 and frame.shape == (self.size,) and frame.flags.c_contiguous
            self.sent.append(frame.copy())

        def close(self) -> None:
            self.n_closed += 1

        def device(self) -> str:
            return self.name

        def native_fourcc(self) -> int:
            return self.fourcc

    monkeypatch.setattr(pyvirtualcam.camera, "BACKENDS", {"stand-in": Backend})
    sink = make_sink("virtual:stage-left")
    sink.open(SIZE_WH, 30.0)
    for number in range(3):
        sink.write(safe(number / 30))
    sink.close()
    sink.close()
    (backend,) = made
    assert sink.name == "virtual camera stage-left" and backend.n_closed == 1 and len(backend.sent) == 3
    assert np.array_equal(backend.sent[0].reshape(64, 96, 3), safe().image_rgb)


def loopback_device() -> str:
    """A device of v4l2loopback, '' when there is none."""
    for name in sorted(Path("/sys/devices/virtual/video4linux").glob("video*")):
        if Path("/dev", name.name).exists():
            return f"/dev/{name.name}"
    return ""


def test_a_real_virtual_camera_shows_the_picture() -> None:
    """Needs pyvirtualcam and the kernel module v4l2loopback."""
    pytest.importorskip("pyvirtualcam", reason="pyvirtualcam is not installed: pip install 'keyface[stream]'")
    device = loopback_device()
    if not device:
        pytest.skip("no device of v4l2loopback: sudo modprobe v4l2loopback exclusive_caps=1")
    sink = make_sink(f"virtual:{device}")
    sink.open((320, 240), 25.0)
    picture = redact_frame(Frame(np.full((240, 320, 3), (200, 90, 40), np.uint8), 0, 0.0), [])
    seen: list[np.ndarray] = []
    try:
        with av.open(device, format="v4l2", options={"fflags": "nonblock"}, timeout=5.0) as camera:
            for _ in range(100):
                sink.write(picture)
                with contextlib.suppress(av.BlockingIOError):
                    seen += [frame.to_ndarray(format="rgb24") for frame in camera.decode(video=0)]
                if seen:
                    break
                time.sleep(0.02)
    finally:
        sink.close()
    assert seen and np.abs(seen[0].astype(int) - picture.image_rgb).mean() < 8


# The window.


def test_no_screen_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_window.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SinkError, match="no screen"):
        make_sink("window")


def test_the_window_shows_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    pressed = iter([255, ord("q")])
    monkeypatch.setenv("DISPLAY", ":0")
    for name, call in {
        "namedWindow": lambda *_: None,
        "destroyWindow": lambda *_: None,
        "imshow": lambda _, image: shown.append(image.copy()),
        "waitKey": lambda _: next(pressed),
        "getWindowProperty": lambda *_: 1.0,
    }.items():
        monkeypatch.setattr(sink_window.cv2, name, call)
    sink = make_sink("window")
    sink.open(SIZE_WH, 25.0)
    sink.write(safe())
    assert not sink.wants_end and np.array_equal(shown[0][..., ::-1], safe().image_rgb)
    sink.write(safe())
    assert sink.wants_end
    sink.close()


# Recordings.


def test_a_recording_has_the_times_of_capture(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open(SIZE_WH, 25.0)
    times_s = [3.0, 3.04, 3.5, 3.45, 3.6]  # a slate ran ahead of the frame after it
    for index, time_s in enumerate(times_s):
        sink.write(safe(time_s, 40 + 30 * index))
    sink.close()
    assert not (tmp_path / "a.mp4").exists()
    sink.finish(is_complete=True)
    sink.finish(is_complete=True)
    images, got_s = read_video(tmp_path / "a.mp4")
    assert [round(time_s, 3) for time_s in got_s] == [0.0, 0.04, 0.5, 0.501, 0.6]
    assert len(images) == 5 and abs(float(images[4][..., 1].mean()) - 160) < 4
