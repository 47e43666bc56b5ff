"""Embeddings by which one sees whether two pictures show the same face.

Two networks that learnt from different photos: SFace (Zhong et al. 2021), by which people are known, and
MobileFaceNet (Chen et al. 2018), which is asked besides whether a virtual face is too like the driver's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyface.engines.card_frame import CardFrame
from keyface.engines.engine import Engine, run_on_one
from keyface.pipeline.face import F32
from keyface.pipeline.faces.align import align_arcface, arcface_frame_from_crop
from keyface.pipeline.faces.sampling import card_crop
from keyface.pipeline.frame import ImageRgb


@dataclass(frozen=True, slots=True)
class RecogniserForm:
    """How a network takes its picture: names of input and output, and mean and deviation of R, G and B, 0..255."""

    input: str
    output: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_SIZE = 112  # px of the crop

SFACE = RecogniserForm("data", "fc1", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MOBILEFACENET = RecogniserForm("image", "embedding", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


class Recogniser:
    """A network through an engine.

    Args:
        engine: (1, 3, 112, 112) RGB -> (1, 128); `sface_fast` or `mobilefacenet`. Closed by `close`.
        form: how that network takes its picture.
        card: makes crops on a card, for an engine there; None: in host memory.
    """

    def __init__(
        self, engine: Engine, form: RecogniserForm = SFACE, *, card: CardFrame | None = None
    ) -> None:
        self._engine, self._form, self._card = engine, form, card
        self._mean = np.array(form.mean, np.float32)[:, None, None]
        self._std = np.array(form.std, np.float32)[:, None, None]

    def embed(self, image_rgb: ImageRgb, points_5: F32) -> F32:
        """(128,) unit embedding of the face with five points (5, 2) px. Raises EngineError."""
        form, on_card = self._form, None
        if self._card is not None:
            matrix = arcface_frame_from_crop(points_5, _SIZE)
            crop = card_crop(image_rgb, matrix, _SIZE, border="black", mean=form.mean, std=form.std)
            on_card = self._card.crops(image_rgb, [crop], _SIZE)

        def data_nchw() -> F32:
            crop_rgb = align_arcface(image_rgb, points_5, _SIZE).crop_rgb
            scaled = (crop_rgb.transpose(2, 0, 1).astype(np.float32) - self._mean) / self._std
            return np.ascontiguousarray(scaled[None], np.float32)

        outputs = run_on_one(self._engine, form.input, (1, 3, _SIZE, _SIZE), data_nchw, on_card)
        vector = outputs[form.output].ravel()
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()
