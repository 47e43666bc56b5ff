"""Pasting as the product does it, differentiable: for losses on pasted faces.

A photo is held as a recogniser sees it, 112 px and aligned by its own five points, and the virtual face is resampled
straight into that crop. What depends on the photo alone (mask, skin, where hair may lie) and where the crop goes
come from the product; light, contrast, colour and the skin that is painted over hair are `pipeline.paste`'s in a
simpler form that has a gradient:

    log S - log V = a_c + b_c u + d_c v + e_c (u^2 - 1/3) + f_c u v + g_c (v^2 - 1/3)

fitted per channel by weighted least squares on a 28 px grid, with one robust round, then one contrast and one
saturation. Without grain, sharpness and the seam's membrane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CELL = 112, 4
_GRID = SIDE // CELL
_FLOOR = 6.0
_RIDGE = (1e-3, 2.0, 2.0, 12.0, 12.0, 12.0)
_MAX_GAIN, _MAX_TINT, _MAX_SLOPE = 1.6, 0.45, 0.6
_CONTRAST, _SATURATION = (0.55, 1.05), (0.55, 1.1)
_DARKER, _FOREHEAD_DARKER = (0.30, 0.60), (0.12, 0.35)
_PAINT_SIGMA = 3.0  # cells
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class PhotoCrops:
    """Photos as recognisers see them, and what of them the paste needs; float32, (N, C, 112, 112).

    Attributes:
        base: RGB levels.
        mask: [0, 1], how much of each pixel is replaced; face: what of it lies inside the outline.
        skin: [0, 1], what light is fitted on.
        uv: face coordinates, about -1 to 1 inside the face.
        forehead, hair, upper: [0, 1]: above the brows; where dark places are the virtual person's hair; where skin is
            painted in any case.
    """

    base: Tensor
    mask: Tensor
    face: Tensor
    skin: Tensor
    uv: Tensor
    forehead: Tensor
    hair: Tensor
    upper: Tensor

    def __getitem__(self, rows: Tensor | slice) -> PhotoCrops:
        return PhotoCrops(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def of(cls, crops: Sequence[PhotoCrops]) -> PhotoCrops:
        """Several as one."""
        return cls(*(torch.cat([getattr(c, name) for c in crops]) for name in cls.__dataclass_fields__))


class SoftPaste(nn.Module):
    """`forward(image, at, photo)`: virtual faces (N, 3, 256, 256) in [-1, 1] into N photos.

    `at` (N, 112, 112, 2): where in the virtual crop each pixel of the photo's crop takes its colour from, [-1, 1], as
    `torch.nn.functional.grid_sample` counts without aligned corners. Returns RGB levels (N, 3, 112, 112).
    """

    ridge: Tensor
    spread: Tensor
    luma: Tensor

    def __init__(self) -> None:
        super().__init__()
        cell = torch.arange(_GRID, dtype=torch.float32)
        near = torch.exp(-((cell[:, None] - cell) ** 2) / (2 * _PAINT_SIGMA**2))
        self.register_buffer("spread", near)
        self.register_buffer("ridge", torch.diag(torch.tensor(_RIDGE)))
        self.register_buffer("luma", torch.tensor(_LUMA)[:, None, None])

    def forward(self, image: Tensor, at: Tensor, photo: PhotoCrops) -> Tensor:
        levels = F.avg_pool2d((image.clamp(-1, 1) + 1) * 127.5, 2)  # photos are smaller: bilinear would alias
        virtual = F.grid_sample(levels, at, padding_mode="border", align_corners=False)
        lit = (virtual * self._gain(virtual, photo)).clamp(0, 255)
        lit = self._painted(self._enlivened(lit, photo), photo)
        return photo.base + photo.mask * (lit - photo.base)

    def _gain(self, virtual: Tensor, photo: PhotoCrops) -> Tensor:
        """(N, 3, 112, 112) of the light."""
        source, own = _cells(photo.base), _cells(virtual)
        weight = _cells(photo.skin) * (
            (source.amax(1, keepdim=True) < 252) & (own.amax(1, keepdim=True) < 252)
        )
        design = _basis(_cells(photo.uv)).flatten(2).transpose(1, 2)  # (N, cells, 6)
        target = (torch.log(source + _FLOOR) - torch.log(own + _FLOOR)).flatten(2).transpose(1, 2)
        weight = weight.flatten(1)
        found = self._fit(design, target, weight)
        with torch.no_grad():
            missed = (target - design @ found).abs().mean(2)
            scale = missed.median(1, keepdim=True).values.clamp(min=0.02) * 1.5
        found = _limited(self._fit(design, target, weight / (1 + (missed / scale) ** 2)))
        wide = photo.uv / (photo.uv.norm(dim=1, keepdim=True) / 1.3).clamp(min=1.0)
        return torch.exp(torch.einsum("nkhw,nkc->nchw", _basis(wide), found))

    def _fit(self, design: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        weighted = design * weight[..., None]
        normal = weighted.transpose(1, 2) @ design + self.ridge * (weight.sum(1)[:, None, None] / 100 + 1e-6)
        solved: Tensor = torch.linalg.solve(normal, weighted.transpose(1, 2) @ target)
        return solved

    def _enlivened(self, lit: Tensor, photo: PhotoCrops) -> Tensor:
        """Contrast and saturation of the photo's own face, within limits."""
        weight = photo.face / photo.face.sum((2, 3), keepdim=True).clamp(min=1.0)
        spreads = []
        for picture in (photo.base, lit):
            luma = (picture * self.luma).sum(1, keepdim=True)
            middle = (luma * weight).sum((2, 3), keepdim=True)
            chroma = picture - luma
            tone = (chroma * weight).sum((2, 3), keepdim=True)
            contrast = (((luma - middle) ** 2 * weight).sum((2, 3), keepdim=True) + 1).sqrt()
            colour = ((chroma - tone).abs().mean(1, keepdim=True) * weight).sum((2, 3), keepdim=True)
            spreads.append((luma, middle, chroma, tone, contrast, colour))
        (*_, contrast_of, colour_of), (luma, middle, chroma, tone, contrast, colour) = spreads
        more = (contrast_of / contrast).clamp(*_CONTRAST)
        bolder = ((colour_of + 1) / (colour + 1)).clamp(*_SATURATION)
        return (middle + more * (luma - middle) + tone + bolder * (chroma - tone)).clamp(0, 255)

    def _painted(self, lit: Tensor, photo: PhotoCrops) -> Tensor:
        """Skin where the virtual person's hair would hang over the face."""
        small, skin = _cells(lit), _cells(photo.skin)
        with torch.no_grad():
            log = torch.log((small * self.luma).sum(1, keepdim=True) + _FLOOR)
            level = (log * skin).sum((2, 3), keepdim=True) / skin.sum((2, 3), keepdim=True).clamp(min=1e-3)
            depth, forehead = level - log, _cells(photo.forehead)
            dark = torch.maximum(_ramp(depth, _DARKER), _ramp(depth, _FOREHEAD_DARKER) * forehead)
            hair = torch.maximum(F.max_pool2d(dark, 3, 1, 1) * _cells(photo.hair), _cells(photo.upper))
            weight = skin * (1 - hair) ** 2
            share = F.interpolate(hair, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        paint = (self._spread(small * weight) + 1e-3) / (self._spread(weight) + 1e-3 / 128)
        paint = F.interpolate(paint, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return lit + share * (paint - lit)

    def _spread(self, x: Tensor) -> Tensor:
        return self.spread @ x @ self.spread


def _cells(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, CELL)


def _ramp(x: Tensor, limits: tuple[float, float]) -> Tensor:
    return ((x - limits[0]) / (limits[1] - limits[0])).clamp(0, 1)


def _basis(uv: Tensor) -> Tensor:
    """(N, 2, h, w) -> (N, 6, h, w)."""
    u, v = uv[:, 0], uv[:, 1]
    return torch.stack([torch.ones_like(u), u, v, u * u - 1 / 3, u * v, v * v - 1 / 3], 1)


def _limited(found: Tensor) -> Tensor:
    """(N, 6, 3) log gains within what a light may do."""
    first = found[:, :1]
    mean = first.mean(2, keepdim=True)
    first = mean.clamp(-_MAX_GAIN, _MAX_GAIN) + (first - mean).clamp(-_MAX_TINT, _MAX_TINT)
    slopes = found[:, 1:]
    reach = slopes.abs().sum(1, keepdim=True).clamp(min=1e-9)
    return torch.cat([first, slopes * (_MAX_SLOPE / reach).clamp(max=1.0)], 1)
