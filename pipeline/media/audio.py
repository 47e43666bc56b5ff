"""The sound of the source, carried into the output beside the new picture.

Tracks in a codec that MP4 players know are copied packet by packet, untouched; others are transcoded
to AAC. Both are cut to the span of the picture and keep their place on the source's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt

from keyface.pipeline.media.open import open_input

# What MP4 holds by its registered codings and common players play. PCM and Vorbis can be put into MP4,
# but few players open them.
_COPIED_CODECS = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"})
_AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_LAYOUTS = frozenset({"mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1"})
_BIT_RATE_PER_CHANNEL = 96_000
_GAP_S = 0.03  # a smaller step in the timestamps is rounding
_LONGEST_GAP_S = 600.0
_LONGEST_WARM_UP_S = Fraction(1, 10)

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Span:
    """What to carry, on the source's clock (see `AudioFeed.start`), and whom to tell of damage."""

    begin_s: Fraction
    end_s: Fraction | None
    is_cut: bool
    on_damage: Callable[[], None]


class _Track(Protocol):
    """One audio stream on its way from source to output."""

    def feed(self, packet: Any) -> None: ...
    def finish(self) -> None: ...


class AudioFeed:
    """Brings the audio of a file into an output container, in step with the picture.

    Args:
        path: the source.
        output: PyAV output container; the tracks are added here, before its header is written.

    Attributes:
        notes: sentences on transcoded and dropped tracks.
        first_s: when the first audible sample of any track is due, on the source's clock; None
            without sound.
    """

    def __init__(self, path: Path, output: Any) -> None:
        self.notes: list[str] = []
        self._path = path
        self._output = output
        self._container = open_input(path)
        self._sources: dict[int, Any] = {}
        self._tracks: dict[int, _Track] = {}
        self._targets: dict[int, Any] = {}
        for source in self._container.streams.audio:
            self._add(source)
        starts = [s.start_time * s.time_base for s in self._sources.values() if s.start_time is not None]
        # A start just before 0 is what the decoder needs to warm up, not sound to be heard.
        heard = [Fraction(0) if -_LONGEST_WARM_UP_S < start < 0 else start for start in starts]
        self.first_s: Fraction | None = min(heard, default=None)
        self._packets = self._read()
        self._waiting: Any = None

    def start(self, begin_s: Fraction, end_s: Fraction | None, *, is_cut: bool) -> None:
        """Sets the span to carry, on the source's clock; `begin_s` becomes 0 in the output.

        Without `is_cut` nothing at the beginning is left out: `begin_s` is then no later than the
        first audible sample, and what comes before it warms up the decoder.
        """
        for index, source in self._sources.items():
            is_copied = source.codec_context.name in _COPIED_CODECS
            kind = _CopiedTrack if is_copied else _TranscodedTrack
            span = _Span(begin_s, end_s, is_cut, self._note_damage)
            self._tracks[index] = kind(source, self._targets[index], self._output, span)
        if is_cut and begin_s > 1 and self._sources:
            self._seek(begin_s)

    def feed_until(self, time_s: Fraction | None) -> None:
        """Hands over what is due before `time_s` on the source's clock; None: all that is left."""
        while self._sources:
            packet = self._waiting if self._waiting is not None else next(self._packets, None)
            self._waiting = None
            if packet is None:
                return
            stamp = packet.dts if packet.dts is not None else packet.pts
            if time_s is not None and stamp is not None and stamp * packet.time_base >= time_s:
                self._waiting = packet
                return
            self._tracks[packet.stream_index].feed(packet)

    def finish(self) -> None:
        """Hands over the rest and flushes encoders."""
        self.feed_until(None)
        for track in self._tracks.values():
            track.finish()

    def close(self) -> None:
        """Closes the source file."""
        self._container.close()

    def _add(self, source: Any) -> None:
        context = source.codec_context
        if context is None or not context.sample_rate or not context.channels:
            self.notes.append(f"Audio track {source.index} is dropped: its format cannot be read.")
            return
        if context.name in _COPIED_CODECS:
            target = self._output.add_stream_from_template(source)
        else:
            self.notes.append(f"Audio track {source.index} is transcoded from {context.name} to AAC.")
            target = self._add_aac(context)
        if source.language and source.language != "und":
            target.metadata["language"] = source.language
        self._sources[source.index], self._targets[source.index] = source, target

    def _add_aac(self, context: Any) -> Any:
        rate_hz = min(_AAC_RATES_HZ, key=lambda r: (r < min(context.sample_rate, 96000), r))
        layout = _aac_layout(context)
        target = self._output.add_stream("aac", rate=rate_hz, layout=layout)
        target.bit_rate = _BIT_RATE_PER_CHANNEL * av.AudioLayout(layout).nb_channels
        return target

    def _read(self) -> Iterator[Any]:
        streams = list(self._sources.values())
        if not streams:
            return
        try:
            for packet in self._container.demux(streams):
                if packet.size:
                    yield packet
        except av.FFmpegError:
            self._note_damage()

    def _note_damage(self) -> None:
        note = "The sound is damaged; parts of it are missing."
        if note not in self.notes:
            self.notes.append(note)

    def _seek(self, begin_s: Fraction) -> None:
        # A second early, so that nothing of the first packet is missed; earlier packets are dropped.
        stream = next(iter(self._sources.values()))
        try:
            self._container.seek(int((begin_s - 1) / stream.time_base), stream=stream, backward=True)
        except (av.FFmpegError, OSError):
            return  # Then the packets before the span are read and dropped one by one.
        self._packets = self._read()


