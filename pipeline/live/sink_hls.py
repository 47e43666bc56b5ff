"""A recording in segments with a playlist (HLS), which can be watched while it grows.

A segment gets its name when it is whole, and the playlist names whole segments only; each new playlist
replaces the one before in one step. So whatever happens, what is in the folder can be played. The playlist
is marked as ended when the recording is complete, and never before.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av

from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.sink_encode import LiveCoding
from keyface.pipeline.live.sink_recording import FileSink
from keyface.pipeline.media.partial import PartialFile, sink_error

SEGMENT_S = 2

_END = "#EXT-X-ENDLIST\n"
_FLAGS = "+temp_file+independent_segments+omit_endlist"


class HlsSink(FileSink):
    """A playlist and its segments, H.264 and perhaps AAC in MPEG-TS.

    Args:
        playlist: its name ends in ".m3u8"; segments "NAME-00000.ts" and so on lie beside it. Those of an
            earlier recording of that name are removed when this one begins.
        encoder: see `media.encoder`.
        keep_s: only about the last seconds are kept, the rest is removed on the way; None: all.
    """

    def __init__(
        self, playlist: Path, *, keep_s: float | None = None, encoder: EncoderName = "software"
    ) -> None:
        super().__init__(playlist, LiveCoding(key_every_s=SEGMENT_S, encoder=encoder))
        self._keep_s = keep_s

    def write(self, frame: SafeFrame) -> None:
        """Encodes one frame. Raises SinkError also for what libav's muxer keeps to itself."""
        super().write(frame)
        if self._failure is not None:
            raise self._failure

    def finish(self, *, is_complete: bool) -> None:
        """Marks the playlist of a complete recording as ended; removes segments that are not whole.

        Raises:
            SinkError: writing it failed before, or the disk refuses now.
        """
        tracks, self._tracks = self._tracks, None
        if tracks is None:
            return
        if self._failure is not None or not is_complete:
            self._remove_unlisted()
        if not is_complete:
            return
        if self._failure is not None:
            raise self._failure
        if tracks.n_frames:
            partial = PartialFile(self._path)
            with self._guarded():
                partial.temporary.write_text(self._path.read_text("utf-8") + _END, "utf-8")
            partial.commit()

    def _begin(self) -> Any:
        for old in [*segments_of(self._path), self._path]:
            old.unlink(missing_ok=True)
        segment = self._path.with_name(f"{self._path.stem.replace('%', '%%')}-%05d.ts").absolute()
        options = {"hls_time": str(SEGMENT_S), "hls_segment_filename": str(segment), "fflags": "+bitexact"}
        if self._keep_s is None:
            options |= {"hls_list_size": "0", "hls_playlist_type": "event", "hls_flags": _FLAGS}
        else:
            n = max(2, math.ceil(self._keep_s / SEGMENT_S))
            options |= {"hls_list_size": str(n), "hls_flags": f"{_FLAGS}+delete_segments"}
        name = str(self._path.absolute())
        return av.open(name, "w", format="hls", container_options=options, io_open=self._open_part)

    def _open_part(self, name: str, flags: int, options: dict[str, str]) -> _Part:
        """A segment or a playlist. After a failure it leads nowhere, so that no playlist names a torn segment."""
        return _Part(None if self._failure is not None else name, self._fail)

    def _fail(self, error: OSError) -> None:
        self._failure = self._failure or sink_error(self._path, error)

    def _remove_unlisted(self) -> None:
        listed: set[str] = set()
        with contextlib.suppress(OSError):
            listed = set(self._path.read_text("utf-8").split("\n"))
        for segment in segments_of(self._path):
            if segment.name not in listed:
                segment.unlink(missing_ok=True)


class _Part:
    """A file for libav's muxer for HLS, which does not tell that the disk refuses: this one does.

    It raises nothing, since libav could not pass it on.

    Args:
        name: of the file; None: what is written is forgotten.
        on_failure: told what the system said.
    """

    def __init__(self, name: str | None, on_failure: Callable[[OSError], None]) -> None:
        self._on_failure = on_failure
        self._handle: int | None = None
        if name is not None:
            with self._told():
                self._handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, data: bytes) -> int:
        """Takes all of it."""
        rest = memoryview(data)
        with self._told():
            while rest and self._handle is not None:
                rest = rest[os.write(self._handle, rest) :]
        return len(data)

    def close(self) -> None:
        """Ends the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with self._told():
                os.close(handle)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._on_failure(error)


def segments_of(playlist: Path) -> list[Path]:
    """The segments beside a playlist that bear its name, whole or not, in order."""
    form = re.compile(re.escape(playlist.stem) + r"-\d{5,}\.ts(\.tmp)?")
    with contextlib.suppress(OSError):
        names = sorted(name for name in os.listdir(playlist.parent) if form.fullmatch(name))
        return [playlist.with_name(name) for name in names]
    return []
