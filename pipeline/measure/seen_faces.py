"""What the judges see in one photo, original or anonymised, kept beside the photos so that it is looked at once."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from keyface.configs.errors import SinkError
from keyface.pipeline.face import F32, Detection
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import FindsFaces, Runs, square_crop
from keyface.pipeline.measure.video import ReadsMesh
from keyface.pipeline.media.partial import PartialFile
from keyface.pipeline.media.photo import read_photo

MEASURES_FOLDER = "measures"
_VERSION = 2
_MIN_OVERLAP = 0.3  # IoU of a face in both photos
_CUT_SCALE, _CUT_PX, _INCEPTION_PX = 1.3, 128, 299


class Embeds(Protocol):
    """A recogniser."""

    @property
    def name(self) -> str: ...

    def embed(self, image_rgb: ImageRgb, face: Detection) -> F32: ...


@dataclass(frozen=True)
class PhotoEyes:
    """The networks that look at photos.

    Attributes:
        inception: input `image` (N, 3, 299, 299), outputs `features` and `features_192`; None: no FID.
    """

    detector: FindsFaces
    recognisers: Sequence[Embeds]
    landmarker: ReadsMesh
    inception: Runs | None = None


@dataclass(frozen=True)
class FaceSeen:
    """One face in one photo.

    Attributes:
        is_found: the detector sees it (in an anonymised photo: where the original's face was).
        box_xyxy, points_5: of the detection; in an anonymised photo without one, the original's.
        embeddings: unit vectors by recogniser.
        pose_ypr_deg, blendshapes: None where the landmarker finds no face.
        features: of the cut-out face, by name, see `cut_face`.
    """

    is_found: bool
    box_xyxy: F32
    points_5: F32
    embeddings: Mapping[str, F32]
    pose_ypr_deg: F32 | None
    blendshapes: F32 | None
    features: Mapping[str, F32]


def look_at_original(image_rgb: ImageRgb, eyes: PhotoEyes) -> FaceSeen | None:
    """The face nearest to the middle; None when there is none."""
    found = eyes.detector.detect(image_rgb)
    if not found:
        return None
    middle = np.array([image_rgb.shape[1], image_rgb.shape[0]]) / 2
    best = max(found, key=lambda face: _centrality(face.box_xyxy, middle))
    return _look(image_rgb, eyes, best, best.box_xyxy, is_found=True)


def look_at_anonymised(image_rgb: ImageRgb, eyes: PhotoEyes, original: FaceSeen) -> FaceSeen:
    """The face where the original's was."""
    found = eyes.detector.detect(image_rgb)
    best = None
    if found:
        overlap = iou_matrix(original.box_xyxy[None], np.stack([d.box_xyxy for d in found]))[0]
        best = found[int(overlap.argmax())] if overlap.max() > _MIN_OVERLAP else None
    face = best or Detection(original.box_xyxy, original.points_5, 0.0)
    return _look(image_rgb, eyes, face, original.box_xyxy, is_found=best is not None)


def cut_face(image_rgb: ImageRgb, box_xyxy: F32) -> ImageRgb:
    """uint8 (128, 128, 3): what FID compares, a square 1.3 times the longer side of the original's face box.

    IVFG cuts and scales its photos to 128 px about the face, too, so that pictures are mostly face.
    """
    return square_crop(image_rgb, box_xyxy, _CUT_SCALE, _CUT_PX)[0]


def _centrality(box_xyxy: F32, middle_xy: npt.NDArray[np.float64]) -> float:
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    return float(box_xyxy[2] - box_xyxy[0] - np.hypot(*(centre - middle_xy)))


def _look(
    image_rgb: ImageRgb, eyes: PhotoEyes, face: Detection, box_xyxy: F32, *, is_found: bool
) -> FaceSeen:
    mesh = eyes.landmarker.detect(image_rgb, box_xyxy=box_xyxy)
    features: dict[str, F32] = {}
    if eyes.inception is not None:
        small = cut_face(image_rgb, box_xyxy)
        large = cv2.resize(small, (_INCEPTION_PX, _INCEPTION_PX), interpolation=cv2.INTER_LINEAR)
        normal = (large.astype(np.float32) - 128) / 128
        raw = eyes.inception.run({"image": np.ascontiguousarray(normal.transpose(2, 0, 1)[None])})
        features = {name: np.asarray(values[0], np.float32) for name, values in raw.items()}
    return FaceSeen(
        is_found=is_found,
        box_xyxy=face.box_xyxy.astype(np.float32),
        points_5=face.points_5.astype(np.float32),
        embeddings={r.name: r.embed(image_rgb, face) for r in eyes.recognisers},
        pose_ypr_deg=None if mesh is None else mesh.pose_ypr_deg,
        blendshapes=None if mesh is None else mesh.blendshapes,
        features=features,
    )


class SeenFaces:
    """Keeps what was seen, by file content. The files hold embeddings of real people: local use only.

    Args:
        folder: of the files; made when the first is written.
        judges: names of the networks; what others saw counts as not there.
    """

    def __init__(self, folder: Path, judges: Sequence[str]) -> None:
        self._folder = folder
        self._judges = hashlib.sha256(f"{_VERSION} {' '.join(judges)}".encode()).hexdigest()[:16]

    def original(self, path: Path, eyes: PhotoEyes) -> FaceSeen | None:
        """What is seen in an original photo; None when there is no face. Raises SourceError, SinkError."""
        return self._recall(path, None, eyes)

    def anonymised(self, path: Path, original: FaceSeen, original_path: Path, eyes: PhotoEyes) -> FaceSeen:
        """What is seen in an anonymised one. Raises SourceError, SinkError."""
        seen = self._recall(path, (original, original_path), eyes)
        assert seen is not None
        return seen

    def _recall(self, path: Path, original: tuple[FaceSeen, Path] | None, eyes: PhotoEyes) -> FaceSeen | None:
        content = [path.read_bytes()] + ([original[1].read_bytes()] if original else [])
        name = hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in content)).hexdigest()[:32]
        file = self._folder / f"{name}-{self._judges}.npz"
        known = _load(file)
        if known is not None:
            return known[0]
        image_rgb = read_photo(path)[0].image_rgb
        if original is None:
            seen = look_at_original(image_rgb, eyes)
        else:
            seen = look_at_anonymised(image_rgb, eyes, original[0])
        _save(file, seen)
        return seen


