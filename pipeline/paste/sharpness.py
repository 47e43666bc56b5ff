"""Sharpness and grain: a virtual face no crisper, softer or cleaner than the face that it replaces.

Measured on luminance at the frame's own resolution, in the middle of the face: r = E|I - G1 I| over
E|G1 I - G2 I|, fine detail against coarser detail (Gk: Gaussian of sigma k px). Blur lowers r whatever
the contrast is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb

F32 = npt.NDArray[np.float32]

TAU_S = 0.6
PATCH_SIDE = 144
# Candidate treatments: negative is the amount of unsharp masking, positive the sigma of a blur in px.
_LEVELS = np.array([-0.5, -0.25, 0.0, 0.45, 0.7, 1.0, 1.4, 2.0])
_GRAIN_FLOOR = 1.2  # levels: less is the codec's or nothing
_MAX_GRAIN = 6.0
_TILE_SIDE = 512
GRAIN_UNIT = 32.0  # standard deviation of the tile
LEAST_GRAIN = 0.3  # levels: less is not seen
_SMOOTH = 0.7  # blur of a virtual face rougher than the source, whatever the ratio says


@dataclass(frozen=True, slots=True)
class Texture:
    """treatment: see `_LEVELS`, a continuous value; grain: standard deviation in levels."""

    treatment: float
    grain: float


def detail(luma: F32, grain: float = 0.0) -> tuple[float, float]:
    """r of the module's text, and the fine part alone; `grain` (standard deviation) is taken out of it."""
    g1 = cv2.GaussianBlur(luma, (0, 0), 1.0)
    g2 = cv2.GaussianBlur(g1, (0, 0), 1.73)
    fine, coarse = float(np.abs(luma - g1).mean()), float(np.abs(g1 - g2).mean())
    fine = float(np.sqrt(max(fine**2 - (0.72 * grain) ** 2, (0.2 * fine) ** 2)))
    return fine / max(coarse, 0.3), fine


def grain_of(luma: F32) -> float:
    """Standard deviation of noise, levels: Immerkaer's mask (1996) on the quietest fifth of 8 px cells."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    response = np.abs(cv2.filter2D(luma, -1, kernel))[1:-1, 1:-1]
    h, w = response.shape[0] // 8, response.shape[1] // 8
    if h * w < 10:
        return 0.0
    cells = response[: h * 8, : w * 8].reshape(h, 8, w, 8).mean((1, 3))
    return float(np.percentile(cells, 20) * np.sqrt(np.pi / 2) / 6)


def treat(image: ImageRgb, treatment: float) -> ImageRgb:
    """Blurs (> 0) or sharpens (< 0); near 0 the image itself comes back."""
    if abs(treatment) < 0.12:
        return image
    if treatment > 0:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), treatment), np.uint8)
    soft = cv2.GaussianBlur(image, (0, 0), 1.2)
    return np.asarray(cv2.addWeighted(image, 1 - treatment, soft, treatment, 0), np.uint8)


def match_texture(source_rgb: ImageRgb, virtual_rgb: ImageRgb) -> Texture:
    """The treatment that gives the virtual patch the source's detail ratio, and the grain to add.

    Args:
        source_rgb, virtual_rgb: uint8 (h, w, 3), the same part of the frame, at most `PATCH_SIDE` a side.
    """
    own = cv2.cvtColor(source_rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grain = min(grain_of(own), _MAX_GRAIN)
    want, want_fine = detail(own, grain if grain > _GRAIN_FLOOR else 0.0)
    grey = cv2.cvtColor(virtual_rgb, cv2.COLOR_RGB2GRAY)
    found = np.array([detail(treat(grey, float(t)).astype(np.float32)) for t in _LEVELS])
    ratios, fine = np.minimum.accumulate(found).T
    treatment = float(np.interp(-want, -ratios, _LEVELS))
    # lashes and lips decide the ratio: rough skin must not be sharpened on their account
    treatment = max(treatment, min(float(np.interp(-want_fine, -fine, _LEVELS)), _SMOOTH))
    missing = grain**2 - grain_of(treat(grey, treatment).astype(np.float32)) ** 2
    return Texture(treatment, float(np.sqrt(missing)) if missing > _GRAIN_FLOOR**2 else 0.0)


class TextureFilter:
    """A track's texture: measured every `EVERY` frames, averaged over `TAU_S`."""

    EVERY = 8

    def __init__(self) -> None:
        self.texture: Texture | None = None
        self._count = 0

    def is_due(self) -> bool:
        """Whether this frame should be measured; call once a frame."""
        self._count += 1
        return self.texture is None or self._count % self.EVERY == 0

    def update(self, texture: Texture, dt_s: float) -> None:
        """Takes in a measurement made `dt_s` after the last frame."""
        if self.texture is None:
            self.texture = texture
            return
        a, old = 1 - float(np.exp(-self.EVERY * dt_s / TAU_S)), self.texture
        self.texture = Texture(
            old.treatment + a * (texture.treatment - old.treatment),
            old.grain + a * (texture.grain - old.grain),
        )


def _tile() -> npt.NDArray[np.int16]:
    """Grain of unit variance times `GRAIN_UNIT`, slightly correlated as after a camera's demosaicing."""
    noise = np.random.default_rng(20240229).standard_normal((_TILE_SIDE, _TILE_SIDE)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.6, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(np.rint(noise / noise.std() * GRAIN_UNIT), np.int16)


GRAIN_TILE = _tile()


def grain_place(frame_index: int) -> tuple[int, int]:
    """Where in the tile the grain of a frame begins, x and y."""
    return (frame_index * 71) % _TILE_SIDE, (frame_index * 193) % _TILE_SIDE


def add_grain(image_rgb: ImageRgb, grain: float, frame_index: int) -> ImageRgb:
    """Adds luminance grain; the same frame index gives the same grain (so that a rerun is identical)."""
    if grain <= LEAST_GRAIN:
        return image_rgb
    h, w = image_rgb.shape[:2]
    ox, oy = grain_place(frame_index)
    rows, columns = (np.arange(h) + oy) % _TILE_SIDE, (np.arange(w) + ox) % _TILE_SIDE
    noise = GRAIN_TILE[rows][:, columns].astype(np.float32) * (grain / GRAIN_UNIT)
    return np.asarray(cv2.add(image_rgb, cv2.merge([noise, noise, noise]), dtype=cv2.CV_8U), np.uint8)
