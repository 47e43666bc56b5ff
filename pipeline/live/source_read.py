"""Reads one connection of a camera or a stream until it is lost: newest pictures, none that only seems sound.

libav gives packets as they come. What is added here: silence ends it, damage is remembered until a clean key
frame, a decoder that cannot keep up passes packets over rather than falling ever further behind, and
recordings that a server sends as fast as it can are shown at their own pace.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import av

from keyface.configs.errors import SourceError
from keyface.pipeline.live.address import SourceAddress
from keyface.pipeline.live.source_open import family_of, read_timeout_s, video_stream
from keyface.pipeline.live.source_options import LiveSourceOptions, LiveStatus, Picture
from keyface.pipeline.live.source_sound import SoundFeed
from keyface.pipeline.media.open import MAX_PIXELS
from keyface.pipeline.media.rotation import apply_turn, turn_of_frame
from keyface.pipeline.media.yuv import rgb_from_av

_NEARLY = 0.98  # of a time-out, which may end a little early
_POLL_S = 0.004  # between two looks at a camera that has no new frame
_WINDOW_S = 600.0  # long against slow growth, short against the drift of two clocks
_GRACE_S, _GIVE_UP_S = 0.5, 3.0  # of being behind before packets are passed over, and before that is given up
_JUMP_S = 10.0
_GAP = 1.7  # of the usual distance of two pictures
_LATE_S = 0.1  # a recording that is later than this goes on from where it is
_IN_SEGMENTS = frozenset({"hls", "dash"})
_STAMPED = frozenset({"rtsp", "flv", "live_flv", "mpegts"})  # with stamps of the source's own
# Decoders that, told to give up on errors, report damage and still deliver the frame. Others lose it.
_REPORTS_WHEN_STRICT = frozenset({"hevc"})


class Connection:
    """Pictures of one connection.

    Args:
        container: PyAV input, opened with time-outs; closed by the caller.
        sound: gets the sound, None: it is not wanted.
        is_hasty: better opened again than waited for when the size of the picture is not known yet.

    Attributes:
        has_size: the size was known from the beginning.
        is_recording: it ends by itself, and was sent faster than it is to be shown.

    Raises:
        SourceError: it has no picture that can be decoded, or see `is_hasty`.
    """

    def __init__(
        self,
        container: Any,
        address: SourceAddress,
        options: LiveSourceOptions,
        status: LiveStatus,
        is_stopped: threading.Event,
        sound: SoundFeed | None = None,
        *,
        is_hasty: bool = False,
    ) -> None:
        self._container, self._address, self._options, self._status = container, address, options, status
        self._is_stopped = is_stopped
        self._stream = video_stream(container, address.label)
        context = self._stream.codec_context
        self.has_size = context.width > 0
        if is_hasty and not self.has_size:
            # What was noise when libav looked at it stays closed to it when the noise is over.
            raise SourceError(
                f"{address.label} sends nothing that can be read as video.", "Check the source."
            )
        # Threads that work on several frames would hold these back, and those that work on the slices of one
        # keep libav's H.264 decoder from noticing that a slice is missing.
        self._stream.thread_type = "NONE" if context.name == "h264" else "SLICE"
        if context.name in _REPORTS_WHEN_STRICT and not context.is_open:
            context.options = {"err_detect": "explode"}
        self._silence_s = read_timeout_s(address, options)
        self._damage = _Damage()
        is_http = address.kind == "url" and family_of(address.scheme) == "http"
        in_segments = is_http and container.format.name in _IN_SEGMENTS
        self.is_recording = is_http and (container.duration or 0) > 0
        self._pace = _Pace(is_stopped) if in_segments or self.is_recording else None
        is_stamped = container.format.name in _STAMPED and self._pace is None
        self._backlog = _Backlog(options.longest_backlog_s) if is_stamped else None
        may_lose = container.format.name == "rtsp" and options.rtsp_transport == "udp"
        self._gaps = _Gaps() if may_lose else None
        self._sound = sound
        self._sound_stream = None
        if sound is not None:
            sound.begin()
            self._sound_stream = sound.announce(container.streams)

    @property
    def fps(self) -> float | None:
        """What the source says, None where it says nothing plausible."""
        rate = float(self._stream.average_rate or 0)
        return rate if 1 <= rate <= 240 else None

    def pictures(self) -> Iterator[Picture]:
        """Pictures as they come, until the end of the stream or a stop.

        Raises:
            SourceError, av.FFmpegError, OSError: the connection is lost.
        """
        last_s = time.monotonic()
        for packet in self._packets():
            now_s = time.monotonic()
            if packet.stream.index == self._stream.index:
                for frame, is_suspect in self._decoded(packet, now_s):
                    self._check_size(frame)
                    if self._pace is not None and self._pace.wait(frame.time):
                        return
                    self._set_clock_of_sound(frame)
                    yield Picture(self._upright(frame), None, is_suspect)
                    last_s = time.monotonic()
            elif self._sound is not None and packet.stream is self._sound_stream:
                self._sound.hear(packet, now_s)
            if time.monotonic() - last_s > self._silence_s:
                raise SourceError(f"{self._address.label} sends data without a picture.", "Check the source.")

    def _set_clock_of_sound(self, frame: Any) -> None:
        if self._sound is None:
            return
        if self._pace is not None and self._pace.shift_s is not None:
            self._sound.know_clock(self._pace.shift_s)
        else:
            self._sound.see_picture(frame.time, time.monotonic())

    def _packets(self) -> Iterator[Any]:
        """Packets of all streams, so that none of them can hide that the others fell silent."""
        last_s = time.monotonic()
        while not self._is_stopped.is_set():
            try:
                asked_s = time.monotonic()
                for packet in self._container.demux():
                    if self._is_stopped.is_set():
                        return
                    last_s = time.monotonic()
                    # After a time-out libav first hands out what it had kept, as if nothing had happened.
                    if last_s - asked_s > _NEARLY * self._silence_s:
                        raise TimeoutError(errno.ETIMEDOUT, "silent")
                    if packet.size:
                        yield packet
                    asked_s = time.monotonic()
                return
            except av.BlockingIOError:  # a camera without a new frame
                if time.monotonic() - last_s > self._silence_s:
                    raise TimeoutError(errno.ETIMEDOUT, "silent") from None
                self._is_stopped.wait(_POLL_S)

    def _decoded(self, packet: Any, now_s: float) -> list[tuple[Any, bool]]:
        """Frames that came out, and whether each is suspect."""
        if self._backlog is not None and self._backlog.must_skip(packet, now_s):
            self._status.skipped += 1
            return []
        is_damaged = packet.is_corrupt or self._is_cut_off(packet)
        if self._gaps is not None and self._gaps.is_after(packet):
            is_damaged = is_damaged or not packet.is_keyframe
        self._damage.send(packet, is_damaged=is_damaged)
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.FFmpegError:
            self._damage.begin()
            return []
        return [(frame, self._damage.is_suspect(frame)) for frame in frames]

    def _is_cut_off(self, packet: Any) -> bool:
        """True for a JPEG from a network without its end, which libav decodes half and calls sound."""
        if self._address.kind != "url" or self._stream.codec_context.name != "mjpeg":
            return False
        return not bytes(packet).rstrip(b"\0\r\n").endswith(b"\xff\xd9")

    def _check_size(self, frame: Any) -> None:
        if frame.width * frame.height > MAX_PIXELS:
            raise SourceError(
                f"{self._address.label} sends {frame.width}x{frame.height} px, which is too large.",
                "Choose a smaller picture at the source.",
            )

    def _upright(self, frame: Any) -> Any:
        return apply_turn(rgb_from_av(frame, self._stream.codec_context.name), turn_of_frame(frame))


class _Damage:
    """Knows which frames damage may have touched: all up to a clean key frame that was sent after it, and
    those before the first key frame."""

    def __init__(self) -> None:
        self._is_suspect = True
        self._newest_sent: int | None = None
        self._until: int | None = None  # a key frame later than this is clean

    def send(self, packet: Any, *, is_damaged: bool) -> None:
        """A packet goes to the decoder."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        newest = self._newest_sent
        if stamp is not None and newest is not None and newest - stamp > _JUMP_S / packet.time_base:
            self._until = newest = None  # the source began to count anew
        if stamp is not None and (newest is None or stamp > newest):
            newest = stamp
        self._newest_sent = newest
        if is_damaged:
            self.begin()

    def begin(self) -> None:
        """Something was lost."""
        self._is_suspect, self._until = True, self._newest_sent

    def is_suspect(self, frame: Any) -> bool:
        """True when damage may show in a frame that came out."""
        if frame.is_corrupt:
            self._is_suspect = True
            if frame.pts is not None and (self._until is None or frame.pts > self._until):
                self._until = frame.pts
        elif frame.key_frame and (frame.pts is None or self._until is None or frame.pts > self._until):
            self._is_suspect = False
        return self._is_suspect


