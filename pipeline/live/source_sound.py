"""Sound of a live source: decoded, brought to one format, and put on the clock of the pictures.

Pictures are stamped when they arrive, sound by its distance from the pictures on the source's own clock: so
both stay together, also where the network delivers them unevenly or the source sends one ahead of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

from keyface.pipeline.live.audio import AUDIO_RATE_HZ, AudioPiece, AudioTap, Samples
from keyface.pipeline.media.open import close_input

_SEAM_S = 0.04  # a smaller distance from where the last piece ended is jitter of stamps, and not shown
_FAR_S = 15.0  # a larger distance from now is a wrong stamp
_JUMP_S = 1.0  # of the source's clock against ours
_SLOWER = 0.02  # late pictures tell little about the clock; the earliest ones tell it
_SETTLED_S = 0.3  # a connection may begin with a burst of old pictures; its sound waits until that is over
_DROP_S = 0.02
_AHEAD_S = 0.5  # a file's sound before its picture


class SoundFeed:
    """Puts the sound of a source into a tap, over all its connections.

    Args:
        tap: gets pieces on the clock of the pictures.
        origin_s: gives `time.monotonic()` at time 0 of that clock, None while it has not begun.
    """

    def __init__(self, tap: AudioTap, origin_s: Callable[[], float | None]) -> None:
        self._tap, self._origin_s = tap, origin_s
        self._next_s = 0.0
        self.begin()

    def begin(self) -> None:
        """A new connection: its clock and its format are unknown."""
        self._ours_minus_theirs_s: float | None = None
        self._unsettled_s = 0.0  # when the clock was last corrected
        self._resampler: Any = None

    def announce(self, streams: Any) -> Any:
        """Says whether there is sound, and gives the stream to hear, None without one."""
        known = [stream for stream in streams.audio if stream.codec_context is not None]
        self._tap.is_present = self._tap.is_present or bool(known)
        return known[0] if known else None

    def announce_own(self) -> None:
        """Says that there is sound which is made here."""
        self._tap.is_present = True

    def see_picture(self, theirs_s: float | None, now_s: float) -> None:
        """A picture with the source's stamp arrived at `now_s` of `time.monotonic()`."""
        if theirs_s is None:
            return
        seen_s, known_s = now_s - theirs_s, self._ours_minus_theirs_s
        if known_s is None or not -_DROP_S < seen_s - known_s < _JUMP_S:
            self._ours_minus_theirs_s, self._unsettled_s = seen_s, now_s
        else:
            self._ours_minus_theirs_s = min(seen_s, known_s + _SLOWER * (seen_s - known_s))

    def know_clock(self, ours_minus_theirs_s: float) -> None:
        """The pictures are shown by the source's own clock, at that distance from `time.monotonic()`."""
        self._ours_minus_theirs_s, self._unsettled_s = ours_minus_theirs_s, 0.0

    def hear(self, packet: Any, now_s: float) -> None:
        """A packet of sound arrived. What is damaged, or comes before the clock is known, is left out."""
        origin_s, shift_s = self._origin_s(), self._ours_minus_theirs_s
        if origin_s is None or shift_s is None or now_s - self._unsettled_s < _SETTLED_S:
            return
        for frame in _decoded(packet):
            at_s = now_s if frame.time is None else frame.time + shift_s
            self.put(frame, (at_s if abs(at_s - now_s) < _FAR_S else now_s) - origin_s)

    def put(self, frame: Any, pts_s: float) -> None:
        """Sound (a PyAV frame) that begins at `pts_s` on the clock of the pictures."""
        try:
            if self._resampler is None:
                self._resampler = av.AudioResampler(format="flt", layout="stereo", rate=AUDIO_RATE_HZ)
            frame.pts = None  # the resampler would fill gaps by these
            parts = [part.to_ndarray().reshape(-1, 2) for part in self._resampler.resample(frame)]
        except (av.FFmpegError, ValueError):
            self._resampler = None  # another format from here on
            return
        if parts:
            self.put_samples(np.concatenate(parts), pts_s)

    def put_samples(self, samples: Samples, pts_s: float) -> None:
        """float32 (n, 2) from `pts_s` on; what overlaps with sound before it is cut off."""
        if abs(pts_s - self._next_s) < _SEAM_S:
            pts_s = self._next_s
        elif pts_s < self._next_s:
            samples = samples[round((self._next_s - pts_s) * AUDIO_RATE_HZ) :]
            pts_s = self._next_s
        if len(samples) and pts_s >= 0:
            piece = AudioPiece(np.ascontiguousarray(np.clip(samples, -1, 1), np.float32), pts_s)
            self._next_s = piece.end_s
            self._tap.put(piece)


class FileSound:
    """The sound of a file, read beside its pictures.

    Args:
        container: PyAV input, of its own; closed by `close`.
        first_s: the first picture's time on the file's clock.
        begin_s: of this pass on the clock of the pictures.
    """

    def __init__(self, container: Any, feed: SoundFeed, first_s: float, begin_s: float) -> None:
        self._container, self._feed, self._shift_s = container, feed, begin_s - first_s
        feed.begin()
        stream = feed.announce(container.streams)
        self._frames = self._decoded(stream) if stream is not None else iter(())
        self._waiting: Any = None

    def play_until(self, time_s: float) -> None:
        """Puts what belongs to pictures up to `time_s`, and a little more."""
        while True:
            frame = self._waiting if self._waiting is not None else next(self._frames, None)
            self._waiting = frame
            if frame is None or frame.time + self._shift_s > time_s + _AHEAD_S:
                return
            self._waiting = None
            self._feed.put(frame, frame.time + self._shift_s)

    def close(self) -> None:
        """Closes the file."""
        close_input(self._container)

    def _decoded(self, stream: Any) -> Iterator[Any]:
        try:
            for packet in self._container.demux(stream):
                yield from (frame for frame in _decoded(packet) if frame.time is not None)
        except av.FFmpegError:
            return


def _decoded(packet: Any) -> list[Any]:
    try:
        return list(packet.decode())
    except MemoryError:
        raise
    except av.FFmpegError:
        return []
