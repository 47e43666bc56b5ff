"""Runs a live chain through a script of faults and counts the raw faces that come out.

Everything between source and sink is the real thing, threads included: `run_live`, the analysis, the paste and all
guards. What renders is either the real reenactment or, since that takes longer than all the rest, a picture of a
generated person; see `CannedReenactor`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from keyface.configs.errors import UsageError
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import Detection
from keyface.pipeline.faults.judge import Filmed, LeakJudge, find_judged_faces
from keyface.pipeline.faults.script import FPS, Shot, fault_script
from keyface.pipeline.faults.stages import FaultBoard, FaultyReenactor, FaultyStage
from keyface.pipeline.frame import Frame, ImageRgb, SafeFrame
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.quality import STEPS
from keyface.pipeline.live.run import LiveOptions, LiveReport, run_live
from keyface.pipeline.live.sink import NullSink
from keyface.pipeline.live.source import LiveSource
from keyface.pipeline.live.stages import RotatingReenactor
from keyface.pipeline.measure.eyes import FindsFaces
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.people.key import Key

SIZE_WH = (320, 240)
_MOST_PER_CLIP = 200
_MOST_BEHIND = 4
_GREY = 110


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip ready to be filmed: pictures of `SIZE_WH`, and the faces that count in each."""

    name: str
    pictures: tuple[ImageRgb, ...]
    faces: tuple[tuple[Detection, ...], ...]


def load_clip(path: Path, detector: FindsFaces, *, most: int = _MOST_PER_CLIP) -> Clip:
    """Reads the first `most` pictures of a clip, fitted into `SIZE_WH`. Raises SourceError, UsageError."""
    pictures = []
    with FileSource(path) as source:
        for frame in source:
            pictures.append(_fitted(frame.image_rgb))
            if len(pictures) >= most:
                break
    if not pictures:
        raise UsageError(f"--clip: {path.name} has no picture.")
    return Clip(path.name, tuple(pictures), tuple(find_judged_faces(detector, p) for p in pictures))


def _fitted(image_rgb: ImageRgb) -> ImageRgb:
    height, width = image_rgb.shape[:2]
    scale = min(SIZE_WH[0] / width, SIZE_WH[1] / height)
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.full((SIZE_WH[1], SIZE_WH[0], 3), _GREY, np.uint8)
    left, top = (SIZE_WH[0] - size_wh[0]) // 2, (SIZE_WH[1] - size_wh[1]) // 2
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + size_wh[1], left : left + size_wh[0]] = cv2.resize(
        image_rgb, size_wh, interpolation=how
    )
    return canvas


class FaultSource(LiveSource):
    """Films a script as fast as the chain takes it, so that nothing is dropped but on purpose."""

    def __init__(
        self,
        clips: Sequence[Clip],
        shots: Iterator[Shot],
        board: FaultBoard,
        controls: LiveControls,
        seed: int,
    ) -> None:
        super().__init__(parse_source("test"))
        self._clips, self._shots, self._board, self._controls = clips, shots, board, controls
        self._random = np.random.default_rng(seed)
        self._lock = threading.Condition()
        self._waiting: dict[float, Filmed] = {}
        self._is_over = False
        self.injected: dict[str, int] = {}

    def stop(self) -> None:
        """See `LiveSource`."""
        super().stop()
        with self._lock:
            self._is_over = True
            self._lock.notify_all()

    def take(self, pts_s: float) -> Filmed | None:
        """What was filmed at a time; None for a picture that was not. Anything older counts as gone."""
        with self._lock:
            filmed = self._waiting.pop(pts_s, None)
            if filmed is not None:
                for older in [key for key in self._waiting if key < pts_s]:
                    del self._waiting[older]
                self._lock.notify_all()
            return filmed

    def __iter__(self) -> Iterator[Frame]:
        """See `LiveSource`."""
        if self.is_ready is not None:
            while not self.is_ready.wait(0.05):
                if self._is_over:
                    return
        self.status.state = "live"
        self.status.size_wh, self.status.origin_s = SIZE_WH, 0.0
        for index, shot in enumerate(self._shots):
            if self._is_over:
                return
            for kind in shot.begun:
                self.injected[kind] = self.injected.get(kind, 0) + 1
            self._control(shot)
            yield self._film(index, shot)
        self.status.state = "ended"

    def _film(self, index: int, shot: Shot) -> Frame:
        clip = self._clips[shot.clip]
        image_rgb, faces = clip.pictures[shot.number], clip.faces[shot.number]
        if shot.is_tall:
            image_rgb, faces = _framed(image_rgb), tuple(_moved(face) for face in faces)
        if "noise" in shot.faults:
            image_rgb, faces = self._random.integers(0, 256, image_rgb.shape, np.uint8), ()
        elif "damaged" in shot.faults:
            image_rgb = self._damaged(image_rgb)
        note = {"frame": index, "clip": clip.name, "number": shot.number, "faults": sorted(shot.faults)}
        self._board.wait(index - 1, 2.0)
        self._board.put(index, shot.faults)
        with self._lock:
            self._lock.wait_for(lambda: len(self._waiting) < _MOST_BEHIND or self._is_over, 2.0)
            self._waiting[shot.pts_s] = Filmed(image_rgb, faces, note)
        return Frame(image_rgb, index, shot.pts_s, is_suspect="damaged" in shot.faults)

    def _damaged(self, image_rgb: ImageRgb) -> ImageRgb:
        """Blocks moved elsewhere, as after lost packets; most of the picture stays."""
        damaged = image_rgb.copy()
        height, width = image_rgb.shape[:2]
        for _ in range(6):
            y, x = int(self._random.integers(0, height - 32)), int(self._random.integers(0, width - 64))
            v, u = int(self._random.integers(0, height - 32)), int(self._random.integers(0, width - 64))
            damaged[y : y + 32, x : x + 64] = image_rgb[v : v + 32, u : u + 64]
        return damaged

    def _control(self, shot: Shot) -> None:
        faults = shot.faults
        mode = "slate" if "pause" in faults else "mosaic" if "mosaic_mode" in faults else "live"
        if self._controls.mode != mode:
            self._controls.mode = mode  # type: ignore[assignment]  # one of the three, which mypy does not see
        if self._controls.shows_boxes != ("boxes" in faults):
            self._controls.shows_boxes = "boxes" in faults
        if "quality" in shot.begun:
            self._controls.quality = int(self._random.integers(len(STEPS)))
        if "key" in shot.begun:
            self._controls.request_key(Key.generate())


