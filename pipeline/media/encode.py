"""H.264 in MP4 under a temporary name: what the sinks have in common."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from keyface.configs.errors import KeyfaceError, SinkError
from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import ImageRgb, SafeFrame
from keyface.pipeline.media.capture import SourceInfo
from keyface.pipeline.media.encoder import add_picture, open_picture
from keyface.pipeline.media.partial import PartialFile, sink_error
from keyface.pipeline.media.yuv import av_from_rgb

_FINEST_TIME_BASE = Fraction(1, 1_000_000)  # MP4 holds the length of a frame in 32 bits
_LIMITED_RANGE = 1


class Mp4File:
    """One video track being encoded, in a container to which the caller may add sound.

    Each frame is held back until the next one tells how long it is shown. After a failure inside
    `guarded` the temporary file is gone and nothing can be committed any more.

    Args:
        path: of the finished file.
        info: of the source: rate, time base, colour, shape of pixels.
        size_wh: px of the pictures that will be written; odd sides are padded by one.
        crf, preset, threads: of x264.
        encoder: see `media.encoder`; NVENC takes `crf` as its quality, and no preset.
        metadata: texts for the file.

    Raises:
        SinkError: see `PartialFile`; or the encoder cannot be set up.
    """

    def __init__(
        self,
        path: Path,
        info: SourceInfo,
        size_wh: tuple[int, int],
        crf: int,
        preset: str,
        threads: int | None,
        metadata: Mapping[str, str],
        encoder: EncoderName = "software",
    ) -> None:
        if not 0 <= crf <= 51:
            raise SinkError(f"The quality (crf) is {crf}, want 0 to 51.")
        self.path = path
        self._info = info
        self._size_wh = size_wh
        self._time_base = max(Fraction(1, info.time_base.denominator), _FINEST_TIME_BASE)
        self._zero_s = Fraction(0)
        self._held: tuple[Any, Fraction] | None = None
        self._lengths: dict[int, int] = {}
        self._last_length_s = 1 / info.frame_rate
        self._has_failed = False
        self._partial = PartialFile(path)
        try:
            self.container = av.open(
                str(self._partial.temporary.absolute()),
                mode="w",
                format="mp4",
                # Bit-exact keeps the muxer's version out of the file.
                container_options={"fflags": "+bitexact", "movflags": "+use_metadata_tags"},
            )
            self.container.metadata.update(metadata)
            self._stream = self._add_video(crf, preset, threads, encoder)
        except SinkError:
            self.abort()
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            self._partial.abort()
            raise sink_error(path, error) from error

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns what libav and the system raise into SinkError; any failure removes the file at once."""
        if self._has_failed:
            raise SinkError(f"{self.path} is not written, since writing it failed before.")
        try:
            yield
        except BaseException as error:
            self.abort()
            if isinstance(error, KeyfaceError) or not isinstance(error, (av.FFmpegError, OSError)):
                raise
            raise sink_error(self.path, error) from error

    def time_of(self, frame: SafeFrame) -> Fraction:
        """Seconds on the source's clock, exact where the source is."""
        if frame.pts is not None and frame.time_base is not None:
            return frame.pts * frame.time_base
        return Fraction(frame.pts_s).limit_denominator(_FINEST_TIME_BASE.denominator)

    def begin(self, zero_s: Fraction) -> None:
        """Sets which moment of the source's clock is 0 in the file."""
        self._zero_s = zero_s

    def write(self, image_rgb: ImageRgb, time_s: Fraction) -> None:
        """Takes uint8 (H, W, 3) to be shown at `time_s`, later than the one before."""
        width, height = self._size_wh
        if image_rgb.shape != (height, width, 3):
            got = f"{image_rgb.shape[1]}x{image_rgb.shape[0]}"
            raise SinkError(f"{self.path}: got a frame of {got}, want {width}x{height}.")
        if self._held is not None:
            length_s = time_s - self._held[1]
            if length_s <= 0:
                raise SinkError(
                    f"{self.path}: the time of a frame, {float(time_s):.4f} s, does not increase."
                )
            self._encode_held(length_s)
        self._held = (av_from_rgb(image_rgb, self._info.colour.matrix), time_s)

    def finish_video(self) -> None:
        """Encodes the last frame, for as long as the source shows it, and all that is delayed."""
        if self._held is not None:
            self._encode_held(self._length_of_last(self._held[1]))
        self._mux(self._stream.encode(None))

    def commit(self) -> None:
        """Closes the file, flushes it to the disk and gives it its name."""
        self.container.close()
        self._partial.commit()

    def abort(self) -> None:
        """Closes and removes the file; does nothing when it has its name already."""
        self._has_failed = True
        if not self._partial.is_open:
            return
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self.container.close()
        self._partial.abort()

    def _add_video(self, crf: int, preset: str, threads: int | None, encoder: EncoderName) -> Any:
        rate = self._info.frame_rate.limit_denominator(65_535)
        stream = add_picture(self.container, encoder, rate, {"crf": str(crf), "preset": preset})
        stream.width, stream.height = (side + side % 2 for side in self._size_wh)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = self._time_base
        stream.codec_context.sample_aspect_ratio = self._info.pixel_aspect
        colour = self._info.colour
        stream.codec_context.color_range = _LIMITED_RANGE
        stream.codec_context.colorspace = colour.matrix_tag
        stream.codec_context.color_primaries = colour.primaries_tag
        stream.codec_context.color_trc = colour.transfer_tag
        if threads is not None:
            stream.codec_context.thread_count = threads
        open_picture(stream.codec_context, encoder)
        return stream

    def _length_of_last(self, time_s: Fraction) -> Fraction:
        last = self._info.last_frame
        if last.duration > 0 and last.pts is not None and last.pts * self._info.time_base == time_s:
            return last.duration * self._info.time_base
        return self._last_length_s

    def _encode_held(self, length_s: Fraction) -> None:
        assert self._held is not None
        av_frame, time_s = self._held
        self._held = None
        self._last_length_s = length_s
        pts = self._ticks(time_s - self._zero_s)
        self._lengths[pts] = max(1, self._ticks(time_s + length_s - self._zero_s) - pts)
        av_frame.pts = pts
        av_frame.time_base = self._time_base
        self._mux(self._stream.encode(av_frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = self._lengths.pop(packet.pts, packet.duration)
            self.container.mux(packet)

    def _ticks(self, time_s: Fraction) -> int:
        # Always rounds halves up, so that equal steps stay equal.
        return math.floor(time_s / self._time_base + Fraction(1, 2))
