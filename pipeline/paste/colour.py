"""Colour and light: the virtual face is lit as the source face is.

Per channel c, with (u, v) face coordinates in the frame's axes, skin of source S and virtual V obey

    log S_c - log V_c = a_c + b_c u + d_c v + e_c (u^2 - 1/3) + f_c u v + g_c (v^2 - 1/3)

Six numbers a channel: the light's colour, its side and its fall-off over a rounded head, and nothing of
anybody's features. They are fitted robustly on a 40 px grid, limited, and averaged in time per track.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

FIT_SIDE = 36
TAU_S = 0.4
MIN_SAMPLES = 40
_FLOOR = 6.0  # added before logs: 8-bit values below carry no ratio
_RIDGE = np.array([1e-3, 2.0, 2.0, 12.0, 12.0, 12.0])
_MAX_GAIN = 1.6  # log limits: overall (a factor 5 either way),
_MAX_TINT = 0.45  # of one channel against the mean of the three,
_MAX_SLOPE = 0.6  # and of the light's change from the centre to the rim
_MIDDLE, _LEVELLING, _MAX_LEVELLING = 0.6, 0.8, 0.35  # of the face's radius, of what is off, log
_CONTRAST = (0.55, 1.05)
_SATURATION = (0.55, 1.1)
_WHITE_TINT = 0.5  # share of the tint that teeth and the whites of the eyes take: they have no skin colour
_SHOULDER = 222.0  # levels: above it, highlights are compressed
_MIN_CHROMA = 9.0  # levels of Cr and Cb that any face may have
_CHROMA_ROOM = 1.25  # times the source's own
_NO_LIMIT = np.array([128.0, 128.0])


@dataclass(frozen=True, slots=True)
class Light:
    """What the source's light does to the virtual face.

    Attributes:
        coefficients: (6, 3) log gains over the basis of `_basis`.
        below, above: contrast under and over `pivot_rgb`: shadows and highlights differ apart.
        saturation: of the difference from the pivot.
        pivot_rgb: (3,) levels, the virtual face's skin.
        chroma_limits: (2,) levels, how far colours may lie from the pivot's to the red (Cr) and to the
            yellow (Cb).
        table: (1, 256, 3), see `_table`.
    """

    coefficients: F64
    below: float
    above: float
    saturation: float
    pivot_rgb: F64
    chroma_limits: F64
    table: U8 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self._table())

    def _table(self) -> U8:
        """(1, 256, 3): new luma, Cr and Cb for every level of each.

        Luma gets the contrast, with a shoulder so that no highlight is burnt by the gains; chroma the
        saturation, bent where it leaves the range of the source's own: lips no redder than the driver's.
        """
        levels = np.arange(256, dtype=np.float64)
        pivot = _ycc(self.pivot_rgb)
        offset = levels - pivot[0]
        luma = pivot[0] + offset * np.where(offset > 0, self.above, self.below)
        gain = float(np.exp(self.coefficients[0].mean()))
        over = np.maximum(luma * gain - _SHOULDER, 0)
        room = 255 - _SHOULDER
        luma = np.minimum(luma, _SHOULDER / gain) + room * np.tanh(over / (1.6 * room)) / gain
        columns = [luma]
        for middle, limit, side in zip(pivot[1:], self.chroma_limits, (1, -1), strict=True):
            chroma = side * (levels - middle) * self.saturation
            knee = 0.6 * limit
            held = np.minimum(chroma, knee) + 0.5 * knee * np.tanh(
                np.maximum(chroma - knee, 0) / (0.8 * knee)
            )
            columns.append(middle + side * held)
        return np.asarray(np.rint(np.stack(columns, -1).clip(0, 255))[None], np.uint8)

    def enliven(self, virtual_rgb: ImageRgb) -> ImageRgb:
        """Contrast and saturation, before the gains."""
        ycc = cv2.LUT(cv2.cvtColor(virtual_rgb, cv2.COLOR_RGB2YCrCb), self.table)
        return np.asarray(cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB), np.uint8)

    def apply(self, virtual_rgb: ImageRgb, uv: F32) -> F32:
        """(n, n, 3) levels: the light on a small picture of the virtual face."""
        return np.asarray((self.enliven(virtual_rgb) * self.gain(uv)).clip(0, 255), np.float32)

    def gain(self, uv: F32) -> F32:
        """(..., 3) gains; past the outline, where the parabolas would run away, those of the rim."""
        return np.asarray(np.exp(self._log_gain(uv)), np.float32)

    def _log_gain(self, uv: F32) -> F64:
        held = uv / np.maximum(1.0, np.linalg.norm(uv, axis=-1, keepdims=True) / 1.3)
        return np.asarray(_basis(held) @ self.coefficients)


def _basis(uv: npt.NDArray[np.floating]) -> F64:
    u, v = uv[..., 0], uv[..., 1]
    return np.stack([np.ones_like(u), u, v, u * u - 1 / 3, u * v, v * v - 1 / 3], -1).astype(np.float64)


def fit_light(source_rgb: ImageRgb, virtual_rgb: ImageRgb, skin: F32, face: F32, uv: F32) -> Light | None:
    """Fits one frame.

    Args:
        source_rgb, virtual_rgb: uint8 (n, n, 3), area averages of the region, already aligned.
        skin: (n, n) [0, 1], skin of both.
        face: (n, n) [0, 1], skin and features.
        uv: (n, n, 2) face coordinates, about -1 to 1 inside the face.

    Returns:
        None when too little skin is in view.
    """
    source, virtual = source_rgb.astype(np.float64), virtual_rgb.astype(np.float64)
    seen = (source.max(-1) < 252) & (virtual.max(-1) < 252) & (skin > 0.2)
    if int(seen.sum()) < MIN_SAMPLES:
        return None
    design, w = _basis(uv[seen]), skin[seen].astype(np.float64)
    target = np.log(source[seen] + _FLOOR) - np.log(virtual[seen] + _FLOOR)
    robust = w
    for _ in range(3):
        weighted = design * robust[:, None]
        normal = weighted.T @ design + np.diag(_RIDGE) * (robust.sum() / 100)
        coefficients = np.linalg.solve(normal, weighted.T @ target)
        residual = np.abs(target - design @ coefficients) @ np.full(3, 1 / 3)
        scale = max(float(np.median(residual)) * 1.5, 0.03)
        robust = w / (1 + (residual / scale) ** 2)  # Cauchy weights: glasses, beards and hair count little
    pivot = robust @ virtual[seen] / robust.sum()
    plain = Light(_limit(coefficients), 1.0, 1.0, 1.0, pivot, _NO_LIMIT)
    plain = _levelled(plain, source, virtual_rgb, face, uv)
    gain = float(np.exp(plain.coefficients[0].mean()))
    inside = face > 0.8
    own, lit = source[inside], plain.apply(virtual_rgb, uv)[inside].astype(np.float64)
    return Light(plain.coefficients, *_liveliness(own, lit), pivot, _chroma_range(own) / gain)


def _levelled(light: Light, source: F64, virtual_rgb: ImageRgb, face: F32, uv: F32) -> Light:
    """The light, with the middle of the face as bright as the source's.

    The fit sees cheeks and rim, where fair hair may pass for skin and a lamp in front leaves shadows; eyes, nose
    and mouth are in the middle of every face, so there medians compare like with like.
    """
    middle = (face > 0.8) & (np.linalg.norm(uv, axis=-1) < _MIDDLE)
    if int(middle.sum()) < MIN_SAMPLES:
        return light
    lit = light.apply(virtual_rgb, uv)[middle]
    own, shown = (float(np.median(np.log(levels.mean(-1) + _FLOOR))) for levels in (source[middle], lit))
    coefficients = light.coefficients.copy()
    coefficients[0] += np.clip(_LEVELLING * (own - shown), -_MAX_LEVELLING, _MAX_LEVELLING)
    return Light(_limit(coefficients), 1.0, 1.0, 1.0, light.pivot_rgb, _NO_LIMIT)


def _ycc(rgb: F64) -> F64:
    """(..., 3) levels: luma, Cr, Cb as OpenCV defines them for 8 bit."""
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    return np.stack([luma, (rgb[..., 0] - luma) * 0.713 + 128, (rgb[..., 2] - luma) * 0.564 + 128], -1)


def _chroma_range(source: F64) -> F64:
    """(2,) levels that the source's face, lips included, spans from its median to the red and the yellow."""
    if len(source) < MIN_SAMPLES:
        return _NO_LIMIT
    chroma = (_ycc(source)[:, 1:] - 128) * np.array([1, -1])
    span = np.percentile(chroma, 97, axis=0) - np.median(chroma, 0)
    return np.asarray(np.maximum(span * _CHROMA_ROOM, _MIN_CHROMA), np.float64)


