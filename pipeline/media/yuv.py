"""Colour between video and RGB, exact to rounding.

The matrix arithmetic is done here rather than by swscale, whose fast path darkens by about one level:
here a picture that goes YUV -> RGB -> YUV comes back within one level. Chroma is repeated on the way
in and averaged over the same samples on the way out, so that it, too, comes back.

    Y = Kr R + Kg G + Kb B,  Cb = (B - Y) / (2 (1 - Kb)),  Cr = (R - Y) / (2 (1 - Kr))   (ITU-R BT.709, 3)

Tags keep the numbers of ITU-T H.273 (which libav uses as well). What the source does not say stays
unsaid in the output, so that every player shows both in the same colours, whatever it assumes.
Output is always of limited range (16 to 235), since some players ignore the flag of full range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import av
import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb

Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc"]
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

_KR_KB: Mapping[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}
_MATRIX_OF_TAG: Mapping[int, Matrix] = {
    1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
UNSPECIFIED = 2
_TAG_BT601 = 6
_FULL_RANGE, _LIMITED_RANGE = 2, 1
_TRANSFER_PQ, _TRANSFER_HLG = 16, 18
# Codecs whose grey frames are full range when they do not say so.
_FULL_RANGE_GREY = frozenset({"png", "apng", "mjpeg", "rawvideo", "gif", "bmp", "tiff", "ffv1", "jpeg2000"})
_DIRECT_FORMATS = frozenset({
    "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuva420p", "yuva422p", "yuva444p",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ColourTags:
    """Colour description of a video.

    Attributes:
        matrix: what is used for the arithmetic; guessed from the size where the source is silent.
        matrix_tag, primaries_tag, transfer_tag: H.273 numbers for the output, 2 = unspecified.
    """

    matrix: Matrix = "bt601"
    matrix_tag: int = UNSPECIFIED
    primaries_tag: int = UNSPECIFIED
    transfer_tag: int = UNSPECIFIED

    @property
    def hdr_name(self) -> str | None:
        """'PQ' or 'HLG' when the transfer is a high dynamic range one."""
        return {_TRANSFER_PQ: "PQ", _TRANSFER_HLG: "HLG"}.get(self.transfer_tag)


def colour_tags_of(av_frame: Any) -> ColourTags:
    """The tags that an output made from this PyAV frame should carry."""
    primaries, transfer = int(av_frame.color_primaries), int(av_frame.color_trc)
    if _is_rgb(av_frame):
        # BT.601, tagged: readers that honour tags and readers that assume BT.601 then agree.
        matrix: Matrix = "bt601"
        matrix_tag = _TAG_BT601
    else:
        matrix = _matrix_of(av_frame)
        tag = int(av_frame.colorspace)
        matrix_tag = 9 if tag == 10 else tag if tag in _MATRIX_OF_TAG else UNSPECIFIED
    return ColourTags(matrix, matrix_tag, _known(primaries), _known(transfer))


def rgb_from_av(av_frame: Any, codec: str = "") -> ImageRgb:
    """A decoded PyAV frame of any pixel format as RGB.

    Returns:
        uint8 (H, W, 3), full range, owned by the caller. Alpha is dropped; deeper samples are rounded
        to 8 bits without tone mapping.
    """
    if _is_rgb(av_frame):
        # A copy: PyAV's array views the frame's own memory.
        return np.array(av_frame.reformat(format="rgb24").to_ndarray(), dtype=np.uint8)
    if av_frame.format.name.startswith(("gray", "ya")):
        return _rgb_from_grey(av_frame, codec)
    is_full = av_frame.format.name.startswith("yuvj") or int(av_frame.color_range) == _FULL_RANGE
    planar = av_frame
    if av_frame.format.name not in _DIRECT_FORMATS:
        planar = _reformat_same_colour(av_frame, _planar_8bit(av_frame), is_full=is_full)
    luma, cb, cr = (_plane(planar.planes[i]) for i in range(3))
    height, width = luma.shape
    chroma = [_repeat_to(c, width, height) for c in (cb, cr)]
    _, rgb_from_yuv = _affine(_matrix_of(av_frame), is_full)
    rgb: ImageRgb = cv2.transform(cv2.merge([luma, *chroma]), rgb_from_yuv)
    return rgb


def av_from_rgb(image_rgb: ImageRgb, matrix: Matrix) -> Any:
    """A PyAV frame in yuv420p, limited range, from uint8 (H, W, 3).

    Odd sizes get their last row or column repeated once, since yuv420p needs even ones.
    """
    height, width = image_rgb.shape[:2]
    if height % 2 or width % 2:
        image_rgb = cv2.copyMakeBorder(image_rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        height, width = image_rgb.shape[:2]
    yuv_from_rgb, _ = _affine(matrix, False)
    luma, cb, cr = cv2.split(cv2.transform(image_rgb, yuv_from_rgb))
    half_wh = (width // 2, height // 2)
    i420 = np.empty(height * width * 3 // 2, dtype=np.uint8)
    n_luma, n_chroma = height * width, height * width // 4
    i420[:n_luma] = luma.reshape(-1)
    i420[n_luma : n_luma + n_chroma] = cv2.resize(cb, half_wh, interpolation=cv2.INTER_AREA).reshape(-1)
    i420[n_luma + n_chroma :] = cv2.resize(cr, half_wh, interpolation=cv2.INTER_AREA).reshape(-1)
    return av.VideoFrame.from_ndarray(i420.reshape(height * 3 // 2, width), format="yuv420p")


@cache
def _affine(matrix: Matrix, is_full: bool) -> tuple[F64, F64]:
    """(3, 4) YUV from RGB and (3, 4) RGB from YUV, both on 8-bit levels."""
    kr, kb = _KR_KB[matrix]
    kg = 1 - kr - kb
    unit = np.array([
        [kr, kg, kb],
        [-kr / (2 * (1 - kb)), -kg / (2 * (1 - kb)), 0.5],
        [0.5, -kg / (2 * (1 - kr)), -kb / (2 * (1 - kr))],
    ])  # fmt: skip
    luma_gain, chroma_gain, black = (1.0, 1.0, 0.0) if is_full else (219 / 255, 224 / 255, 16.0)
    forward = unit * np.array([[luma_gain], [chroma_gain], [chroma_gain]])
    offset = np.array([black, 128.0, 128.0])
    backward = np.linalg.inv(forward)
    return np.column_stack([forward, offset]), np.column_stack([backward, -backward @ offset])


def _matrix_of(av_frame: Any) -> Matrix:
    guess: Matrix = "bt709" if max(av_frame.width, av_frame.height) >= 1280 else "bt601"
    return _MATRIX_OF_TAG.get(int(av_frame.colorspace), guess)


def _known(tag: int) -> int:
    return tag if tag not in (0, 3) else UNSPECIFIED


def _is_rgb(av_frame: Any) -> bool:
    name = av_frame.format.name
    return bool(av_frame.format.is_rgb) or name == "pal8" or name.startswith("xyz")


def _planar_8bit(av_frame: Any) -> str:
    """The 8-bit planar format of the same chroma sampling, so that only the depth changes."""
    components = av_frame.format.components
    if len(components) < 3:
        return "yuv444p"
    wide = components[1].width * 2 > av_frame.width + 1
    tall = components[1].height * 2 > av_frame.height + 1
    return "yuv444p" if wide else "yuv422p" if tall else "yuv420p"


def _reformat_same_colour(av_frame: Any, name: str, *, is_full: bool) -> Any:
    colour_range = _FULL_RANGE if is_full else _LIMITED_RANGE
    return av_frame.reformat(
        format=name, src_color_range=colour_range, dst_color_range=colour_range,
        src_colorspace=int(av_frame.colorspace), dst_colorspace=int(av_frame.colorspace),
    )  # fmt: skip


def _rgb_from_grey(av_frame: Any, codec: str) -> ImageRgb:
    said = int(av_frame.color_range)
    is_full = said == _FULL_RANGE or (said != _LIMITED_RANGE and codec in _FULL_RANGE_GREY)
    grey_frame = av_frame
    if av_frame.format.name not in ("gray", "gray8"):
        grey_frame = _reformat_same_colour(av_frame, "gray", is_full=is_full)
    grey = _plane(grey_frame.planes[0])
    if not is_full:
        grey = cv2.LUT(grey, _LIMITED_TO_FULL)
    return np.repeat(grey[:, :, None], 3, axis=2)


_LIMITED_TO_FULL: U8 = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def _plane(plane: Any) -> U8:
    """A view (H, W) of the plane of an 8-bit frame; valid as long as the frame."""
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]


def _repeat_to(chroma: U8, width: int, height: int) -> U8:
    """Chroma repeated to the size of luma; the last sample serves one pixel when a side is odd."""
    across = 2 if chroma.shape[1] < width else 1
    down = 2 if chroma.shape[0] < height else 1
    if across == down == 1:
        return chroma
    full_wh = (chroma.shape[1] * across, chroma.shape[0] * down)
    repeated: U8 = cv2.resize(chroma, full_wh, interpolation=cv2.INTER_NEAREST)
    return repeated[:height, :width]
