"""Landmarks through MediaPipe Tasks: the reference for `LiteRtLandmarker`, and a second opinion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.align import cut_out
from keyface.pipeline.faces.geometry import apply_affine, pose_from_mesh
from keyface.pipeline.faces.landmarks import Roi, box_from_hints
from keyface.pipeline.frame import ImageRgb

_CROP_PX = 320
_CROP_PER_BOX = 1.8  # its own detector wants some room around the face


class MediaPipeLandmarker:
    """MediaPipe's whole face landmarker on an upright square crop of 1.8 boxes, 320 px.

    It detects the face in the crop again, so it needs no five points, finds nothing when the face is turned
    far on its side, and costs about twice as much as `LiteRtLandmarker`. The score is 1: MediaPipe keeps
    its own to itself and applies a threshold of 0.5. Graphs live in MediaPipe's own threads; `close` ends
    them (without it the interpreter complains at its exit).

    Args:
        task_path: `face_landmarker`, the .task file with blendshapes.
    Raises:
        EngineError: MediaPipe is missing or refuses the file.
    """

    def __init__(self, task_path: Path | str) -> None:
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise EngineError("mediapipe is not installed.", "Install it: pip install mediapipe") from error
        self._mediapipe: Any = mediapipe
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(task_path)),
            output_face_blendshapes=True,
            num_faces=1,
        )
        try:
            self._landmarker: Any = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError, OSError) as error:
            problem = str(error).strip().splitlines()[0][:300]
            raise EngineError(f"MediaPipe cannot open {Path(task_path).name}: {problem}.") from error

    def detect(
        self,
        image_rgb: ImageRgb,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None:
        """See `Landmarker`. Raises ValueError without any hint."""
        box_xyxy = box_from_hints(points_5, box_xyxy, previous)
        frame_from_crop = _crop_of(box_xyxy)
        crop = cut_out(image_rgb, frame_from_crop, _CROP_PX, border="black", max_step=2.0)
        image = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=crop)
        try:
            result = self._landmarker.detect(image)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"MediaPipe failed: {str(error).strip()[:300]}") from error
        if not result.face_landmarks:
            return None
        in_crop = np.array([[p.x, p.y, p.z] for p in result.face_landmarks[0]], np.float32) * _CROP_PX
        z = in_crop[:, 2:] * frame_from_crop[0, 0]
        points = np.hstack([apply_affine(frame_from_crop, in_crop), z]).astype(np.float32)
        blendshapes = np.array([c.score for c in result.face_blendshapes[0]], np.float32)
        return FaceMesh(points, blendshapes, pose_from_mesh(points), 1.0)

    def close(self) -> None:
        """Ends MediaPipe's graph; twice is allowed."""
        if self._landmarker is not None:
            self._landmarker.close()
            self._landmarker = None


def _crop_of(box_xyxy: F32) -> F32:
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    side = max(float((box_xyxy[2:] - box_xyxy[:2]).max()) * _CROP_PER_BOX, 2.0)
    return Roi((float(centre[0]), float(centre[1])), side, 0.0).frame_from_crop(_CROP_PX)
