"""Decoding that goes on after damage, and says which frames it may have touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

import av

from keyface.configs.errors import SourceError

_MAX_DEMUX_FAILURES = 20  # in a row, without a packet in between
_MAX_FLUSH_FAILURES = 64
# Decoders that, told to give up on errors, report damage and still deliver the frame. Others lose it.
_REPORTS_WHEN_STRICT = frozenset({"hevc"})


class DamageAwareDecoder:
    """Turns the packets of one video stream into frames with timestamps that increase.

    A frame is suspect when it comes after damage (a packet or frame marked corrupt, a packet that the
    decoder or the container could not read) and before the next undamaged key frame that was sent to
    the decoder after it.

    Args:
        container, stream: PyAV input container and its video stream; not closed here.
        check_size: called with width and height before frames of a new size are used; may raise.
    """

    def __init__(self, container: Any, stream: Any, check_size: Callable[[int, int], None]) -> None:
        self.n_packets = 0
        self.n_suspect = 0
        self._n_lost = 0
        self._n_damaged = 0
        self._n_repaired_pts = 0
        self._container = container
        self._stream = stream
        self._check_size = check_size
        self._size_wh = (0, 0)
        self._suspect_until: int | None = None  # a key frame later than this is clean
        self._is_suspect = False
        self._newest_sent: int | None = None
        self._last_pts: int | None = None
        self._is_avi = container.format.name == "avi"
        self._waiting_stamps: list[int] = []  # heap; see _needs_stamp
        self._step = _ticks_per_frame(stream)
        if stream.codec_context.name in _REPORTS_WHEN_STRICT and not stream.codec_context.is_open:
            stream.codec_context.options = {"err_detect": "explode"}

    def frames(self) -> Iterator[tuple[Any, int, bool]]:
        """Yields (PyAV frame, pts in the stream's time base, is_suspect), pts strictly increasing."""
        self._check_size(self._stream.width or 0, self._stream.height or 0)
        for packet in self._packets():
            self.n_packets += 1
            self._see_packet(packet)
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                _raise_unless_data(error)
                self._n_lost += 1
                self._begin_damage(self._newest_sent)
                self._forget_stamp(packet)
                continue
            for av_frame in decoded:
                yield self._judged(av_frame)
        for av_frame in self._rest():
            yield self._judged(av_frame)

    def notes(self) -> list[str]:
        """Sentences on what was damaged or repaired, for the summary."""
        notes = []
        if self._n_lost or self._n_damaged:
            notes.append(
                f"The file is damaged: {self._n_lost} parts could not be decoded, "
                f"{self.n_suspect} frames after damage are uncertain."
            )
        if self._n_repaired_pts:
            notes.append(f"{self._n_repaired_pts} timestamps were missing or out of order and were repaired.")
        return notes

    def _packets(self) -> Iterator[Any]:
        failures = 0
        while failures < _MAX_DEMUX_FAILURES:
            try:
                for packet in self._container.demux(self._stream):
                    # An empty packet means "flush" to a decoder, so none may reach it before the end.
                    if packet.size:
                        failures = 0
                        yield packet
                return
            except av.FFmpegError as error:
                _raise_unless_data(error)
                failures += 1
                self._n_lost += 1
                self._begin_damage(self._newest_sent)

    def _rest(self) -> Iterator[Any]:
        """Frames that the decoder still holds at the end."""
        for _ in range(_MAX_FLUSH_FAILURES):
            try:
                yield from self._stream.decode(None)
                return
            except av.EOFError:
                return
            except av.FFmpegError as error:
                _raise_unless_data(error)
                self._n_lost += 1
                self._begin_damage(self._newest_sent)

    def _see_packet(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None and self._needs_stamp(packet):
            heappush(self._waiting_stamps, stamp)
        if stamp is not None and (self._newest_sent is None or stamp > self._newest_sent):
            self._newest_sent = stamp
        if packet.is_corrupt:
            self._n_damaged += 1
            self._begin_damage(self._newest_sent)

    def _needs_stamp(self, packet: Any) -> bool:
        """True when the times of presentation are not known from the file, as in AVI.

        Frames then take the times of the packets, smallest first, in the order in which they come out.
        """
        return self._is_avi or packet.pts is None

    def _forget_stamp(self, packet: Any) -> None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp in self._waiting_stamps:
            self._waiting_stamps.remove(stamp)
            heapify(self._waiting_stamps)

    def _begin_damage(self, until: int | None) -> None:
        self._is_suspect = True
        if until is not None and (self._suspect_until is None or until > self._suspect_until):
            self._suspect_until = until

    def _judged(self, av_frame: Any) -> tuple[Any, int, bool]:
        if (av_frame.width, av_frame.height) != self._size_wh:
            self._check_size(av_frame.width, av_frame.height)
            self._size_wh = (av_frame.width, av_frame.height)
        pts = self._increasing_pts(av_frame)
        if av_frame.is_corrupt:
            self._n_damaged += 1
            self._begin_damage(pts)
        elif av_frame.key_frame and (self._suspect_until is None or pts > self._suspect_until):
            self._is_suspect = False
        self.n_suspect += self._is_suspect
        return av_frame, pts, self._is_suspect

    def _increasing_pts(self, av_frame: Any) -> int:
        last = self._last_pts
        stamp = heappop(self._waiting_stamps) if self._waiting_stamps else av_frame.pts
        if stamp is None:
            stamp = 0 if last is None else last + self._step
            self._n_repaired_pts += 1
        elif last is not None and stamp <= last:
            stamp = last + 1
            self._n_repaired_pts += 1
        self._last_pts = stamp
        return int(stamp)


def _ticks_per_frame(stream: Any) -> int:
    rate = stream.average_rate or 25
    ticks: int = round(1 / (rate * stream.time_base))
    return max(1, ticks)


def _raise_unless_data(error: Exception) -> None:
    """Damage is survived; running out of memory is not, whether it is short or a damaged size asks for too much."""
    if isinstance(error, MemoryError):
        raise SourceError(
            "the video asks for more memory than there is to decode it.",
            "Close other programs; if it happens again the file is damaged.",
        ) from error
