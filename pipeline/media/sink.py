"""Writing the anonymised video: H.264 in MP4, with the source's timestamps, length and sound.

Sinks take `SafeFrame` and nothing else. The file appears under its name only when it is whole.
Of the source, only the sound, and with `keep_metadata` short texts, reach the output: no second video
track, cover picture, subtitle, timecode, GPS track or attachment is ever copied.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np

from keyface.configs.errors import SinkError
from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import Frame, ImageRgb, SafeFrame
from keyface.pipeline.media.audio import AudioFeed
from keyface.pipeline.media.capture import SourceInfo
from keyface.pipeline.media.encode import Mp4File
from keyface.pipeline.media.metadata import harmless_metadata

Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]

# A start later than this (broadcast clocks, say) is not a matter of sync and is moved to 0.
_LONGEST_LEAD_S = 1
_LABEL_SHARE, _LABEL_LEAST_PX = 0.06, 20


class Mp4Sink:
    """Writes `SafeFrame`s to an MP4 file.

    Frames keep their distance in time exactly (rounded to 1 microsecond only where the source counts
    finer); picture and sound keep their places to each other. Pictures of odd width or height get
    their last column or row repeated once, since yuv420p needs even sizes and players ignore MP4's
    own way of cropping by one pixel; nothing is cut off.

    Use as a context manager: leaving it without `commit` removes what was written.

    Args:
        path: of the new file; replaced if it exists.
        info: of the source that the frames come from.
        crf: 0 (lossless, large) to 51 of x264; 18 is hard to tell from the source.
        preset: of x264. At the same crf, "superfast" takes half the time of "veryfast" and comes 1 dB
            closer to the source, for half as many bytes again; slower ones give smaller files.
        audio_from: file whose sound is carried over; None: silent.
        keep_metadata: carry over the source's texts (title, date, place, device); never pictures.
        start_s, end_s: span of the source, in seconds from its first frame; by default that of `info`.
        threads: of the encoder; None: x264's choice.
        encoder: "nvenc": a graphics card's, with `crf` as its quality.

    Attributes:
        notes: sentences on what was changed or left out.

    Raises:
        SinkError: the folder is missing or may not be written, `path` is the source itself, or the encoder
            cannot be had.
        SourceError: `audio_from` cannot be read.
    """

    def __init__(
        self,
        path: Path | str,
        info: SourceInfo,
        *,
        crf: int = 18,
        preset: Preset = "superfast",
        audio_from: Path | str | None = None,
        keep_metadata: bool = False,
        start_s: float | None = None,
        end_s: float | None = None,
        threads: int | None = None,
        encoder: EncoderName = "software",
    ) -> None:
        self.path = Path(path)
        self._info = info
        self._start_s = info.start_s if start_s is None else start_s
        self._end_s = info.end_s if end_s is None else end_s
        self.notes: list[str] = []
        if _is_same_file(self.path, info.path):
            raise SinkError(f"{self.path} is the source itself.", "Choose another name for the output.")
        metadata = harmless_metadata(info.path) if keep_metadata else {}
        width, height = info.size_wh
        if width % 2 or height % 2:
            self.notes.append(f"The odd size {width}x{height} is padded to even sides.")
        self._file = Mp4File(self.path, info, info.size_wh, crf, preset, threads, metadata, encoder)
        try:
            self._audio = None if audio_from is None else AudioFeed(Path(audio_from), self._file.container)
        except BaseException:
            self._file.abort()
            raise
        self._is_begun = False

    def write(self, frame: SafeFrame) -> None:
        """Encodes one frame.

        Raises:
            TypeError: not a `SafeFrame`.
            SinkError: wrong size, a timestamp that does not increase, disk full, encoder failed.
        """
        with self._file.guarded():
            if type(frame) is not SafeFrame:
                raise TypeError(f"sink: got {type(frame).__name__}, want SafeFrame")
            time_s = self._file.time_of(frame)
            if not self._is_begun:
                self._begin(time_s)
            if self._audio is not None:
                self._audio.feed_until(time_s)
            self._file.write(frame.image_rgb, time_s)

    def commit(self) -> None:
        """Finishes the file and gives it its name.

        Raises:
            SinkError: no frame was written, or the disk refused; nothing is left behind.
        """
        with self._file.guarded():
            if not self._is_begun:
                raise SinkError(f"{self.path}: there is no frame to write.")
            self._file.finish_video()
            if self._audio is not None:
                self._audio.finish()
                self.notes.extend(self._audio.notes)
            self._close_audio()
            self._file.commit()

    def abort(self) -> None:
        """Gives up: removes what was written. Does nothing after `commit` or a first `abort`."""
        self._close_audio()
        self._file.abort()

    def __enter__(self) -> Mp4Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _begin(self, first_s: Fraction) -> None:
        """Places 0 of the output on the source's clock."""
        zero_s = first_s
        if not self._start_s:
            earliest_s = first_s
            if self._audio is not None and self._audio.first_s is not None:
                earliest_s = min(first_s, self._audio.first_s)
            zero_s = Fraction(0) if 0 <= earliest_s <= _LONGEST_LEAD_S else earliest_s
        self._file.begin(zero_s)
        if self._audio is not None:
            source_zero_s = self._info.first_pts * self._info.time_base
            end_s = None if self._end_s is None else source_zero_s + Fraction(self._end_s)
            self._audio.start(zero_s, end_s, is_cut=bool(self._start_s))
        self._is_begun = True

    def _close_audio(self) -> None:
        if self._audio is not None:
            self._audio.close()


