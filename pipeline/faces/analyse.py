"""The analyse stage: faces, their tracks, landmarks and expressions in every frame.

Landmarks follow a face from frame to frame, which is precise and costs no detector. The detector runs
every few frames, and whenever something is not sure: a track that was not seen where it was expected,
that jumped or is young, a cut, a damaged frame. It has the last word: a mesh where the detector finds no
face, also on a second, closer look, is not believed, and its track is only predicted (and so redacted).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from keyface.configs.errors import StageError, UsageError
from keyface.configs.schema import EngineOptions
from keyface.engines.card_frame import CardFrame
from keyface.engines.engine import Engine
from keyface.engines.open import open_engine
from keyface.engines.store import ModelStore
from keyface.pipeline.face import F32, AnalysedFrame, Detection, FaceMesh
from keyface.pipeline.faces.detect import DetectOptions, Detector, YuNetDetector
from keyface.pipeline.faces.geometry import F64, box_from_mesh, iou_matrix, points_5_from_mesh
from keyface.pipeline.faces.landmarks import Landmarker, LiteRtLandmarker
from keyface.pipeline.faces.landmarks_face_alignment import FaceAlignmentLandmarker
from keyface.pipeline.faces.landmarks_mediapipe import MediaPipeLandmarker
from keyface.pipeline.faces.plausible import is_plausible
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.faces.scene_cut import SceneCutDetector
from keyface.pipeline.faces.track import DETECTION_SIGMA, MESH_SIGMA, Track, Tracker, TrackOptions
from keyface.pipeline.frame import Frame, ImageRgb

LandmarkerName = Literal["litert", "mediapipe", "face_alignment"]

_PATIENCE = 8  # frames
_UNSEEN_S = 0.2  # after so long without a frame the detector is asked: who came meanwhile has no track
_RETRY_EVERY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyseOptions:
    """How frames are analysed.

    Attributes:
        detect: the detector's options; its `min_score` is replaced by `keep_score`.
        track: the tracks' options.
        keep_score: detection score that is enough to go on with a track, and for a newcomer to get a second,
            closer look.
        near_score: score in the closer look from which a newcomer is a face.
        doubt_score: a newcomer from this score on is a face if seen twice, even if the closer look fails;
            below, it is dropped then.
        sure_score: a newcomer from this score on is a face at once, without a closer look.
        is_still: the source is a photo: doubtful newcomers are faces, as there is no second sight.
        detect_every: frames from one run of the detector to the next when all is sure, >= 1.
        longest_gap_s: two frames further apart belong to two scenes, whatever they show. Files may have few frames a
            second; a live source that paused may have been turned elsewhere.
        sure_after: frames in which a track must have been seen before it can count as sure.
        min_mesh_px: a smaller face (longer side) gets no mesh, and so is redacted.
        min_presence: mesh score from which a mesh is believed.
        confirm_iou: overlap of a mesh's and a detection's box from which the mesh is confirmed.
        max_jump: jump of a box in one frame, in sides, beyond which the detector is asked.
        reidentify: compare a newcomer's appearance with lost faces.
        landmarker: which back-end gives the landmarks; "face_alignment" cannot drive expressions.
    """

    detect: DetectOptions = field(default_factory=DetectOptions)
    track: TrackOptions = field(default_factory=TrackOptions)
    keep_score: float = 0.35
    near_score: float = 0.5
    doubt_score: float = 0.65
    sure_score: float = 0.8
    is_still: bool = False
    detect_every: int = 4
    longest_gap_s: float = math.inf
    sure_after: int = 3
    min_mesh_px: float = 20.0
    min_presence: float = 0.5
    confirm_iou: float = 0.4
    max_jump: float = 0.25
    reidentify: bool = True
    landmarker: LandmarkerName = "litert"

    def __post_init__(self) -> None:
        if self.detect_every < 1:
            raise UsageError(f"analyse: detect_every is {self.detect_every}, want 1 or more.")
        if not 0 <= self.keep_score <= self.doubt_score <= self.sure_score <= 1:
            raise UsageError("analyse: want 0 <= keep_score <= doubt_score <= sure_score <= 1.")
        if self.landmarker not in get_args(LandmarkerName):
            legal = ", ".join(get_args(LandmarkerName))
            raise UsageError(f"analyse: unknown landmarker {self.landmarker!r}.", f"Legal: {legal}.")


class Analyser:
    """`Stage[Frame, AnalysedFrame]`.

    Args:
        open_detector, open_landmarker: called by `open`, on the stage's thread, which then owns the engines.
        open_recogniser: called when the first face is lost, to recognise it if it comes back; None: a face
            that comes back gets a new id.
        card: on which the other parts make their inputs; opened before them and closed after them.
    """

    _last_s: float

    def __init__(
        self,
        options: AnalyseOptions | None = None,
        *,
        open_detector: Callable[[], Detector],
        open_landmarker: Callable[[], Landmarker],
        open_recogniser: Callable[[], Recogniser] | None = None,
        card: CardFrame | None = None,
    ) -> None:
        self.options = options or AnalyseOptions()
        self._open_detector = open_detector
        self._open_landmarker = open_landmarker
        self._open_recogniser = open_recogniser
        self._card = card
        self._detector: Detector | None = None
        self._landmarker: Landmarker | None = None
        self._recogniser: Recogniser | None = None
        # May be set on any thread; the next frame obeys.
        self.detect_every = self.options.detect_every
        self.detect_scale = 1.0  # of the detector's input
        self._n_frames = 0
        self._since_detection = 0
        self._reset()

    @classmethod
    def from_store(
        cls,
        store: ModelStore,
        options: AnalyseOptions | None = None,
        *,
        engine_options: EngineOptions | None = None,
    ) -> Analyser:
        """With the default networks of the model store; nothing is opened yet."""
        options = options or AnalyseOptions()

        def network(name: str) -> Engine:
            return open_engine(store.path(name), name=name, options=engine_options)

        def landmarker() -> Landmarker:
            if options.landmarker == "mediapipe":
                return MediaPipeLandmarker(store.path("face_landmarker"))
            if options.landmarker == "face_alignment":
                return FaceAlignmentLandmarker()
            return LiteRtLandmarker(network("face_mesh"), network("face_blendshapes"))

        return cls(
            options,
            open_detector=lambda: YuNetDetector(network("yunet_dynamic"), options.detect),
            open_landmarker=landmarker,
            open_recogniser=(lambda: Recogniser(network("sface_fast"))) if options.reidentify else None,
        )

    def open(self) -> None:
        """Opens the networks; a new source begins."""
        self._reset()
        if self._card is not None:
            self._card.open()
        self._detector = self._open_detector()
        self._landmarker = self._open_landmarker()

    def close(self) -> None:
        """Closes what is open; twice is allowed."""
        for part in (self._detector, self._landmarker, self._recogniser, self._card):
            if part is not None:
                part.close()
        self._detector = self._landmarker = self._recogniser = None

    def process(self, item: Frame) -> AnalysedFrame:
        """Finds the faces of the next frame. Raises EngineError when a network fails, StageError before
        `open`."""
        image_rgb = item.image_rgb
        gap_s = item.pts_s - self._last_s
        self._last_s = item.pts_s
        is_cut = (
            self._cuts.is_cut(image_rgb, is_suspect=item.is_suspect) or gap_s > self.options.longest_gap_s
        )
        self._tracker.advance(item.pts_s, is_cut=is_cut)
        self._follow(image_rgb)
        self._since_detection += 1
        if is_cut or item.is_suspect or gap_s > _UNSEEN_S or not self._is_sure(image_rgb):
            self._detect(image_rgb)
            self._since_detection = 0
        self._n_frames += 1
        return AnalysedFrame(item, self._tracker.finish(image_rgb), is_cut=is_cut)

    def _reset(self) -> None:
        embed = self._embed if self._open_recogniser is not None else None
        self._tracker = Tracker(self.options.track, embed)
        self._cuts = SceneCutDetector()
        self._n_frames = 0
        self._since_detection = 0
        self._last_s = math.inf  # of the frame before; the first one comes after no gap

    def _is_sure(self, image_rgb: ImageRgb) -> bool:
        """False when the detector is due. Tracks without a mesh cost a closer look, not a whole detection,
        as long as that finds them."""
        options = self.options
        if self._n_frames < options.sure_after or self._since_detection >= self.detect_every:
            return False
        tracks = self._tracker.tracks
        if any(track.n_seen < options.sure_after or track.gap_s > 0 for track in tracks):
            return False
        for track in tracks:
            if not track.is_seen:
                self._look_closer(track, image_rgb)
        return all(track.is_seen for track in tracks)

    # ------------------------------------------------------------ landmarks
    def _follow(self, image_rgb: ImageRgb) -> None:
        """Finds the meshes of the frame before again; a track whose mesh jumps stays unseen."""
        _, landmarker = self._parts()
        for track in self._tracker.tracks:
            if track.mesh is None:
                self._follow_unseen(track, image_rgb)
                continue
            mesh = landmarker.detect(image_rgb, previous=_moved(track.mesh, track.step_xy))
            if mesh is None or not self._is_believable(mesh, track.filter.box_xyxy, image_rgb):
                continue
            box = box_from_mesh(mesh.points_xyz)
            if track.filter.jump(box) > self.options.max_jump:
                continue
            points_5 = points_5_from_mesh(mesh.points_xyz)
            track.see(box, sigma=MESH_SIGMA, score=mesh.score, points_5=points_5, mesh=mesh)

    def _follow_unseen(self, track: Track, image_rgb: ImageRgb) -> None:
        """Keeps the place of a face that the detector has lost and the landmarks have not. What they say is enough
        for a mosaic, not for a virtual face."""
        if track.ghost is None or self.options.track.max_followed_s <= self.options.track.max_gap_s:
            return
        _, landmarker = self._parts()
        mesh = landmarker.detect(image_rgb, previous=_moved(track.ghost, track.step_xy))
        if mesh is None or not self._is_believable(mesh, track.filter.box_xyxy, image_rgb):
            track.ghost = None
            return
        box = box_from_mesh(mesh.points_xyz)
        if track.filter.jump(box) > self.options.max_jump:
            track.ghost = None
            return
        track.follow(box, mesh, sigma=DETECTION_SIGMA, pts_s=self._tracker.now_s)

    def _find_mesh(self, image_rgb: ImageRgb, detection: Detection) -> FaceMesh | None:
        box = detection.box_xyxy
        if float((box[2:] - box[:2]).max()) < self.options.min_mesh_px:
            return None
        _, landmarker = self._parts()
        mesh = landmarker.detect(image_rgb, points_5=detection.points_5, box_xyxy=box)
        return mesh if mesh is not None and self._is_believable(mesh, box, image_rgb) else None

    def _is_believable(self, mesh: FaceMesh, box_xyxy: F32, image_rgb: ImageRgb) -> bool:
        height, width = image_rgb.shape[:2]
        if not np.isfinite(mesh.points_xyz).all():
            return False
        return mesh.score >= self.options.min_presence and is_plausible(mesh, box_xyxy, (width, height))

    # ------------------------------------------------------------ detection
    def _detect(self, image_rgb: ImageRgb) -> None:
        detector, _ = self._parts()
        detector.input_scale = self.detect_scale
        found = _usable(detector.detect(image_rgb, min_score=self.options.keep_score))
        pairs, newcomers = self._tracker.assign(found)
        for track, detection in pairs:
            self._confirm(track, detection, image_rgb)
        confirmed = {id(track) for track, _ in pairs}
        for track in self._tracker.tracks:
            if id(track) not in confirmed:
                self._look_closer(track, image_rgb)
        taken = [track.filter.box_xyxy for track in self._tracker.tracks if track.is_seen]
        for detection in newcomers:
            if taken and iou_matrix(detection.box_xyxy[None], np.stack(taken)).max() > 0.5:
                continue  # a second box on a face that is taken
            self._welcome(detection, image_rgb)

    def _welcome(self, detection: Detection, image_rgb: ImageRgb) -> None:
        """Begins a track for a newcomer if it is a face."""
        detector, _ = self._parts()
        is_sure = detection.score >= self.options.sure_score
        if not is_sure:
            near = _usable(
                detector.detect_near(image_rgb, detection.box_xyxy, min_score=self.options.near_score)
            )
            closer = _best_overlap(detection.box_xyxy, near, self.options.confirm_iou)
            if closer is None and detection.score < self.options.doubt_score:
                return
            is_sure = closer is not None or self.options.is_still
            detection = closer or detection
        mesh = self._find_mesh(image_rgb, detection)
        self._tracker.begin(detection, mesh, image_rgb, is_sure=is_sure)

    def _confirm(self, track: Track, detection: Detection, image_rgb: ImageRgb) -> None:
        """The detector sees the face of a track: its mesh stays when it lies there, else it is sought
        again."""
        if track.is_seen and track.mesh is not None:
            overlap = iou_matrix(box_from_mesh(track.mesh.points_xyz)[None], detection.box_xyxy[None])
            if overlap[0, 0] >= self.options.confirm_iou:
                return
        # Where a mesh was sought in vain for long it is sought less often: small faces come in crowds.
        is_worth_it = track.n_meshless < _PATIENCE or track.n_meshless % _RETRY_EVERY == 0
        mesh = self._find_mesh(image_rgb, detection) if is_worth_it else None
        box, sigma = detection.box_xyxy, DETECTION_SIGMA
        if mesh is not None:
            box, sigma = box_from_mesh(mesh.points_xyz), MESH_SIGMA
        track.see(box, sigma=sigma, score=detection.score, points_5=detection.points_5, mesh=mesh)

    def _look_closer(self, track: Track, image_rgb: ImageRgb) -> None:
        """Seeks a track's face in a closer cut-out; when it is not there the track is unseen."""
        detector, _ = self._parts()
        box = track.filter.box_xyxy
        near = _usable(detector.detect_near(image_rgb, box, min_score=self.options.keep_score))
        found = _best_overlap(box, near, self.options.track.match_iou)
        if found is None:
            track.is_seen = False
        else:
            self._confirm(track, found, image_rgb)

    # ------------------------------------------------------------ parts
    def _parts(self) -> tuple[Detector, Landmarker]:
        if self._detector is None or self._landmarker is None:
            raise StageError("the analyse stage is not open.", "Call open() first.")
        return self._detector, self._landmarker

    def _embed(self, image_rgb: ImageRgb, detection: Detection) -> F32:
        if self._recogniser is None:
            if self._open_recogniser is None:
                raise StageError("the analyse stage has no recogniser.")
            self._recogniser = self._open_recogniser()
        return self._recogniser.embed(image_rgb, detection.points_5)


def _usable(detections: list[Detection]) -> list[Detection]:
    """Those whose place is finite: one that is not would spoil a track for good."""
    return [d for d in detections if np.isfinite(d.box_xyxy).all() and np.isfinite(d.points_5).all()]


def _best_overlap(box_xyxy: F32, detections: list[Detection], min_iou: float) -> Detection | None:
    if not detections:
        return None
    overlaps = iou_matrix(box_xyxy[None], np.stack([d.box_xyxy for d in detections]))[0]
    best = int(overlaps.argmax())
    return detections[best] if overlaps[best] >= min_iou else None


def _moved(mesh: FaceMesh, step_xy: F64) -> FaceMesh:
    """The mesh shifted by (2,) px."""
    shift = np.array([*step_xy, 0.0], np.float32)
    return replace(mesh, points_xyz=mesh.points_xyz + shift)
