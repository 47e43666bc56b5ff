"""Reads clips for measuring: frames, timestamps and the facts of the audio.

Apart from `pipeline.media.capture`, so that a frame which that one loses is missed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from keyface.configs.errors import SourceError
from keyface.pipeline.frame import ImageRgb

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

    def read(self, wanted: Callable[[int], bool]) -> Generator[tuple[int, ImageRgb | None], None, None]:
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

    @property
    def last_s(self) -> float:
        """Time of the last frame read, from the first one's; 0 before."""
        return self._pts_s[-1] - self._pts_s[0] if self._pts_s else 0.0

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
