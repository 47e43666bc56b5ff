"""Puts faces that are ready into the frame on a graphics card; the CPU takes over when the card fails."""

from __future__ import annotations

import logging

import numpy as np

from keyface.configs.errors import DeviceError
from keyface.engines.card_paste import CardPaste, CardPasting
from keyface.engines.soft_landing import OnLoss
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.blend import Pasting, bent_size, put_on_host, with_rim
from keyface.pipeline.paste.sharpness import GRAIN_TILE, GRAIN_UNIT, LEAST_GRAIN, grain_place

log = logging.getLogger(__name__)


class CardPut:
    """`blend.put_on_host` on a card, to a level. Opened, used and closed on one thread.

    Args:
        card: None opens the first one.
        on_loss: "cpu": from the first failure on all is done in host memory, and a warning says so; "stop": the
            failure is the caller's, who mosaics the face.

    Attributes:
        notes: what became of it.
    """

    def __init__(self, card: CardPaste | None = None, *, on_loss: OnLoss = "cpu") -> None:
        self._card = card or CardPaste(GRAIN_TILE, GRAIN_UNIT)
        self._on_loss = on_loss
        self._has_landed = False
        self.notes: list[str] = []

    def open(self) -> None:
        """Opens the card. Raises DeviceError."""
        self._card.open()

    def close(self) -> None:
        """Gives the card back."""
        self._card.close()

    def __call__(self, image_rgb: ImageRgb, pasting: Pasting) -> None:
        """See `blend.put_on_host`. The frame is written once the face has come back whole, or not at all."""
        if self._has_landed:
            put_on_host(image_rgb, pasting)
            return
        region = pasting.region
        target = image_rgb[region.y0 : region.y1, region.x0 : region.x1]
        try:
            self._card.paste(target, on_card(pasting))
        except DeviceError as error:
            if self._on_loss == "stop":
                raise
            self._has_landed = True
            self.notes.append(f"Pasting: {error.problem} It goes on on the CPU, more slowly.")
            log.warning("%s", self.notes[-1])
            put_on_host(image_rgb, pasting)


def on_card(pasting: Pasting) -> CardPasting:
    """The same in the words of the card."""
    region = pasting.region
    return CardPasting(
        crop_rgb=pasting.crop_rgb,
        grid=with_rim(pasting.grid),
        mask=np.asarray(pasting.mask, np.float32),
        bent_wh=bent_size((region.x1 - region.x0, region.y1 - region.y0), pasting.scale),
        grain=pasting.grain if pasting.grain > LEAST_GRAIN else 0.0,
        tile_xy=grain_place(pasting.grain_index),
    )