def _liveliness(source: F64, lit: F64) -> tuple[float, float, float]:
    """Contrast below and above the median, and saturation, of the source's face against the relit one's,
    limited: (N, 3) levels each."""
    if len(source) < MIN_SAMPLES:
        return 1.0, 1.0, 1.0
    below, above, colours = [], [], []
    for pixels in (source, lit):
        luma = pixels @ np.full(3, 1 / 3)
        low, middle, high = np.percentile(luma, [4, 50, 96])
        chroma = pixels - luma[:, None]
        below.append(float(middle - low))
        above.append(float(high - middle))
        colours.append(float(np.abs(chroma - np.median(chroma, 0)).mean()))
    contrasts = [float(np.clip((s + 3) / (v + 3), *_CONTRAST)) for s, v in (below, above)]
    saturation = (colours[0] + 1) / (colours[1] + 1)
    return contrasts[0], contrasts[1], float(np.clip(saturation, *_SATURATION))


def _limit(coefficients: F64) -> F64:
    out = coefficients.copy()
    mean = float(np.clip(out[0].mean(), -_MAX_GAIN, _MAX_GAIN))
    out[0] = mean + np.clip(out[0] - out[0].mean(), -_MAX_TINT, _MAX_TINT)
    reach = np.abs(out[1:]).sum(0)
    out[1:] *= np.minimum(1.0, _MAX_SLOPE / np.maximum(reach, 1e-9))
    return out


