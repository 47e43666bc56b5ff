"""Embeddings of photos of people, for the projector: folders that hold a folder of photos for each person.

The product's own detector, landmarks and recogniser look at each photo; kept are the embeddings and the person's
part of the 8:1:1 split, and a number for each person. No picture, name or landmark is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import SourceError, UsageError
from keyface.configs.people_split import Split, split_of
from keyface.models.arrays import read_arrays, write_arrays
from keyface.models.projector_data import Photos
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.detect import Detector
from keyface.pipeline.faces.geometry import points_5_from_mesh
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.media.photo import PHOTO_SUFFIXES, read_photo

SAVE_EVERY = 200
PARTS: tuple[Split, ...] = ("train", "validation", "test")

Recognise = Callable[[ImageRgb, F32], F32]  # picture and five points (5, 2) -> (R, 128) unit embeddings


@dataclass(frozen=True, slots=True)
class PersonPhoto:
    """path; person: number; part: index into `PARTS`."""

    path: Path
    person: int
    part: int


def list_photos(folders: Sequence[Path]) -> list[PersonPhoto]:
    """All photos DIR/person/photo, people and photos sorted by name; people of one name are one person.

    Raises:
        UsageError: a folder is missing, or holds none.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"'{folder}' is no folder.", "Give folders of people: --data DIR")
        for path in folder.glob("*/*"):
            if path.suffix.lower() in PHOTO_SUFFIXES:
                found.setdefault(path.parent.name, []).append(path)
    if not found:
        raise UsageError("There is no photo in the folders given.", "Want DIR/person/photo.jpg: --data DIR")
    return [
        PersonPhoto(path, number, PARTS.index(split_of(name)))
        for number, name in enumerate(sorted(found))
        for path in sorted(found[name])
    ]


class PhotoReader:
    """Finds the face nearest to the middle of a photo, and its embeddings."""

    def __init__(self, detector: Detector, landmarker: Landmarker, recognise: Recognise) -> None:
        self._detector, self._landmarker, self.recognise = detector, landmarker, recognise

    def read(self, path: Path) -> F32 | None:
        """(R, 128), None where no face is found. Raises SourceError."""
        found = self.look(path)
        return None if found is None else self.embed(*found)

    def embed(self, image_rgb: ImageRgb, mesh: FaceMesh) -> F32:
        """(R, 128) of the face with that mesh."""
        return self.recognise(image_rgb, points_5_from_mesh(mesh.points_xyz))

    def look(self, path: Path) -> tuple[ImageRgb, FaceMesh] | None:
        """The picture and the face's mesh. Raises SourceError."""
        image_rgb = read_photo(path)[0].image_rgb
        faces = self._detector.detect(image_rgb)
        if not faces:
            return None
        middle = np.array(image_rgb.shape[1::-1]) / 2
        face = min(faces, key=lambda d: float(np.hypot(*((d.box_xyxy[:2] + d.box_xyxy[2:]) / 2 - middle))))
        mesh = self._landmarker.detect(image_rgb, points_5=face.points_5, box_xyxy=face.box_xyxy)
        return None if mesh is None else (image_rgb, mesh)


def read_photos(
    photos: Sequence[PersonPhoto],
    out: Path,
    reader: PhotoReader,
    *,
    seconds: float = float("inf"),
    on_photo: Callable[[int], None] = lambda done: None,
) -> int:
    """Embeds photos into `out` (.npz), going on where it was; returns how many of them are done."""
    rows: list[F32] = []
    about: list[tuple[int, int]] = []
    done, start = 0, time.monotonic()
    if out.exists():
        kept = _read(out)
        rows, about = list(kept["embeddings"]), [tuple(row) for row in kept["about"].tolist()]
        done = int(kept["done"][0])
    while done < len(photos) and time.monotonic() - start < seconds:
        photo = photos[done]
        try:
            embeddings = reader.read(photo.path)
        except SourceError:
            embeddings = None
        if embeddings is not None:
            rows.append(embeddings)
            about.append((photo.person, photo.part))
        done += 1
        on_photo(done)
        if done % SAVE_EVERY == 0 or done == len(photos):
            _write(out, rows, about, done)
    _write(out, rows, about, done)
    return done


def load_photos(path: Path, part: Split) -> Photos:
    """The photos of one part.

    Raises:
        UsageError: there are none.
    """
    kept = _read(path)
    chosen = kept["about"][:, 1] == PARTS.index(part)
    if not chosen.any():
        raise UsageError(f"{path} has no photo of the part '{part}'.", "Give more people: --data DIR")
    return Photos(kept["embeddings"][chosen].astype(np.float32), kept["about"][chosen, 0].astype(np.int64))


def _write(out: Path, rows: list[F32], about: list[tuple[int, int]], done: int) -> None:
    embeddings = np.stack(rows) if rows else np.zeros((0, 2, 128), np.float32)
    write_arrays(
        out, embeddings=embeddings, about=np.array(about, np.int64).reshape(-1, 2), done=np.array([done])
    )


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        return read_arrays(path, "embeddings", "about", "done")
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
