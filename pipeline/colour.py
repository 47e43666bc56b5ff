"""Colour and light: the virtual face is lit as the source face is.

Per channel c, with (u, v) face coordinates in the frame's axes, skin of source S and virtual V obey

    log S_c - log V_c = a_c + b_c u + d_c v + e_c (u^2 - 1/3) + f_c u v + g_c (v^2 - 1/3)

Six numbers a channel: the light's colour, its side and its fall-off over a rounded head, and nothing of
anybody's features. They are fitted robustly on a 40 px grid, limited, and averaged in time per track.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb

F32 = npt.NDArray[np.float32]

FIT_SIDE = 40
TAU_S = 0.4
MIN_SAMPLES = 40
_FLOOR = 6.0  # added before logs: 8-bit values below carry no ratio
_RIDGE = np.array([1e-3, 2.0, 2.0, 12.0, 12.0, 12.0])
_MAX_GAIN = 1.6  # log limits: overall (a factor 5 either way),
_MAX_TINT = 0.45  # of one channel against the mean of the three,
_MAX_SLOPE = 0.6  # and of the light's change from the centre to the rim
_CONTRAST = (0.8, 1.2)


@dataclass(frozen=True, slots=True)
class Light:
    """log gains (6, 3) over the basis of `_basis`, contrast about `pivot_rgb` (3,)."""

    coefficients: npt.NDArray[np.float64]
    contrast: float
    pivot_rgb: npt.NDArray[np.float64]


def _basis(uv: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    u, v = uv[..., 0], uv[..., 1]
    return np.stack([np.ones_like(u), u, v, u * u - 1 / 3, u * v, v * v - 1 / 3], -1).astype(np.float64)


def fit_light(source_rgb: ImageRgb, virtual_rgb: ImageRgb, weight: F32, uv: F32) -> Light | None:
    """Fits one frame.

    Args:
        source_rgb, virtual_rgb: uint8 (n, n, 3), area averages of the region, already aligned.
        weight: (n, n) [0, 1], skin of both.
        uv: (n, n, 2) face coordinates, about -1 to 1 inside the face.

    Returns:
        None when too little skin is in view.
    """
    source, virtual = source_rgb.astype(np.float64), virtual_rgb.astype(np.float64)
    seen = (source.max(-1) < 252) & (virtual.max(-1) < 252) & (weight > 0.2)
    if int(seen.sum()) < MIN_SAMPLES:
        return None
    design, w = _basis(uv[seen]), weight[seen].astype(np.float64)
    s, v = source[seen], virtual[seen]
    target = np.log(s + _FLOOR) - np.log(v + _FLOOR)
    robust = w.copy()
    for _ in range(3):
        weighted = design * robust[:, None]
        normal = weighted.T @ design + np.diag(_RIDGE) * (robust.sum() / 100)
        coefficients = np.linalg.solve(normal, weighted.T @ target)
        residual = np.abs(target - design @ coefficients).mean(1)
        scale = max(float(np.median(residual)) * 1.5, 0.03)
        robust = w / (1 + (residual / scale) ** 2)  # Cauchy weights: glasses, beards and hair count little
    return Light(
        _limit(coefficients), _contrast(s, v, design @ coefficients, robust), robust @ v / robust.sum()
    )


def _contrast(
    source: npt.NDArray[np.float64],
    virtual: npt.NDArray[np.float64],
    log_gain: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
) -> float:
    """How much more the source's skin varies than the relit virtual skin, limited."""
    lit = (virtual * np.exp(log_gain)).mean(1)
    own = source.mean(1)
    w = weight / weight.sum()
    deviations = [float(np.sqrt(w @ (x - w @ x) ** 2)) for x in (own, lit)]
    return float(np.clip((deviations[0] + 2) / (deviations[1] + 2), *_CONTRAST))


def _limit(coefficients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    out = coefficients.copy()
    mean = float(np.clip(out[0].mean(), -_MAX_GAIN, _MAX_GAIN))
    out[0] = mean + np.clip(out[0] - out[0].mean(), -_MAX_TINT, _MAX_TINT)
    reach = np.abs(out[1:]).sum(0)
    out[1:] *= np.minimum(1.0, _MAX_SLOPE / np.maximum(reach, 1e-9))
    return out


class LightFilter:
    """Exponential mean of a track's light over `TAU_S`."""

    def __init__(self) -> None:
        self._light: Light | None = None

    def update(self, light: Light | None, dt_s: float) -> Light | None:
        """The steadied light; the last one when this frame has none."""
        if light is None or self._light is None:
            self._light = light or self._light
            return self._light
        a, old = 1 - float(np.exp(-dt_s / TAU_S)), self._light
        self._light = Light(
            old.coefficients + a * (light.coefficients - old.coefficients),
            old.contrast + a * (light.contrast - old.contrast),
            old.pivot_rgb + a * (light.pivot_rgb - old.pivot_rgb),
        )
        return self._light


def relight(crop_rgb: ImageRgb, light: Light, uv_corners: F32) -> ImageRgb:
    """The crop under the source's light.

    Args:
        crop_rgb: uint8 (S, S, 3).
        uv_corners: (3, 2) face coordinates of the crop's corners top left, top right, bottom left.
    """
    n = 12
    steps = (np.arange(n) + 0.5) / n
    along, down = uv_corners[1] - uv_corners[0], uv_corners[2] - uv_corners[0]
    uv = uv_corners[0] + steps[None, :, None] * along + steps[:, None, None] * down
    # past the outline the parabolas would run away: hold them at the rim
    uv = uv / np.maximum(1.0, np.linalg.norm(uv, axis=-1, keepdims=True) / 1.3)
    gain = np.exp(_basis(uv) @ light.coefficients).astype(np.float32)
    field = cv2.resize(gain, crop_rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    k = light.contrast
    levels = np.arange(256)[:, None]
    table = np.clip(light.pivot_rgb + k * (levels - light.pivot_rgb), 0, 255)[None].astype(np.float32)
    stretched = cv2.LUT(crop_rgb, table)
    return np.asarray(cv2.convertScaleAbs(cv2.multiply(stretched, field)), np.uint8)
