"""Reads clips for measuring, apart from the chain's own capture, and compares what holds them together:
frames, timestamps, duration, audio."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from keyface.configs.errors import SourceError
from keyface.pipeline.frame import ImageRgb

_MAX_LAG = 3
_THUMB_WH = (32, 18)


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """One audio track: codec, packets, seconds, start relative to the file, SHA-256 of all payloads."""

    codec: str
    n_packets: int
    duration_s: float
    start_s: float
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What a clip is, known when all of it was read.

    Attributes:
        size_wh: of the upright picture, px.
        fps: from the median frame duration, 0 for a single frame.
        pts_s: presentation time of every frame.
        duration_s: of the container.
        n_damaged: packets that could not be decoded.
    """

    name: str
    size_wh: tuple[int, int]
    fps: float
    pts_s: tuple[float, ...]
    duration_s: float
    codec: str
    audio: tuple[AudioFacts, ...]
    n_damaged: int

    @property
    def n_frames(self) -> int:
        """Number of frames that could be decoded."""
        return len(self.pts_s)


class ClipReader:
    """Decodes a video file in order and notes what it sees.

    Raises:
        SourceError: from the constructor or `read` when there is no readable video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.thumbnails: list[npt.NDArray[np.int16]] = []
        self._pts_s: list[float] = []
        self._n_damaged = 0
        self._size_wh = (0, 0)
        self._duration_s, self._codec = 0.0, ""
        if not path.is_file():
            raise SourceError(f"{path}: there is no such file.", "Give a video file.")

    def read(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, ImageRgb | None]]:
        """Yields (index, uint8 (H, W, 3) or None where `wanted(index)` is False) for every frame."""
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise SourceError(f"{self.path}: the file has no video.", "Give a video file.")
                self._duration_s = float(container.duration or 0) / av.time_base
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                self._codec = stream.codec_context.name
                for frame in self._frames(container, stream):
                    yield self._note(frame, wanted)
        except (av.FFmpegError, OSError) as error:
            raise SourceError(
                f"{self.path}: cannot be read as video: {error}.", "Give a video file."
            ) from error
        if not self._pts_s:
            raise SourceError(f"{self.path}: not one frame could be decoded.", "Give a video file.")

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Goes on after a damaged packet; each one is counted."""
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except (av.InvalidDataError, av.ExternalError):
                self._n_damaged += 1

    def _note(self, frame: Any, wanted: Callable[[int], bool]) -> tuple[int, ImageRgb | None]:
        index = len(self._pts_s)
        last = self._pts_s[-1] if self._pts_s else 0.0
        self._pts_s.append(last if frame.pts is None else float(frame.pts * frame.time_base))
        image = None
        if wanted(index):
            turns = (getattr(frame, "rotation", 0) or 0) // 90
            image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        if index == 0:
            self._size_wh = frame.width, frame.height
        thumb = frame.reformat(*_THUMB_WH, "gray").to_ndarray()
        self.thumbnails.append(np.asarray(thumb, np.int16))
        return index, image

    def facts(self) -> ClipFacts:
        """Call it after `read` is exhausted."""
        gaps = np.diff(self._pts_s)
        fps = 1.0 / float(np.median(gaps)) if len(gaps) and np.median(gaps) > 0 else 0.0
        audio = read_audio(self.path)
        return ClipFacts(
            self.path.name, self._size_wh, fps, tuple(self._pts_s), self._duration_s, self._codec, audio,
            self._n_damaged,
        )  # fmt: skip


