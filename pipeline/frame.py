"""Frames before and after anonymisation.

`Frame` is raw: it may show a real face. `SafeFrame` is what sinks accept, and only the redact and
paste room can build one, through `seal`, so that a raw frame cannot reach a sink by mistake: mypy
rejects it, and the constructor refuses anybody without the seal.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ImageRgb = npt.NDArray[np.uint8]

RedactionReason = Literal[
    "no_landmarks",
    "predicted_only",
    "late_detection",
    "extreme_pose",
    "reenactment_failed",
    "too_small",
    "stage_failed",
    "timed_out",
    "requested",
    "implausible",
    "too_alike",
    "choosing",
]


def check_image_rgb(image_rgb: npt.NDArray[Any], subject: str) -> None:
    """Raises ValueError unless the array is uint8 (H, W, 3) with H, W >= 1."""
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or 0 in image_rgb.shape:
        raise ValueError(f"{subject}: got {image_rgb.dtype} {image_rgb.shape}, want uint8 (H, W, 3)")


@dataclass(frozen=True, slots=True)
class Frame:
    """One raw frame.

    Attributes:
        image_rgb: uint8 (H, W, 3), RGB, upright (rotation metadata applied); read-only view.
        index: 0-based number of the frame in its source.
        pts_s: presentation time, seconds from the first frame of the source.
        pts: exact presentation time in units of `time_base`, None for live sources and photos.
        time_base: seconds per unit of `pts`.
        is_suspect: the decoder reported damage; nothing in it may be trusted.
    """

    image_rgb: ImageRgb
    index: int
    pts_s: float
    pts: int | None = None
    time_base: Fraction | None = None
    is_suspect: bool = False

    def __post_init__(self) -> None:
        check_image_rgb(self.image_rgb, f"frame {self.index}")
        view = self.image_rgb.view()
        view.flags.writeable = False
        object.__setattr__(self, "image_rgb", view)


@dataclass(frozen=True, slots=True)
class Redaction:
    """One mosaicked area: box_xyxy in pixels of the frame, why, and whose track (None: no track)."""

    box_xyxy: tuple[float, float, float, float]
    reason: RedactionReason
    track_id: int | None = None


class _Seal:
    """Held by pipeline.paste.redact and pipeline.paste.paster only."""


_SEAL = _Seal()


@dataclass(frozen=True, slots=True)
class SafeFrame:
    """One frame in which every known face is replaced or mosaicked.

    Attributes as in `Frame`; `redactions` lists mosaicked areas, `replaced` the track ids that carry
    a virtual face. Only `seal` builds it.
    """

    image_rgb: ImageRgb
    index: int
    pts_s: float
    pts: int | None
    time_base: Fraction | None
    redactions: tuple[Redaction, ...]
    replaced: tuple[int, ...]
    _seal: _Seal

    def __post_init__(self) -> None:
        if self._seal is not _SEAL:
            raise TypeError("a SafeFrame is built by pipeline.paste.redact and pipeline.paste.paster only")
        check_image_rgb(self.image_rgb, f"safe frame {self.index}")
        view = self.image_rgb.view()
        view.flags.writeable = False
        object.__setattr__(self, "image_rgb", view)


def seal(
    frame: Frame,
    image_rgb: ImageRgb,
    *,
    redactions: tuple[Redaction, ...] = (),
    replaced: tuple[int, ...] = (),
) -> SafeFrame:
    """Declares `image_rgb` safe for sinks. To be imported by pipeline.paste.redact and pipeline.paste.paster only
    (a test scans the sources for others)."""
    if image_rgb.shape != frame.image_rgb.shape:
        raise ValueError(f"safe frame {frame.index}: got {image_rgb.shape}, want {frame.image_rgb.shape}")
    return SafeFrame(
        image_rgb, frame.index, frame.pts_s, frame.pts, frame.time_base, redactions, replaced, _SEAL
    )
