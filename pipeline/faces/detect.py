"""Face detection with YuNet (Wu, Peng, Yu: YuNet, a tiny millisecond-level face detector, 2023).

The network finds faces of about 10 to 300 px of its input. So the picture is shrunk to the size at which
the smallest face asked for is still found, and looked at a second time very small, for faces that fill it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from keyface.engines.card_frame import CanvasLook, CardFrame
from keyface.engines.engine import Engine, run_on_one
from keyface.pipeline.face import F32, Detection
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.frame import ImageRgb

_STRIDES = (8, 16, 32)
_MULTIPLE = 32  # of the input's sides
_DARK, _LIFTED, _MAX_GAIN = 40.0, 80.0, 10.0  # mean grey levels, factor


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectOptions:
    """How faces are looked for.

    Attributes:
        min_score: below it nothing is returned, [0, 1].
        nms_iou: of two overlapping boxes the better one is kept.
        min_face_px: smallest face in the picture that must be found (longer side of its box).
        min_face_input_px: size of such a face in the network's input.
        min_input_px, max_input_px: limits of the input's longer side.
        far_input_px: longer side of the second look, for faces that fill the picture; 0: none.
    """

    min_score: float = 0.5
    nms_iou: float = 0.3
    min_face_px: float = 40.0
    min_face_input_px: float = 26.0
    min_input_px: int = 320
    max_input_px: int = 2048
    far_input_px: int = 160


class Detector(Protocol):
    """Finds the faces of a picture, best first. Not thread-safe. `YuNetDetector` tells what is asked.

    Attributes:
        input_scale: the input of `detect` is scaled by it; below 1 it is faster and misses more small faces.
    """

    input_scale: float

    def detect(self, image_rgb: ImageRgb, *, min_score: float | None = None) -> list[Detection]: ...

    def detect_near(
        self, image_rgb: ImageRgb, box_xyxy: F32, *, min_score: float, input_px: int = 160
    ) -> list[Detection]: ...

    def close(self) -> None: ...


class YuNetDetector:
    """YuNet through an engine.

    Args:
        engine: `yunet_dynamic`: input (1, 3, H, W) BGR 0..255 with H, W multiples of 32, and twelve
            outputs, (1, H/s * W/s, n) for each stride s of 8, 16, 32: cls, obj (n = 1), bbox (4), kps (10).
            Closed by `close`.
        card: makes inputs on a card, for an engine there; None: in host memory.
    """

    def __init__(
        self, engine: Engine, options: DetectOptions | None = None, *, card: CardFrame | None = None
    ) -> None:
        self._engine, self._card = engine, card
        self.options = options or DetectOptions()
        self.input_scale = 1.0

    def detect(self, image_rgb: ImageRgb, *, min_score: float | None = None) -> list[Detection]:
        """Faces of uint8 (H, W, 3) RGB, best first; boxes may reach over the border.

        `min_score` overrides the option. Raises EngineError when the network fails.
        """
        score = self.options.min_score if min_score is None else min_score
        height, width = image_rgb.shape[:2]
        longer = max(height, width)
        size = self._input_size(longer)
        whole = (0, 0, width, height)
        rows = [self._look(image_rgb, whole, size / longer, score)]
        if 0 < self.options.far_input_px < size / 1.5:
            rows.append(self._look(image_rgb, whole, self.options.far_input_px / longer, score))
        return self._to_detections(np.concatenate(rows))

    def detect_near(
        self, image_rgb: ImageRgb, box_xyxy: F32, *, min_score: float, input_px: int = 160
    ) -> list[Detection]:
        """Faces in the square of 2.5 sides about a box, looked at in one small input, in which the face has
        the size that the network knows best: cheap, and a better judge than `detect` of what is a face. On 56
        crowded photos it gave real faces 0.9 and almost all false ones nothing."""
        height, width = image_rgb.shape[:2]
        centre, side = (box_xyxy[:2] + box_xyxy[2:]) / 2, float((box_xyxy[2:] - box_xyxy[:2]).max())
        x0, y0 = (int(v) for v in np.clip(centre - 1.25 * side, 0, [width, height]))
        x1, y1 = (int(v) for v in np.clip(centre + 1.25 * side + 1, 0, [width, height]))
        if x1 - x0 < 4 or y1 - y0 < 4:
            return []
        rows = self._look(image_rgb, (x0, y0, x1, y1), input_px / max(x1 - x0, y1 - y0), min_score)
        rows[:, :14] += np.tile(np.array([x0, y0], np.float32), 7)
        return self._to_detections(rows)

    def _input_size(self, longer: int) -> int:
        o = self.options
        wanted = longer * o.min_face_input_px / o.min_face_px * self.input_scale
        return round(float(np.clip(wanted, o.min_input_px, o.max_input_px)))

    def _look(
        self, image_rgb: ImageRgb, part_xyxy: tuple[int, int, int, int], scale: float, min_score: float
    ) -> F32:
        """One pass over a part: (N, 15) box x0 y0 x1 y1, five points, score, in pixels from the part's corner."""
        x0, y0, x1, y1 = part_xyxy
        w, h = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
        padded_w, padded_h = (-(-v // _MULTIPLE) * _MULTIPLE for v in (w, h))
        look = CanvasLook(
            part_xyxy=part_xyxy, size_wh=(w, h), canvas_wh=(padded_w, padded_h),
            # Averaging by areas is slow at odd ratios, and needed only where bilinear skips pixels.
            by_area=scale < 0.5, dark=_DARK, lifted=_LIFTED, most_gain=_MAX_GAIN,
        )  # fmt: skip
        on_card = None if self._card is None else self._card.canvas(image_rgb, look)
        outputs = run_on_one(
            self._engine, "input", (1, 3, padded_h, padded_w), lambda: input_nchw(image_rgb, look), on_card
        )
        rows = _decode(outputs, padded_w, min_score)
        rows[:, :14] *= np.tile(np.array([(x1 - x0) / w, (y1 - y0) / h], np.float32), 7)
        return rows

    def _to_detections(self, rows: F32) -> list[Detection]:
        kept = rows[_suppress(rows[:, :4], rows[:, 14], self.options.nms_iou)]
        return [Detection(r[:4].copy(), r[4:14].reshape(5, 2).copy(), float(r[14])) for r in kept]

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()


def input_nchw(image_rgb: ImageRgb, look: CanvasLook) -> F32:
    """(1, 3, H, W) float32 BGR levels: what a look at uint8 (h, w, 3) gives the network."""
    (x0, y0, x1, y1), (w, h) = look.part_xyxy, look.size_wh
    canvas = np.zeros((look.canvas_wh[1], look.canvas_wh[0], 3), np.uint8)
    method = cv2.INTER_AREA if look.by_area else cv2.INTER_LINEAR
    cv2.resize(image_rgb[y0:y1, x0:x1], (w, h), dst=canvas[:h, :w], interpolation=method)
    _brighten(canvas, look)
    return np.stack(cv2.split(canvas)[::-1]).astype(np.float32)[None]


def _brighten(image_rgb: ImageRgb, look: CanvasLook) -> None:
    """Lifts a dark picture in place: the network was trained on daylight."""
    mean = sum(cv2.mean(image_rgb)[:3]) / 3
    if mean < look.dark:
        gain = min(look.lifted / max(mean, 1.0), look.most_gain)
        cv2.convertScaleAbs(image_rgb, dst=image_rgb, alpha=gain)


def _decode(outputs: dict[str, F32], width: int, min_score: float) -> F32:
    """Outputs of the three strides -> (N, 15), see `YuNetDetector._look`, in input pixels.

    score = sqrt(cls * obj); centre = (cell + d) * s; side = exp(d) * s; point = (cell + d) * s.
    """
    rows = [np.empty((0, 15), np.float32)]
    for stride in _STRIDES:
        cls = np.clip(outputs[f"cls_{stride}"].ravel(), 0, 1)
        obj = np.clip(outputs[f"obj_{stride}"].ravel(), 0, 1)
        index = np.flatnonzero(cls * obj >= min_score**2)
        if not len(index):
            continue
        columns = width // stride
        cell = np.stack([index % columns, index // columns], 1).astype(np.float32)
        box = outputs[f"bbox_{stride}"].reshape(-1, 4)[index]
        points = outputs[f"kps_{stride}"].reshape(-1, 5, 2)[index]
        centre = (cell + box[:, :2]) * stride
        half = np.exp(np.minimum(box[:, 2:], 8.0)) * stride / 2
        points_px = ((points + cell[:, None]) * stride).reshape(-1, 10)
        score = np.sqrt(cls[index] * obj[index])[:, None]
        rows.append(np.hstack([centre - half, centre + half, points_px, score]).astype(np.float32))
    found = np.concatenate(rows)
    return found[np.isfinite(found).all(1)]


def _suppress(boxes_xyxy: F32, scores: F32, max_iou: float) -> list[int]:
    """Greedy non-maximum suppression: indices kept, best first."""
    order = [int(i) for i in np.argsort(-scores)]
    iou = iou_matrix(boxes_xyxy, boxes_xyxy)
    kept: list[int] = []
    for i in order:
        if not kept or iou[i, kept].max() <= max_iou:
            kept.append(i)
    return kept
