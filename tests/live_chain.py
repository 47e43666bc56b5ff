"""A live chain around a texture that stands for a face, and a screen that searches what it gets for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from fault_chain import (
    FACE_PX,
    RAW_CORRELATION,
    TEXTURE,
    Step,
    correlation,
    mesh_of,
    paste,
    raw_frame,
    render,
)

from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.run import LiveReport
from keyface.pipeline.live.sink import NullSink
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

QUICK = LiveSourceOptions(open_timeout_s=5.0, silence_s=2.0, first_pause_s=0.05, longest_pause_s=0.2)


class Screen(NullSink):
    """Keeps what it gets, and fails the test on a raw face."""

    queue_frames = 64

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
