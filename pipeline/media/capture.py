"""Reading video files: every frame, upright, as RGB, with its own exact timestamp.

Timestamps are the source's, in the source's time base; where the source has none, or they do not
increase, the smallest repair is made and said in `notes`. Damage does not end the reading: what the
decoder can still give is given, and frames from the damage to the next clean key frame are suspect.
Decoders notice most damage to H.264 and MPEG-4 and some to HEVC; VP9 and AV1 have next to no
redundancy, so that a flipped bit often decodes to a wrong picture without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.media.decode import DamageAwareDecoder
from keyface.pipeline.media.open import MAX_PIXELS, close_input, open_input
from keyface.pipeline.media.rotation import apply_turn, swaps_sides, turn_of_frame
from keyface.pipeline.media.yuv import ColourTags, colour_tags_of, rgb_from_av

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})

_SEEK_FROM_S = 2.0  # a shorter way to the start is decoded and thrown away
_DEFAULT_FPS = Fraction(25)


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """One audio track of a source: index of the stream, codec name, channels, Hz, language or ''."""

    index: int
    codec: str
    channels: int
    rate_hz: int
    language: str


@dataclass(slots=True)
class LastFrame:
    """Filled by the source while it is read: timestamp and duration of the frame delivered last.

    A file says how long its last frame is shown only when that frame has been read; the sink needs it
    to give the copy the same length.
    """

    pts: int | None = None
    duration: int = 0


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What is known of a video before its frames are read.

    Attributes:
        path: the file.
        container, codec, pix_fmt: names as libav gives them.
        size_wh: px of the upright frames.
        fps: average frames per second; frames may be spaced unevenly.
        frame_rate: the same, exact.
        duration_s: of what will be delivered (after `start_s` and `end_s`), None if unknown.
        n_frames_hint: about how many frames will be delivered, None if unknown.
        time_base: seconds per unit of `Frame.pts`.
        first_pts: of the source's first frame, whatever `start_s` says.
        start_s, end_s: what is delivered, in seconds from the source's first frame; None: all.
        pixel_aspect: width : height of one pixel of the upright frames.
        colour: tags for the output.
        audio_tracks: in the order of the file.
        last_frame: see `LastFrame`.
    """

    path: Path
    container: str
    codec: str
    pix_fmt: str
    size_wh: tuple[int, int]
    fps: float
    frame_rate: Fraction
    duration_s: float | None
    n_frames_hint: int | None
    time_base: Fraction
    first_pts: int
    start_s: float | None = None
    end_s: float | None = None
    pixel_aspect: Fraction = Fraction(1)
    colour: ColourTags = field(default_factory=ColourTags)
    audio_tracks: tuple[AudioTrack, ...] = ()
    last_frame: LastFrame = field(default_factory=LastFrame, compare=False)

    @property
    def has_audio(self) -> bool:
        """True when there is at least one audio track."""
        return bool(self.audio_tracks)


