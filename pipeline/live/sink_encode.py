"""H.264 and AAC for live sinks: what recordings and pushes have in common.

Frames carry the time at which they were captured, which is uneven, so key frames are asked for by time and
not by number. Sound is laid on one timeline that has neither gaps nor overlaps: what is missing is silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from keyface.configs.errors import SinkError
from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.live.audio import AUDIO_CHANNELS, AUDIO_RATE_HZ, AudioPiece
from keyface.pipeline.media.encoder import add_picture, open_picture
from keyface.pipeline.media.yuv import ColourTags, av_from_rgb

TIME_BASE = Fraction(1, 90_000)

_LEAST_STEP_S = Fraction(1, 1000)  # between two frames
_COLOUR = ColourTags()
_LIMITED_RANGE = 1
_AUDIO_BIT_RATE = 128_000
_GAP = round(0.03 * AUDIO_RATE_HZ)  # samples; a smaller step in the timestamps is rounding
_SILENCE = round(0.5 * AUDIO_RATE_HZ)  # samples written at once
_LATEST_SOUND_S = Fraction(1, 2)  # what has not come by then is silence: a muxer waits for both tracks


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCoding:
    """How the picture is encoded.

    Attributes:
        crf: of x264, 0 (lossless) to 51.
        preset: of x264.
        key_every_s: longest time between key frames, at which viewers can join and segments begin.
        is_immediate: every frame comes out at once, and the bit rate stays near `bit_rate`.
        bit_rate: upper limit of an immediate stream, bits a second.
        encoder: see `media.encoder`; NVENC has no use for `preset`.
    """

    crf: int = 18
    preset: str = "superfast"
    key_every_s: float = 2.0
    is_immediate: bool = False
    bit_rate: int = 0
    encoder: EncoderName = "software"

    def options(self) -> dict[str, str]:
        """In x264's words. Without B-frames, so that the first frame is at time 0 in every container."""
        options = {"crf": str(self.crf), "preset": self.preset, "bf": "0", "forced-idr": "1"}
        if self.is_immediate:
            options["tune"] = "zerolatency"
            if self.bit_rate:
                options |= {"maxrate": str(self.bit_rate), "bufsize": str(self.bit_rate // 2)}
        return options


class LiveTracks:
    """One picture track and perhaps one of sound, encoded into an output container of PyAV.

    The first frame is at time 0. Used on one thread; raises what libav raises.

    Args:
        container: open for writing; its header is not written yet.
        size_wh: px of the pictures; odd sides are padded by one.
        fps: nominal.
        coding: of the picture.
        with_sound: adds an AAC track.

    Raises:
        SinkError: the encoder asked for cannot be had.
    """

    def __init__(
        self, container: Any, size_wh: tuple[int, int], fps: float, coding: LiveCoding, *, with_sound: bool
    ) -> None:
        self._container = container
        self._size_wh = size_wh
        self._coding = coding
        self._step = max(1, math.floor(1 / (fps * TIME_BASE)))
        self._video = self._add_video(fps)
        self._sound = container.add_stream("aac", rate=AUDIO_RATE_HZ, layout="stereo") if with_sound else None
        if self._sound is not None:
            self._sound.bit_rate = _AUDIO_BIT_RATE
        self._zero_s: Fraction | None = None
        self._last_s = self._last_key_s = Fraction(-(10**9))
        self._n_samples = 0
        self._early: list[AudioPiece] = []
        self.n_frames = 0

    def write(self, image_rgb: ImageRgb, time_s: float) -> None:
        """Encodes uint8 (H, W, 3) captured at `time_s` on the source's clock. A time that does not increase,
        as after a slate, is moved by a millisecond."""
        width, height = self._size_wh
        if image_rgb.shape != (height, width, 3):
            raise SinkError(
                f"sink: got a frame of {image_rgb.shape[1]}x{image_rgb.shape[0]}, want {width}x{height}."
            )
        exact_s = Fraction(time_s).limit_denominator(1_000_000)
        if self._zero_s is None:
            self._zero_s = exact_s
        exact_s = max(exact_s - self._zero_s, self._last_s + _LEAST_STEP_S)
        self._last_s = exact_s
        self._flush_early()
        self._fill_silence(exact_s - _LATEST_SOUND_S)
        frame = av_from_rgb(image_rgb, _COLOUR.matrix)
        frame.pts, frame.time_base = math.floor(exact_s / TIME_BASE + Fraction(1, 2)), TIME_BASE
        if exact_s - self._last_key_s >= self._coding.key_every_s:
            self._last_key_s = exact_s
            frame.pict_type = av.video.frame.PictureType.I
        self._mux_video(self._video.encode(frame))
        self.n_frames += 1

    def write_sound(self, piece: AudioPiece) -> None:
        """Takes sound that begins before the next frame. What comes before the first frame is left out."""
        if self._sound is None:
            return
        if self._zero_s is None:  # where 0 is will be known with the frame that follows
            self._early = [*self._early, piece][-100:]
            return
        samples = piece.samples
        due = round((Fraction(piece.pts_s) - self._zero_s) * AUDIO_RATE_HZ)
        gap = due - self._n_samples
        if gap > _GAP:
            self._fill_silence(Fraction(due, AUDIO_RATE_HZ))
        elif gap < -_GAP:
            samples = samples[-gap:]
        self._encode(samples)

    def finish(self) -> None:
        """Encodes what is delayed. The container is the caller's to close."""
        if not self.n_frames:
            return
        self._fill_silence(self._last_s)
        self._mux_video(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))

    def _add_video(self, fps: float) -> Any:
        rate = Fraction(fps).limit_denominator(1001)
        options = self._coding.options() | {"g": str(max(1, round(fps * self._coding.key_every_s)))}
        stream = add_picture(self._container, self._coding.encoder, rate, options)
        stream.width, stream.height = (side + side % 2 for side in self._size_wh)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.color_range = _LIMITED_RANGE
        context.colorspace = _COLOUR.matrix_tag
        context.color_primaries = _COLOUR.primaries_tag
        context.color_trc = _COLOUR.transfer_tag
        open_picture(context, self._coding.encoder)
        return stream

    def _mux_video(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = packet.duration or self._step
            self._container.mux(packet)

    def _flush_early(self) -> None:
        early, self._early = self._early, []
        for piece in early:
            self.write_sound(piece)

    def _fill_silence(self, until_s: Fraction) -> None:
        """Writes silence up to a time on the container's clock, where there is no sound yet."""
        until = round(until_s * AUDIO_RATE_HZ)
        while self._sound is not None and until > self._n_samples:
            n = min(_SILENCE, until - self._n_samples)
            self._encode(np.zeros((n, AUDIO_CHANNELS), np.float32))

    def _encode(self, samples: npt.NDArray[np.float32]) -> None:
        if self._sound is None or not len(samples):
            return
        planes = np.ascontiguousarray(np.clip(samples.T, -1.0, 1.0))
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
        frame.sample_rate = AUDIO_RATE_HZ
        frame.pts, frame.time_base = self._n_samples, Fraction(1, AUDIO_RATE_HZ)
        self._n_samples += len(samples)
        self._container.mux(self._sound.encode(frame))