class ComparisonWriter:
    """Writes original and anonymised frames side by side, without sound, each under its label.

    WARNING: THE FILE SHOWS THE ORIGINAL FACES. It is for the user's own eyes, to judge the result, and
    must be made only when asked for by name (`--side-by-side`). Nothing in keyface builds one by
    default, and it is no substitute for a sink: a sink takes no `Frame`.

    Frames keep their timestamps as in `Mp4Sink`, to which the arguments and errors correspond.
    """

    def __init__(
        self, path: Path | str, info: SourceInfo, *, crf: int = 20, preset: Preset = "superfast",
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        if _is_same_file(self.path, info.path):
            raise SinkError(f"{self.path} is the source itself.", "Choose another name for the comparison.")
        width, height = info.size_wh
        label_px = max(_LABEL_LEAST_PX, round(height * _LABEL_SHARE))
        size_wh = (2 * width, height + label_px)
        self._file = Mp4File(self.path, info, size_wh, crf, preset, threads, {})
        self._labels_rgb = np.concatenate([
            _label("ORIGINAL - DO NOT SHARE", width, label_px, (200, 30, 30)),
            _label("ANONYMISED", width, label_px, (20, 110, 40)),
        ], axis=1)  # fmt: skip
        self._is_begun = False

    def write(self, raw: Frame, safe: SafeFrame) -> None:
        """Encodes one pair.

        Raises:
            TypeError: `raw` is not a `Frame` or `safe` not a `SafeFrame`.
            SinkError: the two are not the same moment; otherwise as `Mp4Sink.write`.
        """
        with self._file.guarded():
            if type(raw) is not Frame or type(safe) is not SafeFrame:
                got = f"{type(raw).__name__} and {type(safe).__name__}"
                raise TypeError(f"comparison: got {got}, want Frame and SafeFrame")
            if raw.index != safe.index or raw.image_rgb.shape != safe.image_rgb.shape:
                raise SinkError(
                    f"{self.path}: frame {raw.index} and frame {safe.index} do not belong together."
                )
            time_s = self._file.time_of(safe)
            if not self._is_begun:
                self._file.begin(time_s)
                self._is_begun = True
            pair_rgb = np.concatenate([raw.image_rgb, safe.image_rgb], axis=1)
            self._file.write(np.concatenate([self._labels_rgb, pair_rgb], axis=0), time_s)

    def commit(self) -> None:
        """Finishes the file and gives it its name. Raises SinkError as `Mp4Sink.commit`."""
        with self._file.guarded():
            if not self._is_begun:
                raise SinkError(f"{self.path}: there is no frame to write.")
            self._file.finish_video()
            self._file.commit()

    def abort(self) -> None:
        """Gives up: removes what was written. Does nothing after `commit` or a first `abort`."""
        self._file.abort()

    def __enter__(self) -> ComparisonWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _label(text: str, width: int, height: int, fill_rgb: tuple[int, int, int]) -> ImageRgb:
    band: ImageRgb = np.full((height, width, 3), fill_rgb, np.uint8)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, height // 20)
    (text_width, text_height), _ = cv2.getTextSize(text, font, 1.0, thickness)
    scale = min(0.6 * height / text_height, 0.95 * width / text_width)
    at_xy = (max(1, round(0.02 * width)), round((height + scale * text_height) / 2))
    cv2.putText(band, text, at_xy, font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return band
