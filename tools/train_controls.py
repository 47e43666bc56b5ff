"""Reads controls of real motion from a folder of photos and clips: head pose and 52 expression coefficients of
the largest face, and nothing else. No picture, landmark or embedding is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.batch import kind_of
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.detect import Detector
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.photo import PHOTO_SUFFIXES, read_photo

CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})
MIN_SCORE = 0.7  # below it the mesh is not trusted
MIN_FOLLOWED_SCORE = 0.6  # below it the face is looked for anew in the next frame
EVERY = 2  # frames of a clip
SAVE_EVERY = 50  # files
N_COLUMNS = 56


def list_sources(folders: Sequence[Path]) -> list[Path]:
    """All photos, then all clips, below the folders (or the files themselves), sorted within each folder.

    Raises:
        UsageError: a folder that is missing, or nothing in any of them.
    """
    files: list[Path] = []
    for folder in folders:
        if not folder.exists():
            raise UsageError(f"'{folder}' does not exist.", "Give a folder of photos and clips: --data DIR")
        files += [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    photos = [p for p in files if p.suffix.lower() in PHOTO_SUFFIXES]
    clips = [p for p in files if p.suffix.lower() in CLIP_SUFFIXES]
    if not photos and not clips:
        raise UsageError(
            "There is no photo and no clip in the folders given.", "Give folders that hold some."
        )
    return photos + clips


class ControlReader:
    """Follows the largest face of each source."""

    def __init__(self, detector: Detector, landmarker: Landmarker) -> None:
        self._detector, self._landmarker = detector, landmarker

    def read(self, path: Path, clip_number: int) -> list[F32]:
        """Rows (56,): clip_number, yaw, pitch, roll in degrees, 52 blendshapes; [] where no face is found.

        Raises:
            SourceError: the file cannot be read.
        """
        if kind_of(path) == "photo":
            mesh = self._find(read_photo(path)[0].image_rgb)
            return [] if mesh is None or mesh.score < MIN_SCORE else [_row(0, mesh)]
        rows, previous = [], None
        with FileSource(path) as source:
            for frame in source:
                if frame.index % EVERY:
                    continue
                mesh = self._follow(frame.image_rgb, previous)
                previous = mesh if mesh is not None and mesh.score > MIN_FOLLOWED_SCORE else None
                if mesh is not None and mesh.score > MIN_SCORE:
                    rows.append(_row(clip_number, mesh))
        return rows

    def _follow(self, image_rgb: ImageRgb, previous: FaceMesh | None) -> FaceMesh | None:
        if previous is None:
            return self._find(image_rgb)
        return self._landmarker.detect(image_rgb, previous=previous)

    def _find(self, image_rgb: ImageRgb) -> FaceMesh | None:
        found = self._detector.detect(image_rgb)
        if not found:
            return None
        widest = max(found, key=lambda d: float(d.box_xyxy[2] - d.box_xyxy[0]))
        return self._landmarker.detect(image_rgb, points_5=widest.points_5, box_xyxy=widest.box_xyxy)


def _row(clip_number: int, mesh: FaceMesh) -> F32:
    return np.concatenate([[clip_number], mesh.pose_ypr_deg, mesh.blendshapes]).astype(np.float32)


def read_controls(
    sources: Sequence[Path],
    out: Path,
    reader: ControlReader,
    *,
    seconds: float = float("inf"),
    on_file: Callable[[int, int], None] = lambda n_files, n_rows: None,
    on_unreadable: Callable[[SourceError], None] = lambda error: None,
) -> tuple[int, int]:
    """Writes float32 (M, 56) to `out` (.npy); resumes from it by the list of finished files beside it.

    Returns:
        Files finished and rows found so far.
    """
    log = _Log(out)
    start = time.monotonic()
    clip_number = 0
    for number, path in enumerate(sources, 1):
        clip_number += kind_of(path) != "photo"
        if not log.is_done(path):
            if time.monotonic() - start >= seconds:
                break
            try:
                rows = reader.read(path, clip_number)
            except SourceError as error:
                on_unreadable(error)
                rows = []
            log.add(path, rows)
            if kind_of(path) != "photo" or number % SAVE_EVERY == 0:
                log.save()
        on_file(number, len(log.rows))
    log.save()
    return log.n_done(sources), len(log.rows)


class _Log:
    """The rows so far and the files that they came from."""

    def __init__(self, out: Path) -> None:
        self._out, self._list = out, out.with_suffix(".files.json")
        self._done: list[str] = []
        self.rows: list[F32] = []
        if out.exists() and self._list.exists():
            self._done = [str(name) for name in json.loads(self._list.read_text("utf-8"))]
            self.rows = list(np.load(out, allow_pickle=False).astype(np.float32))

    def is_done(self, path: Path) -> bool:
        return str(path.resolve()) in self._done

    def n_done(self, sources: Sequence[Path]) -> int:
        return sum(self.is_done(path) for path in sources)

    def add(self, path: Path, rows: list[F32]) -> None:
        self._done.append(str(path.resolve()))
        self.rows += rows

    def save(self) -> None:
        """The rows first: should the list be older, a file is read twice, and none is left out."""
        self._out.parent.mkdir(parents=True, exist_ok=True)
        partial = self._out.with_suffix(".partial.npy")
        table = np.stack(self.rows) if self.rows else np.zeros((0, N_COLUMNS), np.float32)
        np.save(partial, table)
        partial.replace(self._out)
        self._list.write_text(json.dumps(self._done), "utf-8")


def load_controls(path: Path) -> F32:
    """float32 (M, 56) with at least one row.

    Raises:
        UsageError: missing, damaged or empty.
    """
    way_out = f"Make it: keyface train controls --data DIR --out {path}"
    try:
        rows: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"'{path}' cannot be read as controls: {error}.", way_out) from error
    if rows.ndim != 2 or rows.shape[1] != N_COLUMNS or len(rows) == 0:
        raise UsageError(f"'{path}' has shape {rows.shape}, want (M, {N_COLUMNS}) with M > 0.", way_out)
    return np.asarray(rows, np.float32)
