"""478 landmarks, 52 blendshapes and head pose of one face.

`Landmarker` is the seam; this file has the default back-end, which runs the two networks of MediaPipe's
face landmarker through an engine, with MediaPipe's own crop: a square around the face, enlarged 1.5
times, turned so that the line between the eyes is level. Others: `landmarks_mediapipe`,
`landmarks_face_alignment`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from keyface.engines.card_frame import Border, CardFrame
from keyface.engines.engine import Engine, run_on_one
from keyface.engines.open import open_engine
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.align import cut_out
from keyface.pipeline.faces.geometry import (
    BOX_PER_MESH,
    BOX_RISE,
    apply_affine,
    box_from_mesh,
    pose_from_mesh,
)
from keyface.pipeline.faces.sampling import card_crop
from keyface.pipeline.frame import ImageRgb

CROP_SIZE = 256
N_POINTS = 478
ROI_SCALE = 1.5
_Point = npt.NDArray[np.floating[Any]]
# As MediaPipe on a CPU: bilinear, the border repeated. A large face is shrunk by areas first.
_BORDER: Border = "repeat"
_MAX_STEP = 2.0
_WHITE = (255.0, 255.0, 255.0)  # level of 1.0
_EYE_CORNERS = (33, 263)  # outer corners, right and left

# The landmarks that the blendshape network reads: kLandmarksSubsetIdxs in MediaPipe's
# face_blendshapes_graph.cc (Apache-2.0).
BLENDSHAPE_INPUT_INDEX = np.array([
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67,
    70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146,
    148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181,
    185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293,
    295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361,
    362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398,
    400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
])  # fmt: skip


class Landmarker(Protocol):
    """Finds the mesh of one face.

    `detect` takes uint8 (H, W, 3) RGB and one or more hints, the most precise of which is used:
    `previous`, the face's mesh in the frame before; `points_5`, (5, 2) px; `box_xyxy`, (4,) px. It returns
    None when no face is found there. It never raises for what the picture shows, only `EngineError`
    when the networks fail. Not thread-safe: open, use and close on one thread.
    """

    def detect(
        self,
        image_rgb: ImageRgb,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Roi:
    """A turned square: centre_xy px, side_px, angle_rad (clockwise in the image)."""

    centre_xy: tuple[float, float]
    side_px: float
    angle_rad: float

    def frame_from_crop(self, size: int = CROP_SIZE) -> F32:
        """(2, 3): crop pixel (0, 0) is the square's first corner, (size, size) the opposite one."""
        scale = self.side_px / size
        cos, sin = np.cos(self.angle_rad) * scale, np.sin(self.angle_rad) * scale
        linear = np.array([[cos, -sin], [sin, cos]])
        shift = np.asarray(self.centre_xy) - linear @ np.array([size / 2, size / 2])
        return np.column_stack([linear, shift]).astype(np.float32)


def roi_from_points(points_xyz: F32) -> Roi:
    """The square in which MediaPipe looks for the face again, from its (478, 2 or 3) landmarks, px."""
    low, high = points_xyz[:, :2].min(0), points_xyz[:, :2].max(0)
    right, left = points_xyz[_EYE_CORNERS[0], :2], points_xyz[_EYE_CORNERS[1], :2]
    return _roi(low, high, right, left)


def roi_from_box(box_xyxy: F32, points_5: F32 | None = None) -> Roi:
    """The square for a detector's box (4,) px, which is larger and higher than the landmarks' own box;
    (5, 2) px give the turn (none: upright)."""
    eyes = np.array([[0.0, 0.0], [1.0, 0.0]]) if points_5 is None else points_5[:2].astype(np.float64)
    right, left = eyes
    box = np.asarray(box_xyxy, np.float32)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 / BOX_PER_MESH
    along = left - right
    down = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6)
    centre = centre + down * (float(half.max()) * 2 * BOX_RISE)
    return _roi(centre - half, centre + half, right, left)


def _roi(low: _Point, high: _Point, right: _Point, left: _Point) -> Roi:
    centre = (low + high) / 2
    angle = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
    side = max(float((high - low).max()) * ROI_SCALE, 2.0)
    return Roi((float(centre[0]), float(centre[1])), side, angle)


def box_from_points_5(points_5: F32) -> F32:
    """A detector-like box guessed from (5, 2) px."""
    eyes, mouth = points_5[:2].mean(0), points_5[3:].mean(0)
    unit = max(float(np.hypot(*(points_5[1] - points_5[0]))), float(np.hypot(*(mouth - eyes))))
    centre = eyes * 0.7 + mouth * 0.3
    half = np.array([1.1 * unit, 1.4 * unit])
    return np.concatenate([centre - half, centre + half]).astype(np.float32)