class _CopiedTrack:
    """Moves packets of [begin_s, end_s) as they are, shifted by -begin_s."""

    def __init__(self, source: Any, target: Any, output: Any, span: _Span) -> None:
        self._target = target
        self._output = output
        self._is_cut = span.is_cut
        self._on_damage = span.on_damage
        self._begin = round(span.begin_s / source.time_base)
        self._end = None if span.end_s is None else round(span.end_s / source.time_base)
        self._next = 0
        self._last_dts: int | None = None

    def feed(self, packet: Any) -> None:
        pts = packet.pts if packet.pts is not None else packet.dts
        pts = self._next if pts is None else pts
        self._next = pts + (packet.duration or 0)
        if self._is_cut and self._next <= self._begin and not self._warms_up(packet, pts):
            return
        if self._end is not None and pts >= self._end:
            return
        if packet.is_discard and pts >= self._begin:
            return  # The source's own edit list hides it.
        shifted = pts - self._begin
        if self._last_dts is not None and shifted <= self._last_dts:
            shifted = self._last_dts + 1
        self._last_dts = shifted
        packet.pts = packet.dts = shifted
        packet.stream = self._target
        try:
            self._output.mux(packet)
        except av.InvalidDataError:
            self._on_damage()

    def finish(self) -> None:
        """Nothing is held back."""

    def _warms_up(self, packet: Any, pts: int) -> bool:
        """True for the packet just before the first one, from which a decoder warms up.

        MP4 hides it from the listener by its edit list, since its time is negative.
        """
        return bool(packet.duration) and pts + 2 * packet.duration > self._begin


class _TranscodedTrack:
    """Decodes, cuts to [begin_s, end_s) exactly, fills gaps with silence, and encodes to AAC."""

    def __init__(self, source: Any, target: Any, output: Any, span: _Span) -> None:
        self._source, self._target, self._output = source, target, output
        self._begin_s = span.begin_s
        self._on_damage = span.on_damage
        self._rate_hz: int = target.codec_context.sample_rate
        self._layout: str = _aac_layout(source.codec_context)
        length_s = None if span.end_s is None else span.end_s - span.begin_s
        self._n_end = None if length_s is None else round(length_s * self._rate_hz)
        self._n_done: int | None = None  # samples since begin_s, written or skipped
        self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate_hz)

    def feed(self, packet: Any) -> None:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self._on_damage()  # It leaves a gap, which is filled with silence.
            return
        for frame in frames:
            self._take(frame)

    def finish(self) -> None:
        """Flushes resampler and encoder."""
        self._write_resampled(None)
        self._output.mux(self._target.encode(None))

    def _take(self, frame: Any) -> None:
        if frame.pts is not None:
            due_s = frame.pts * self._source.time_base - self._begin_s
            due = round(due_s * self._rate_hz)
            if self._n_done is None:
                self._n_done = due
            gap = due - self._n_done
            if self._rate_hz * _GAP_S < gap < self._rate_hz * _LONGEST_GAP_S:
                self._write(np.zeros((self._n_channels, gap), np.float32))
        elif self._n_done is None:
            self._n_done = 0
        frame.pts = None
        self._write_resampled(frame)

    @property
    def _n_channels(self) -> int:
        return int(av.AudioLayout(self._layout).nb_channels)

    def _write_resampled(self, frame: Any) -> None:
        if self._n_done is None:
            return
        for resampled in self._resampler.resample(frame):
            self._write(resampled.to_ndarray())

    def _write(self, samples: F32) -> None:
        """Encodes what lies inside the span. samples: (channels, n) [-1, 1]."""
        begin = self._n_done or 0
        end = begin + samples.shape[1]
        self._n_done = end
        first = max(begin, 0)
        last = end if self._n_end is None else min(end, self._n_end)
        if last <= first:
            return
        kept = np.ascontiguousarray(samples[:, first - begin : last - begin])
        frame = av.AudioFrame.from_ndarray(kept, format="fltp", layout=self._layout)
        frame.sample_rate = self._rate_hz
        frame.time_base = Fraction(1, self._rate_hz)
        frame.pts = first
        self._output.mux(self._target.encode(frame))


def _aac_layout(context: Any) -> str:
    name: str = context.layout.name
    if name in _AAC_LAYOUTS:
        return name
    if context.channels == 1:
        return "mono"
    return "5.1" if name.startswith("5.1") else "7.1" if name.startswith("7.1") else "stereo"
