"""Photos of generated people, one folder a person: nobody real is in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from keyface.engines.store import ModelStore
from keyface.pipeline.assemble import open_portrait
from keyface.pipeline.face import BLENDSHAPE_NAMES

# yaw, pitch in degrees, and an expression with its strength
_LOOKS = (
    (-12.0, 2.0, "mouthSmileLeft", 0.6),
    (10.0, -3.0, "jawOpen", 0.4),
    (0.0, 0.0, "", 0.0),
    (18.0, 5.0, "", 0.0),
)


def write_people(folder: Path, numbers: list[int], *, photos: int = 2, side_px: int = 320) -> Path:
    """`photos` (at most 4) JPEGs of each generated person, `folder/person-N/look-M.jpg`."""
    for number in numbers:
        place = folder / f"person-{number}"
        place.mkdir(parents=True, exist_ok=True)
        with open_portrait(ModelStore(), number) as portrait:
            for index, (yaw, pitch, name, strength) in enumerate(_LOOKS[:photos]):
                shapes = np.zeros(52, np.float32)
                for part in (name, name.replace("Left", "Right")):
                    if part:
                        shapes[BLENDSHAPE_NAMES.index(part)] = strength
                picture = portrait.render(np.array([yaw, pitch, 0], np.float32), shapes)
                large = cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(place / f"look-{index}.jpg"), large[..., ::-1])
    return folder
