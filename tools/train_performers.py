"""People who make faces for the training of the warping reenactor: generated ones, and frames of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from keyface.models.train_motion import WantedMotions
from keyface.models.warp_pairs import SIDE_PX, View
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, FaceMesh
from keyface.pipeline.faces.align import FFHQ_BOX, align_ffhq_mesh
from keyface.pipeline.faces.detect import YuNetDetector
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.reenact.motion import amplified, controls_of
from keyface.pipeline.reenact.puppet import Puppet
from keyface.pipeline.reenact.warp_puppet import laughing

_JAW_OPEN = 2 + BLENDSHAPE_NAMES.index("jawOpen")


class GeneratedPerformer:
    """Person `number` is always the same one, making the same faces.

    Args:
        draw: (n, rng) -> w (n, 512).
        wanted: (M, 54) controls of real motion, numbers only.
        resting: (52,) blendshapes of the source frame.
        side_px: of the pictures; larger ones that the puppet renders are averaged down by areas.
    """

    def __init__(
        self,
        puppet: Puppet,
        draw: Callable[[int, np.random.Generator], F32],
        wanted: F32,
        resting: F32,
        views: int,
        seed: int = 0,
        *,
        side_px: int = SIDE_PX,
    ) -> None:
        self._puppet, self._draw, self._wanted, self._resting = puppet, draw, wanted, resting
        self._views, self._seed, self._side_px = views, seed, side_px

    def __call__(self, number: int) -> list[View | None]:
        rng = np.random.default_rng([self._seed, number])
        person = self._puppet.meet(self._draw(1, rng)[0])
        if person is None:
            return [None] * self._views
        motions = WantedMotions(self._wanted, rng).draw(self._views).numpy()
        motions[:, 2:] = np.stack([amplified(row[2:], self._resting) for row in motions])
        motions[0] = np.concatenate([np.zeros(2, np.float32), self._resting])
        motions[-1] = laughing(self._resting)
        motions[-1, 2:] = amplified(motions[-1, 2:], self._resting)
        return [_view(*self._puppet.show(person, row, None), self._side_px) for row in motions]


class ClipPerformer:
    """Frames of one shot, FFHQ-aligned by the landmarks of each: a person as it is."""

    def __init__(self, detector: YuNetDetector, landmarker: Landmarker, *, side_px: int = SIDE_PX) -> None:
        self._detector, self._landmarker, self._side_px = detector, landmarker, side_px

    def views(self, frames: list[ImageRgb]) -> list[View | None]:
        """A view of the largest face of each frame; that with the widest open mouth comes last."""
        views = [self._align(frame) for frame in frames]
        openness = [-1.0 if view is None else float(view.controls[_JAW_OPEN]) for view in views]
        last = int(np.argmax(openness[1:])) + 1 if len(views) > 1 else 0
        return [*views[:last], *views[last + 1 :], views[last]]

    def _align(self, image_rgb: ImageRgb) -> View | None:
        found = self._detector.detect(image_rgb)
        if not found:
            return None
        largest = max(found, key=lambda face: float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2])))
        mesh = self._landmarker.detect(image_rgb, box_xyxy=largest.box_xyxy)
        if mesh is None:
            return None
        crop_rgb = align_ffhq_mesh(image_rgb, mesh, self._side_px).crop_rgb
        return _view(
            crop_rgb, self._landmarker.detect(crop_rgb, box_xyxy=FFHQ_BOX * self._side_px), self._side_px
        )


def _view(crop_rgb: ImageRgb, mesh: FaceMesh | None, side_px: int) -> View | None:
    """The view of a crop of any side, as a picture of `side_px`; points are px of it at 256 px."""
    if mesh is None:
        return None
    scale, half = SIDE_PX / crop_rgb.shape[0], np.array([0.5, 0.5, 0.0])
    points = np.asarray((mesh.points_xyz + half) * scale - half, np.float32)
    if crop_rgb.shape[0] != side_px:
        crop_rgb = np.asarray(
            cv2.resize(crop_rgb, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8
        )
    return View(crop_rgb, points, controls_of(mesh), mesh.pose_ypr_deg)


def list_clips(folders: list[Path]) -> list[Path]:
    """Clips of the folders, sorted."""
    kinds = {".mp4", ".mov", ".mkv", ".webm"}
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in kinds)
