"""A recording of a live stream: MP4 under a temporary name until it is complete."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from keyface.configs.errors import SinkError
from keyface.pipeline.capture import SourceInfo
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live_sink import checked_pixels
from keyface.pipeline.sink_encode import Mp4File

_TIME_BASE = Fraction(1, 90_000)
_LEAST_STEP_S = Fraction(1, 1000)  # between two frames of a recording


class RecordingSink:
    """An MP4 file, H.264 without sound, with the times at which frames were captured.

    Args:
        path: gets its name when the recording is finished as complete.
        crf: of x264, as in `Mp4Sink`.
    """

    def __init__(self, path: Path, *, crf: int = 18) -> None:
        self.name = str(path)
        self.wants_end = False
        self._path = path
        self._crf = crf
        self._file: Mp4File | None = None
        self._last_s: Fraction | None = None

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Begins the file under a temporary name."""
        rate = Fraction(fps).limit_denominator(1001)
        info = SourceInfo(
            path=Path("live"), container="live", codec="", pix_fmt="yuv420p", size_wh=size_wh, fps=fps,
            frame_rate=rate, duration_s=None, n_frames_hint=None, time_base=_TIME_BASE, first_pts=0,
        )  # fmt: skip
        self._file = Mp4File(self._path, info, size_wh, self._crf, "superfast", None, {})

    def write(self, frame: SafeFrame) -> None:
        """Encodes one frame. A time that does not increase, as after a slate, is moved by a millisecond."""
        pixels = checked_pixels(frame, self.name)
        if self._file is None:
            raise SinkError(f"{self.name} is not open.")
        with self._file.guarded():
            time_s = self._file.time_of(frame)
            if self._last_s is None:
                self._file.begin(time_s)
            else:
                time_s = max(time_s, self._last_s + _LEAST_STEP_S)
            self._last_s = time_s
            self._file.write(pixels, time_s)

    def close(self) -> None:
        """Nothing yet: see `finish`."""

    def finish(self, *, is_complete: bool) -> None:
        """Gives the file its name, or removes it. Raises SinkError when the disk refuses."""
        file, self._file = self._file, None
        if file is None:
            return
        if not is_complete or self._last_s is None:
            file.abort()
            return
        with file.guarded():
            file.finish_video()
            file.commit()
