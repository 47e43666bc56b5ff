"""Mosaics, whole-frame redaction and slates: what is shown where no virtual face can be.

A mosaic is made of block averages and nothing else, so what survives of a face is at most an image of
`max_blocks` x `max_blocks` pixels, in fact less: the box is enlarged first, so the face itself covers
about three quarters of it, and block values are rounded to `LEVELS` steps, so that a moving grid gives
an attacker less to add up over many frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import (
    Frame,
    ImageRgb,
    Redaction,
    RedactionReason,
    SafeFrame,
    check_image_rgb,
    seal,
)

MIN_BLOCK_PX = 6  # a block of a tiny face still averages 36 pixels
LEVELS = 32  # steps that a block's value is rounded to, per channel


def mosaic(
    image_rgb: ImageRgb,
    box_xyxy: Sequence[float] | npt.NDArray[np.floating],
    *,
    enlarge: float = 1.3,
    max_blocks: int = 8,
) -> ImageRgb:
    """A copy of the image with the enlarged box replaced by block averages.

    Args:
        image_rgb: uint8 (H, W, 3); not modified.
        box_xyxy: px; may reach over the border or lie outside (then nothing is in view and nothing
            changes). A box that is not finite, or has no area, says that nobody knows where the face
            is: the whole image is mosaicked.
        enlarge: factor on both sides of the box about its centre, >= 1.
        max_blocks: blocks along the longer side of the enlarged box, 1 to 8.

    Returns:
        uint8 (H, W, 3), owned by the caller.
    """
    check_image_rgb(image_rgb, "mosaic image")
    out = image_rgb.copy()
    mosaic_in_place(out, box_xyxy, enlarge=enlarge, max_blocks=max_blocks)
    return out


def mosaic_in_place(
    image_rgb: ImageRgb,
    box_xyxy: Sequence[float] | npt.NDArray[np.floating],
    *,
    enlarge: float = 1.3,
    max_blocks: int = 8,
) -> None:
    """As `mosaic`, writing into `image_rgb`, which must be writable."""
    if enlarge < 1.0 or not 1 <= max_blocks <= 8:
        raise ValueError(f"mosaic: got enlarge {enlarge}, max_blocks {max_blocks}; want >= 1 and 1 to 8")
    height, width = image_rgb.shape[:2]
    x0, y0, x1, y1 = _enlarged(box_xyxy, enlarge) or (0, 0, width, height)
    block_px = max(math.ceil(max(x1 - x0, y1 - y0) / max_blocks), MIN_BLOCK_PX)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        return
    xs, ys = _edges(x1 - x0, block_px), _edges(y1 - y0, block_px)
    region = image_rgb[y0:y1, x0:x1]
    sums = np.add.reduceat(
        np.add.reduceat(region, ys[:-1], axis=0, dtype=np.int32), xs[:-1], axis=1, dtype=np.int64
    )
    means = sums / (np.diff(ys)[:, None, None] * np.diff(xs)[None, :, None])
    step = 255.0 / (LEVELS - 1)
    blocks = np.rint(np.rint(means / step) * step).astype(np.uint8)
    region[:] = np.repeat(np.repeat(blocks, np.diff(ys), axis=0), np.diff(xs), axis=1)


def redact_frame(
    frame: Frame, redactions: Sequence[Redaction], base_image: ImageRgb | None = None
) -> SafeFrame:
    """The frame with every redaction mosaicked.

    Args:
        frame: raw frame; with no redactions it is declared safe as it is, so the caller answers for
            there being no other face in it.
        redactions: areas, in any order; they may overlap.
        base_image: uint8, shape of the frame: what to mosaic instead of the frame's own pixels.

    Raises:
        ValueError: `base_image` has another shape than the frame.
    """
    base = frame.image_rgb if base_image is None else base_image
    if not redactions:
        return seal(frame, base)
    image_rgb = base.copy()
    for redaction in redactions:
        mosaic_in_place(image_rgb, redaction.box_xyxy)
    return seal(frame, image_rgb, redactions=tuple(redactions))


def redact_whole(frame: Frame, reason: RedactionReason) -> SafeFrame:
    """The whole frame as one mosaic of at most 8 blocks: for frames nothing is known about."""
    height, width = frame.image_rgb.shape[:2]
    return redact_frame(frame, [Redaction((0.0, 0.0, float(width), float(height)), reason)])


def slate(size_wh: tuple[int, int], text: str) -> ImageRgb:
    """A dark card with centred text, uint8 (H, W, 3), for when there is no safe picture to show.

    Characters outside ASCII are shown as '?'; lines break at '\\n'.
    """
    width, height = size_wh
    card = np.full((height, width, 3), 24, np.uint8)
    lines = text.encode("ascii", "replace").decode("ascii").split("\n")
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(min(width, height) / 360))
    widest = max((cv2.getTextSize(line, font, 1.0, thickness)[0][0] for line in lines), default=0)
    scale = min(min(width, height) / 400, 0.9 * width / max(widest, 1), 0.9 * height / (44 * len(lines)))
    pitch = 44 * scale
    for i, line in enumerate(lines):
        text_width = cv2.getTextSize(line, font, scale, thickness)[0][0]
        x = round((width - text_width) / 2)
        y = round(height / 2 + (i - (len(lines) - 1) / 2) * pitch + 10 * scale)
        cv2.putText(card, line, (x, y), font, scale, (220, 220, 220), thickness, cv2.LINE_AA)
    return card


def slate_frame(frame: Frame, text: str) -> SafeFrame:
    """A slate in the frame's place, with its size and time."""
    height, width = frame.image_rgb.shape[:2]
    return seal(frame, slate((width, height), text))


def outline_boxes(safe: SafeFrame, boxes_xyxy: Sequence[npt.NDArray[np.floating]]) -> SafeFrame:
    """A safe frame with thin outlines: green around `boxes_xyxy`, red around what is mosaicked.

    Args:
        boxes_xyxy: (4,) px each, of faces; those that are not finite are left out.
    """
    image_rgb = safe.image_rgb.copy()
    mosaics = [(np.array(redaction.box_xyxy), (220, 40, 40)) for redaction in safe.redactions]
    for box, colour in [*((box, (40, 200, 80)) for box in boxes_xyxy), *mosaics]:
        if np.isfinite(box).all():
            x0, y0, x1, y1 = (int(v) for v in np.rint(np.clip(box, -32000, 32000)))
            cv2.rectangle(image_rgb, (x0, y0), (x1, y1), colour, 1)
    return replace(safe, image_rgb=image_rgb)


def _enlarged(
    box_xyxy: Sequence[float] | npt.NDArray[np.floating], enlarge: float
) -> tuple[int, int, int, int] | None:
    """Whole pixels that cover the enlarged box; None for a box that says nothing."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    half_w, half_h = enlarge * (x1 - x0) / 2, enlarge * (y1 - y0) / 2
    if not math.isfinite(half_w * half_h) or half_w <= 0 or half_h <= 0:
        return None
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return (
        math.floor(cx - half_w),
        math.floor(cy - half_h),
        math.ceil(cx + half_w),
        math.ceil(cy + half_h),
    )


def _edges(length_px: int, block_px: int) -> npt.NDArray[np.intp]:
    """Cell borders 0 .. length_px with cells of at least `block_px` (or one cell), nearly equal."""
    n = max(1, length_px // block_px)
    return np.rint(np.linspace(0, length_px, n + 1)).astype(np.intp)