def _framed(image_rgb: ImageRgb) -> ImageRgb:
    """The picture with a border, so of another size."""
    return np.asarray(
        cv2.copyMakeBorder(image_rgb, 40, 40, 0, 0, cv2.BORDER_CONSTANT, value=(_GREY,) * 3), np.uint8
    )


def _moved(face: Detection) -> Detection:
    shift = np.array([0, 40], np.float32)
    return Detection(face.box_xyxy + np.tile(shift, 2), face.points_5 + shift, face.score)


class JudgingSink(NullSink):
    """Shows every frame to the judge."""

    queue_frames = 4

    def __init__(self, judge: LeakJudge, source: FaultSource) -> None:
        super().__init__()
        self._judge, self._source = judge, source

    def write(self, frame: SafeFrame) -> None:
        """See `LiveSink`."""
        filmed = self._source.take(frame.pts_s)
        is_slate = (
            bool((frame.image_rgb[:2] == frame.image_rgb[0, 0]).all()) and frame.image_rgb[0, 0, 0] == 24
        )
        self._judge.see(frame.image_rgb, None if is_slate else filmed)


def faulty_parts(parts: ChainParts, board: FaultBoard) -> ChainParts:
    """Parts whose reenactment and paste fail; the analysis is to be a `FaultyAnalyser` already."""
    reenact = parts.reenact
    if isinstance(reenact, RotatingReenactor):
        reenact = FaultyReenactor(reenact, board)
    elif reenact is not None:
        reenact = FaultyStage(reenact, "exception_reenact", board, lambda item: int(item.frame.index))
    paste = FaultyStage(parts.paste, "exception_paste", board, lambda item: int(item.analysed.frame.index))
    return replace(parts, reenact=reenact, paste=paste)


def run_faults(
    make_parts: Callable[[FaultBoard], ChainParts],
    clips: Sequence[Clip],
    judge: LeakJudge,
    *,
    seed: int,
    n_frames: int,
) -> tuple[LiveReport, dict[str, int]]:
    """One run; the judge counts.

    Returns:
        The report of the chain, and how often each kind of fault began.
    """
    board, controls = FaultBoard(), LiveControls(quality=0)
    shots = fault_script(seed, n_frames, [len(clip.pictures) for clip in clips])
    source = FaultSource(clips, shots, board, controls, seed)
    options = LiveOptions(max_faults_in_a_row=1000)
    sink = JudgingSink(judge, source)
    report, _ = run_live(source, [sink], faulty_parts(make_parts(board), board), options, controls=controls)
    controls.close()
    return report, dict(sorted(source.injected.items()))


def merge_counts(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum of two of `LeakCount.to_json`, or of tables of numbers; lists are joined."""
    merged = dict(total)
    for name, value in more.items():
        old = merged.get(name)
        if old is None:
            merged[name] = value
        elif isinstance(value, dict):
            merged[name] = merge_counts(old, value)
        elif isinstance(value, list):
            merged[name] = [*old, *value]
        else:
            merged[name] = old + value
    return merged


__all__ = ["FPS", "Clip", "FaultSource", "JudgingSink", "load_clip", "merge_counts", "run_faults"]
