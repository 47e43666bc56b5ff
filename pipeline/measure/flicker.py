"""Flicker: what is left of the change from frame to frame when motion is taken out."""

from __future__ import annotations

import cv2
import numpy as np

from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import inner_ellipse, square_crop

_SIZE = 192
_SCALE = 1.3
_CUT = 20.0  # a residual of the original above it is a scene cut, not motion


def measure_flicker(
    original_before: ImageRgb,
    original_now: ImageRgb,
    anonymised_before: ImageRgb,
    anonymised_now: ImageRgb,
    box_xyxy: F32,
) -> tuple[float, float] | None:
    """Mean absolute residual of a face against the frame before, moved by the original's optical flow.

    Both clips are moved by the flow of the original, so that a face that does not follow the head
    counts as flicker, too.

    Returns:
        (original, anonymised), [0, 255]; None across a scene cut.
    """
    before, now, other_before, other_now = (
        square_crop(image, box_xyxy, _SCALE, _SIZE)[0]
        for image in (original_before, original_now, anonymised_before, anonymised_now)
    )
    grey_now, grey_before = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (now, before))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = dis.calc(grey_now, grey_before, None)
    rows, columns = np.mgrid[:_SIZE, :_SIZE].astype(np.float32)
    map_x, map_y = columns + flow[..., 0], rows + flow[..., 1]
    margin = _SIZE * 0.115
    inside = inner_ellipse(
        (_SIZE, _SIZE), np.array([margin, margin, _SIZE - margin, _SIZE - margin], np.float32)
    )
    residuals = []
    for earlier, later in ((before, now), (other_before, other_now)):
        moved = cv2.remap(earlier, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        residuals.append(float(np.abs(later.astype(np.float32) - moved.astype(np.float32))[inside].mean()))
    return (residuals[0], residuals[1]) if residuals[0] < _CUT else None
