"""The eyes of `keyface evaluate`: a detector and recognisers that the anonymiser itself does not use.

What judges must not share blind spots with what is judged, so faces are found here by SCRFD (Guo et
al. 2021) and compared by recognisers that the product never runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from keyface.configs.manifest import ModelEntry
from keyface.pipeline.face import F32, Detection
from keyface.pipeline.faces.geometry import apply_affine, fit_similarity, iou_matrix, similarity_scale
from keyface.pipeline.frame import ImageRgb

# Where ArcFace (Deng et al. 2019) wants the five points in its 112 px crop.
ARCFACE_POINTS_5 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)
ARCFACE_SIZE = 112
_STRIDES = (8, 16, 32)
_ANCHORS = 2  # per cell


class Runs(Protocol):
    """The part of an engine that measuring needs."""

    @property
    def inputs(self) -> Mapping[str, Any]: ...

    @property
    def outputs(self) -> Mapping[str, Any]: ...

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...


class FindsFaces(Protocol):
    """A face detector."""

    def detect(self, image_rgb: ImageRgb) -> list[Detection]: ...


class Scrfd:
    """SCRFD-500M with key points, through an engine.

    Args:
        engine: input (1, 3, S, S) RGB, (x - 127.5) / 128; nine outputs: scores, boxes and points of
            strides 8, 16 and 32, in that order.
        min_score: detections below are dropped.
        max_overlap: IoU above which the weaker of two detections is dropped.
        sizes: sides of the square input, px; the next is tried when one finds nothing, since a face
            that fills the picture is only found in a smaller one.
    """

    def __init__(
        self,
        engine: Runs,
        *,
        min_score: float = 0.5,
        max_overlap: float = 0.4,
        sizes: tuple[int, ...] = (640, 320),
    ) -> None:
        self._engine = engine
        self._min_score = min_score
        self._max_overlap = max_overlap
        self._sizes = sizes

    def detect(self, image_rgb: ImageRgb) -> list[Detection]:
        """uint8 (H, W, 3) -> faces, best first."""
        for size in self._sizes:
            found = self._detect_at(image_rgb, size)
            if found:
                return found
        return []

    def _detect_at(self, image_rgb: ImageRgb, size: int) -> list[Detection]:
        height, width = image_rgb.shape[:2]
        scale = size / max(height, width)
        small_wh = max(1, int(width * scale)), max(1, int(height * scale))
        canvas = np.zeros((size, size, 3), np.float32)
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[: small_wh[1], : small_wh[0]] = cv2.resize(image_rgb, small_wh, interpolation=method)
        (name,) = self._engine.inputs
        raw = self._engine.run({name: ((canvas - 127.5) / 128.0).transpose(2, 0, 1)[None]})
        rows = self._decode([raw[key] for key in self._engine.outputs], size)
        return _suppress(rows, scale, self._max_overlap)

    def _decode(self, raw: list[npt.NDArray[Any]], size: int) -> F32:
        """-> (N, 15): box, score, five points, in input px, for all cells above the score."""
        parts = [np.zeros((0, 15), np.float32)]
        for level, stride in enumerate(_STRIDES):
            score, box, points = (np.asarray(raw[level + 3 * kind], np.float32) for kind in range(3))
            score, box, points = score.reshape(-1), box.reshape(-1, 4), points.reshape(-1, 10)
            at = np.flatnonzero(score > self._min_score)
            row, column = np.divmod(at // _ANCHORS, size // stride)
            centre = np.stack([column, row], 1).astype(np.float32) * stride
            corners = np.hstack([centre - box[at, :2] * stride, centre + box[at, 2:] * stride])
            parts.append(
                np.hstack([corners, score[at, None], points[at] * stride + np.tile(centre, 5)]).astype(
                    np.float32
                )
            )
        return np.concatenate(parts)


def _suppress(rows: F32, scale: float, max_overlap: float) -> list[Detection]:
    """Greedy non-maximum suppression; input px -> picture px."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    overlap = iou_matrix(rows[:, :4], rows[:, :4])
    kept: list[int] = []
    for index in range(len(rows)):
        if not kept or overlap[index, kept].max() <= max_overlap:
            kept.append(index)
    return [
        Detection(rows[i, :4] / scale, (rows[i, 5:] / scale).reshape(5, 2), float(rows[i, 4])) for i in kept
    ]