def box_from_hints(points_5: F32 | None, box_xyxy: F32 | None, previous: FaceMesh | None) -> F32:
    """A detector-like box (4,) px from the most precise hint. Raises ValueError without any."""
    if previous is not None:
        return box_from_mesh(previous.points_xyz)
    if box_xyxy is not None:
        return box_xyxy
    if points_5 is None:
        raise ValueError("landmarks: got no hint, want points_5, box_xyxy or previous")
    return box_from_points_5(points_5)


class LiteRtLandmarker:
    """MediaPipe's mesh and blendshape networks through two engines.

    Args:
        mesh_engine: `face_mesh`: input_12 (1, 256, 256, 3) RGB [0, 1] -> Identity (1, 1, 1, 1434) crop px,
            Identity_1 (1, 1, 1, 1) presence logit.
        blendshape_engine: `face_blendshapes`: (1, 146, 2) px -> (52,). Both are closed by `close`.
        min_score: below it `detect` returns None.
        refine: look twice, the second time in the square that the first mesh gives, whenever there is no
            previous mesh: a detector's box fits less well than a mesh's.
        card: makes crops on a card, for a mesh engine there; None: in host memory.
    """

    def __init__(
        self,
        mesh_engine: Engine,
        blendshape_engine: Engine,
        *,
        min_score: float = 0.5,
        refine: bool = True,
        card: CardFrame | None = None,
    ) -> None:
        self._mesh_engine = mesh_engine
        self._blendshape_engine = blendshape_engine
        self._min_score = min_score
        self._refine = refine
        self._card = card

    @classmethod
    def from_folder(cls, folder: Path, *, threads: int = 1, refine: bool = True) -> LiteRtLandmarker:
        """From a folder that holds the members of MediaPipe's .task archive."""
        mesh = open_engine(Path(folder) / "face_landmarks_detector.tflite", threads=threads)
        blendshapes = open_engine(Path(folder) / "face_blendshapes.tflite", threads=1)
        return cls(mesh, blendshapes, refine=refine)

    def detect(
        self,
        image_rgb: ImageRgb,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None:
        """See `Landmarker`. Raises ValueError without any hint."""
        if previous is not None:
            roi = roi_from_points(previous.points_xyz)
        elif box_xyxy is not None:
            roi = roi_from_box(box_xyxy, points_5)
        elif points_5 is not None:
            roi = roi_from_box(box_from_points_5(points_5), points_5)
        else:
            raise ValueError("landmarks: got no hint, want points_5, box_xyxy or previous")
        points, score = self._look(image_rgb, roi)
        if self._refine and previous is None and score >= self._min_score:
            points, score = self._look(image_rgb, roi_from_points(points))
        if not score >= self._min_score or not np.isfinite(points).all():
            return None
        return FaceMesh(points, self._expression(points), pose_from_mesh(points), score)

    def _look(self, image_rgb: ImageRgb, roi: Roi) -> tuple[F32, float]:
        """Points (478, 3) px of the image and the presence score."""
        matrix = roi.frame_from_crop()
        on_card = None
        if self._card is not None:
            crop = card_crop(
                image_rgb, matrix, CROP_SIZE, border=_BORDER, max_step=_MAX_STEP, std=_WHITE, planes=False
            )
            on_card = self._card.crops(image_rgb, [crop], CROP_SIZE)

        def image_nhwc() -> F32:
            crop_rgb = cut_out(image_rgb, matrix, CROP_SIZE, border=_BORDER, max_step=_MAX_STEP)
            return (crop_rgb.astype(np.float32) / np.float32(255.0))[None]

        shape = (1, CROP_SIZE, CROP_SIZE, 3)
        out = run_on_one(self._mesh_engine, "input_12", shape, image_nhwc, on_card)
        raw = np.asarray(out["Identity"], np.float32).reshape(N_POINTS, 3)
        logit = float(np.asarray(out["Identity_1"]).ravel()[0])
        score = float(1.0 / (1.0 + np.exp(-np.clip(logit, -50.0, 50.0))))
        xy = apply_affine(matrix, raw)
        z = raw[:, 2:] * np.float32(roi.side_px / CROP_SIZE)
        return np.hstack([xy, z]).astype(np.float32), score

    def _expression(self, points: F32) -> F32:
        xy = np.ascontiguousarray(points[BLENDSHAPE_INPUT_INDEX, :2])[None]
        out = self._blendshape_engine.run({"serving_default_input_points:0": xy})
        return np.clip(np.asarray(out["StatefulPartitionedCall:0"], np.float32).ravel(), 0.0, 1.0)

    def close(self) -> None:
        self._mesh_engine.close()
        self._blendshape_engine.close()
