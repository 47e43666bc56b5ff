"""Writes larger and fuller copies of a clip as input for `keyface bench`.

The copies show what the clip shows: they are raw. Nothing of the chain uses this file; the bench
writes into a temporary folder and removes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import cv2
import numpy as np

from keyface.configs.errors import UsageError
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.media.capture import FileSource

_GREY = 118


def write_bench_clip(
    source: Path,
    target: Path,
    *,
    faces: int = 1,
    width: int | None = None,
    size_wh: tuple[int, int] | None = None,
    n_frames: int | None = None,
    fps: int | None = None,
    others: Sequence[Path] = (),
) -> int:
    """Copies a clip, several times beside itself and scaled.

    Args:
        fps: of the result, its frames as they are; None: that of the clip.
        others: clips that take turns with the first in the grid, each fitted to its size; needs `n_frames`.
        faces: copies in a grid, every other one mirrored.
        width: px of the result, its shape kept.
        size_wh: px of the result; the clip is fitted inside and the rest is grey.
        n_frames: stop there; a shorter clip is repeated.
    Returns:
        Frames written. Raises UsageError for sizes that are not positive, SourceError, SinkError.
    """
    if faces < 1 or (width or 2) < 2 or min(size_wh or (2, 2)) < 2:
        raise UsageError(
            f"bench clip: got {faces} faces, width {width}, size {size_wh}, want positive numbers."
        )
    with FileSource(source) as clip:
        rate = clip.info.frame_rate if fps is None else Fraction(fps)
    written = 0
    frames = zip(*(_frames(path, n_frames) for path in (source, *others)), strict=False)
    first = _arrange(next(frames), faces, width, size_wh)
    rest = (_arrange(pictures, faces, width, size_wh) for pictures in frames)
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "veryfast"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", 1 / Fraction(rate)
        for image_rgb in chain([first], rest):
            picture = av.VideoFrame.from_ndarray(image_rgb, format="rgb24")
            picture.pts, picture.time_base = written, 1 / Fraction(rate)
            container.mux(stream.encode(picture))
            written += 1
        container.mux(stream.encode())
    return written


def _frames(source: Path, n_frames: int | None) -> Iterator[ImageRgb]:
    if n_frames is None:
        with FileSource(source) as clip:
            yield from (frame.image_rgb for frame in clip)
        return
    yield from (frame.image_rgb for frame in islice(_endless(source), n_frames))


def _endless(source: Path) -> Iterator[Frame]:
    while True:
        with FileSource(source) as clip:
            yield from clip


def _arrange(
    pictures: Sequence[ImageRgb], faces: int, width: int | None, size_wh: tuple[int, int] | None
) -> ImageRgb:
    """`faces` pictures in a grid; a picture that comes again is mirrored every other time."""
    columns = math.ceil(math.sqrt(faces))
    rows = math.ceil(faces / columns)
    height, wide = pictures[0].shape[:2]
    grid = np.full((rows * height, columns * wide, 3), _GREY, np.uint8)
    for index in range(faces):
        row, column = divmod(index, columns)
        picture = pictures[index % len(pictures)]
        if picture.shape != pictures[0].shape:
            scale = min(wide / picture.shape[1], height / picture.shape[0])
            picture = _on_canvas(picture, scale, (wide, height))
        is_mirrored = index // len(pictures) % 2
        grid[row * height : (row + 1) * height, column * wide : (column + 1) * wide] = (
            picture[:, ::-1] if is_mirrored else picture
        )
    height_px, width_px = grid.shape[:2]
    if size_wh is not None:
        wanted_wh = size_wh
        scale = min(size_wh[0] / width_px, size_wh[1] / height_px)
    else:
        scale = (width or width_px) / width_px
        wanted_wh = round(width_px * scale), round(height_px * scale)
    return _on_canvas(grid, scale, (_even(wanted_wh[0]), _even(wanted_wh[1])))


def _on_canvas(grid: ImageRgb, scale: float, wanted_wh: tuple[int, int]) -> ImageRgb:
    fitted_wh = _within(grid.shape[1] * scale, wanted_wh[0]), _within(grid.shape[0] * scale, wanted_wh[1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fitted = cv2.resize(grid, fitted_wh, interpolation=method) if fitted_wh != grid.shape[1::-1] else grid
    canvas = np.full((wanted_wh[1], wanted_wh[0], 3), _GREY, np.uint8)
    left, top = (wanted_wh[0] - fitted_wh[0]) // 2, (wanted_wh[1] - fitted_wh[1]) // 2
    canvas[top : top + fitted_wh[1], left : left + fitted_wh[0]] = fitted
    return canvas


def _within(length: float, limit: int) -> int:
    return max(1, min(round(length), limit))


def _even(n: int) -> int:
    """yuv420p has even sides."""
    return max(2, n // 2 * 2)