class FileSource:
    """Iterates the frames of a video file, once, in order of time.

    Usable as a context manager. `info` is complete after construction, which decodes the first frame;
    `notes` grows while frames are read.

    Args:
        path: MP4, MOV, MKV, WebM, AVI, or whatever else libav reads.
        start_s, end_s: deliver frames with start_s <= time < end_s, in seconds from the first frame.
        max_pixels: larger frames are refused.

    Raises:
        SourceError: missing, unreadable, not a video, audio only, truncated, no frames, too large.
        UsageError: `start_s` or `end_s` make no sense.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._path = Path(path)
        _check_span(start_s, end_s)
        self._start_s, self._end_s = start_s, end_s
        self._max_pixels = max_pixels
        self._notes: list[str] = []
        self._is_started = False
        self._open()
        try:
            self._decoder = self._new_decoder()
            self._decoded = self._decoder.frames()
            self._first = self._first_decoded()
            self.info = self._describe(*self._first)
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was left out, repaired or damaged; complete after the last frame."""
        return tuple(self._notes)

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        close_input(self._container)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        if self._is_started:
            raise SourceError(f"{self._path} has been read already.", "Open it again to read it again.")
        self._is_started = True
        index = 0
        for av_frame, pts, is_suspect in self._from_start():
            pts_s = float((pts - self.info.first_pts) * self.info.time_base)
            if self._start_s is not None and pts_s < self._start_s:
                continue
            if self._end_s is not None and pts_s >= self._end_s:
                break
            self.info.last_frame.pts, self.info.last_frame.duration = pts, _duration(av_frame)
            image_rgb = self._upright_rgb(av_frame)
            yield Frame(image_rgb, index, pts_s, pts, self.info.time_base, is_suspect)
            index += 1
        if index == 0:
            raise SourceError(
                f"{self._path} has no frame from {self._start_s or 0:g} s on.", "Choose an earlier --start."
            )
        self._note_end(index)

    def _open(self) -> None:
        self._container = open_input(self._path)
        try:
            self._stream = self._choose_stream()
            self._stream.thread_type = "AUTO"
        except BaseException:
            close_input(self._container)
            raise

    def _choose_stream(self) -> Any:
        """The track marked as default, else the largest; never a cover picture."""
        if self._container.format.name.endswith(("_pipe", "image2")):
            raise SourceError(
                f"{self._path} is a picture, not a video.", "Give JPEG, PNG or WebP as a photo."
            )
        streams = [s for s in self._container.streams.video if not _is_picture(s)]
        if not streams:
            what = "only sound" if self._container.streams.audio else "no video track"
            raise SourceError(f"{self._path} has {what}: there is nothing to anonymise.")
        known = [s for s in streams if s.codec_context is not None]
        if not known:
            raise SourceError(f"The video of {self._path} is in a format for which there is no decoder.")
        return max(known, key=lambda s: (_has_flag(s, "default"), s.width * s.height, -s.index))

    def _new_decoder(self) -> DamageAwareDecoder:
        return DamageAwareDecoder(self._container, self._stream, self._check_size)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise SourceError(
                f"{self._path} has frames of {width}x{height}, more than the limit of "
                f"{self._max_pixels / 1e6:.0f} megapixels.",
                "Scale the video down first.",
            )

    def _first_decoded(self) -> tuple[Any, int, bool]:
        first = next(self._decoded, None)
        if first is not None:
            return first
        if self._decoder.n_packets == 0:
            raise SourceError(f"{self._path} has a video track without a single frame.")
        raise SourceError(
            f"{self._path} is damaged: none of its {self._decoder.n_packets} frames can be decoded.",
            "Copy the file again, or repair it first.",
        )

    def _from_start(self) -> Iterator[tuple[Any, int, bool]]:
        """Decoded frames from the key frame before `start_s`, or from the first one on."""
        if self._start_s is None or self._start_s < _SEEK_FROM_S:
            return chain([self._first], self._decoded)
        target = self.info.first_pts + int(Fraction(self._start_s) / self.info.time_base)
        try:
            self._container.seek(target, stream=self._stream, backward=True)
            self._decoder = self._new_decoder()
            self._decoded = self._decoder.frames()
            landed = next(self._decoded, None)
            if landed is not None and landed[1] <= target:
                return chain([landed], self._decoded)
        except (av.FFmpegError, OSError):
            self._notes.append("The file cannot be searched; it was read from the beginning.")
        close_input(self._container)
        self._open()
        self._decoder = self._new_decoder()
        self._decoded = self._decoder.frames()
        return self._decoded

    def _upright_rgb(self, av_frame: Any) -> ImageRgb:
        image_rgb: ImageRgb = apply_turn(rgb_from_av(av_frame, self.info.codec), turn_of_frame(av_frame))
        width, height = self.info.size_wh
        if image_rgb.shape[:2] == (height, width):
            return image_rgb
        self._note_once("The size of the picture changes within the video; all frames have the first size.")
        shrinks = image_rgb.shape[0] > height
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        scaled: ImageRgb = cv2.resize(image_rgb, (width, height), interpolation=how)
        return scaled

    def _describe(self, av_frame: Any, first_pts: int, _: bool) -> SourceInfo:
        stream, turn = self._stream, turn_of_frame(av_frame)
        rate = stream.average_rate or getattr(stream, "guessed_rate", None) or _DEFAULT_FPS
        rate = rate if 0 < rate <= 1000 else _DEFAULT_FPS
        width, height = av_frame.width, av_frame.height
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if swaps_sides(turn):
            width, height, aspect = height, width, 1 / aspect
        duration_s, n_frames = self._expected_span(rate, first_pts)
        tags = colour_tags_of(av_frame)
        self._note_losses(av_frame, tags)
        return SourceInfo(
            path=self._path, container=self._container.format.name, codec=stream.codec_context.name,
            pix_fmt=av_frame.format.name, size_wh=(width, height), fps=float(rate), frame_rate=rate,
            duration_s=duration_s, n_frames_hint=n_frames, time_base=stream.time_base, first_pts=first_pts,
            start_s=self._start_s, end_s=self._end_s, pixel_aspect=aspect, colour=tags,
            audio_tracks=tuple(_audio_track(s) for s in self._container.streams.audio),
        )  # fmt: skip

    def _expected_span(self, rate: Fraction, first_pts: int) -> tuple[float | None, int | None]:
        """Seconds and frames that will be delivered, as far as the file says."""
        whole_s = self._file_duration_s(first_pts)
        if whole_s is None:
            return None, self._stream.frames or None
        begin_s = min(self._start_s or 0.0, whole_s)
        end_s = whole_s if self._end_s is None else min(self._end_s, whole_s)
        span_s = max(0.0, end_s - begin_s)
        n_whole = self._stream.frames or round(whole_s * rate)
        return span_s, round(n_whole * span_s / whole_s) if whole_s else None

    def _file_duration_s(self, first_pts: int) -> float | None:
        """Length of the picture, by the word of its track or else of the file."""
        stream = self._stream
        # Matroska gives the end on its clock, other containers the length from the first frame on.
        is_matroska = "matroska" in self._container.format.name
        begin_s = float(first_pts * stream.time_base) if is_matroska else 0.0
        length_s = _seconds_of_tag(stream.metadata.get("DURATION", ""))
        if length_s is None and stream.duration:
            length_s = float(stream.duration * stream.time_base)
        if length_s is None and self._container.duration:
            length_s = self._container.duration / 1e6  # libav gives this one in microseconds
        return None if length_s is None else max(0.0, length_s - begin_s)

    def _note_losses(self, av_frame: Any, tags: ColourTags) -> None:
        components = av_frame.format.components
        if any(c.is_alpha for c in components):
            self._notes.append("Transparency is dropped: MP4 with H.264 has none.")
        if any(c.bits > 8 for c in components):
            self._notes.append(f"{max(c.bits for c in components)}-bit colour is reduced to 8 bits.")
        if tags.hdr_name:
            self._notes.append(f"HDR ({tags.hdr_name}) is kept as it is, without tone mapping.")
        dropped: dict[str, int] = {}
        for stream in self._container.streams:
            if stream.index == self._stream.index or stream.type == "audio":
                continue
            what = "picture" if _is_picture(stream) else stream.type
            dropped[what] = dropped.get(what, 0) + 1
        if dropped:
            listed = ", ".join(f"{count} {what}" for what, count in sorted(dropped.items()))
            self._notes.append(f"Other tracks are dropped, since they may show a face or a place: {listed}.")

    def _note_end(self, n_delivered: int) -> None:
        decoder = self._decoder
        self._notes.extend(decoder.notes())
        if self._end_s is not None or self._start_s is not None:
            return
        expected = self._stream.frames
        if expected and decoder.n_packets < expected:
            self._notes.append(
                f"The file is truncated: {n_delivered} frames could be read, it announces {expected}."
            )
        elif not expected and (duration_s := self._file_duration_s(self.info.first_pts)) is not None:
            last = self.info.last_frame
            end = (last.pts or 0) + last.duration - self.info.first_pts
            end_s = float(end * self.info.time_base)
            # Without a length of the track's own, sound may last longer than the picture.
            is_exact = "DURATION" in self._stream.metadata
            slack_s = 3 / self.info.fps if is_exact else max(1.0, 0.05 * duration_s)
            if end_s < duration_s - slack_s:
                self._notes.append(
                    f"The picture ends at {end_s:.1f} s, the file announces {duration_s:.1f} s."
                )

    def _note_once(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)


def _check_span(start_s: float | None, end_s: float | None) -> None:
    # "not >=" rather than "<": a start that is not a number is refused as well.
    if start_s is not None and not 0 <= start_s < float("inf"):
        raise UsageError(f"The start is {start_s:g} s, want 0 or more.")
    if end_s is not None and not end_s > (start_s or 0.0):
        raise UsageError(f"The end ({end_s:g} s) is not after the start ({start_s or 0.0:g} s).")


def _seconds_of_tag(text: str) -> float | None:
    """Matroska's statistics tag, as in 00:00:02.400000000."""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return None


def _has_flag(stream: Any, name: str) -> bool:
    return bool(stream.disposition & getattr(type(stream.disposition), name))


def _is_picture(stream: Any) -> bool:
    return _has_flag(stream, "attached_pic") or _has_flag(stream, "timed_thumbnails")


def _duration(av_frame: Any) -> int:
    return int(av_frame.duration or 0)


def _audio_track(stream: Any) -> AudioTrack:
    context = stream.codec_context
    if context is None:
        return AudioTrack(stream.index, "unknown", 0, 0, stream.language or "")
    return AudioTrack(
        stream.index, context.name, context.channels, context.sample_rate or 0, stream.language or ""
    )
