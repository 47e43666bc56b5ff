"""A contact sheet: moments of clips side by side in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keyface.pipeline.frame import ImageRgb, check_image_rgb
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.partial import PartialFile, sink_error

_PAPER = (250, 250, 250)
_INK = (40, 40, 40)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[ImageRgb]]], *, cell_px: int = 224, gap_px: int = 6, label_px: int = 22
) -> ImageRgb:
    """Rows of pictures, each row under its title.

    Args:
        rows: title and pictures, uint8 (H, W, 3) of any size; scaled to fit square cells.
        cell_px, gap_px, label_px: sides of a cell, the gaps, and the height of a title.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: no picture at all, or one that is not an RGB image.
    """
    n_columns = max((len(pictures) for _, pictures in rows), default=0)
    if n_columns == 0:
        raise ValueError("contact sheet: got no pictures, want at least one")
    row_px = label_px + cell_px + gap_px
    size_wh = (n_columns * (cell_px + gap_px) + gap_px, len(rows) * row_px + gap_px)
    sheet = Image.new("RGB", size_wh, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(label_px - 8, 8))
    for i, (title, pictures) in enumerate(rows):
        top = gap_px + i * row_px
        draw.text((gap_px, top + 2), title, _INK, font)
        for j, picture in enumerate(pictures):
            check_image_rgb(picture, f"contact sheet picture {i}, {j}")
            cell = Image.fromarray(_fit(picture, cell_px))
            left = gap_px + j * (cell_px + gap_px) + (cell_px - cell.width) // 2
            sheet.paste(cell, (left, top + label_px + (cell_px - cell.height) // 2))
    return np.asarray(sheet).copy()


def moments(clip: Path, *, count: int, end_s: float | None = None) -> list[ImageRgb]:
    """`count` frames of a video, or of its part before `end_s`, evenly spread. Raises SourceError."""
    with FileSource(clip, end_s=end_s) as source:
        total = sum(1 for _ in source)
    with FileSource(clip, end_s=end_s) as source:
        return evenly((frame.image_rgb for frame in source), count=count, total=total)


def write_picture(path: Path, image_rgb: ImageRgb) -> None:
    """Writes a picture, format by suffix; it appears under its name only whole. Raises SinkError."""
    file = PartialFile(path)
    try:
        Image.fromarray(image_rgb).save(
            file.temporary, format=Image.registered_extensions()[path.suffix.lower()]
        )
    except OSError as error:
        file.abort()
        raise sink_error(path, error) from error
    file.commit()


def evenly(images: Iterable[ImageRgb], *, count: int, total: int) -> list[ImageRgb]:
    """`count` of `total` images, from the middles of equal parts; fewer where there are fewer."""
    wanted = {int((part + 0.5) * total / count) for part in range(count)}
    return [image for index, image in enumerate(images) if index in wanted]


def _fit(picture: ImageRgb, cell_px: int) -> ImageRgb:
    height, width = picture.shape[:2]
    scale = cell_px / max(height, width)
    size_wh = max(round(width * scale), 1), max(round(height * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fitted: ImageRgb = np.asarray(cv2.resize(picture, size_wh, interpolation=how), np.uint8)
    return fitted
