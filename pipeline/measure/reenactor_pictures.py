"""Contact sheets of reenactors: the driver above, each reenactor's face below it, one moment a column.

They show real faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import FindsFaces, square_crop
from keyface.pipeline.measure.media import fit_size
from keyface.pipeline.media.contact_sheet import contact_sheet, evenly, moments, write_picture

COLUMNS = 8
_CELL_PX = 224
_SCALE = 1.7  # side of a cell, in longer sides of the driver's box


def write_side_by_side(
    path: Path,
    driver: Path,
    outputs: Mapping[str, Path],
    detector: FindsFaces,
    *,
    end_s: float | None = None,
    columns: int = COLUMNS,
) -> bool:
    """Cuts the driver's largest face out of moments of all clips; False, and no file, where there is no face.

    Args:
        driver: the original clip; outputs: by reenactor, made of it up to `end_s`.

    Raises:
        SourceError, SinkError: a clip cannot be read, the sheet cannot be written.
    """
    shown = {name: moments(output, count=columns) for name, output in outputs.items()}
    rows: dict[str, list[ImageRgb]] = {"driver": [], **{name: [] for name in outputs}}
    for index, image_rgb in enumerate(moments(driver, count=columns, end_s=end_s)):
        found = detector.detect(image_rgb)
        if not found or any(index >= len(pictures) for pictures in shown.values()):
            continue
        box = max(found, key=lambda d: float(np.prod(d.box_xyxy[2:] - d.box_xyxy[:2]))).box_xyxy
        size_wh = image_rgb.shape[1], image_rgb.shape[0]
        others = {name: fit_size(pictures[index], size_wh) for name, pictures in shown.items()}
        for name, picture in {"driver": image_rgb, **others}.items():
            rows[name].append(square_crop(picture, box, _SCALE, _CELL_PX)[0])
    if not rows["driver"]:
        return False
    write_picture(path, contact_sheet(list(rows.items()), cell_px=_CELL_PX))
    return True


def write_self_sheet(
    path: Path, pairs: Sequence[tuple[ImageRgb, ImageRgb]], *, columns: int = COLUMNS
) -> bool:
    """Frames as they are above, the same made from the first frame below; False, and no file, without any.

    Raises:
        SinkError: the sheet cannot be written.
    """
    if not pairs:
        return False
    titles = ("as it is", "from the first frame, by warp")
    rows = [
        (title, evenly([pair[i] for pair in pairs], count=columns, total=len(pairs)))
        for i, title in enumerate(titles)
    ]
    write_picture(path, contact_sheet(rows, cell_px=_CELL_PX))
    return True
