"""A chain that finds a face at a fixed place and mosaics it, for tests of what is around the chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.paste.redact import redact_frame

MakeClip = Callable[..., Path]
BOX = (20.0, 10.0, 52.0, 42.0)


class Analyse:
    """Finds a face at the same place in every frame, or none."""

    def __init__(self, boxes: tuple[tuple[float, ...], ...] = (BOX,)) -> None:
        self._boxes = boxes
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def process(self, item: Frame) -> AnalysedFrame:
        assert self.is_open
        faces = (
            Face(number, np.array(box, np.float32), None, 0.9, False, None)
            for number, box in enumerate(self._boxes)
        )
        return AnalysedFrame(item, tuple(faces))

    def close(self) -> None:
        self.is_open = False


class Paste:
    """Mosaics what it is told to."""

    def open(self) -> None:
        pass

    def process(self, item: ReenactedFrame) -> SafeFrame:
        return redact_frame(item.analysed.frame, [*item.analysed.must_redact, *item.must_redact])

    def close(self) -> None:
        pass


def fake_parts(*boxes: tuple[float, ...], released: list[bool] | None = None) -> ChainParts:
    def release() -> None:
        if released is not None:
            released.append(True)

    return ChainParts(analyse=Analyse(boxes), observer=None, reenact=None, paste=Paste(), release=release)


def read_video(path: Path) -> tuple[list[npt.NDArray[np.uint8]], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]


def is_mosaic(image: npt.NDArray[Any], box: tuple[float, ...] = BOX) -> bool:
    """True when the middle of the box is made of flat blocks, as far as the codec leaves them flat."""
    x0, y0, x1, y1 = (int(v) for v in box)
    patch = image[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4].astype(np.int32)
    steps = np.abs(np.diff(patch, axis=1)).max(axis=2)
    return bool((steps <= 6).mean() > 0.75)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def save_photo(path: Path, texture: Callable[..., npt.NDArray[np.uint8]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture((96, 64))).save(path)
    return path
