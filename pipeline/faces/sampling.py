"""Which pixels of a frame make a crop: for `align.cut_out`, which makes it in host memory, and for a card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyface.engines.card_frame import Border, FaceCrop
from keyface.pipeline.face import F32
from keyface.pipeline.faces.geometry import F64, similarity_scale
from keyface.pipeline.frame import ImageRgb


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a crop is made: a part of the picture is shrunk by averaging areas, and sampled bilinearly.

    Attributes:
        part_xyxy: px; the whole picture where nothing is shrunk.
        small_wh: px that the part is shrunk to; its own size: not at all.
        small_from_crop: (2, 3), leads from crop pixels into the shrunk part.
    """

    part_xyxy: tuple[int, int, int, int]
    small_wh: tuple[int, int]
    small_from_crop: F64


def card_crop(
    image_rgb: ImageRgb,
    frame_from_crop: F32,
    size: int,
    *,
    border: Border,
    max_step: float = 1.4,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    planes: bool = True,
) -> FaceCrop:
    """What `align.cut_out` makes of a picture, then (level - mean) / std, to be made on a card.

    Args:
        planes: True for (3, size, size), False for (size, size, 3).
    """
    sampling = sampling_of(image_rgb.shape[:2], frame_from_crop, size, max_step)
    scale = tuple(1.0 / s for s in std)
    shift = tuple(-m / s for m, s in zip(mean, std, strict=True))
    return FaceCrop(
        part_xyxy=sampling.part_xyxy, small_wh=sampling.small_wh, small_from_crop=sampling.small_from_crop,
        border=border, scale=(scale[0], scale[1], scale[2]), shift=(shift[0], shift[1], shift[2]), planes=planes,
    )  # fmt: skip


def sampling_of(image_hw: tuple[int, ...], frame_from_crop: F32, size: int, max_step: float) -> Sampling:
    """How `align.cut_out`, which explains the arguments, samples a picture of this height and width."""
    height, width = image_hw
    matrix = np.asarray(frame_from_crop, np.float64)
    whole = Sampling((0, 0, width, height), (width, height), matrix)
    step = similarity_scale(matrix)
    if not step > max_step:
        return whole
    factor = max_step / step
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ matrix.T
    margin = 2.0 / factor
    low = np.floor(corners.min(0) - margin).clip(0, [width, height]).astype(int)
    high = np.ceil(corners.max(0) + margin).clip(0, [width, height]).astype(int)
    if (high - low < 2).any():
        return whole
    size_wh = np.maximum(np.round((high - low) * factor), 1).astype(int)
    scale = size_wh / (high - low)
    # Pixel centres: small = (frame - low + 0.5) * scale - 0.5.
    into_small = scale[:, None] * matrix
    into_small[:, 2] += (0.5 - low) * scale - 0.5
    part = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    return Sampling(part, (int(size_wh[0]), int(size_wh[1])), into_small)
