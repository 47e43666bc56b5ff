"""Judges of photos: recognisers that are told of a whole detection, box and points.

The ArcFace family wants the five points on fixed places. FaceNet wants the box with a margin, and that its sides
are made equal, as it was trained: of ten ways to cut faces this one errs least on LFW.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keyface.pipeline.face import F32, Detection
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import Recogniser, Runs

FACENET_SIZE = 160
_MARGIN = 1.3  # of the box, both ways


@dataclass(frozen=True)
class PointsJudge:
    """A recogniser that goes by the five points."""

    recogniser: Recogniser

    @property
    def name(self) -> str:
        """Its entry in the model manifest."""
        return self.recogniser.name

    def embed(self, image_rgb: ImageRgb, face: Detection) -> F32:
        """Unit vector (D,)."""
        return self.recogniser.embed(image_rgb, face.points_5)


@dataclass(frozen=True)
class FaceNetJudge:
    """FaceNet.

    Attributes:
        engine: input (1, 3, 160, 160), output one embedding.
        mean, std: normalisation, x -> (x - mean) / std with x in [0, 255].
    """

    name: str
    engine: Runs
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def embed(self, image_rgb: ImageRgb, face: Detection) -> F32:
        """Unit vector (512,)."""
        crop = facenet_crop(image_rgb, face.box_xyxy).astype(np.float32)
        normal = (crop - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        (name,), (answer,) = self.engine.inputs, self.engine.outputs
        raw = self.engine.run({name: np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)})
        vector = np.asarray(raw[answer], np.float32).ravel()
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def facenet_crop(image_rgb: ImageRgb, box_xyxy: F32, size: int = FACENET_SIZE) -> ImageRgb:
    """uint8 (size, size, 3): the box with its margin, its sides made equal; black outside the picture."""
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    scale_xy = size / np.maximum((box_xyxy[2:] - box_xyxy[:2]) * _MARGIN, 2.0)
    matrix = np.array([[scale_xy[0], 0, 0], [0, scale_xy[1], 0]], np.float32)
    matrix[:, 2] = (size - 1) / 2 - scale_xy * centre
    if scale_xy.max() < 0.5:  # smoothed before it is shrunk
        image_rgb = np.asarray(cv2.GaussianBlur(image_rgb, (0, 0), 0.4 / float(scale_xy.max())), np.uint8)
    return np.asarray(cv2.warpAffine(image_rgb, matrix, (size, size)), np.uint8)
