"""FaceNet as a judge: it wants the face upright with a margin of its own, in 160 px, not ArcFace's crop."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure_faces import Runs

FACENET_SIZE = 160
_SIDE = 3.8  # side of the crop, in distances from the eyes' middle to the mouth's
_UP = 0.0  # shift of the crop's middle from between eyes and mouth, in the same distances


@dataclass(frozen=True)
class FaceNetRecogniser:
    """As `measure_faces.Recogniser`.

    Attributes:
        engine: input (1, 3, 160, 160), output one embedding.
        mean, std: normalisation, x -> (x - mean) / std with x in [0, 255].
        threshold: cosine at a false accept rate of 0.1 %.
    """

    name: str
    engine: Runs
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threshold: float

    def embed(self, image_rgb: ImageRgb, points_5: F32) -> F32:
        """Unit vector (512,) of the face whose five points are given, px."""
        crop = facenet_crop(image_rgb, points_5).astype(np.float32)
        normal = (crop - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        (name,), (answer,) = self.engine.inputs, self.engine.outputs
        raw = self.engine.run({name: np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)})
        vector = np.asarray(raw[answer], np.float32).ravel()
        return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def facenet_crop(image_rgb: ImageRgb, points_5: F32, size: int = FACENET_SIZE) -> ImageRgb:
    """uint8 (size, size, 3): a square about the middle between eyes and mouth, unturned, black outside."""
    eyes, mouth = points_5[:2].mean(0), points_5[3:].mean(0)
    down = mouth - eyes
    side = max(float(np.linalg.norm(down)) * _SIDE, 2.0)
    centre = (eyes + mouth) / 2 - _UP * down
    scale = size / side
    matrix = np.array([[scale, 0, 0], [0, scale, 0]], np.float32)
    matrix[:, 2] = (size - 1) / 2 - scale * centre
    if scale < 0.5:  # smoothed before it is shrunk
        image_rgb = np.asarray(cv2.GaussianBlur(image_rgb, (0, 0), 0.4 / scale), np.uint8)
    return np.asarray(cv2.warpAffine(image_rgb, matrix, (size, size)), np.uint8)
