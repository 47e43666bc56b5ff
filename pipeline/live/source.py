"""Live sources: cameras, network streams, files at their own pace, and a test pattern.

A live source has no time of its own that could be trusted: frames get the time at which they came, in
seconds from the first one (a file: its own time). A camera or a stream that is lost is opened again, with
growing pauses, for as long as it takes; meanwhile `status` says so and the sink shows a slate.

Every wait ends: libav's calls have time-outs, opening is watched from another thread since not all of it
has one, a stream without a picture for a while counts as lost, and `stop` ends all of it at once. No
message repeats a URL, since it may hold a password.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import cv2
import numpy as np

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.live.address import SourceAddress
from keyface.pipeline.live.audio import AudioTap
from keyface.pipeline.live.interrupt import interruptible
from keyface.pipeline.live.source_open import open_address, read_timeout_s, why_not
from keyface.pipeline.live.source_options import (
    DEFAULT_FPS,
    LiveSourceOptions,
    LiveStatus,
    Picture,
    SourceState,
)
from keyface.pipeline.live.source_play import Playing, pattern_at
from keyface.pipeline.live.source_read import Connection
from keyface.pipeline.live.source_sound import SoundFeed
from keyface.pipeline.media.open import close_input
from keyface.pipeline.runner_call import GuardedCall

__all__ = ["LiveSource", "LiveSourceOptions", "LiveStatus", "SourceState", "pattern_at"]

_LEAST_STEP_S = 1e-4  # between two frames, whatever the clock says
_GRACE_S = 1.0  # that opening has beyond its own time-outs
_PATIENT_EACH = 8  # opening is waited out for a source whose size comes late
_SAME_ASPECT = 0.02


class LiveSource:
    """Iterates `Frame`s as they come, once. All frames have the size of the first, or `options.size_wh`;
    pictures of another size are scaled, with black bars where the aspect differs.

    Args:
        address: see `parse_source`.
        is_ready: files and the test pattern begin when it is set, so that they lose nothing while the chain
            starts; None: at once.

    Attributes:
        status: see `LiveStatus`.
        audio: the source's sound, when `options.with_audio`; else None.
        on_frame: called with each frame on the source's thread, before anything can drop it; must be quick.

    Raises:
        UsageError: sound is wanted of a camera.
    """

    def __init__(
        self,
        address: SourceAddress,
        options: LiveSourceOptions | None = None,
        *,
        is_ready: threading.Event | None = None,
    ) -> None:
        self.address = address
        self.options = options or LiveSourceOptions()
        self.status = LiveStatus(size_wh=self.options.size_wh, fps=self.options.fps or DEFAULT_FPS)
        self.is_ready = is_ready
        if self.options.with_audio and address.kind == "camera":
            raise UsageError(f"{address.label} has no sound.", "Use a stream or a file, or leave sound out.")
        self.audio = AudioTap() if self.options.with_audio else None
        self._sound = None if self.audio is None else SoundFeed(self.audio, lambda: self.status.origin_s)
        self.on_frame: Callable[[Frame], None] | None = None
        self._is_stopped = threading.Event()
        self._opens_with_size = False  # when it was well
        self._n_in_vain = 0  # openings in a row without a picture
        self._opening: GuardedCall[Any] = GuardedCall(_close)

    def stop(self) -> None:
        """Ends the iteration, from any thread; may be called again. Does not wait."""
        self._is_stopped.set()

    def __iter__(self) -> Iterator[Frame]:
        """Raises SourceError: it cannot be opened at first, or a file cannot be read."""
        last_s = -1.0
        for index, picture in enumerate(self._pictures()):
            now_s = time.monotonic()
            if self.status.origin_s is None:
                self.status.origin_s = now_s - (picture.time_s or 0.0)
            pts_s = now_s - self.status.origin_s if picture.time_s is None else picture.time_s
            last_s = max(pts_s, last_s + _LEAST_STEP_S)
            frame = Frame(self._fitted(picture.image_rgb), index, last_s, is_suspect=picture.is_suspect)
            if self.on_frame is not None:
                self.on_frame(frame)
            yield frame
        self.status.state = "ended"

    def _pictures(self) -> Iterator[Picture]:
        """All pictures, over all connections."""
        if self.address.is_endless:
            with interruptible(self._is_stopped):
                yield from self._over_connections()
            return
        playing = Playing(self.options, self.status, self._is_stopped, self._wait_until_ready, self._sound)
        is_file = self.address.kind == "file"
        for picture in playing.file(self.address.target) if is_file else playing.pattern():
            self.status.state = "live"
            yield picture

    def _over_connections(self) -> Iterator[Picture]:
        has_worked, pause_s = False, self.options.first_pause_s
        while not self._is_stopped.is_set():
            try:
                for picture in self._connection(is_known=has_worked):
                    if self.status.state == "lost":
                        self.status.reconnects += 1
                    self.status.state = "live"
                    has_worked, pause_s = True, self.options.first_pause_s
                    yield picture
                if not self.options.is_looped:  # a recording is over
                    return
                continue
            except SourceError as error:
                if self._is_stopped.is_set():
                    return
                if not has_worked:
                    raise
                self.status.problem = error.problem
            self.status.state = "lost"
            # Many viewers of one server must not all come back in the same moment.
            self._is_stopped.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self.options.longest_pause_s)

    def _connection(self, *, is_known: bool) -> Iterator[Picture]:
        """Pictures of one connection.

        Raises:
            SourceError: it is lost. A recording on a server ends without.
        """
        label, options = self.address.label, self.options
        try:
            container = self._opened(is_known=is_known)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise why_not(error, label, options.open_timeout_s) from None
        self._n_in_vain += 1
        try:
            connection = Connection(
                container, self.address, options, self.status, self._is_stopped, self._sound,
                is_hasty=self._opens_with_size and self._n_in_vain % _PATIENT_EACH != 0,
            )  # fmt: skip
            if options.fps is None and connection.fps is not None and not is_known:
                self.status.fps = connection.fps
            for picture in connection.pictures():
                self._opens_with_size, self._n_in_vain = connection.has_size, 0
                yield picture
        except (av.FFmpegError, OSError) as error:
            raise why_not(error, label, read_timeout_s(self.address, options)) from None
        finally:
            _close(container)
        if self._is_stopped.is_set() or not connection.is_recording:
            raise SourceError(f"{label} has ended.", "Check that it still sends.")

    def _opened(self, *, is_known: bool) -> Any:
        """Opens on another thread, since the look-up of a name or a driver may not come back at all."""

        def call() -> Any:
            with interruptible(self._is_stopped):
                return open_address(self.address, self.options, is_known=is_known)

        return self._opening.run(call, 2 * self.options.open_timeout_s + _GRACE_S, self._is_stopped)

    def _wait_until_ready(self) -> None:
        while self.is_ready is not None and not self.is_ready.wait(0.05):
            if self._is_stopped.is_set():
                return

    def _fitted(self, image_rgb: ImageRgb) -> ImageRgb:
        """The picture in the size of all frames, which is that of the first."""
        height, width = image_rgb.shape[:2]
        size_wh = self.status.size_wh or (width, height)
        self.status.size_wh = size_wh
        if (width, height) == size_wh:
            return image_rgb
        aspect = width / height * size_wh[1] / size_wh[0]
        if abs(aspect - 1) <= _SAME_ASPECT:
            return _resized(image_rgb, size_wh)
        # A face that is stretched is found and replaced less well than one with bars beside it.
        scale = min(size_wh[0] / width, size_wh[1] / height)
        inner_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
        left, top = (size_wh[0] - inner_wh[0]) // 2, (size_wh[1] - inner_wh[1]) // 2
        fitted: ImageRgb = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
        fitted[top : top + inner_wh[1], left : left + inner_wh[0]] = _resized(image_rgb, inner_wh)
        return fitted


def _resized(image_rgb: ImageRgb, size_wh: tuple[int, int]) -> ImageRgb:
    how = cv2.INTER_AREA if size_wh[0] < image_rgb.shape[1] else cv2.INTER_LINEAR
    resized: ImageRgb = cv2.resize(image_rgb, size_wh, interpolation=how)
    return resized


def _close(container: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError):
        close_input(container)
