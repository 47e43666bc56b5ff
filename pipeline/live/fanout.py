"""Hands safe frames to several sinks, each behind a mailbox and on a thread of its own.

A sink that is slow, blocked or broken costs nobody but itself: whoever hands out a frame never waits, the
oldest frame of a sink that is behind is dropped and counted, and a sink that fails is left out. Only when
the last one has failed does the stream end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from keyface.configs.errors import KeyfaceError, SinkError, StageError
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.live.audio import AudioTap
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.mailbox import SinkMailbox
from keyface.pipeline.live.sink import LiveSink, SoundSink
from keyface.pipeline.live.sound import LiveSound
from keyface.pipeline.live.source import LiveStatus
from keyface.pipeline.runner import describe, side_thread
from keyface.pipeline.stage_times import DurationLog, StageTimes

_LOG = logging.getLogger(__name__)

SinkState = Literal["waiting", "live", "lost", "failed", "closed"]

_DEFAULT_QUEUE = 2  # frames: who is late wants the newest
_DRAIN_S = 0.5  # for what still waits in mailboxes at the end
_LAST_CALL_S = 0.25  # for a sink that was interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkReport:
    """How one sink is doing.

    Attributes:
        name: of the sink, as it may be shown.
        state: waiting for the first picture, live, lost for the time being, failed for good, or closed.
        written: frames that it took, slates among them.
        dropped: frames that it never got or did not take.
        age: from capture to the end of `write`.
        problem: one sentence when it is lost or failed, else ''.
    """

    name: str
    state: SinkState
    written: int
    dropped: int
    age: StageTimes
    problem: str

    def to_json(self) -> dict[str, Any]:
        """As plain values for `json.dumps`."""
        return {
            "name": self.name, "state": self.state, "written": self.written, "dropped": self.dropped,
            "age": self.age.to_json(), "problem": self.problem,
        }  # fmt: skip


class SinkPost:
    """One sink with its mailbox and its thread.

    Args:
        sink: `open`, `write` and `close` are called on the thread; `finish` is not.
        status: of the source, for the age of frames.
        sound: what the sink gets beside the picture, if it takes sound.
    """

    def __init__(self, sink: LiveSink, status: LiveStatus, sound: LiveSound | None) -> None:
        self.sink = sink
        self.mailbox = SinkMailbox(getattr(sink, "queue_frames", _DEFAULT_QUEUE))
        self.failure: KeyfaceError | None = None
        self._status = status
        self._sound = sound
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._state: SinkState = "waiting"
        self._busy_since_s: float | None = None
        self._written = self._refused = 0
        self._ages = DurationLog()

    @property
    def is_stuck(self) -> bool:
        """True while its thread lives; after `join` that means that it did not come back."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, size_wh: tuple[int, int], fps: float) -> None:
        """Opens the sink, on its thread."""
        name = f"sink {type(self.sink).__name__}"
        self._thread = side_thread(name, lambda: self._run(size_wh, fps))

    def check(self, timeout_s: float) -> None:
        """Counts the sink as failed when it has not come back for that long."""
        since_s = self._busy_since_s
        if since_s is not None and time.monotonic() - since_s > timeout_s:
            self.fail(SinkError(f"{self.sink.name} has not taken a frame for {timeout_s:g} s."))

    def fail(self, error: Exception) -> None:
        """Leaves the sink out from now on; the first failure is told, once."""
        failure = error
        if not isinstance(failure, KeyfaceError):
            failure = SinkError(f"{self.sink.name} failed: {describe(error)}.")
            failure.__cause__ = error
        with self._lock:
            if self.failure is not None:
                return
            self.failure = failure
            self._state = "failed"
        self.mailbox.close(discard=True)
        _LOG.warning("An output has failed and is left out: %s", failure)

    def join(self, deadline_s: float) -> None:
        """Waits for the thread until `deadline_s` on the clock of `time.monotonic`. A sink that got no picture
        has none, and is closed here."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
        elif self._state == "waiting":
            self._state = "closed"
            try:
                self.sink.close()
            except Exception as error:
                self.fail(error)

    def report(self) -> SinkReport:
        """The figures so far, from any thread."""
        problem = str(getattr(self.sink, "problem", "")) if self.failure is None else str(self.failure)
        return SinkReport(
            name=self.sink.name, state="lost" if problem and self._state == "live" else self._state,
            written=self._written, dropped=self.mailbox.dropped + self._refused, age=self._ages.times(),
            problem=problem,
        )  # fmt: skip

    # On the sink's thread.

    def _run(self, size_wh: tuple[int, int], fps: float) -> None:
        parts: tuple[Callable[[], None], ...] = (partial(self._work, size_wh, fps), self.sink.close)
        for part in parts:
            self._busy_since_s = time.monotonic()
            try:
                part()
            except Exception as error:
                self.fail(error)
            self._busy_since_s = None
        if self.failure is None:
            self._state = "closed"

    def _work(self, size_wh: tuple[int, int], fps: float) -> None:
        sink, sound = self.sink, self._sound
        if sound is not None and sound.is_present and isinstance(sink, SoundSink):
            sink.expect_sound()
        sink.open(size_wh, fps)
        self._state = "live"
        self._busy_since_s = None
        while (frame := self.mailbox.get()) is not None and self.failure is None:
            self._busy_since_s = time.monotonic()
            if sound is not None and sound.is_present and isinstance(sink, SoundSink):
                for piece in sound.take(frame.pts_s):
                    sink.write_sound(piece)
            if sink.write(frame) is False:
                self._refused += 1
            else:
                self._written += 1
                now_s = time.monotonic()
                self._ages.add(now_s - (self._status.origin_s or now_s) - frame.pts_s)
            self._busy_since_s = None


class Fanout:
    """All sinks of a live stream. Used on one thread, except `reports` and `wants_end`.

    Args:
        sinks: at least one; opened with the first frame, on threads of their own.
        status: of the source.
        tap: the source's sound, for sinks that take sound; None: silent.
        controls: a pause mutes the sound.
        timeout_s: a sink that does not come back for that long has failed.
    """

    def __init__(
        self,
        sinks: Sequence[LiveSink],
        status: LiveStatus,
        *,
        tap: AudioTap | None = None,
        controls: LiveControls | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._status = status
        self._timeout_s = timeout_s
        self._is_open = False
        self.posts = tuple(
            SinkPost(
                sink, status,
                LiveSound(tap, status, controls) if tap is not None and isinstance(sink, SoundSink) else None,
            )
            for sink in sinks
        )  # fmt: skip

    @property
    def wants_end(self) -> bool:
        """True when the user has ended the stream through a sink."""
        return any(post.sink.wants_end for post in self.posts)

    def show(self, frame: SafeFrame) -> None:
        """Hands a frame to all sinks; never waits for one.

        Raises:
            TypeError: not a `SafeFrame`.
            KeyfaceError: the first failure, when all sinks have failed.
        """
        if not self._is_open:
            self._is_open = True
            height, width = frame.image_rgb.shape[:2]
            for post in self.posts:
                post.start((width, height), self._status.fps)
        for post in self.posts:
            post.mailbox.put(frame)
        self.check()

    def check(self) -> None:
        """Looks after sinks that do not come back. Raises as `show`."""
        for post in self.posts:
            post.check(self._timeout_s)
        failures = [post.failure for post in self.posts if post.failure is not None]
        if len(failures) == len(self.posts):
            raise failures[0]

    def close(self) -> None:
        """Lets the sinks take what waits, for a moment, and ends their threads. Returns within a second."""
        deadline_s = time.monotonic() + _DRAIN_S
        for post in self.posts:
            post.mailbox.close()
        for post in self.posts:
            post.join(deadline_s)
        late = [post for post in self.posts if post.is_stuck]
        for post in late:
            post.mailbox.close(discard=True)
            interrupt = getattr(post.sink, "interrupt", None)
            if interrupt is not None:
                interrupt()
        deadline_s = time.monotonic() + _LAST_CALL_S
        for post in late:
            post.join(deadline_s)

    def finish(self, *, is_complete: bool) -> None:
        """After `close`, on any thread: keeps or drops what was recorded, also when one sink fails.

        Raises:
            KeyfaceError: the first failure to finish; or, when the stream ended well, all sinks have failed.
        """
        failure: Exception | None = None
        for post in self.posts:
            if post.is_stuck:  # its thread may still be at work in there
                post.fail(SinkError(f"{post.sink.name} did not come back from its last frame."))
                continue
            try:
                post.sink.finish(is_complete=is_complete and post.failure is None)
            except Exception as error:
                failure = failure or error
        if failure is None and is_complete and all(post.failure for post in self.posts):
            failure = self.posts[0].failure
        if failure is not None:
            raise failure if isinstance(failure, KeyfaceError) else StageError(f"sink: {describe(failure)}.")

    def reports(self) -> tuple[SinkReport, ...]:
        """How each sink is doing, in the order given."""
        return tuple(post.report() for post in self.posts)
