"""Anonymises a live source: newest frame first, no look-ahead, and a slate while there is nothing safe.

What differs from a file. The channel behind the source drops its oldest frame when the chain is behind,
and nothing else drops anything, so the age of what is shown stays bounded. Nothing is held back: a face is
hidden from the frame on in which it is detected, and not before, because the frames before it are gone
already. So the detector runs in every frame (or every second one), and takes newcomers at their first
sight. A person is mosaicked until enough of them was seen to know who it is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from keyface.configs.errors import KeyfaceError, StageError, UsageError
from keyface.pipeline.chain import ChainParts, make_plans
from keyface.pipeline.choose import FacesChoice
from keyface.pipeline.faces.analyse import AnalyseOptions
from keyface.pipeline.faces.track import TrackOptions
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.fanout import Fanout, SinkReport
from keyface.pipeline.live.memory import keep_memory_steady
from keyface.pipeline.live.quality import QualityGovernor, QualityOptions
from keyface.pipeline.live.sink import LiveSink
from keyface.pipeline.live.source import LiveSource, LiveStatus, SourceState
from keyface.pipeline.live.stages import LONGEST_GAP_S, LiveAnalysis, LivePaste, LiveReenactment
from keyface.pipeline.paste.redact import slate_frame
from keyface.pipeline.people.identity import IdentityOptions
from keyface.pipeline.runner import Runner, RunReport
from keyface.pipeline.stage import Stage, StagePlan
from keyface.pipeline.stage_times import DurationLog, StageTimes
from keyface.pipeline.summary import Tally

_LOG = logging.getLogger(__name__)

LIVE_IDENTITY = IdentityOptions(min_looks=5)  # at 0.06 s each: a person is known after a third of a second

# A face that vanishes inside the picture keeps its mosaic for that long, in case it is only missed.
LIVE_TRACKS = TrackOptions(max_gap_s=6.0, max_followed_s=10.0, max_growth=1.2)

_IN_FLIGHT = 3  # frames: each stage may have one, and none waits between two
_SLATE_EVERY_S = 0.2
_STALLED_S = 2.0  # without a safe frame, while the source goes on

Ending = Literal["source_ended", "duration", "interrupted", "closed"]


def live_analysis(detect_every: int = 1) -> AnalyseOptions:
    """How live frames are analysed: without look-ahead, no newcomer may wait for a second sight."""
    if detect_every not in (1, 2):
        raise UsageError(f"--detect-every: got {detect_every}.", "Legal: 1, 2.")
    options = AnalyseOptions(detect_every=detect_every, longest_gap_s=LONGEST_GAP_S, track=LIVE_TRACKS)
    return replace(options, sure_score=options.doubt_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How a live source is run.

    Attributes:
        faces: which faces get a virtual face.
        duration_s: of the stream from its first frame on; None: until it ends or is stopped.
        stage_timeout_s: longest time for one frame in one stage.
        max_faults_in_a_row: failures of one stage in a row, each mosaicked, before the run ends.
        stop_timeout_s: how long a stop waits for threads.
        settle_s: how long a new scene is mosaicked whole while no face is found in it: a second, and what may pass
            until the detector is asked again.
        quality: when automatic quality changes.
    """

    faces: FacesChoice = "all"
    duration_s: float | None = None
    stage_timeout_s: float = 30.0
    max_faults_in_a_row: int = 300
    stop_timeout_s: float = 3.0
    settle_s: float = 1.25
    quality: QualityOptions = field(default_factory=QualityOptions)

    def __post_init__(self) -> None:
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise UsageError(f"--duration: got {self.duration_s:g} s, want more than 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReport:
    """A live run so far.

    Attributes:
        state: of the source.
        wall_s: since the start.
        stream_s: since the first frame of the source.
        frames_in, frames_out, dropped: captured, shown, and left out because the chain was behind.
        fps_in, fps_out: over `stream_s`.
        faces: in the last frame shown, replaced or mosaicked.
        people: tracks seen in all.
        replaced: faces replaced, summed over frames.
        redacted_frames: frames with at least one mosaic; `redacted`: reason -> frames.
        slates: pictures that said why there was none.
        reconnects: times that the source came back.
        age: from capture to the end of `write`, of the sink that is furthest behind and still at work.
        faults: stage -> frames on which it failed and which were mosaicked.
        stages: name -> times.
        first_output_s: from the start to the first safe frame, None before it.
        outputs: how each sink is doing, in the order given.
        quality: step of the automatic quality, 0 is the best; see pipeline.live.quality.
        quality_changes: times that it changed by itself.
        rotations: keys that came into use since the start.
    """

    state: SourceState
    wall_s: float
    stream_s: float
    frames_in: int
    frames_out: int
    dropped: int
    fps_in: float
    fps_out: float
    faces: int
    people: int
    replaced: int
    redacted_frames: int
    redacted: dict[str, int]
    slates: int
    reconnects: int
    age: StageTimes
    faults: dict[str, int]
    stages: dict[str, StageTimes]
    first_output_s: float | None
    outputs: tuple[SinkReport, ...] = ()
    quality: int = 0
    quality_changes: int = 0
    rotations: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values for `json.dumps`."""
        names = (
            "state", "frames_in", "frames_out", "dropped", "people", "replaced", "redacted_frames",
            "redacted", "slates", "reconnects", "faults", "quality", "quality_changes", "rotations",
        )  # fmt: skip
        rounded = {
            name: round(getattr(self, name), 3) for name in ("wall_s", "stream_s", "fps_in", "fps_out")
        }
        first_s = self.first_output_s
        return {
            **{name: getattr(self, name) for name in names},
            **rounded,
            "first_output_s": None if first_s is None else round(first_s, 3),
            "age": self.age.to_json(),
            "stages": {name: times.to_json() for name, times in self.stages.items()},
            "outputs": [sink.to_json() for sink in self.outputs],
        }


class _Enough(Exception):
    """The stream was as long as asked, or the user closed it."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


def run_live(
    source: LiveSource,
    sinks: Sequence[LiveSink],
    parts: ChainParts,
    options: LiveOptions | None = None,
    *,
    on_tick: Callable[[LiveReport], None] | None = None,
    controls: LiveControls | None = None,
) -> tuple[LiveReport, Ending]:
    """Runs until the source ends, the duration is over, or Ctrl-C or SIGTERM comes. All of these are good
    ends: recordings are complete then.

    Args:
        source: not yet read.
        sinks: at least one; opened with the first picture, closed and finished here. One that fails is left
            out; when the last one has failed, the run has.
        parts: of the chain; opened, closed and released here.
        controls: what somebody may change while it runs; None: nobody does.
        on_tick: called on this thread about four times a second.

    Raises:
        KeyfaceError: the source cannot be opened, or a stage or all sinks failed; recordings are not complete.
    """
    options = options or LiveOptions()
    if not sinks:
        raise ValueError("live: got no sink, want at least one")
    keep_memory_steady()
    controls = controls or LiveControls()
    quality = QualityGovernor(options.quality)
    plans = _obeying(make_plans(parts, faces=options.faces, lookahead_s=None, capacity=1), parts, controls,
                     quality, options.settle_s)  # fmt: skip
    source.is_ready = is_ready = threading.Event()
    countdown = _Countdown(len(plans), is_ready)
    plans = [replace(plan, stage=_Announced(plan.stage, countdown)) for plan in plans]
    plans[0] = replace(plans[0], when_full="drop_oldest")
    output = LiveOutput(
        Fanout(sinks, source.status, tap=source.audio, controls=controls), source.status, controls, quality
    )
    plans.append(StagePlan(name="sink", stage=output, capacity=1, idle_every_s=_SLATE_EVERY_S))
    runner = Runner(
        source, plans, timeout_s=options.stage_timeout_s, source_timeout_s=math.inf,
        stop_timeout_s=options.stop_timeout_s, max_faults_in_a_row=options.max_faults_in_a_row,
        max_in_flight=_IN_FLIGHT, interrupt_source=source.stop,
    )  # fmt: skip

    def tick(run: RunReport) -> None:
        quality.fix(controls.quality)
        report = _report(run, source.status, output)
        if on_tick is not None:
            on_tick(report)
        if options.duration_s is not None and report.stream_s >= options.duration_s:
            raise _Enough("duration")
        if output.wants_end or controls.wants_end:
            raise _Enough("closed")

    ending: Ending = "source_ended"
    is_complete = False
    try:
        try:
            runner.run(tick)
        except _Enough as enough:
            ending = enough.ending
        except KeyboardInterrupt:
            ending = "interrupted"
        is_complete = True
    finally:
        report = _report(runner.report(), source.status, output)
        _finish(runner, output, parts, is_complete=is_complete)
    return report, ending


def _finish(runner: Runner, output: LiveOutput, parts: ChainParts, *, is_complete: bool) -> None:
    """Lets go of everything that no stuck thread still uses."""
    if runner.stuck:
        _LOG.warning("still busy when the stream ended: %s", ", ".join(runner.stuck))
    if not set(runner.stuck) - {"source"}:
        parts.release()
    if is_complete:
        output.finish(is_complete=True)
        return
    with suppress(KeyfaceError, OSError):  # what made the run fail is told, not this
        output.finish(is_complete=False)


def _obeying(
    plans: list[StagePlan],
    parts: ChainParts,
    controls: LiveControls,
    quality: QualityGovernor,
    settle_s: float,
) -> list[StagePlan]:
    """The plans of the chain, each stage told what is wanted of it."""
    analyse, reenact, paste = plans
    return [
        replace(analyse, stage=LiveAnalysis(analyse.stage, parts.analyse, quality, settle_s)),  # type: ignore[arg-type]
        replace(reenact, stage=LiveReenactment(reenact.stage, controls, quality)),  # type: ignore[arg-type]
        replace(paste, stage=LivePaste(paste.stage, controls)),  # type: ignore[arg-type]
    ]


class LiveOutput:
    """The last stage: hands safe frames to all sinks; while none comes, and in a pause, a slate that says why.

    Attributes:
        tally: what was shown.
        ages: from capture to the hand-over to the sinks.
        n_slates: slates shown.
        n_faces: in the last frame.
    """

    def __init__(
        self, sinks: Fanout, status: LiveStatus, controls: LiveControls, quality: QualityGovernor
    ) -> None:
        self._sinks = sinks
        self._status = status
        self._controls, self.quality = controls, quality
        self._last_output_s = time.monotonic()
        self.tally = Tally()
        self.ages = DurationLog()
        self.n_slates = 0
        self.n_faces = 0
        self._last_age_s = 0.0

    @property
    def wants_end(self) -> bool:
        """True when the user has ended the stream through a sink."""
        return self._sinks.wants_end

    @property
    def rotations(self) -> int:
        """Keys that came into use."""
        return self._controls.state().rotations

    @property
    def outputs(self) -> tuple[SinkReport, ...]:
        """How each sink is doing."""
        return self._sinks.reports()

    def open(self) -> None:
        """Nothing: sinks are opened when the size of the picture is known."""

    def process(self, item: SafeFrame) -> None:
        """Shows one frame. Raises StageError for anything but a SafeFrame, and when all sinks have failed."""
        if type(item) is not SafeFrame:
            raise StageError(f"sink: got {type(item).__name__}, want SafeFrame.")
        if self._controls.mode == "slate":
            self._show_slate("Paused.", (item.image_rgb.shape[1], item.image_rgb.shape[0]), item.pts_s)
            self._last_output_s = time.monotonic()
            return
        self._sinks.show(item)
        now_s = self._last_output_s = time.monotonic()
        self._last_age_s = now_s - (self._status.origin_s or now_s) - item.pts_s
        self.ages.add(self._last_age_s)
        self.tally.add(item)
        is_exceptional = any(redaction.reason == "choosing" for redaction in item.redactions)
        self.quality.note(item.index, self._last_age_s, now_s, is_exceptional=is_exceptional)
        self.n_faces = len({*item.replaced, *(r.track_id for r in item.redactions)} - {None})

    def idle(self) -> None:
        """Shows a slate, if there is a reason for one and the size of the picture is known."""
        self._sinks.check()
        text, size_wh = self._why(), self._status.size_wh
        if text is None or size_wh is None:
            return
        now_s, origin_s = time.monotonic(), self._status.origin_s
        # As old as frames are when they are shown, so that the next frame's time comes after it.
        pts_s = 0.0 if origin_s is None else max(0.0, now_s - origin_s - self._last_age_s)
        self._show_slate(text, size_wh, pts_s)

    def _show_slate(self, text: str, size_wh: tuple[int, int], pts_s: float) -> None:
        width, height = size_wh
        blank = Frame(np.zeros((height, width, 3), np.uint8), self.tally.frames, pts_s)
        self._sinks.show(slate_frame(blank, text))
        self.n_slates += 1
        self.n_faces = 0

    def close(self) -> None:
        """Closes all sinks, also when one fails. Returns within a second."""
        self._sinks.close()

    def finish(self, *, is_complete: bool) -> None:
        """See `Fanout.finish`."""
        self._sinks.finish(is_complete=is_complete)

    def _why(self) -> str | None:
        if self._status.state == "lost":
            return "The source is lost.\nTrying to connect again."
        if self._status.state == "ended":
            return None
        if self._controls.mode == "slate":
            return "Paused."
        if not self.tally.frames:
            return "Starting."
        if time.monotonic() - self._last_output_s > _STALLED_S:
            return "No safe picture at the moment."
        return None


class _Countdown:
    """Sets an event when all stages are open."""

    def __init__(self, n: int, event: threading.Event) -> None:
        self._lock = threading.Lock()
        self._left, self._event = n, event

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._event.set()


class _Announced:
    """A stage that says when it is open."""

    def __init__(self, stage: Any, countdown: _Countdown) -> None:
        self._stage: Stage[Any, Any] = stage
        self._countdown = countdown

    def open(self) -> None:
        self._stage.open()
        self._countdown.one_less()

    def process(self, item: Any) -> Any:
        return self._stage.process(item)

    def close(self) -> None:
        self._stage.close()


def _report(run: RunReport, status: LiveStatus, output: LiveOutput) -> LiveReport:
    stream_s = 0.0 if status.origin_s is None else time.monotonic() - status.origin_s
    tally, outputs = output.tally, output.outputs
    ages = [sink.age for sink in outputs if sink.state in ("live", "closed")]
    age = max(ages, key=lambda age: age.p95_ms, default=output.ages.times())
    return LiveReport(
        state=status.state, wall_s=run.wall_s, stream_s=stream_s, frames_in=run.taken,
        frames_out=tally.frames, dropped=run.dropped, fps_in=run.taken / max(stream_s, 1e-9),
        fps_out=tally.frames / max(stream_s, 1e-9), faces=output.n_faces, people=len(tally.tracks),
        replaced=tally.replaced, redacted_frames=tally.redacted_frames, redacted=dict(tally.redacted),
        slates=output.n_slates, reconnects=status.reconnects, age=age, faults=run.faults,
        stages=run.stages, first_output_s=run.first_output_s,
        outputs=outputs, quality=output.quality.step, quality_changes=output.quality.changes,
        rotations=output.rotations,
    )  # fmt: skip