class LightFilter:
    """A track's light: fitted every `EVERY` frames, exponential mean over `TAU_S`."""

    EVERY = 4

    def __init__(self) -> None:
        self.light: Light | None = None
        self._count = 0

    def is_due(self) -> bool:
        """Whether this frame should be fitted; call once a frame."""
        self._count += 1
        return self.light is None or self._count % self.EVERY == 0

    def update(self, light: Light | None, dt_s: float) -> None:
        """Takes in a fit made `dt_s` after the last frame; None (too little skin) changes nothing."""
        if light is None or self.light is None:
            self.light = light or self.light
            return
        a, old = 1 - float(np.exp(-self.EVERY * dt_s / TAU_S)), self.light
        self.light = Light(
            old.coefficients + a * (light.coefficients - old.coefficients),
            old.below + a * (light.below - old.below),
            old.above + a * (light.above - old.above),
            old.saturation + a * (light.saturation - old.saturation),
            old.pivot_rgb + a * (light.pivot_rgb - old.pivot_rgb),
            old.chroma_limits + a * (light.chroma_limits - old.chroma_limits),
        )


def relight(crop_rgb: ImageRgb, light: Light, uv_corners: F32, seam: F32, whites: F32) -> ImageRgb:
    """The crop under the source's light.

    Args:
        crop_rgb: uint8 (S, S, 3).
        uv_corners: (3, 2) face coordinates of the crop's corners top left, top right, bottom left.
        seam: (n, n, 3) levels to add, see `seam.Seam`.
        whites: (N, 4) face coordinates of the middles of eyes and mouth, their half widths, and how open they
            are, [0, 1].
    """
    n = 24
    steps = (np.arange(n, dtype=np.float32) + 0.5) / n
    along, down = uv_corners[1] - uv_corners[0], uv_corners[2] - uv_corners[0]
    uv = uv_corners[0] + steps[None, :, None] * along + steps[:, None, None] * down
    gain = light.gain(uv)
    mean = gain.mean(-1, keepdims=True)
    for x, y, half, openness in whites:
        near = np.exp(-((uv - (x, y)) ** 2).sum(-1, keepdims=True) / max(0.6 * float(half) ** 2, 1e-6))
        gain = gain + (1 - _WHITE_TINT) * openness * near * (mean - gain)
    field = cv2.resize(gain.astype(np.float32), crop_rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    seam = np.asarray(cv2.resize(seam, crop_rgb.shape[1::-1]), np.float32)
    lit = cv2.multiply(light.enliven(crop_rgb), field, dtype=cv2.CV_32F)
    return np.asarray(cv2.add(lit, seam, dtype=cv2.CV_8U), np.uint8)
