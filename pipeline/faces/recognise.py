"""Embeddings by which one sees whether two pictures show the same face (SFace, Zhong et al. 2021)."""

from __future__ import annotations

import numpy as np

from keyface.engines.engine import Engine
from keyface.pipeline.face import F32
from keyface.pipeline.faces.align import align_arcface
from keyface.pipeline.frame import ImageRgb


class Recogniser:
    """SFace through an engine.

    Args:
        engine: `sface_fast`: data (1, 3, 112, 112) RGB 0..255 -> fc1 (1, 128). Closed by `close`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def embed(self, image_rgb: ImageRgb, points_5: F32) -> F32:
        """(128,) unit embedding of the face with five points (5, 2) px. Raises EngineError."""
        crop = align_arcface(image_rgb, points_5).crop_rgb
        data_nchw = np.ascontiguousarray(crop.transpose(2, 0, 1)).astype(np.float32)[None]
        vector = self._engine.run({"data": data_nchw})["fc1"].ravel()
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()
