"""Generated people before the real chain, for tests: nobody real, no data from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keyface.pipeline.assemble import make_parts, network_opener, open_portrait
from keyface.pipeline.chain import make_plans
from keyface.pipeline.face import AnalysedFrame, FaceMesh, ReenactedFrame
from keyface.pipeline.faces.detect import YuNetDetector
from keyface.pipeline.faces.geometry import points_5_from_mesh
from keyface.pipeline.faces.landmarks import LiteRtLandmarker
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.people.key import Key
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.runner import Runner
from keyface.pipeline.sample.clip import FPS, sample_frames
from keyface.pipeline.sample.performance import Performance
from keyface.pipeline.sample.portrait import GeneratedPortrait
from keyface.pipeline.stage import StagePlan

FAST = ProcessOptions(threads=1)
EXACT = ProcessOptions(preset="exact", threads=1)
# FAR 0.1 % of `Likeness` among 660 generated people (20 galleries of 8). SFace's own 0.363 holds for photos of
# real people: all generated faces have something in common that a recogniser sees.
SAME_PERSON = 0.547


def acted_frames(
    store: Any, number: int, *, n_frames: int, size_px: int, first: int = 0, seconds: float = 2.0
) -> list[Frame]:
    """Frames `first` to `first + n_frames` of a generated person's performance that lasts `seconds`."""
    with open_portrait(store, number, EXACT) as portrait:
        frames = sample_frames(portrait, Performance(seconds), size_px=size_px)
        acted = list(itertools.islice(frames, first, first + n_frames))
    return [Frame(frame.image_rgb, index, index / FPS) for index, frame in enumerate(acted)]


def portraits(store: Any, numbers: Sequence[int]) -> list[np.ndarray]:
    """One picture of each of many generated people, at rest; uint8 (256, 256, 3)."""
    pictures = []
    with open_portrait(store, numbers[0], EXACT) as first:
        for number in numbers:
            person = GeneratedPortrait(first._puppet, first._basis, number)
            pictures.append(person.render(np.zeros(3, np.float32), np.zeros(52, np.float32)))
    return pictures


def side_by_side(left: Sequence[Frame], right: Sequence[Frame]) -> list[Frame]:
    pairs = zip(left, right, strict=True)
    return [replace(a, image_rgb=np.hstack([a.image_rgb, b.image_rgb])) for a, b in pairs]


@dataclass
class Played:
    """What came out of the chain, and the virtual faces before they were pasted: (track, crop) by frame."""

    safe: list[SafeFrame] = field(default_factory=list)
    crops: list[dict[int, np.ndarray]] = field(default_factory=list)

    @property
    def images(self) -> list[np.ndarray]:
        return [frame.image_rgb for frame in self.safe]

    def crops_of(self, track_id: int) -> list[np.ndarray]:
        return [crops[track_id] for crops in self.crops if track_id in crops]


class _Collect:
    """The last stage: keeps what a sink would write."""

    def __init__(self, played: Played) -> None:
        self._played = played

    def open(self) -> None:
        pass

    def process(self, item: SafeFrame) -> None:
        assert isinstance(item, SafeFrame)
        self._played.safe.append(item)

    def close(self) -> None:
        pass


class _Tap:
    """The reenactment, overheard."""

    def __init__(self, stage: Any, played: Played) -> None:
        self.open, self.close, self._stage, self._played = stage.open, stage.close, stage, played

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        out: ReenactedFrame = self._stage.process(item)
        self._played.crops.append({virtual.track_id: virtual.crop_rgb for virtual in out.virtual})
        return out


def play(store: Any, frames: Sequence[Frame], key: Key | None, options: ProcessOptions = FAST) -> Played:
    """The frames through the whole chain, each stage on its thread; a failure ends the run."""
    parts, played = make_parts(store, key, options), Played()
    if parts.reenact is not None:
        parts = replace(parts, reenact=_Tap(parts.reenact, played))
    plans = make_plans(parts, faces=options.faces, lookahead_s=options.lookahead_s)
    write = StagePlan(name="write", stage=_Collect(played))
    Runner(frames, [*plans, write], timeout_s=60.0, on_fault="stop").run()
    parts.release()
    return played


@dataclass(frozen=True)
class Seen:
    """A face that independent looks found in a picture: mesh and SFace embedding (128,)."""

    mesh: FaceMesh
    embedding: np.ndarray


class Looker:
    """Finds faces afresh in every picture, with no memory of the chain."""

    def __init__(self, detector: YuNetDetector, landmarker: LiteRtLandmarker, recogniser: Recogniser) -> None:
        self._detector, self._landmarker, self._recogniser = detector, landmarker, recogniser

    def faces(self, image_rgb: np.ndarray) -> list[Seen]:
        """From left to right."""
        found = []
        for detection in self._detector.detect(image_rgb):
            mesh = self._landmarker.detect(
                image_rgb, box_xyxy=detection.box_xyxy, points_5=detection.points_5
            )
            if mesh is not None:
                found.append(
                    Seen(mesh, self._recogniser.embed(image_rgb, points_5_from_mesh(mesh.points_xyz)))
                )
        return sorted(found, key=lambda seen: float(seen.mesh.points_xy[:, 0].mean()))

    def only(self, images: Sequence[np.ndarray]) -> list[Seen]:
        """The one face of each picture."""
        all_faces = [self.faces(image) for image in images]
        assert [len(faces) for faces in all_faces] == [1] * len(images)
        return [faces[0] for faces in all_faces]


@contextmanager
def open_looker(store: Any) -> Iterator[Looker]:
    network = network_opener(store, EXACT)
    detector = YuNetDetector(network("yunet_dynamic"))
    landmarker = LiteRtLandmarker(network("face_mesh"), network("face_blendshapes"))
    recogniser = Recogniser(network("sface_fast"))
    try:
        yield Looker(detector, landmarker, recogniser)
    finally:
        for part in (detector, landmarker, recogniser):
            part.close()


class Likeness:
    """Compares generated faces, which all look alike to recognisers: SFace gives two different ones 0.35 on
    average (0.63 at most, 16 people), where real people have about 0. What they share is taken out first;
    then different ones have at most 0.37, and its threshold for one person means something again.
    """

    def __init__(self, gallery: np.ndarray) -> None:
        """gallery: (n, 128) embeddings of other generated people."""
        self._mean = gallery.mean(axis=0)

    def between(self, a: Sequence[Seen], b: Sequence[Seen]) -> np.ndarray:
        """(n,) cosines, face by face."""
        return np.asarray((self._centred(a) * self._centred(b)).sum(axis=1))

    def to_mean(self, a: Sequence[Seen]) -> np.ndarray:
        """(n,) cosines of faces to their own mean."""
        centred = self._centred(a)
        mean = centred.mean(axis=0)
        return np.asarray(centred @ mean / np.linalg.norm(mean))

    def _centred(self, seen: Sequence[Seen]) -> np.ndarray:
        offsets = np.stack([one.embedding for one in seen]) - self._mean
        return np.asarray(offsets / np.linalg.norm(offsets, axis=1, keepdims=True))
