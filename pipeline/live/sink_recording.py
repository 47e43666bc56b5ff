"""A recording of a live stream: MP4 that can be played up to its last fragment whatever happens.

While it grows it is called NAME.partial and made of fragments, so that after a crash all but the last
seconds can be played. Only a complete recording gets its name, and is then an ordinary MP4.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from keyface.configs.errors import SinkError
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.audio import AudioPiece
from keyface.pipeline.live.sink import checked_pixels
from keyface.pipeline.live.sink_encode import LiveCoding, LiveTracks
from keyface.pipeline.media.partial import PartialFile, sink_error

# Fragments until the end, when they become one ordinary file. Each goes to the system as soon as it is whole.
# Bit-exact keeps the muxer's version out of the file.
_MUXER = {"movflags": "+hybrid_fragmented+delay_moov", "flush_packets": "1", "fflags": "+bitexact"}
_LEAST_BYTES = 1024  # less is a header that nothing can be played from


class FileSink(ABC):
    """What sinks that write files have in common: encoding with `LiveTracks` into a container.

    Args:
        path: by which the recording is known.
        coding: of the picture.
    """

    queue_frames = 30

    def __init__(self, path: Path, coding: LiveCoding) -> None:
        self.name = str(path)
        self.wants_end = False
        self._path = path
        self._coding = coding
        self._with_sound = False
        self._container: Any = None
        self._tracks: LiveTracks | None = None
        self._failure: SinkError | None = None

    @abstractmethod
    def _begin(self) -> Any:
        """The container to write to, with nothing in it. May raise what libav and the system raise."""

    @abstractmethod
    def finish(self, *, is_complete: bool) -> None:
        """Keeps or drops what was recorded."""

    @property
    def n_frames(self) -> int:
        """Frames encoded so far."""
        return 0 if self._tracks is None else self._tracks.n_frames

    def expect_sound(self) -> None:
        """There will be a track of sound."""
        self._with_sound = True

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Begins the recording."""
        with self._guarded():
            self._container = self._begin()
            self._tracks = LiveTracks(
                self._container, size_wh, fps, self._coding, with_sound=self._with_sound
            )

    def write(self, frame: SafeFrame) -> None:
        """Encodes one frame."""
        pixels = checked_pixels(frame, self.name)
        if self._tracks is None:
            raise SinkError(f"{self.name} is not open.")
        with self._guarded():
            self._tracks.write(pixels, frame.pts_s)

    def write_sound(self, piece: AudioPiece) -> None:
        """Encodes the sound up to the next frame."""
        if self._tracks is not None:
            with self._guarded():
                self._tracks.write_sound(piece)

    def close(self) -> None:
        """Writes what is delayed and ends the container; also after a failure, as far as that goes.

        Raises:
            SinkError: the first failure.
        """
        container, self._container = self._container, None
        if container is None:
            return
        if self._failure is None and self._tracks is not None:
            with contextlib.suppress(SinkError), self._guarded():
                self._tracks.finish()
        with contextlib.suppress(SinkError), self._guarded():
            container.close()
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns what libav and the system raise into SinkError, and remembers the first."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            failure = sink_error(self._path, error)
            self._failure = self._failure or failure
            raise failure from error


class RecordingSink(FileSink):
    """An MP4 file, H.264 and perhaps AAC, with the times at which frames were captured.

    Args:
        path: gets its name when the recording is finished as complete.
        coding: of the picture; a key frame also begins a fragment.
    """

    def __init__(self, path: Path, *, coding: LiveCoding | None = None) -> None:
        super().__init__(path, coding or LiveCoding())
        self._partial: PartialFile | None = None

    def finish(self, *, is_complete: bool) -> None:
        """Gives the file its name; an incomplete one stays as NAME.partial if it can be played.

        Raises:
            SinkError: writing it failed before, or the disk refuses now.
        """
        partial, self._partial = self._partial, None
        if partial is None:
            return
        if not self.n_frames or self._is_empty(partial):
            partial.abort()
        elif is_complete and self._failure is None:
            partial.commit()
        else:
            partial.leave()
        if is_complete and self._failure is not None:
            raise self._failure

    def _begin(self) -> Any:
        self._partial = PartialFile(self._path, is_kept=True)
        name = str(self._partial.temporary.absolute())
        return av.open(name, "w", format="mp4", container_options=_MUXER)

    @staticmethod
    def _is_empty(partial: PartialFile) -> bool:
        with contextlib.suppress(OSError):
            return partial.temporary.stat().st_size < _LEAST_BYTES
        return True
