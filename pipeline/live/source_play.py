"""Sources with a time of their own: files at the pace at which they were filmed, and a test pattern."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import numpy as np

from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.live.audio import AUDIO_RATE_HZ, Samples
from keyface.pipeline.live.source_options import LiveSourceOptions, LiveStatus, Picture
from keyface.pipeline.live.source_sound import FileSound, SoundFeed
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.open import open_input

_DEFAULT_SIZE_WH = (640, 480)
_CROSSING_S = 2.0  # of the pattern's bar; its tone sounds when the bar sets out
_TONE_S, _TONE_HZ = 0.1, 440.0


class Playing:
    """What files and the test pattern have in common.

    Args:
        wait_until_ready: called before the first picture.
        sound: gets the sound, None: it is not wanted.
    """

    def __init__(
        self,
        options: LiveSourceOptions,
        status: LiveStatus,
        is_stopped: threading.Event,
        wait_until_ready: Callable[[], None],
        sound: SoundFeed | None = None,
    ) -> None:
        self._options, self._status, self._is_stopped = options, status, is_stopped
        self._wait_until_ready, self._sound = wait_until_ready, sound

    def file(self, path: str) -> Iterator[Picture]:
        """A file at its own pace, over and over when it is looped.

        Raises:
            SourceError: it cannot be read.
        """
        offset_s, began_s = 0.0, None
        while not self._is_stopped.is_set():
            with ExitStack() as stack:
                source = stack.enter_context(FileSource(path))
                self._status.fps = self._options.fps or source.info.fps
                if self._status.size_wh is None:
                    self._status.size_wh = source.info.size_wh
                sound = self._file_sound(source, offset_s, stack)
                if began_s is None:
                    self._wait_until_ready()
                    began_s = time.monotonic()
                time_s = offset_s
                for frame in source:
                    time_s = offset_s + frame.pts_s
                    if self._wait_until(began_s + time_s):
                        return
                    if sound is not None:
                        sound.play_until(time_s)
                    yield Picture(frame.image_rgb, time_s, frame.is_suspect)
                offset_s = time_s + 1 / source.info.fps
            if not self._options.is_looped:
                return

    def pattern(self) -> Iterator[Picture]:
        """Waves that move, with a bar that crosses them once in two seconds, and no face."""
        size_wh = self._options.size_wh or _DEFAULT_SIZE_WH
        self._status.size_wh, fps = size_wh, self._status.fps
        if self._sound is not None:
            self._sound.announce_own()
        self._wait_until_ready()
        began_s, number = time.monotonic(), 0
        while not self._wait_until(began_s + number / fps):
            yield Picture(pattern_at(number / fps, size_wh), number / fps, False)
            # What a slow machine could not make in time is left out.
            after = max(number + 1, int((time.monotonic() - began_s) * fps))
            if self._sound is not None:
                self._sound.put_samples(tone_between(number / fps, after / fps), number / fps)
            number = after

    def _file_sound(self, source: FileSource, offset_s: float, stack: ExitStack) -> FileSound | None:
        if self._sound is None or not source.info.has_audio:
            return None
        first_s = float(source.info.first_pts * source.info.time_base)
        container = open_input(source.info.path)
        return stack.enter_context(closing(FileSound(container, self._sound, first_s, offset_s)))

    def _wait_until(self, moment_s: float) -> bool:
        """Waits; True when stopped."""
        return self._is_stopped.wait(max(0.0, moment_s - time.monotonic()))


def pattern_at(time_s: float, size_wh: tuple[int, int]) -> ImageRgb:
    """The test picture at a time: uint8 (H, W, 3)."""
    width, height = size_wh
    x = np.arange(width, dtype=np.float32)[None, :] / width
    y = np.arange(height, dtype=np.float32)[:, None] / height
    waves = [127 + 80 * np.sin(6.3 * ((k + 1) * x + y) + time_s + 2 * k) for k in range(3)]
    image: ImageRgb = np.stack(waves, axis=-1).astype(np.uint8)
    left = int((time_s / _CROSSING_S % 1.0) * width)
    image[:, left : left + max(2, width // 40)] = 235
    return image


def tone_between(begin_s: float, end_s: float) -> Samples:
    """The test pattern's sound, float32 (n, 2): a short tone whenever the bar sets out on the left."""
    numbers = np.arange(round(begin_s * AUDIO_RATE_HZ), round(end_s * AUDIO_RATE_HZ))
    times_s = numbers / AUDIO_RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * _TONE_HZ * times_s) * (times_s % _CROSSING_S < _TONE_S)
    both: Samples = np.repeat(tone[:, None], 2, axis=1).astype(np.float32)
    return both
