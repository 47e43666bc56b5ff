"""The virtual camera: a picture that other programs can choose as their webcam."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.sink import checked_pixels

_INSTALL_CAMERA = {
    "linux": "Load the kernel module: sudo modprobe v4l2loopback exclusive_caps=1 (package v4l2loopback-dkms).",
    "darwin": "Install OBS Studio and start its virtual camera once.",
    "win32": "Install OBS Studio, which brings a virtual camera.",
}


class VirtualCameraSink:
    """A camera that other programs can choose, through pyvirtualcam (v4l2loopback on Linux, OBS elsewhere).

    Args:
        device: for instance "/dev/video10"; None: the first that is free.

    Raises:
        SinkError: pyvirtualcam is not installed.
    """

    def __init__(self, device: str | None = None) -> None:
        self.name = "virtual camera"
        self.wants_end = False
        self._device = device
        self._camera: Any = None
        try:
            self._pyvirtualcam: Any = importlib.import_module("pyvirtualcam")
        except ImportError as error:
            raise SinkError(
                "The virtual camera needs the package pyvirtualcam, which is not installed.",
                f"Run: pip install 'keyface[stream]'. {_INSTALL_CAMERA.get(sys.platform, '')}".strip(),
            ) from error

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Opens the device for pictures of this size."""
        width, height = size_wh
        pyvirtualcam = self._pyvirtualcam
        try:
            self._camera = pyvirtualcam.Camera(
                width=width, height=height, fps=fps, fmt=pyvirtualcam.PixelFormat.RGB, device=self._device
            )
        except (RuntimeError, OSError, ValueError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise SinkError(
                f"The virtual camera cannot be opened at {width}x{height}: {said}.",
                _INSTALL_CAMERA.get(sys.platform, "See the documentation of pyvirtualcam."),
            ) from error
        self.name = f"virtual camera {self._camera.device}"

    def write(self, frame: SafeFrame) -> None:
        """Sends one picture; does not wait for the next to be due, since frames come when they come."""
        pixels = checked_pixels(frame, "virtual camera")
        try:
            self._camera.send(pixels)
        except (RuntimeError, OSError, ValueError) as error:
            raise SinkError(
                f"{self.name} failed: {error}.", "Check that the device is still there."
            ) from error

    def close(self) -> None:
        """Gives the device back."""
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""
