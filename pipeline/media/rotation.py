"""Bringing a picture upright: the eight turns and mirrors that containers and EXIF can ask for."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

Turn = Literal[
    "as_is", "turn_right", "turn_180", "turn_left", "mirror", "flip", "transpose", "transverse"
]  # fmt: skip

# Signs of (a, b, c, d) in x' = a x + c y, y' = b x + d y, y pointing down.
_TURN_OF_SIGNS: Mapping[tuple[int, int, int, int], Turn] = {
    (1, 0, 0, 1): "as_is",
    (0, 1, -1, 0): "turn_right",
    (-1, 0, 0, -1): "turn_180",
    (0, -1, 1, 0): "turn_left",
    (-1, 0, 0, 1): "mirror",
    (1, 0, 0, -1): "flip",
    (0, 1, 1, 0): "transpose",
    (0, -1, -1, 0): "transverse",
}
_TURN_OF_EXIF: Mapping[int, Turn] = {
    1: "as_is", 2: "mirror", 3: "turn_180", 4: "flip",
    5: "transpose", 6: "turn_right", 7: "transverse", 8: "turn_left",
}  # fmt: skip


def turn_of_exif(orientation: object) -> Turn:
    """The turn that EXIF's orientation tag asks for; anything outside 1..8 counts as upright."""
    return _TURN_OF_EXIF.get(orientation, "as_is") if isinstance(orientation, int) else "as_is"


def turn_of_display_matrix(matrix: bytes) -> Turn:
    """The turn that a display matrix asks for, rounded to the nearest quarter.

    Args:
        matrix: 36 bytes, nine native int32 (a b u, c d v, x y w) as in libavutil's display.h; other
            lengths and empty matrices count as upright.
    """
    if len(matrix) != 36:
        return "as_is"
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    is_sideways = abs(b) + abs(c) > abs(a) + abs(d)
    signs = (0, _sign(b), _sign(c), 0) if is_sideways else (_sign(a), 0, 0, _sign(d))
    return _TURN_OF_SIGNS.get(signs, "as_is")


def turn_of_frame(av_frame: Any) -> Turn:
    """The turn that a decoded PyAV frame carries as side data."""
    side_data = av_frame.side_data.get("DISPLAYMATRIX")
    return "as_is" if side_data is None else turn_of_display_matrix(bytes(side_data))


def swaps_sides(turn: Turn) -> bool:
    """True when width and height change places."""
    return turn in ("turn_right", "turn_left", "transpose", "transverse")


def apply_turn(image: U8, turn: Turn) -> U8:
    """The picture after the turn: uint8 (H, W) or (H, W, C), contiguous; the input itself for `as_is`."""
    turned: U8
    match turn:
        case "as_is":
            turned = image
        case "turn_right":
            turned = cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)
        case "turn_180":
            turned = cv2.rotate(image, cv2.ROTATE_180)
        case "turn_left":
            turned = cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case "mirror":
            turned = cv2.flip(image, 1)
        case "flip":
            turned = cv2.flip(image, 0)
        case "transpose":
            turned = cv2.transpose(image)
        case "transverse":
            turned = cv2.rotate(cv2.transpose(image), cv2.ROTATE_180)
    return turned


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
