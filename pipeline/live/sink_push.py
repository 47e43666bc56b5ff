"""Pushes a live stream to a server or player: RTSP, RTMP, SRT or MPEG-TS over UDP; H.264 and AAC.

The picture is encoded here and carried over by a process of its own (`sink_relay`), which can be ended
at any moment, whatever its receiver does. A receiver that is not there, or goes away, is tried again with
growing pauses for as long as the stream runs; frames are left out meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import time
from typing import Any

import av

from keyface.configs.errors import SinkError
from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.audio import AudioPiece
from keyface.pipeline.live.sink import checked_pixels
from keyface.pipeline.live.sink_address import PushAddress
from keyface.pipeline.live.sink_carrier import Carrier, CarrierLost, make_carrier
from keyface.pipeline.live.sink_encode import LiveCoding, LiveTracks
from keyface.pipeline.media.open import close_input

_LOG = logging.getLogger(__name__)

_BITS_PER_PIXEL = 0.12
_LEAST_BIT_RATE = 300_000
_OPENING_FRAMES = 8  # a carrier connects when it has seen a little of both tracks
_STEADY_S = 5.0  # a connection that held for so long was a good one: the next pause is short again

_REASONS = {
    errno.ECONNREFUSED: "refuses the connection",
    errno.EHOSTUNREACH: "cannot be reached",
    errno.ENETUNREACH: "cannot be reached",
    errno.ETIMEDOUT: "does not answer",
    errno.ECONNRESET: "has closed the connection",
    errno.EPIPE: "has closed the connection",
}
_REFUSALS = {
    "HTTPUnauthorizedError": "refuses the user or the password",
    "HTTPForbiddenError": "refuses the user or the password",
    "HTTPNotFoundError": "has nothing at this path",
    "HTTPBadRequestError": "refuses the stream",
    "ProtocolNotFoundError": "is of a kind that this PyAV has no protocol for",
}


class PushSink:
    """A stream to a receiver.

    Args:
        address: see `parse_push`.
        open_timeout_s: longest wait for a connection.
        stall_s: longest wait for a receiver that does not take what was sent.
        first_pause_s, longest_pause_s: before the next try; the pause doubles each time in vain.
        encoder: see `media.encoder`.

    Attributes:
        problem: why the receiver does not get the stream at the moment, one sentence; '' when it does.
        reconnects: times that it came back.

    Raises:
        SinkError: nothing here speaks the protocol.
    """

    queue_frames = 8

    def __init__(
        self,
        address: PushAddress,
        *,
        open_timeout_s: float = 8.0,
        stall_s: float = 5.0,
        first_pause_s: float = 0.25,
        longest_pause_s: float = 5.0,
        encoder: EncoderName = "software",
    ) -> None:
        self.name = address.label
        self.wants_end = False
        self.problem = ""
        self.reconnects = 0
        self._address = address
        self._make_carrier = make_carrier(address)
        self._encoder = encoder
        self._open_timeout_s, self._stall_s = open_timeout_s, stall_s
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._pause_s = first_pause_s
        self._next_try_s = 0.0
        self._with_sound = False
        self._shape: tuple[tuple[int, int], float] | None = None
        self._carrier: Carrier | None = None
        self._container: Any = None
        self._tracks: LiveTracks | None = None
        self._began_s = 0.0
        self._connected_s: float | None = None
        self._has_connected = False

    def expect_sound(self) -> None:
        """There will be a track of sound."""
        self._with_sound = True

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Remembers the size; the connection begins with the first frame."""
        self._shape = (size_wh, fps)

    def write(self, frame: SafeFrame) -> bool:
        """Sends one frame; False while there is no connection. Never fails because of the receiver."""
        pixels = checked_pixels(frame, self.name)
        if self._shape is None:
            raise SinkError(f"{self.name} is not open.")
        try:
            if self._carrier is None and not self._begin():
                return False
            assert self._tracks is not None
            if not self._is_connected() and self._tracks.n_frames >= _OPENING_FRAMES:
                return False  # more would only queue up
            self._tracks.write(pixels, frame.pts_s)
            return self._connected_s is not None
        except (av.FFmpegError, OSError, CarrierLost) as error:
            self._lose(error)
            return False

    def write_sound(self, piece: AudioPiece) -> None:
        """Sends the sound up to the next frame."""
        if self._tracks is None or (self._connected_s is None and self._tracks.n_frames >= _OPENING_FRAMES):
            return
        try:
            self._tracks.write_sound(piece)
        except (av.FFmpegError, OSError, CarrierLost) as error:
            self._lose(error)

    def interrupt(self) -> None:
        """Ends a wait for the receiver, from any thread."""
        carrier = self._carrier
        if carrier is not None:
            carrier.interrupt()

    def close(self) -> None:
        """Ends the stream properly where that can be done at once."""
        carrier, tracks, container = self._carrier, self._tracks, self._container
        if carrier is None:
            return
        is_good = self._connected_s is not None
        with contextlib.suppress(av.FFmpegError, OSError, CarrierLost):
            if is_good and tracks is not None:
                tracks.finish()
                close_input(container)
        carrier.close(is_patient=is_good)
        self._carrier = self._tracks = self._container = None

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""

    def _begin(self) -> bool:
        """Starts to connect, if it is time to."""
        now_s = time.monotonic()
        if now_s < self._next_try_s:
            return False
        assert self._shape is not None
        size_wh, fps = self._shape
        self._began_s, self._connected_s = now_s, None
        self._carrier = carrier = self._make_carrier(self._stall_s)
        self._container = av.open(
            carrier.stream, "w", format=carrier.format, container_options={"flush_packets": "1"}
        )
        bit_rate = round(max(_LEAST_BIT_RATE, _BITS_PER_PIXEL * size_wh[0] * size_wh[1] * fps))
        coding = LiveCoding(
            crf=23, key_every_s=1.0, is_immediate=True, bit_rate=bit_rate, encoder=self._encoder
        )
        self._tracks = LiveTracks(self._container, size_wh, fps, coding, with_sound=self._with_sound)
        return True

    def _is_connected(self) -> bool:
        """Hears what the carrier says. Raises CarrierLost."""
        assert self._carrier is not None
        is_connected = self._carrier.is_connected()
        now_s = time.monotonic()
        if is_connected and self._connected_s is None:
            self._connected_s = now_s
            self.problem = ""
            self.reconnects += self._has_connected
            self._has_connected = True
            _LOG.info("%s is connected", self.name)
        if not is_connected and now_s - self._began_s > self._open_timeout_s:
            raise CarrierLost("TimeoutError", errno.ETIMEDOUT)
        if self._connected_s is not None and now_s - self._connected_s > _STEADY_S:
            self._pause_s = self._first_pause_s
        return is_connected

    def _lose(self, error: Exception) -> None:
        """Gives a connection up, and says so when it was one or never has been."""
        carrier, container = self._carrier, self._container
        self._carrier = self._tracks = self._container = None
        if carrier is not None:
            error = carrier.failure() or error
            carrier.close(is_patient=False)
        if container is not None:
            with contextlib.suppress(av.FFmpegError, OSError, CarrierLost):
                close_input(container)
        was_told = bool(self.problem)
        self.problem = f"{self.name} {_reason(error)}; it is tried again."
        if not was_told:
            _LOG.warning("%s", self.problem)
        # Many senders to one server must not all come back in the same moment.
        self._next_try_s = time.monotonic() + self._pause_s * random.uniform(0.8, 1.2)
        self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        self._connected_s = None


def _reason(error: Exception) -> str:
    """What went wrong, from names and numbers only: libav's own texts hold the URL."""
    kind = error.kind if isinstance(error, CarrierLost) else type(error).__name__
    number = getattr(error, "errno", None) or 0
    if isinstance(error, TimeoutError):
        return "does not take what is sent"
    return _REFUSALS.get(kind) or _REASONS.get(number, "cannot be sent to")
