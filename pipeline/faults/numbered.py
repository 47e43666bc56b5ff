"""Pictures that carry their number in bars along the top, so that whoever sees one knows when it was sent.

Picture n of a stream that follows the clock was sent at n / FPS of `time.monotonic()`, modulo N_FRAMES pictures.
"""

from __future__ import annotations

import numpy as np

from keyface.pipeline.frame import Frame, ImageRgb

FPS = 30
N_FRAMES = 300  # a clip of 10 s, over and over
_N_BITS = 10  # nine of the number, one of parity


def write_number(image_rgb: ImageRgb, number: int) -> None:
    """Writes a number, modulo N_FRAMES, into the top quarter of uint8 (H, W, 3), 160 px wide or more."""
    height, width = image_rgb.shape[:2]
    bits = (number % N_FRAMES) | (_parity(number % N_FRAMES) << (_N_BITS - 1))
    for bit in range(_N_BITS):
        left, right = bit * width // _N_BITS, (bit + 1) * width // _N_BITS
        image_rgb[: height // 4, left:right] = 230 if bits >> bit & 1 else 20


def number_of(image_rgb: ImageRgb) -> int | None:
    """What `write_number` wrote, None when it cannot be read."""
    height, width = image_rgb.shape[:2]
    bits = 0
    for bit in range(_N_BITS):
        middle = (2 * bit + 1) * width // (2 * _N_BITS)
        level = float(image_rgb[height // 16 : height // 6, middle - 3 : middle + 3].mean())
        if 70 < level < 180:
            return None
        bits |= int(level > 125) << bit
    number = bits & ((1 << (_N_BITS - 1)) - 1)
    return number if number < N_FRAMES and _parity(number) == bits >> (_N_BITS - 1) else None


def age_s(image_rgb: ImageRgb, now_s: float) -> float | None:
    """How long before `now_s` of `time.monotonic()` the picture was sent, -1 to 9 s; None when its number cannot be
    read."""
    number = number_of(image_rgb)
    if number is None:
        return None
    return (now_s - number / FPS + 1.0) % (N_FRAMES / FPS) - 1.0


def age_of_frame_s(frame: Frame, now_s: float) -> float | None:
    """`age_s` of a frame, as `DropRun` wants it."""
    return age_s(np.asarray(frame.image_rgb), now_s)


def _parity(number: int) -> int:
    return number.bit_count() & 1