def _save(path: Path, seen: FaceSeen | None) -> None:
    arrays = {} if seen is None else dict(_arrays(seen))
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = PartialFile(path)
        with file.temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        file.commit()
    except OSError as error:
        raise SinkError(f"'{path}' cannot be written: {error.strerror}.", "Make room.") from error
    finally:
        if file is not None:
            file.abort()


def _arrays(seen: FaceSeen) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    yield "is_found", np.array(seen.is_found)
    yield "box_xyxy", seen.box_xyxy
    yield "points_5", seen.points_5
    if seen.pose_ypr_deg is not None and seen.blendshapes is not None:
        yield "pose_ypr_deg", seen.pose_ypr_deg
        yield "blendshapes", seen.blendshapes
    for kind, table in (("embedding", seen.embeddings), ("feature", seen.features)):
        for name, vector in table.items():
            yield f"{kind}:{name}", vector


def _load(path: Path) -> tuple[FaceSeen | None] | None:
    """The face or None in a tuple; None when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    if not found:
        return (None,)
    tables: dict[str, dict[str, F32]] = {"embedding": {}, "feature": {}}
    for name, values in found.items():
        kind, _, of = name.partition(":")
        if of:
            tables[kind][of] = values
    return (
        FaceSeen(
            is_found=bool(found["is_found"]),
            box_xyxy=found["box_xyxy"],
            points_5=found["points_5"],
            embeddings=tables["embedding"],
            pose_ypr_deg=found.get("pose_ypr_deg"),
            blendshapes=found.get("blendshapes"),
            features=tables["feature"],
        ),
    )