@dataclass(frozen=True)
class Recogniser:
    """One face recogniser.

    Attributes:
        name: its entry in the model manifest.
        engine: input (1, 3, 112, 112), output one embedding.
        mean, std: normalisation, x -> (x - mean) / std with x in [0, 255].
        threshold: cosine at a false accept rate of 0.1 %.
    """

    name: str
    engine: Runs
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threshold: float

    @classmethod
    def of(cls, entry: ModelEntry, engine: Runs, threshold: float) -> Recogniser:
        """The recogniser of a manifest entry, on an engine that has opened it."""
        return cls(entry.name, engine, entry.mean, entry.std, threshold)

    def embed(self, image_rgb: ImageRgb, points_5: F32) -> F32:
        """Unit vector (D,) of the face whose five points are given, px."""
        crop = arcface_crop(image_rgb, points_5).astype(np.float32)
        normal = (crop - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        (name,), (answer,) = self.engine.inputs, self.engine.outputs
        raw = self.engine.run({name: np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)})
        vector = np.asarray(raw[answer], np.float32).ravel()
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def arcface_crop(image_rgb: ImageRgb, points_5: F32, size: int = ARCFACE_SIZE) -> ImageRgb:
    """uint8 (size, size, 3): the face moved onto ArcFace's five points, smoothed before it is shrunk."""
    target = ARCFACE_POINTS_5 * (size / ARCFACE_SIZE)
    scale = similarity_scale(fit_similarity(points_5, target))
    if scale < 0.5:
        factor = 2.0 * scale
        image_rgb, origin_xy = _surroundings(image_rgb, points_5, size / scale)
        image_rgb = np.asarray(
            cv2.resize(image_rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8
        )
        points_5 = ((points_5 - origin_xy + 0.5) * factor - 0.5).astype(np.float32)
    crop = cv2.warpAffine(image_rgb, fit_similarity(points_5, target), (size, size))
    return np.asarray(crop, np.uint8)


def _surroundings(image_rgb: ImageRgb, points_5: F32, reach: float) -> tuple[ImageRgb, F32]:
    """The part of the picture within `reach` px of the face, and its first pixel."""
    height, width = image_rgb.shape[:2]
    low = np.clip(points_5.min(0) - reach, 0, [width - 2, height - 2]).astype(int)
    high = np.clip(points_5.max(0) + reach, low + 2, [width, height]).astype(int)
    return image_rgb[low[1] : high[1], low[0] : high[0]], low.astype(np.float32)


def square_crop(image_rgb: ImageRgb, box_xyxy: F32, scale: float, size: int) -> tuple[ImageRgb, F32]:
    """A square around a box, its side `scale` times the box's longer side.

    Returns:
        uint8 (size, size, 3), black outside the picture, and crop_from_frame (2, 3).
    """
    side = float((box_xyxy[2:] - box_xyxy[:2]).max()) * scale
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    factor = size / max(side, 1.0)
    matrix = np.array([[factor, 0, size / 2], [0, factor, size / 2]], np.float32)
    matrix[:, 2] -= factor * centre
    if factor < 0.5:
        height, width = image_rgb.shape[:2]
        low = np.clip(centre - side / 2, 0, [width - 2, height - 2]).astype(int)
        high = np.clip(centre + side / 2, low + 2, [width, height]).astype(int)
        part = image_rgb[low[1] : high[1], low[0] : high[0]]
        image_rgb = np.asarray(
            cv2.resize(part, None, fx=2 * factor, fy=2 * factor, interpolation=cv2.INTER_AREA), np.uint8
        )
        inner = np.array([[0.5, 0, 0.0], [0, 0.5, 0.0]], np.float32)
        inner[:, 2] = apply_affine(matrix, low[None].astype(np.float32))[0]
        return np.asarray(cv2.warpAffine(image_rgb, inner, (size, size)), np.uint8), matrix
    return np.asarray(cv2.warpAffine(image_rgb, matrix, (size, size)), np.uint8), matrix


def inner_ellipse(size_wh: tuple[int, int], box_xyxy: F32, share: float = 0.8) -> npt.NDArray[np.bool_]:
    """bool (H, W): the ellipse about a box's centre whose axes are `share` of the box's sides."""
    mask = np.zeros((size_wh[1], size_wh[0]), np.uint8)
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    axes = np.maximum((box_xyxy[2:] - box_xyxy[:2]) / 2 * share, 1.0)
    points = ([int(v) for v in centre], [int(v) for v in axes])
    cv2.ellipse(mask, points[0], points[1], 0, 0, 360, 1, -1)
    return mask.astype(bool)
