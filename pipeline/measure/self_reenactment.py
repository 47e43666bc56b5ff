"""Self-reenactment: the first frame of a clip is driven by the controls of the later ones, and compared with them.

The warping networks work on the real face here, as on a virtual person's: the first face is cut out as FFHQ has it,
its own mesh gives the shape, and only yaw, pitch and blendshapes of a later frame move it. That frame is then cut out
where the product would lay the result, and LPIPS tells how far apart the two are: over the whole crop, in which hair
and background move too, and over the face alone. The first crop itself, laid there without being moved, is measured
beside it: a reenactor has to be nearer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32, Detection, FaceMesh
from keyface.pipeline.faces.align import FFHQ_BOX, align_ffhq_mesh, cut_out
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.faces.scene_cut import SceneCutDetector
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import FindsFaces, Runs
from keyface.pipeline.measure.reference import ClipReader
from keyface.pipeline.measure.video import ReadsMesh
from keyface.pipeline.paste.place import OVAL, fit_frame_from_crop
from keyface.pipeline.reenact.keypoints import KeypointModel, SourceShape
from keyface.pipeline.reenact.motion import controls_of
from keyface.pipeline.reenact.warp_puppet import look_at_source, moved_picture

SIDE_PX = 256
_MIN_OVERLAP = 0.3
_GREY = 127


@dataclass(frozen=True)
class WarpNetworks:
    """keypoints; source: image and points -> what it looks like; motion: points and controls -> what goes where;
    decode: all of it -> picture."""

    keypoints: KeypointModel
    source: Runs
    motion: Runs
    decode: Runs


@dataclass(frozen=True)
class SelfEyes:
    """detector finds the face, landmarker (the product's own) reads it, lpips: image_a, image_b -> distance."""

    detector: FindsFaces
    landmarker: ReadsMesh
    lpips: Runs


@dataclass(frozen=True, slots=True)
class SelfFrame:
    """LPIPS of one frame: whole crop and face alone, of the reenacted picture and of the first one unmoved."""

    frame: int
    crop: float
    face: float
    still_crop: float
    still_face: float


@dataclass
class SelfMeasures:
    """What was measured of a clip.

    Attributes:
        n_unseen: frames looked at in which there was nothing to compare.
        pictures: (frame as it is, reenacted) of the frames in `frames`, uint8 (256, 256, 3), real faces.
    """

    frames: list[SelfFrame] = field(default_factory=list)
    n_unseen: int = 0
    pictures: list[tuple[ImageRgb, ImageRgb]] = field(default_factory=list)

    def figures(self) -> dict[str, float | None]:
        """Means over the frames; None without any."""

        def mean(values: Sequence[float]) -> float | None:
            return float(np.mean(values)) if values else None

        return {
            "self_lpips_crop": mean([f.crop for f in self.frames]),
            "self_lpips_face": mean([f.face for f in self.frames]),
            "self_lpips_crop_still": mean([f.still_crop for f in self.frames]),
            "self_lpips_face_still": mean([f.still_face for f in self.frames]),
        }


class _Source:
    """The first face of a clip and what the networks made of it."""

    def __init__(self, crop_rgb: ImageRgb, mesh: FaceMesh, networks: WarpNetworks) -> None:
        self._networks = networks
        self.shape: SourceShape = networks.keypoints.source(mesh, SIDE_PX)
        self.crop_rgb = crop_rgb
        self._source = look_at_source(networks.source.run, self.shape, crop_rgb, mesh)

    def moved(self, wanted: F32) -> tuple[ImageRgb, F32]:
        """The face with controls `wanted` (54,): uint8 (256, 256, 3), and its points (478, 3) px of that picture."""
        networks, driving = self._networks, self._networks.keypoints.driving(self.shape, wanted)
        crop = moved_picture(networks.motion.run, networks.decode.run, self._source, wanted, driving)
        return crop, points_px(driving)


def measure_self(
    clip: Path,
    eyes: SelfEyes,
    networks: WarpNetworks,
    *,
    every: int = 5,
    until_s: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> SelfMeasures:
    """Every `every`-th frame after the first one with a face, up to the first scene cut or `until_s`.

    Args:
        progress: called with the number of each frame that was reached.

    Raises:
        SourceError: the clip cannot be read.
        EngineError: a network gives what is no picture.
    """
    measures, cuts = SelfMeasures(), SceneCutDetector()
    source: _Source | None = None
    box: F32 | None = None
    first = 0
    reader = ClipReader(clip)
    with closing(reader.read(lambda _: True)) as images:
        for index, image_rgb in images:
            if progress is not None:
                progress(index)
            is_over = until_s is not None and reader.last_s >= until_s
            if image_rgb is None or is_over or cuts.is_cut(image_rgb):
                break
            if source is not None and (index - first) % every:
                continue
            face = _face(eyes.detector.detect(image_rgb), box)
            mesh = None if face is None else _mesh(eyes, image_rgb, face)
            if face is None or mesh is None:
                measures.n_unseen += source is not None
                continue
            box = face.box_xyxy
            if source is None:
                source, first = _source(image_rgb, mesh, eyes, networks), index
            else:
                _compare(measures, index, image_rgb, mesh, source, eyes.lpips)
    return measures


def _mesh(eyes: SelfEyes, image_rgb: ImageRgb, face: Detection) -> FaceMesh | None:
    return eyes.landmarker.detect(image_rgb, points_5=face.points_5, box_xyxy=face.box_xyxy)


def _face(found: Sequence[Detection], before_xyxy: F32 | None) -> Detection | None:
    """The largest face at first, later the one that lies where it was."""
    if not found:
        return None
    if before_xyxy is None:
        return max(found, key=lambda d: float(np.prod(d.box_xyxy[2:] - d.box_xyxy[:2])))
    overlap = iou_matrix(before_xyxy[None], np.stack([d.box_xyxy for d in found]))[0]
    return found[int(overlap.argmax())] if overlap.max() > _MIN_OVERLAP else None


def _source(image_rgb: ImageRgb, mesh: FaceMesh, eyes: SelfEyes, networks: WarpNetworks) -> _Source | None:
    crop_rgb = align_ffhq_mesh(image_rgb, mesh, SIDE_PX).crop_rgb
    own = eyes.landmarker.detect(crop_rgb, box_xyxy=FFHQ_BOX * SIDE_PX)
    return None if own is None else _Source(crop_rgb, own, networks)


def _compare(
    measures: SelfMeasures, index: int, image_rgb: ImageRgb, mesh: FaceMesh, source: _Source, lpips: Runs
) -> None:
    made_rgb, points = source.moved(controls_of(mesh))
    there_rgb, face = _as_laid(image_rgb, mesh, points)
    still_rgb, still_face = _as_laid(image_rgb, mesh, points_px(source.shape.points))
    first_rgb = source.crop_rgb
    pairs = [
        (made_rgb, there_rgb), (masked(made_rgb, face), masked(there_rgb, face)),
        (first_rgb, still_rgb), (masked(first_rgb, still_face), masked(still_rgb, still_face)),
    ]  # fmt: skip
    found = [lpips_of(lpips, a, b) for a, b in pairs]
    measures.frames.append(SelfFrame(index, *found))
    measures.pictures.append((there_rgb, made_rgb))


def _as_laid(image_rgb: ImageRgb, mesh: FaceMesh, points: F32) -> tuple[ImageRgb, npt.NDArray[np.bool_]]:
    """What the frame shows where a crop whose face has these points (478, 3) is laid, and which of it is the face."""
    frame_from_crop = fit_frame_from_crop(points, mesh.points_xyz)
    linear = np.linalg.inv(frame_from_crop[:, :2].astype(np.float64))
    oval = (mesh.points_xy[OVAL] - frame_from_crop[:, 2]) @ linear.T
    face = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    cv2.fillConvexPoly(face, cv2.convexHull(np.rint(oval).astype(np.int32)), 1)
    return cut_out(image_rgb, frame_from_crop, SIDE_PX, border="mirror"), face.astype(bool)


def points_px(points: F32) -> F32:
    """(478, 3) from [-1, 1] across the crop to its px, pixel centres at integers."""
    half = SIDE_PX / 2
    shift = np.array([half - 0.5, half - 0.5, 0.0], np.float32)
    return np.asarray(points * half + shift, np.float32)


def masked(image_rgb: ImageRgb, face: npt.NDArray[np.bool_]) -> ImageRgb:
    """The same picture, grey outside the face."""
    return np.where(face[..., None], image_rgb, np.uint8(_GREY))


def lpips_of(lpips: Runs, a_rgb: ImageRgb, b_rgb: ImageRgb) -> float:
    """The distance of two pictures of one size, uint8 (H, W, 3)."""
    found = lpips.run({"image_a": _as_input(a_rgb), "image_b": _as_input(b_rgb)})
    return float(found["distance"][0])


def _as_input(image_rgb: ImageRgb) -> F32:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]."""
    scaled = image_rgb.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1.0
    return np.ascontiguousarray(scaled, np.float32)