def read_audio(path: Path) -> tuple[AudioFacts, ...]:
    """Facts of every audio track of a file, from its packets, not decoded."""
    with av.open(str(path)) as container:
        streams = container.streams.audio
        hashes = {s.index: hashlib.sha256() for s in streams}
        counts = dict.fromkeys(hashes, 0)
        seconds = dict.fromkeys(hashes, 0.0)
        starts: dict[int, float] = {}
        for packet in container.demux(*streams) if streams else ():
            index, base = packet.stream.index, packet.time_base
            if not packet.size or base is None:
                continue
            hashes[index].update(bytes(packet))
            counts[index] += 1
            seconds[index] += float((packet.duration or 0) * base)
            if packet.pts is not None:
                starts.setdefault(index, float(packet.pts * base))
        return tuple(
            AudioFacts(
                s.codec_context.name, counts[s.index], seconds[s.index], starts.get(s.index, 0.0),
                hashes[s.index].hexdigest(),
            )
            for s in streams
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MediaComparison:
    """How the containers differ.

    Attributes:
        frame_count_difference: anonymised minus original.
        timestamp_drift_frames: largest shift of a frame, from the first one on, and of the sound
            against the picture, in median frame durations.
        duration_difference_frames: of the containers, in median frame durations.
        audio_tracks_lost: tracks of the original that are missing or not of the same length.
        audio: "none", "identical" (all payloads), "transcoded" or "lost".
        content_lag_frames: shift at which the pictures fit best, 0 when they are in step.
    """

    frame_count_difference: int
    timestamp_drift_frames: float
    duration_difference_frames: float
    audio_tracks_lost: int
    audio: str
    content_lag_frames: int


def compare_media(original: ClipReader, anonymised: ClipReader) -> MediaComparison:
    """Both readers must be exhausted."""
    a, b = original.facts(), anonymised.facts()
    frame_s = 1.0 / a.fps if a.fps else 0.04
    n = min(a.n_frames, b.n_frames)
    ta, tb = (np.array(f.pts_s[:n]) - f.pts_s[0] for f in (a, b))
    drift = float(np.abs(ta - tb).max())
    lost, same = _compare_audio(a, b, frame_s)
    for track_a, track_b in zip(a.audio, b.audio, strict=False):
        shift = (track_a.start_s - a.pts_s[0]) - (track_b.start_s - b.pts_s[0])
        drift = max(drift, abs(shift))
    return MediaComparison(
        b.n_frames - a.n_frames,
        drift / frame_s,
        abs(a.duration_s - b.duration_s) / frame_s,
        lost,
        same,
        _lag(original.thumbnails, anonymised.thumbnails),
    )


def _compare_audio(a: ClipFacts, b: ClipFacts, frame_s: float) -> tuple[int, str]:
    if not a.audio:
        return 0, "none"
    lost, identical = max(0, len(a.audio) - len(b.audio)), len(a.audio) == len(b.audio)
    for track_a, track_b in zip(a.audio, b.audio, strict=False):
        is_same = track_a.payload_sha256 == track_b.payload_sha256
        identical = identical and is_same
        if not is_same and abs(track_a.duration_s - track_b.duration_s) > max(frame_s, 0.05):
            lost += 1
    return lost, "lost" if lost else "identical" if identical else "transcoded"


def _lag(a: list[npt.NDArray[np.int16]], b: list[npt.NDArray[np.int16]]) -> int:
    """Shift of `b` that fits `a` best; 0 unless another fits clearly better."""
    n = min(len(a), len(b))
    if n <= 2 * _MAX_LAG + 4:
        return 0
    first, second = np.stack(a[_MAX_LAG : n - _MAX_LAG]), np.stack(b[:n])
    span = len(first)
    errors = {
        lag: float(np.abs(first - second[_MAX_LAG + lag : _MAX_LAG + lag + span]).mean())
        for lag in range(-_MAX_LAG, _MAX_LAG + 1)
    }
    best = min(errors, key=lambda lag: errors[lag])
    return best if errors[best] < 0.8 * errors[0] else 0


def fit_size(image_rgb: ImageRgb, size_wh: tuple[int, int]) -> ImageRgb:
    """The same picture in the size of the original, where an anonymiser changed it."""
    if (image_rgb.shape[1], image_rgb.shape[0]) == size_wh:
        return image_rgb
    return np.asarray(cv2.resize(image_rgb, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
