"""Takes the last difference of tone out of the seam.

Just inside the mask's edge the source shows what the virtual face should look like there. The difference,
where it is small enough to be a tone and not a thing (hair, background), is carried inwards by normalised
convolution (Knutsson and Westin 1993) and fades within a tenth of the face's width: a membrane as in
Poisson blending, on a 40 px grid.
"""

from __future__ import annotations

import cv2
import numpy as np

from keyface.pipeline.face import F32

TAU_S = 0.25
_REACH = 0.075  # sigma of the convolution, in sides of the grid
_THING = 26.0  # levels: a larger difference is another thing, not another tone
_CERTAINTY = 0.10


class Seam:
    """The steadied membrane of one track."""

    def __init__(self) -> None:
        self._field: F32 | None = None

    def update(self, source: F32, lit: F32, mask: F32, dt_s: float) -> F32:
        """(n, n, 3) levels to add to the virtual face.

        Args:
            source, lit: (n, n, 3) levels, the source and the relit virtual face.
            mask: (n, n) [0, 1].
        """
        difference = source - lit
        band = np.clip(4 * mask * (1 - mask), 0, 1)
        weight = band * np.exp(-((np.abs(difference).max(-1) / _THING) ** 2))
        stacked = np.dstack([difference * weight[..., None], weight]).astype(np.float32)
        spread = cv2.GaussianBlur(stacked, (0, 0), _REACH * mask.shape[0])
        field = spread[..., :3] / (spread[..., 3:] + _CERTAINTY)
        if self._field is not None:
            field = self._field + (1 - float(np.exp(-dt_s / TAU_S))) * (field - self._field)
        self._field = np.asarray(field, np.float32)
        return self._field