class _Gaps:
    """Finds pictures that were lost on the way, where packets may be lost, by the distance of stamps. libav
    repeats the picture before without a word, and what follows is drawn over that."""

    def __init__(self) -> None:
        self._steps: deque[int] = deque(maxlen=31)
        self._last: int | None = None

    def is_after(self, packet: Any) -> bool:
        """True when something is missing between the packet before and this one."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        last, self._last = self._last, stamp
        if stamp is None or last is None or stamp <= last:
            return False
        steps = sorted(self._steps)
        self._steps.append(stamp - last)
        return bool(steps) and stamp - last > _GAP * steps[len(steps) // 2]


class _Backlog:
    """Finds out how far decoding is behind what has arrived, and passes over what would only add to it.

    The distance of the packets' stamps from the clock is smallest when nothing waits; what it is above that
    is the backlog. A burst after a gap in the network is decoded, since that is faster than the next key
    frame; only what decoding cannot make good by itself is passed over.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._seen: deque[tuple[float, float]] = deque()  # (time, distance), distances increase
        self._last_stamp_s = -math.inf
        self._late_since_s: float | None = None
        self._is_skipping = False

    def must_skip(self, packet: Any, now_s: float) -> bool:
        """True when the packet must not be decoded, nor any before the next key frame."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return False
        if self._behind_s(float(stamp * packet.time_base), now_s) <= self._longest_s:
            self._late_since_s = None
            self._is_skipping = self._is_skipping and not packet.is_keyframe
            return self._is_skipping
        if self._late_since_s is None:
            self._late_since_s = now_s
        late_s = now_s - self._late_since_s
        if late_s > _GIVE_UP_S:  # passing over does not help: the source itself is later than it was
            self._seen.clear()
        self._is_skipping = self._is_skipping or late_s > _GRACE_S
        return self._is_skipping

    def _behind_s(self, stamp_s: float, now_s: float) -> float:
        seen, distance_s = self._seen, now_s - stamp_s
        if stamp_s < self._last_stamp_s - self._longest_s:
            seen.clear()  # the source began to count anew
        self._last_stamp_s = stamp_s
        while seen and (seen[-1][1] >= distance_s):
            seen.pop()
        seen.append((now_s, distance_s))
        while now_s - seen[0][0] > _WINDOW_S:
            seen.popleft()
        return distance_s - seen[0][1]


class _Pace:
    """Shows pictures as far apart as their stamps are.

    Attributes:
        shift_s: of `time.monotonic()` against the stamps, None before the first.
    """

    def __init__(self, is_stopped: threading.Event) -> None:
        self._is_stopped = is_stopped
        self.shift_s: float | None = None

    def wait(self, stamp_s: float | None) -> bool:
        """Waits until it is time for the picture; True when stopped."""
        now_s = time.monotonic()
        if stamp_s is None:
            return self._is_stopped.is_set()
        if self.shift_s is None or not -_LATE_S < self.shift_s + stamp_s - now_s < _JUMP_S:
            self.shift_s = now_s - stamp_s
        return self._is_stopped.wait(max(0.0, self.shift_s + stamp_s - now_s))
