"""Reads a live source on a thread, as the runner does, for tests that watch it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from keyface.configs.errors import SourceError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

QUICK = LiveSourceOptions(open_timeout_s=4.0, silence_s=2.0, first_pause_s=0.05, longest_pause_s=0.2)
# A stop, and whatever else waits for nothing: where it did wait, that would be for 20 s and more.
AT_ONCE_S = 8.0
SECRETS = ("hidden-user", "hidden-password", "hidden-path", "hidden-token")


class Reading:
    """Reads until stopped.

    Attributes:
        frames: what came; times_s: when, by `time.monotonic()`.
        error: why it ended, if not on purpose.
    """

    def __init__(self, source: LiveSource) -> None:
        self.source = source
        self.frames: list[Frame] = []
        self.times_s: list[float] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, is_so: Callable[[], bool], timeout_s: float = 45.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, (self.source.status, self.error, len(self.frames))
            time.sleep(0.005)

    def wait_for_more(self, n: int, timeout_s: float = 45.0) -> None:
        before = len(self.frames)
        self.wait(lambda: len(self.frames) >= before + n, timeout_s)

    def stop(self) -> float:
        """Seconds that it took."""
        began_s = time.monotonic()
        self.source.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return time.monotonic() - began_s

    def _read(self) -> None:
        try:
            for frame in self.source:
                self.times_s.append(time.monotonic())
                self.frames.append(frame)
        except SourceError as error:
            self.error = error


def url_source(url: str, options: LiveSourceOptions = QUICK) -> LiveSource:
    return LiveSource(parse_source(url), options)
