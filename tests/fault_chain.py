"""A chain of fakes that can be told to fail, around a random texture that stands for a face.

Every frame that a sink gets can be searched for the texture by correlation: a virtual face or a mosaic in
its place leaves next to nothing, the raw one gives 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Frame, Redaction, SafeFrame
from keyface.pipeline.media.capture import SourceInfo
from keyface.pipeline.paste import paster as paste_module
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.paste.redact import redact_frame
from keyface.pipeline.process import run_to_sink
from keyface.pipeline.process_options import ProcessOptions

Image = npt.NDArray[np.uint8]
WIDTH, HEIGHT, FACE_PX, FPS, N_FRAMES = 256, 192, 64, 25, 40
TEXTURE: Image = np.random.default_rng(3).integers(0, 256, (FACE_PX, FACE_PX, 3), np.uint8)
RAW_CORRELATION = 0.35  # above it, the texture is there


# What is filmed.


def place(index: int) -> tuple[int, int, int, int]:
    """Box of the face in frame `index`; it moves."""
    x, y = 60 + index % 80, 50 + index % 40
    return x, y, x + FACE_PX, y + FACE_PX


def raw_frame(index: int, *, is_suspect: bool = False) -> Frame:
    ramp = np.linspace(60, 180, WIDTH, dtype=np.float32)[None, :, None]
    image = np.broadcast_to(ramp, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    x0, y0, x1, y1 = place(index)
    image[y0:y1, x0:x1] = TEXTURE
    return Frame(image, index, index / FPS, index, Fraction(1, FPS), is_suspect)


def raw_frames(n: int = N_FRAMES) -> Iterator[Frame]:
    return (raw_frame(index) for index in range(n))


def correlation(image_rgb: Image) -> float:
    green = np.ascontiguousarray(image_rgb[:, :, 1])
    return float(cv2.matchTemplate(green, TEXTURE[:, :, 1].copy(), cv2.TM_CCOEFF_NORMED).max())


# Stages that work, until they are told to fail.


Fault = Callable[[int, Any], Any]


class Step:
    """A stage with a fault: `fault(index, output)` may raise, wait, or return something else."""

    def __init__(self, work: Callable[[Any], Any], fault: Fault | None = None) -> None:
        self._work = work
        self._fault = fault

    def open(self) -> None:
        pass

    def process(self, item: Any) -> Any:
        output = self._work(item)
        return output if self._fault is None else self._fault(_index_of(item), output)

    def close(self) -> None:
        pass


def _index_of(item: Any) -> int:
    item = getattr(item, "analysed", item)
    return int(getattr(item, "frame", item).index)


def mesh_of(points_xyz: npt.NDArray[np.float32]) -> FaceMesh:
    return FaceMesh(points_xyz, np.zeros(52, np.float32), np.zeros(3, np.float32), 1.0)


def find_face(frame: Frame) -> AnalysedFrame:
    """Finds the face where it is."""
    box = np.array(place(frame.index), np.float32)
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = (box[:2] + box[2:]) / 2
    return AnalysedFrame(frame, (Face(1, box, None, 0.9, False, mesh_of(points), frame.index),))


def render(analysed: AnalysedFrame) -> ReenactedFrame:
    virtual = []
    for face in analysed.faces:
        if face.mesh is None:
            continue
        matrix = np.array([[1, 0, face.box_xyxy[0]], [0, 1, face.box_xyxy[1]]], np.float32)
        crop = np.full((FACE_PX, FACE_PX, 3), 140, np.uint8)
        virtual.append(VirtualFace(face.track_id, crop, face.mesh, matrix))
    return ReenactedFrame(analysed, tuple(virtual))


def paste(item: ReenactedFrame) -> SafeFrame:
    """A plain paster: squares over boxes, mosaics over what has no virtual face."""
    frame = item.analysed.frame
    image = frame.image_rgb.copy()
    redactions = [*item.analysed.must_redact, *item.must_redact]
    by_id = {virtual.track_id: virtual for virtual in item.virtual}
    replaced = []
    for face in item.analysed.faces:
        virtual = by_id.get(face.track_id)
        if virtual is None:
            x0, y0, x1, y1 = (float(v) for v in face.box_xyxy)
            redactions.append(Redaction((x0, y0, x1, y1), "reenactment_failed", face.track_id))
            continue
        x, y = (round(float(v)) for v in virtual.frame_from_crop[:, 2])
        image[y : y + FACE_PX, x : x + FACE_PX] = virtual.crop_rgb
        replaced.append(face.track_id)
    mosaicked = redact_frame(frame, redactions, base_image=image)
    return paste_module.seal(
        frame, mosaicked.image_rgb, redactions=tuple(redactions), replaced=tuple(replaced)
    )


class Recorder:
    """A sink that searches what it gets."""

    def __init__(self, fault: Callable[[int], None] | None = None) -> None:
        self.frames: list[SafeFrame] = []
        self.notes: list[str] = []
        self.is_committed = False
        self._fault = fault

    def write(self, frame: SafeFrame) -> None:
        if self._fault is not None:
            self._fault(len(self.frames))
        self.frames.append(frame)

    def commit(self) -> None:
        self.is_committed = True

    def abort(self) -> None:
        pass

    def assert_no_raw_face(self) -> None:
        for frame in self.frames:
            assert correlation(frame.image_rgb) < RAW_CORRELATION, f"raw face in frame {frame.index}"


def info() -> SourceInfo:
    return SourceInfo(
        path=Path("none.mp4"), container="mp4", codec="h264", pix_fmt="yuv420p", size_wh=(WIDTH, HEIGHT),
        fps=float(FPS), frame_rate=Fraction(FPS), duration_s=None, n_frames_hint=None,
        time_base=Fraction(1, FPS), first_pts=0,
    )  # fmt: skip


def parts(
    *, analyse: Fault | None = None, reenact: Fault | None = None, paste_fault: Fault | None = None,
    real_paster: bool = False,
) -> ChainParts:  # fmt: skip
    return ChainParts(
        analyse=Step(find_face, analyse),
        observer=None,
        reenact=Step(render, reenact),
        paste=Paster() if real_paster else Step(paste, paste_fault),
    )


def run(
    chain: ChainParts,
    *,
    frames: Sequence[Frame] | Iterator[Frame] | None = None,
    sink: Any = None,
    **options: Any,
) -> tuple[Recorder, Any]:
    sink = sink or Recorder()
    with ExitStack() as stack:
        report, _ = run_to_sink(
            raw_frames() if frames is None else iter(frames),
            info(),
            sink,
            chain,
            ProcessOptions(**options),
            stack,
        )
    return sink, report


def no_threads_left() -> bool:
    deadline_s = time.monotonic() + 20.0
    while any(thread.name.startswith("keyface-") for thread in threading.enumerate()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def fail_on(indices: Sequence[int], error: Exception) -> Fault:
    def fault(index: int, output: Any) -> Any:
        if index in indices:
            raise error
        return output

    return fault


def change_on(indices: Sequence[int], change: Callable[[Any], Any]) -> Fault:
    return lambda index, output: change(output) if index in indices else output


BURST = range(10, 16)
STAGES = ("analyse", "reenact", "paste_fault")
