"""How much of a generated face is covered: by hair above all, but also by a hand or a cup before the mouth.

Two measures. `covered_share` is what the guard against hair in the identity basis was fitted on. `face_cover` is what
casting goes by: it tells a strand of hair from a face lit from one side, and says where the cover is. Dark cover is
found by its luminance, fair hair, hands and cups by their edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.hairline import skin_level
from keyface.pipeline.paste.place import LEFT_BROW, LEFT_EYE, LIPS, OVAL, RIGHT_BROW, RIGHT_EYE, face_width

Mask = npt.NDArray[np.bool_]

# Colour distance, lightness counted 0.6, the two colour axes 1.3, from mesh points of skin that is seldom covered.
_FAR = 26.0
_CHEEKS = (50, 205, 280, 425, 118, 347)
_NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 129, 358)
_UPPER_LIP_TOP = 2  # below it mouth and beard would be counted

_SIDE = 128  # px; what is looked at is no finer
_FLOOR = 6.0  # levels; as in `skin_level`
# Log luminance above and below that of skin. On a forehead there are no brows and folds: a lighter strand counts.
_DARKER, _FOREHEAD_DARKER, _BRIGHTER = 0.45, 0.25, 0.30
_FOREHEAD_HEIGHT = 0.13  # face widths above the brows; higher up the paster paints skin in any case
_FITTED_HEIGHT = 0.10
_NOSTRILS = (98, 327, 2, 4, 64, 294)

# Edges: change per pixel of log luminance, and of the log of red over green, which a shadow hardly changes. Wrinkles
# of a forehead lie along the brows, so that edges count by how far they run across them.
_STEEP, _TINTED_STRAND, _TINTED = 0.07, 0.04, 0.07
_ALONG = 0.5  # what an edge along the brows takes off
_INNER_OVAL = 0.92  # with one pixel less: the edge of the face itself is none
_STRAND_HEIGHT, _TINT_HEIGHT = 0.16, 0.14  # face widths above the brows
_TINT_APART = 0.12  # face widths from the middle: frowns are nearer to it


@dataclass(frozen=True, slots=True)
class FaceCover:
    """Shares [0, 1] of zones that do not look like this face's skin.

    Attributes:
        face: dark, of the face's oval above the lips, without eyes, brows and mouth.
        right_eye, left_eye: dark, of what surrounds the eye and its brow.
        forehead: dark, of the strip above the brows.
        chin: bright, of the oval below the nose. Not dark: beards are no cover.
        strands: steep luminance, of the strip above the brows, in its worse half.
        tinted_strands: steep colour, of the same strip without its middle.
        mouth: steep colour, of the oval below the nose: how much more on one side than on the other.
    """

    face: float = 0.0
    right_eye: float = 0.0
    left_eye: float = 0.0
    forehead: float = 0.0
    chin: float = 0.0
    strands: float = 0.0
    tinted_strands: float = 0.0
    mouth: float = 0.0

    @property
    def excess(self) -> float:
        """The worst zone against its limit; above 1 the face is covered.

        The limits are from 548 virtual people, each looked at alone and pasted over a driver; none were kept aside.
        Of those whose hair, hat, hand or cup spoils the picture four in five are above, of the free faces 2 in 100,
        most in hard side light. Missed are pale strands without contrast, hands of the face's colour, and fair hair
        beside the face that leaves the forehead free.
        """
        eye = max(self.right_eye, self.left_eye)
        dark_or_bright = max(self.face / 0.175, eye / 0.50, self.forehead / 0.30, self.chin / 0.04)
        return max(dark_or_bright, self.strands / 0.115, self.tinted_strands / 0.085, self.mouth / 0.0725)


def face_cover(image_rgb: ImageRgb, points_xyz: npt.NDArray[Any]) -> FaceCover:
    """What covers a face that looks ahead.

    Skin gets darker from one side of a face to the other, hair is darker at once: the log luminance of the skin is
    fitted as a plane (`skin_level`), and what lies far off it is cover.

    Args:
        image_rgb: uint8 (S, S, 3).
        points_xyz: (478, 2 or 3) px.

    Returns:
        No cover where there is no skin to compare with: the face lies outside the picture.
    """
    small = cv2.resize(image_rgb, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    zones = _Zones(points_xyz[:, :2] * (_SIDE / image_rgb.shape[0]))
    fitted = zones.skin & zones.above_lips & (zones.above_brows < _FITTED_HEIGHT)
    level = skin_level(luma, fitted.astype(np.float32), zones.uv, stiffness=0.3, rounds=3)
    if level is None:
        return FaceCover()
    log_luma = cv2.log(luma + _FLOOR)
    apart = log_luma - level
    dark, forehead = apart < -_DARKER, zones.above_brows > 0
    low = zones.above_brows < _FOREHEAD_HEIGHT
    return FaceCover(
        face=_share(dark, zones.skin & zones.above_lips & low),
        right_eye=_share(dark, zones.around(RIGHT_EYE, RIGHT_BROW)),
        left_eye=_share(dark, zones.around(LEFT_EYE, LEFT_BROW)),
        forehead=_share(apart < -_FOREHEAD_DARKER, zones.skin & forehead & low),
        chin=_share(apart > _BRIGHTER, zones.bare & ~zones.above_lips),
        **_edges(small, log_luma, zones),
    )


def _edges(image_rgb: ImageRgb, log_luma: F32, zones: _Zones) -> dict[str, float]:
    """What of `FaceCover` is seen by its edges."""
    log_rgb = cv2.log(image_rgb.astype(np.float32) + _FLOOR)
    luma, tint = zones.slopes(log_luma), zones.slopes(log_rgb[..., 0] - log_rgb[..., 1])
    forehead = zones.within & zones.skin & (zones.above_brows > 0)
    strip = forehead & (zones.above_brows < _STRAND_HEIGHT)
    aside = forehead & (zones.above_brows < _TINT_HEIGHT) & (np.abs(zones.uv[..., 0]) > _TINT_APART)
    below = zones.within & zones.bare & ~zones.above_lips
    right, left = _of_sides(np.hypot(*tint) > _TINTED, below, zones)
    return {
        "strands": max(_of_sides(_upright(*luma) > _STEEP, strip, zones)),
        "tinted_strands": max(_of_sides(_upright(*tint) > _TINTED_STRAND, aside, zones)),
        "mouth": abs(right - left),
    }


def _upright(across: F32, up: F32) -> F32:
    """How steep an edge is, less if it runs along the brows."""
    return np.abs(across) - np.float32(_ALONG) * np.abs(up)


class _Zones:
    """Where what is looked for.

    Attributes:
        uv: (n, n, 2) face coordinates: from between the eyes, along them and up, in face widths.
        above_brows: (n, n) face widths; above_lips: whether.
        bare: the oval without the mouth; skin: without eyes and brows, too.
        within: the oval without eyes and brows, and without its own edges.
    """

    def __init__(self, xy: npt.NDArray[Any]) -> None:
        right, left, lips = (xy[index].mean(0) for index in (RIGHT_EYE, LEFT_EYE, LIPS))
        width = max(face_width(xy), 1.0)
        across = (left - right) / max(float(np.linalg.norm(left - right)), 1e-6)
        up = (left + right) / 2 - lips
        up = up / max(float(np.linalg.norm(up)), 1e-6)
        centre = (left + right) / 2
        brows = (xy[RIGHT_BROW].mean(0) + xy[LEFT_BROW].mean(0)) / 2
        y, x = np.ogrid[:_SIDE, :_SIDE]
        heights = [(x - centre[0]) * a[0] + (y - centre[1]) * a[1] for a in (across, up)]
        self.uv: F32 = (np.dstack(heights) / width).astype(np.float32)
        self.above_brows: F32 = self.uv[..., 1] - np.float32((brows - centre) @ up / width)
        self.above_lips: Mask = self.uv[..., 1] > np.float32((xy[_UPPER_LIP_TOP] - centre) @ up / width)
        self._xy, self._across = xy, across
        self._oval = _filled([_grown(xy[OVAL], 0.94)])
        features = [_hull(xy, index, 1.35) for index in (RIGHT_EYE, LEFT_EYE)]
        features += [_hull(xy, index, 1.2) for index in (RIGHT_BROW, LEFT_BROW)]
        self._open = self._oval & ~_filled(features)
        mouth = _filled([_hull(xy, LIPS, 1.1), _hull(xy, np.array(_NOSTRILS), 1.1)])
        self.bare: Mask = self._oval & ~mouth
        self.skin: Mask = self._open & ~mouth
        inner = self._open & _filled([_grown(xy[OVAL], _INNER_OVAL)])
        self.within: Mask = cv2.erode(inner.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0

    def slopes(self, values: F32) -> tuple[F32, F32]:
        """(n, n) change per pixel along the eyes and at right angles to them."""
        dx, dy = (cv2.Sobel(values, cv2.CV_32F, *order, ksize=3) / 8 for order in ((1, 0), (0, 1)))
        x, y = self._across
        return dx * x + dy * y, dy * x - dx * y

    def around(self, *parts: npt.NDArray[np.integer[Any]]) -> Mask:
        """The skin around an eye and its brow."""
        return _filled([_hull(self._xy, np.concatenate(parts), 1.4)]) & self._open


def _share(found: Mask, zone: Mask) -> float:
    return float((found & zone).sum()) / max(float(zone.sum()), 1.0)


def _of_sides(found: Mask, zone: Mask, zones: _Zones) -> tuple[float, float]:
    """The shares of the right and the left half of a zone."""
    is_right = zones.uv[..., 0] < 0
    return _share(found, zone & is_right), _share(found, zone & ~is_right)


def _grown(points: npt.NDArray[Any], factor: float) -> npt.NDArray[Any]:
    centre = points.mean(0)
    return np.asarray((points - centre) * factor + centre)


def _hull(xy: npt.NDArray[Any], index: npt.NDArray[np.integer[Any]], factor: float) -> npt.NDArray[Any]:
    return np.asarray(cv2.convexHull(_grown(xy[index], factor).astype(np.float32))[:, 0])


def _filled(polygons: list[npt.NDArray[Any]], size_hw: tuple[int, ...] = (_SIDE, _SIDE)) -> Mask:
    mask = np.zeros(size_hw, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.rint(polygon).astype(np.int32)], 1)
    return mask > 0


def covered_share(image_rgb: ImageRgb, points_xy: npt.NDArray[Any]) -> float:
    """Share [0, 1] of the upper face's skin, without eyes, brows and nose, whose colour is far from the cheeks'.

    Hard shadows and blemishes count, too: good enough for an average over many people, not to judge one.

    Args:
        image_rgb: (256, 256, 3).
        points_xy: (478, 2) px.
    """
    skin = _upper_skin(image_rgb.shape[:2], points_xy)
    lab = cv2.cvtColor(cv2.GaussianBlur(image_rgb, (0, 0), 1), cv2.COLOR_RGB2LAB).astype(np.float32)
    limit = np.array(image_rgb.shape[1::-1]) - 1
    x, y = points_xy[list(_CHEEKS)].astype(int).clip(0, limit).T
    apart = (lab - np.median(lab[y, x], 0)) * np.array([0.6, 1.3, 1.3], np.float32)
    is_far = np.sqrt((apart**2).sum(-1)) > _FAR
    return float((is_far & skin).sum() / max(int(skin.sum()), 1))


def _upper_skin(size_hw: tuple[int, ...], points_xy: npt.NDArray[Any]) -> Mask:
    mask = np.zeros(size_hw, np.uint8)
    cv2.fillPoly(mask, [_grown(points_xy[OVAL], 0.95).astype(np.int32)], 1)
    for parts in ((RIGHT_EYE, RIGHT_BROW), (LEFT_EYE, LEFT_BROW)):
        grown = _grown(points_xy[np.concatenate(parts)], 1.25)
        cv2.fillConvexPoly(mask, cv2.convexHull(grown.astype(np.int32)), 0)
    mask[max(int(points_xy[_UPPER_LIP_TOP, 1]), 0) :] = 0
    cv2.fillConvexPoly(mask, cv2.convexHull(points_xy[list(_NOSE)].astype(np.int32)), 0)
    return mask > 0
