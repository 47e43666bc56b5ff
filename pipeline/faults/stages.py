"""Breaks a chain on purpose: detectors that miss, stages that fail, figures that are no numbers.

The faults sit inside the parts of the real chain, so that an exception leaves their state half done, as it would in
life. `FaultBoard` says which faults the frame at hand has.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.pipeline.face import F32, AnalysedFrame, Detection, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.faces.analyse import AnalyseOptions, Analyser
from keyface.pipeline.faces.detect import Detector
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.faults.script import FaultKind
from keyface.pipeline.frame import Frame, ImageRgb, Redaction
from keyface.pipeline.live.stages import RotatingReenactor
from keyface.pipeline.paste.place import face_width, fit_frame_from_crop, misfit
from keyface.pipeline.people.key import Key
from keyface.pipeline.reenact.reenactor import Pace, ReenactOptions
from keyface.pipeline.stage import Stage

_STALL_S = 0.15
_FURTHEST = 0.12  # misfit of a stand-in that is shown


class FaultBoard:
    """Frame number -> its faults; filled by the source, asked by the stages, each about its own frame."""

    def __init__(self) -> None:
        self._faults: dict[int, frozenset[FaultKind]] = {}
        self._lock = threading.Condition()
        self._analysed = -1  # number of the frame that is analysed now
        self.injected: dict[str, int] = {}  # kind -> times that a stage really met it

    def put(self, index: int, faults: frozenset[FaultKind]) -> None:
        """Notes the faults of a frame, and forgets old ones."""
        self._faults[index] = faults
        self._faults.pop(index - 200, None)

    def has(self, index: int, kind: FaultKind) -> bool:
        """Whether a frame has a fault; counted."""
        found = kind in self._faults.get(index, ())
        if found:
            self.injected[kind] = self.injected.get(kind, 0) + 1
        return found

    def now(self, kind: FaultKind) -> bool:
        """The same for the frame that is analysed now."""
        return self.has(self._analysed, kind)

    def begin(self, index: int) -> None:
        """The analysis has taken a frame."""
        with self._lock:
            self._analysed = index
            self._lock.notify_all()

    def wait(self, index: int, timeout_s: float) -> None:
        """Until the analysis has taken a frame, so that the next one does not push it out."""
        with self._lock:
            self._lock.wait_for(lambda: self._analysed >= index, timeout_s)


class FaultyDetector:
    """Misses faces, gives boxes that are no numbers, fails."""

    def __init__(self, detector: Detector, board: FaultBoard) -> None:
        self._detector, self._board = detector, board
        self.input_scale = 1.0

    def detect(self, image_rgb: ImageRgb, *, min_score: float | None = None) -> list[Detection]:
        """See `Detector`."""
        self._detector.input_scale = self.input_scale
        return self._spoilt(self._detector.detect(image_rgb, min_score=min_score))

    def detect_near(
        self, image_rgb: ImageRgb, box_xyxy: F32, *, min_score: float, input_px: int = 160
    ) -> list[Detection]:
        """See `Detector`."""
        found = self._detector.detect_near(image_rgb, box_xyxy, min_score=min_score, input_px=input_px)
        return self._spoilt(found)

    def close(self) -> None:
        """See `Detector`."""
        self._detector.close()

    def _spoilt(self, found: list[Detection]) -> list[Detection]:
        board = self._board
        if board.now("exception_detector"):
            raise EngineError("detector: broken on purpose.")
        if board.now("missed_detections") or board.now("missed_everything"):
            return []
        if board.now("one_face_missed"):
            found = found[1:]
        if board.now("nan_boxes"):
            nothing = np.full(4, np.nan, np.float32)
            found = [replace(detection, box_xyxy=nothing) for detection in found]
        return found


class FaultyLandmarker:
    """Finds nothing, gives points that are no numbers, fails."""

    def __init__(self, landmarker: Landmarker, board: FaultBoard) -> None:
        self._landmarker, self._board = landmarker, board

    def detect(
        self, image_rgb: ImageRgb, *, points_5: F32 | None = None, box_xyxy: F32 | None = None,
        previous: FaceMesh | None = None,
    ) -> FaceMesh | None:  # fmt: skip
        """See `Landmarker`."""
        if self._board.now("exception_landmarks"):
            raise EngineError("landmarks: broken on purpose.")
        if self._board.now("missed_everything"):
            return None
        mesh = self._landmarker.detect(image_rgb, points_5=points_5, box_xyxy=box_xyxy, previous=previous)
        if mesh is not None and self._board.now("nan_landmarks"):
            return replace(mesh, points_xyz=np.full_like(mesh.points_xyz, np.nan))
        return mesh

    def close(self) -> None:
        """See `Landmarker`."""
        self._landmarker.close()


class FaultyStage:
    """A stage of the chain that fails before or after its work, stalls, or gives a place that is no number.

    Args:
        stage: the real one.
        kind: which exception is its own.
        index_of: number of the frame in an item.
    """

    def __init__(
        self, stage: Stage[Any, Any], kind: FaultKind, board: FaultBoard, index_of: Callable[[Any], int]
    ) -> None:
        self._stage, self._kind, self._board, self._index_of = stage, kind, board, index_of

    def open(self) -> None:
        """Opens the real one."""
        self._stage.open()

    def process(self, item: Any) -> Any:
        """See the class."""
        index = self._index_of(item)
        if self._board.has(index, self._kind) and index % 2:
            raise RuntimeError(f"{self._kind}: before the work")
        output = self._stage.process(item)
        if self._board.has(index, self._kind):
            raise RuntimeError(f"{self._kind}: after the work")
        if self._kind == "exception_reenact" and self._board.has(index, "stall"):
            time.sleep(_STALL_S)
        if isinstance(output, ReenactedFrame) and self._board.has(index, "nan_place"):
            nowhere = np.full((2, 3), np.nan, np.float32)
            output = replace(
                output, virtual=tuple(replace(v, frame_from_crop=nowhere) for v in output.virtual)
            )
        return output

    def close(self) -> None:
        """Closes the real one."""
        self._stage.close()


class FaultyReenactor(FaultyStage):
    """The same around a reenactment that has a pace and can change its key."""

    def __init__(self, stage: RotatingReenactor, board: FaultBoard) -> None:
        super().__init__(stage, "exception_reenact", board, lambda item: int(item.frame.index))  # type: ignore[arg-type]
        self._rotating = stage

    @property
    def pace(self) -> Pace:
        """That of the real one."""
        return self._rotating.pace

    @pace.setter
    def pace(self, value: Pace) -> None:
        self._rotating.pace = value

    @property
    def is_rotating(self) -> bool:
        """That of the real one."""
        return self._rotating.is_rotating

    def rotate(self, key: Key, *, keeps_old: bool) -> None:
        """Changes the key of the real one."""
        self._rotating.rotate(key, keeps_old=keeps_old)


class FaultyAnalyser(Analyser):
    """The real analysis around a detector and a landmarker that fail, and failing itself."""

    def __init__(
        self, board: FaultBoard, options: AnalyseOptions, *, open_detector: Callable[[], Detector],
        open_landmarker: Callable[[], Landmarker], open_recogniser: Callable[[], Recogniser],
    ) -> None:  # fmt: skip
        super().__init__(
            options,
            open_detector=lambda: FaultyDetector(open_detector(), board),
            open_landmarker=lambda: FaultyLandmarker(open_landmarker(), board),
            open_recogniser=open_recogniser,
        )
        self._board = board

    def process(self, item: Frame) -> AnalysedFrame:
        """See `Analyser`."""
        self._board.begin(item.index)
        is_broken = self._board.now("exception_analyse")
        if is_broken and item.index % 2:
            raise RuntimeError("exception_analyse: before the work")
        analysed = super().process(item)
        if is_broken:
            raise RuntimeError("exception_analyse: after the work")
        return analysed


class CannedReenactor:
    """`Stage[AnalysedFrame, ReenactedFrame]` that lays one picture of a generated person on every face. It renders
    nothing, so a hundred thousand frames are affordable; all that comes before and after it is real.

    Args:
        crop_rgb, mesh: the picture, uint8 (S, S, 3), and the face in it.
    """

    def __init__(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> None:
        self._crop_rgb, self._mesh = crop_rgb, mesh

    def open(self) -> None:
        """Nothing to open."""

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        """The picture on each face that it fits, a mosaic on each other."""
        virtual: list[VirtualFace] = []
        redactions: list[Redaction] = []
        for face in item.faces:
            if face.mesh is not None and face_width(face.mesh.points_xy) >= ReenactOptions().min_face_px:
                matrix = fit_frame_from_crop(self._mesh.points_xyz, face.mesh.points_xyz)
                if misfit(self._mesh.points_xyz, face.mesh.points_xyz, matrix) <= _FURTHEST:
                    virtual.append(VirtualFace(face.track_id, self._crop_rgb, self._mesh, matrix))
                    continue
            x0, y0, x1, y1 = (float(v) for v in face.box_xyxy)
            redactions.append(Redaction((x0, y0, x1, y1), "reenactment_failed", face.track_id))
        return ReenactedFrame(item, tuple(virtual), tuple(redactions))

    def close(self) -> None:
        """Nothing to close."""
