"""Compares an original and an anonymised clip, frame by frame and face by face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from keyface.pipeline.face import F32, Detection, FaceMesh
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.eyes import FindsFaces, Recogniser, square_crop
from keyface.pipeline.measure.flicker import measure_flicker
from keyface.pipeline.measure.leak import (
    MIN_FACE_PX,
    Change,
    Embeddings,
    Recognition,
    embed_pair,
    is_leak,
    measure_change,
)
from keyface.pipeline.measure.media import MediaComparison, compare_media, fit_size
from keyface.pipeline.measure.reference import ClipFacts, ClipReader

_MIN_OVERLAP = 0.3  # IoU of a face in both clips, and of a face in two frames
_BACKGROUND_MARGIN = 0.3  # of the face box, on each side


class ReadsMesh(Protocol):
    """A landmarker that starts from a box, without memory."""

    def detect(
        self,
        image_rgb: ImageRgb,
        *,
        points_5: F32 | None = None,
        box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None: ...


@dataclass(frozen=True)
class Eyes:
    """The networks that look: none of them is used by the anonymiser in the same way."""

    detector: FindsFaces
    recognisers: Sequence[Recogniser]
    landmarker: ReadsMesh


@dataclass(frozen=True)
class FaceSample:
    """One face of 40 px or more of the original, in one frame, and what became of it.

    Attributes:
        detected: the anonymised clip shows a face there.
        flicker: residuals (original, anonymised), or None without a frame before.
    """

    frame: int
    track: int
    box_xyxy: F32
    detected: bool
    change: Change
    recognitions: dict[str, Recognition]
    embeddings: dict[str, Embeddings]
    meshes: tuple[FaceMesh | None, FaceMesh | None]
    flicker: tuple[float, float] | None

    @property
    def is_leak(self) -> bool:
        """Unchanged or recognised."""
        return is_leak(self.change, self.recognitions)


@dataclass
class VideoMeasures:
    """All that was measured of a pair of clips."""

    original: ClipFacts
    anonymised: ClipFacts
    media: MediaComparison
    every: int
    n_frames_compared: int
    samples: list[FaceSample] = field(default_factory=list)
    background: list[float] = field(default_factory=list)


@dataclass
class _Track:
    number: int
    box_xyxy: F32
    last_frame: int
    embedding: F32


class _Tracks:
    """Gives each face a number that lasts: by overlap with where it was, else by recognition."""

    def __init__(self, every: int, recogniser: Recogniser | None) -> None:
        self._tracks: list[_Track] = []
        self._patience = max(every, 30)
        self._recogniser = recogniser
        self._frame, self._taken = -1, set[int]()

    def number(self, frame: int, box_xyxy: F32, embeddings: dict[str, Embeddings]) -> int:
        """Track of a face; call it once for each face, strongest first."""
        if frame != self._frame:
            self._frame, self._taken = frame, set()
        vector = embeddings[self._recogniser.name].original if self._recogniser else np.zeros(1, np.float32)
        track = self._find(frame, box_xyxy, vector)
        if track is None:
            track = _Track(len(self._tracks), box_xyxy, frame, vector)
            self._tracks.append(track)
        track.box_xyxy, track.last_frame, track.embedding = box_xyxy, frame, vector
        self._taken.add(track.number)
        return track.number

    def _find(self, frame: int, box_xyxy: F32, vector: F32) -> _Track | None:
        free = [t for t in self._tracks if t.number not in self._taken]
        recent = [t for t in free if frame - t.last_frame <= self._patience]
        if recent:
            overlap = iou_matrix(box_xyxy[None], np.stack([t.box_xyxy for t in recent]))[0]
            if overlap.max() > _MIN_OVERLAP:
                return recent[int(overlap.argmax())]
        if free and self._recogniser:
            similar = [float(t.embedding @ vector) for t in free]
            best = int(np.argmax(similar))
            if similar[best] > self._recogniser.threshold:
                return free[best]
        return None


def measure_video(
    original: Path,
    anonymised: Path,
    eyes: Eyes,
    *,
    every: int = 5,
    dump: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> VideoMeasures:
    """Measures every `every`-th frame, frames being matched by their number.

    Args:
        dump: folder for side-by-side PNG crops of the leaks; they show real faces.
        progress: called with the number of each frame of the original that was reached.
    Raises:
        SourceError: a clip cannot be read.
    """
    if every < 1:
        raise ValueError(f"every: got {every}, want 1 or more")
    readers = ClipReader(original), ClipReader(anonymised)
    comparer = _Comparer(eyes, every, dump)
    for index, pair in _pairs(readers, every):
        if pair is not None:
            comparer.add(index, *pair)
        if progress is not None:
            progress(index)
    media = compare_media(*readers)
    return VideoMeasures(
        readers[0].facts(),
        readers[1].facts(),
        media,
        every,
        comparer.n_compared,
        comparer.samples,
        comparer.background,
    )


def _pairs(
    readers: tuple[ClipReader, ClipReader], every: int
) -> Iterator[tuple[int, tuple[ImageRgb, ImageRgb] | None]]:
    """Frames of one number, those asked for and the ones before them; reads both clips to the end."""

    def wanted(index: int) -> bool:
        return index % every == 0 or (index + 1) % every == 0

    first, second = readers[0].read(wanted), readers[1].read(wanted)
    for index, image in first:
        _, other = next(second, (index, None))
        if image is None or other is None:
            yield index, None
        else:
            yield index, (image, fit_size(other, (image.shape[1], image.shape[0])))
    for _ in second:
        continue


class _Comparer:
    """Takes frame pairs in order and collects samples."""

    def __init__(self, eyes: Eyes, every: int, dump: Path | None) -> None:
        self._eyes, self._every, self._dump = eyes, every, dump
        self._tracks = _Tracks(every, eyes.recognisers[0] if eyes.recognisers else None)
        self._before: tuple[int, ImageRgb, ImageRgb] | None = None
        self.samples: list[FaceSample] = []
        self.background: list[float] = []
        self.n_compared = 0

    def add(self, index: int, original_rgb: ImageRgb, anonymised_rgb: ImageRgb) -> None:
        """One pair of frames of one size."""
        if index % self._every == 0:
            self.n_compared += 1
            found = self._eyes.detector.detect(original_rgb)
            others = self._eyes.detector.detect(anonymised_rgb)
            self._add_background(original_rgb, anonymised_rgb, found)
            for face in found:
                if (face.box_xyxy[2:] - face.box_xyxy[:2]).max() >= MIN_FACE_PX:
                    self._add_face(index, original_rgb, anonymised_rgb, face, others)
        self._before = index, original_rgb, anonymised_rgb

    def _add_background(
        self, original_rgb: ImageRgb, anonymised_rgb: ImageRgb, found: list[Detection]
    ) -> None:
        height, width = original_rgb.shape[:2]
        outside = np.ones((height, width), bool)
        for face in found:
            box = face.box_xyxy
            margin = np.tile((box[2:] - box[:2]) * _BACKGROUND_MARGIN, 2) * (-1, -1, 1, 1)
            x0, y0, x1, y1 = np.clip(box + margin, 0, None).astype(int)
            outside[y0:y1, x0:x1] = False
        if outside.mean() > 0.02:
            self.background.append(float(cv2.absdiff(original_rgb, anonymised_rgb)[outside].mean()))

    def _add_face(
        self,
        index: int,
        original_rgb: ImageRgb,
        anonymised_rgb: ImageRgb,
        face: Detection,
        others: list[Detection],
    ) -> None:
        box = face.box_xyxy
        change = measure_change(original_rgb, anonymised_rgb, box)
        if change is None:
            return
        partner = _partner(box, others)
        there = None if partner is None else partner.points_5
        recognisers = self._eyes.recognisers
        vectors = embed_pair(recognisers, original_rgb, anonymised_rgb, box, face.points_5, there)
        sample = FaceSample(
            frame=index,
            track=self._tracks.number(index, box, vectors),
            box_xyxy=box,
            detected=partner is not None,
            change=change,
            recognitions={r.name: vectors[r.name].recognition(r.threshold) for r in recognisers},
            embeddings=vectors,
            meshes=(self._mesh(original_rgb, box), self._mesh(anonymised_rgb, box)),
            flicker=self._flicker(index, original_rgb, anonymised_rgb, box),
        )
        self.samples.append(sample)
        if self._dump is not None and sample.is_leak:
            _write_crops(self._dump / f"{index:06d}_{sample.track}.png", original_rgb, anonymised_rgb, box)

    def _mesh(self, image_rgb: ImageRgb, box_xyxy: F32) -> FaceMesh | None:
        return self._eyes.landmarker.detect(image_rgb, box_xyxy=box_xyxy)

    def _flicker(
        self, index: int, original_rgb: ImageRgb, anonymised_rgb: ImageRgb, box_xyxy: F32
    ) -> tuple[float, float] | None:
        if self._before is None or self._before[0] != index - 1:
            return None
        _, original_before, anonymised_before = self._before
        if original_before.shape != original_rgb.shape:
            return None
        return measure_flicker(original_before, original_rgb, anonymised_before, anonymised_rgb, box_xyxy)


def _partner(box_xyxy: F32, others: list[Detection]) -> Detection | None:
    """The face of the anonymised frame that lies where the original's was."""
    if not others:
        return None
    overlap = iou_matrix(box_xyxy[None], np.stack([d.box_xyxy for d in others]))[0]
    return others[int(overlap.argmax())] if overlap.max() > _MIN_OVERLAP else None


def _write_crops(path: Path, original_rgb: ImageRgb, anonymised_rgb: ImageRgb, box_xyxy: F32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pair = np.hstack([square_crop(image, box_xyxy, 1.6, 256)[0] for image in (original_rgb, anonymised_rgb)])
    cv2.imwrite(str(path), pair[..., ::-1])
