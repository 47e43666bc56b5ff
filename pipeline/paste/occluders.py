"""What is in front of the face: hands, microphones, cups.

Disagreement between mesh and image: a track learns what its face looks like, as a small texture in the
coordinates of its own mesh, mean and variance in Lab. Something that comes in front differs from that
over a large connected area that reaches in from outside the face. Blinks, speech and smiles differ too,
but not from outside; light changes differ, but everywhere, and are taken out first.

Showing the source where it should be covered is a leak, so every doubt says "face": nothing is said to be
in front until the face has been watched for `LEARN_S`; what is in front must be large, must persist, and
is cut small; and once too much of eyes, nose and mouth seems hidden, the caller mosaicks the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.mask import Region
from keyface.pipeline.paste.place import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    face_width,
)

SIDE = 64  # of the texture
LEARN_S = 0.8
MEMORY_S = 2.0  # of what is seen to be face
HIDDEN_MEMORY_S = 30.0  # of what is seen to be in front, so that it is not learnt as face
ATTACK_S = 0.10
HOLD_S = 0.4  # a face stays mosaicked this long after too much of it was hidden
MAX_CORE_SHARE = 0.45  # of eyes, nose and mouth hidden
MAX_EYE_SHARE = 0.35  # of one eye
MIN_AREA = 0.035  # of the face, for one thing in front
MIN_DEPTH = 0.10  # face widths that it must reach in from the outline
MOST_SHARE = 0.4  # of the face in front: more is no thing, but a face that is not the one that was learnt
MAX_LIGHT_GAP, MAX_CHROMA_GAP = 40.0, 8.0  # of the face's medians, 8-bit Lab: beyond, it is another face
_FLOOR = np.array([8.0, 4.5, 4.5, 7.0], np.float32)  # deviations that say nothing, 8-bit Lab units and edges
_THRESHOLD = 2.4
MIN_MOUTH = 0.8  # rim pixels of a part against the square root of its area
MAX_INNER = 0.6  # mean of the core inside a part
WIDE_OPEN = 0.05  # lips further apart than on average, face widths
_INNER_LIPS = (13, 14)
_SKIN_CHROMA = 10.0  # 8-bit Lab units from the face's own colour: nearer may be the face itself
_BIAS = 1.0  # squared deviations by which the thing must explain a pixel better than the face
_EXTENT = 1.25  # the texture spans this many face widths either side of the centre, halved
_ANCHORS = np.concatenate([OVAL[::2], RIGHT_EYE[::4], LEFT_EYE[::4], RIGHT_BROW[::3], LEFT_BROW[::3],
                           NOSE[::2], LIPS[::3]])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Occlusion:
    """in_front: float32 (h, w) on the work grid, [0, 1], 1 where the source must stay.
    is_too_much: the face should be mosaicked."""

    in_front: F32
    is_too_much: bool


class OccluderModel:
    """Appearance of one track's face, and what disagrees with it."""

    def __init__(self) -> None:
        self._hold_s = 0.0
        self._forget()

    def _forget(self) -> None:
        """Nothing is said to be in front until the face has been watched anew."""
        self._anchors: F32 | None = None  # (N, 2) texture px, from the first mesh
        self._mean = np.zeros((SIDE, SIDE, 4), np.float32)
        self._variance = np.zeros((SIDE, SIDE, 4), np.float32)
        self._front = np.zeros((SIDE, SIDE), np.float32)
        self._seen_s = 0.0
        self._gap = 0.0

    def update(
        self,
        source_small: ImageRgb,
        region: Region,
        driver_xy: npt.NDArray[Any],
        mask: F32,
        core: F32,
        dt_s: float,
    ) -> Occlusion:
        """Learns from this frame and says what is in front.

        Args:
            source_small: uint8 (h, w, 3), the region on its work grid.
            driver_xy: (478, 2) frame px.
            mask, core: (h, w) [0, 1], see `mask.face_mask`.
            dt_s: since the last frame of this track.
        """
        at = region.work_from_frame(driver_xy[_ANCHORS])
        if self._anchors is None:
            self._anchors = _texture_anchors(driver_xy)
        to_work = _dense(self._anchors, at, (SIDE, SIDE))
        seen = _appearance(source_small, to_work)
        face = cv2.remap(mask, to_work, None, cv2.INTER_LINEAR)
        inner = cv2.remap(core, to_work, None, cv2.INTER_LINEAR)
        is_strange = self._is_another(seen, face > 0.5)
        if is_strange:
            self._forget()
            self._anchors = _texture_anchors(driver_xy)
        is_open = self._watch_mouth(driver_xy, dt_s)
        candidate = np.zeros_like(self._front)
        if self._seen_s > LEARN_S:
            candidate = self._disagreement(seen, face, inner, is_open)
            if float(candidate.sum()) > MOST_SHARE * float((face > 0.5).sum()):
                is_strange = True
                self._forget()
                self._anchors, candidate = _texture_anchors(driver_xy), np.zeros_like(candidate)
        self._learn(seen, candidate, dt_s)
        rising = self._front + (1 - np.exp(-dt_s / ATTACK_S)) * (candidate - self._front)
        # a thing that has gone must not leave a hole: rise slowly, fall at once
        self._front = np.minimum(rising, candidate).astype(np.float32)
        self._hold_s = (
            HOLD_S if is_strange or self._is_too_much(candidate, inner) else max(0.0, self._hold_s - dt_s)
        )
        if not self._front.any():
            return Occlusion(np.zeros_like(mask), self._hold_s > 0)
        to_texture = _dense(at, self._anchors, region.size_wh)
        in_front = cv2.remap(self._front, to_texture, None, cv2.INTER_LINEAR)
        return Occlusion(np.asarray(np.clip(in_front * 2 - 0.6, 0, 1), np.float32), self._hold_s > 0)

    def _is_another(self, seen: F32, inside: npt.NDArray[np.bool_]) -> bool:
        """Whether this is another face, or the same in quite another light, as after a cut that nobody saw: what was
        learnt of the one before would take the driver's skin for a thing in front."""
        if self._seen_s == 0 or inside.sum() < 50:
            return False
        gap = np.median(seen[inside, :3], 0) - np.median(self._mean[inside, :3], 0)
        return bool(abs(gap[0]) > MAX_LIGHT_GAP or np.hypot(gap[1], gap[2]) > MAX_CHROMA_GAP)

    def _watch_mouth(self, driver_xy: npt.NDArray[Any], dt_s: float) -> bool:
        """Whether the mouth is open much wider than usual: teeth and tongue are no thing in front."""
        gap = float(np.linalg.norm(driver_xy[_INNER_LIPS[0]] - driver_xy[_INNER_LIPS[1]]))
        gap /= max(face_width(driver_xy), 1e-6)
        if self._seen_s == 0:
            self._gap = gap
        self._gap += (1 - float(np.exp(-dt_s / MEMORY_S))) * (gap - self._gap)
        return gap > self._gap + WIDE_OPEN

    def _disagreement(self, seen: F32, face: F32, inner: F32, is_open: bool) -> F32:
        """(SIDE, SIDE) 0 or 1: large connected areas that reach in from outside and are not the face."""
        inside = face > 0.5
        difference = seen - self._mean
        if inside.sum() < 50:
            return np.zeros((SIDE, SIDE), np.float32)
        difference[..., 0] -= np.clip(np.median(difference[..., 0][inside]), -MAX_LIGHT_GAP, MAX_LIGHT_GAP)
        z = np.sqrt((difference**2 / (self._variance + _FLOOR**2)).sum(-1))
        odd = (cv2.GaussianBlur(z, (0, 0), 0.8) > _THRESHOLD).astype(np.uint8)
        odd = cv2.morphologyEx(odd, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        odd = cv2.morphologyEx(odd, cv2.MORPH_OPEN, np.ones((4, 4), np.uint8))
        odd[~inside] = 0
        if is_open and self._anchors is not None:
            lips = cv2.convexHull(self._anchors[-len(LIPS[::3]) :])
            cv2.fillConvexPoly(odd, np.rint(lips).astype(np.int32), 0)
            cv2.polylines(odd, [np.rint(lips).astype(np.int32)], True, 0, 5)
        depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
        rim = inside & (depth <= 2.0)
        parts = _large_from_rim(odd, rim, depth, inner)
        if not parts.any():
            return parts
        return self._without_skin(self._redrawn(parts, seen, difference, inside), seen, inside)

    def _without_skin(self, parts: F32, seen: F32, inside: npt.NDArray[np.bool_]) -> F32:
        """The parts without what has the face's own colour. A head that turns fast changes its shading as a hand
        would, and then forehead and cheek of the driver must not be let through; so a bare hand is covered."""
        skin = np.median(self._mean[..., 1:3][inside], 0)
        chroma = np.linalg.norm(cv2.GaussianBlur(seen[..., 1:3], (0, 0), 0.8) - skin, axis=-1)
        left = np.asarray((parts > 0) & (chroma > _SKIN_CHROMA), np.uint8)
        left = cv2.morphologyEx(left, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        if int(left.sum()) < MIN_AREA * int(inside.sum()):
            return np.zeros_like(parts)
        return np.asarray(left, np.float32)

    def _redrawn(self, parts: F32, seen: F32, difference: F32, inside: npt.NDArray[np.bool_]) -> F32:
        """The same parts, their border drawn anew where the colour of what is in front explains a pixel
        better than the face's own colour does."""
        colour = seen[..., :3]
        core = cv2.erode(parts, np.ones((3, 3), np.uint8)) > 0
        if int(core.sum()) < 12:
            return parts
        samples = colour[core]
        centre = np.median(samples, 0)
        spread = np.diag(np.cov(samples.T)) + 4.0**2
        in_front = ((colour - centre) ** 2 / spread).sum(-1) + np.log(spread).sum()
        own_spread = self._variance[..., :3] + 4.0**2
        own = (difference[..., :3] ** 2 / own_spread).sum(-1) + np.log(own_spread).sum(-1)
        near = cv2.dilate(parts, np.ones((13, 13), np.uint8)) > 0
        gain = cv2.GaussianBlur((own - in_front).astype(np.float32), (0, 0), 0.7)
        drawn = (near & inside & (gain > _BIAS)).astype(np.uint8)
        drawn = cv2.morphologyEx(drawn, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        n, labels = cv2.connectedComponents(drawn, connectivity=4)
        touched = np.bincount(labels[core], minlength=n)
        return np.asarray((touched[labels] >= 8) & (drawn > 0), np.float32)

    def _learn(self, seen: F32, candidate: F32, dt_s: float) -> None:
        self._seen_s += min(dt_s, 0.2)
        if self._seen_s <= min(dt_s, 0.2):
            self._mean, self._variance = seen.copy(), np.zeros_like(seen)
            return
        memory_s = min(MEMORY_S, self._seen_s)
        rate = 1 - np.exp(-dt_s / np.where(candidate > 0, HIDDEN_MEMORY_S, memory_s))
        rate = rate[..., None].astype(np.float32)
        difference = seen - self._mean
        self._mean += rate * difference
        self._variance += rate * ((1 - rate) * difference**2 - self._variance)

    def _is_too_much(self, candidate: F32, inner: F32) -> bool:
        if not candidate.any() or self._anchors is None:
            return False
        hidden = candidate > 0
        if float((inner * hidden).sum()) > MAX_CORE_SHARE * float(inner.sum()):
            return True
        eyes = self._anchors[len(OVAL[::2]) :][:8].reshape(2, 4, 2)
        for eye in eyes:
            x, y = eye.mean(0)
            radius = SIDE * 0.06
            yy, xx = np.mgrid[:SIDE, :SIDE]
            near = (xx - x) ** 2 + (yy - y) ** 2 < radius**2
            if near.any() and float(hidden[near].mean()) > MAX_EYE_SHARE:
                return True
        return False


def _appearance(source_small: ImageRgb, to_work: F32) -> F32:
    """(SIDE, SIDE, 4) of the face laid flat: Lab, and how much edge there is, which tells a hand's fingers
    from the cheek behind them when the colours are one person's."""
    flat = cv2.remap(source_small, to_work, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lab = cv2.cvtColor(flat, cv2.COLOR_RGB2LAB)
    luma = np.ascontiguousarray(lab[..., 0], np.float32)
    edge = cv2.magnitude(cv2.Sobel(luma, -1, 1, 0, scale=0.25), cv2.Sobel(luma, -1, 0, 1, scale=0.25))
    return np.dstack([lab, cv2.GaussianBlur(edge, (0, 0), 1.2)]).astype(np.float32)


def _large_from_rim(odd: npt.NDArray[np.uint8], rim: npt.NDArray[np.bool_], depth: F32, inner: F32) -> F32:
    """The components of `odd` that are large, come broadly over the rim, reach deep enough, and do not lie
    mostly on the features, as a changed expression would."""
    n, labels, stats, _ = cv2.connectedComponentsWithStats(odd, connectivity=4)
    out = np.zeros(odd.shape, np.float32)
    area = float((depth > 0).sum())
    width = np.sqrt(area)
    for label in range(1, n):
        if stats[label, cv2.CC_STAT_AREA] < MIN_AREA * area:
            continue
        part = labels == label
        is_broad = int((part & rim).sum()) >= MIN_MOUTH * np.sqrt(stats[label, cv2.CC_STAT_AREA])
        is_deep = float(depth[part].max()) >= MIN_DEPTH * width
        if is_broad and is_deep and float(inner[part].mean()) < MAX_INNER:
            out[part] = 1
    return out


def _texture_anchors(driver_xy: npt.NDArray[Any]) -> F32:
    """The anchors of this mesh laid into the texture."""
    points = driver_xy[OVAL]
    centre = (points.min(0) + points.max(0)) / 2
    half = _EXTENT * face_width(points) / 2
    return np.asarray(((driver_xy[_ANCHORS] - centre) / half + 1) * (SIDE - 1) / 2, np.float32)


def _dense(from_xy: F32, to_xy: F32, size_wh: tuple[int, int]) -> F32:
    """(h, w, 2): for every pixel of the `from` side where it lies on the `to` side, by an affine fit and
    inverse-distance interpolation of what it leaves, on a coarse grid."""
    n = 12
    design = np.column_stack([from_xy, np.ones(len(from_xy), np.float32)])
    affine, *_ = np.linalg.lstsq(design, to_xy, rcond=None)
    rest = to_xy - design @ affine
    xs, ys = np.linspace(0, size_wh[0] - 1, n), np.linspace(0, size_wh[1] - 1, n)
    nodes = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)
    square = ((nodes[:, None] - from_xy[None]) ** 2).sum(-1)
    weight = 1 / (square + (0.04 * max(size_wh)) ** 2) ** 2
    at = nodes @ affine[:2] + affine[2] + weight @ rest / weight.sum(1, keepdims=True)
    w, h = size_wh
    matrix = np.array([[(n - 1) / (w - 1), 0, 0], [0, (n - 1) / (h - 1), 0]], np.float64)
    return np.asarray(
        cv2.warpAffine(at.reshape(n, n, 2).astype(np.float32), matrix, (w, h),
                       flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE),
        np.float32,
    )  # fmt: skip
