"""Anonymises one file: from a source through the chain to a sink that appears under its name only whole."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from keyface.configs.errors import SourceError, StageError, UsageError
from keyface.configs.schema import BackendName
from keyface.pipeline.capture import FileSource, SourceInfo
from keyface.pipeline.chain import ChainParts, make_plans
from keyface.pipeline.choose import FacesChoice
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.photo import read_photo, write_photo
from keyface.pipeline.runner import OnFault, Runner, RunReport
from keyface.pipeline.sink import ComparisonWriter, Mp4Sink
from keyface.pipeline.stage import StagePlan
from keyface.pipeline.summary import Summary, Tally

_LOG = logging.getLogger(__name__)
_LARGE_PIXELS = 4096 * 2304  # above it, one frame waits before each stage instead of two


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How files are processed.

    Attributes:
        faces: "all", or "largest": only the largest track gets a virtual face, all others a mosaic.
        redact_only: mosaic all faces; needs no key and no generator.
        start_s, end_s: part of a video that is kept, seconds; None: from the start, to the end.
        keep_metadata: keep title, place, device and the like; pictures and thumbnails are dropped anyway.
        crf: constant rate factor of H.264, 0 (lossless) to 51.
        on_fault: "redact" mosaics a frame on which a stage fails, "stop" ends the file there.
        max_faults_in_a_row: more failures in a row end the file.
        stage_timeout_s: longest time for one frame in one stage.
        lookahead_s: how far back a face that is found late is hidden.
        backend: inference back-end.
        threads: of one network; 0: as configured.
    """

    faces: FacesChoice = "all"
    redact_only: bool = False
    start_s: float | None = None
    end_s: float | None = None
    keep_metadata: bool = False
    crf: int = 18
    on_fault: OnFault = "redact"
    max_faults_in_a_row: int = 30
    stage_timeout_s: float = 30.0
    lookahead_s: float = 0.5
    backend: BackendName = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name, value, legal in (
            ("--faces", self.faces, get_args(FacesChoice)),
            ("--on-fault", self.on_fault, get_args(OnFault)),
            ("--backend", self.backend, get_args(BackendName)),
        ):
            if value not in legal:
                raise UsageError(f"{name}: got {value!r}.", f"Legal: {', '.join(legal)}.")
        _check_range("--start", self.start_s, 0.0)
        _check_range("--end", self.end_s, 0.0)
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise UsageError(
                f"--end: got {self.end_s:g} s, which is not after the start.", "Give a later time."
            )
        _check_range("--crf", self.crf, 0, 51)
        _check_range("--max-faults", self.max_faults_in_a_row, 0)
        _check_range("--stage-timeout", self.stage_timeout_s, 0.1)
        _check_range("--lookahead", self.lookahead_s, 0.0, 5.0)
        _check_range("--threads", self.threads, 0)

    def settings(self) -> dict[str, Any]:
        """What decides the output, as plain values."""
        settings = asdict(self)
        for name in ("stage_timeout_s", "threads", "backend"):
            del settings[name]
        return settings


class Sink(Protocol):
    """What `Mp4Sink` offers."""

    def write(self, frame: SafeFrame) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...

    @property
    def notes(self) -> Sequence[str]: ...


def process_video(
    source: Path,
    output: Path,
    *,
    parts: ChainParts,
    options: ProcessOptions | None = None,
    comparison: Path | None = None,
    on_tick: Callable[[RunReport, SourceInfo], None] | None = None,
) -> Summary:
    """Anonymises a video. `output` appears only when all of it was written.

    Args:
        source: anything that PyAV reads.
        output: MP4 to write; replaced if it exists.
        parts: of the chain; opened and closed here.
        comparison: MP4 that shows original and result side by side, and so THE ORIGINAL FACES.
        on_tick: called on this thread about four times a second.

    Raises:
        KeyfaceError: the source, the sink or a stage failed; there is no output then.
        KeyboardInterrupt: likewise.
    """
    options = options or ProcessOptions()
    began_s = time.monotonic()
    with ExitStack() as stack:
        frames = FileSource(source, start_s=options.start_s, end_s=options.end_s)
        stack.callback(frames.close)
        info = frames.info
        sink = Mp4Sink(output, info, crf=options.crf, audio_from=source, keep_metadata=options.keep_metadata)
        stack.callback(sink.abort)  # does nothing after commit
        writer = None if comparison is None else ComparisonWriter(comparison, info)
        if writer is not None:
            stack.callback(writer.abort)
        tick = None if on_tick is None else lambda report: on_tick(report, info)
        report, tally = run_to_sink(frames, info, sink, parts, options, stack, writer=writer, on_tick=tick)
        notes = (*frames.notes, *sink.notes)
    wall_s = time.monotonic() - began_s
    return Summary(
        source=str(source),
        output=str(output),
        kind="video",
        frames=tally.frames,
        faces=len(tally.tracks),
        replaced=tally.replaced,
        redacted_frames=tally.redacted_frames,
        redacted=dict(tally.redacted),
        faults=report.faults,
        duration_s=tally.duration_s(info.fps),
        wall_s=wall_s,
        fps=tally.frames / max(wall_s, 1e-9),
        first_frame_s=report.first_output_s,
        stages=report.stages,
        notes=notes,
        warnings=_fault_warnings(report.faults, report.first_fault),
    )


def run_to_sink(
    frames: Iterable[Frame],
    info: SourceInfo,
    sink: Sink,
    parts: ChainParts,
    options: ProcessOptions,
    stack: ExitStack,
    *,
    writer: ComparisonWriter | None = None,
    on_tick: Callable[[RunReport], None] | None = None,
) -> tuple[RunReport, Tally]:
    """Runs the chain and commits the sink; on a failure the sink is left uncommitted.

    Args:
        stack: holds what closes the source and aborts the sinks; emptied when a thread is stuck, which
            may still use them.
        writer: gets the raw frames too.
    """
    width, height = info.size_wh
    capacity = 2 if width * height <= _LARGE_PIXELS else 1
    write = WriteStage(sink, writer)
    plans = [
        *make_plans(parts, faces=options.faces, lookahead_s=options.lookahead_s, capacity=capacity),
        StagePlan(name="write", stage=write, capacity=capacity),
    ]
    runner = Runner(
        frames if writer is None else write.remember(frames),
        plans,
        timeout_s=options.stage_timeout_s,
        on_fault=options.on_fault,
        max_faults_in_a_row=options.max_faults_in_a_row,
    )
    try:
        report = runner.run(on_tick)
    except BaseException:
        if runner.stuck:
            # What a thread still uses must not be closed under it; it goes away with the process.
            _LOG.warning("not closed, since it is still busy: %s", ", ".join(runner.stuck))
            stack.pop_all()
        raise
    if not write.tally.frames:
        raise SourceError(f"'{info.path}' has no frame to process.", "Check --start and --end.")
    sink.commit()
    if writer is not None:
        writer.commit()
    return report, write.tally


class WriteStage:
    """The last stage: hands safe frames to the sink, and pairs to a comparison if one was asked for.

    Attributes:
        tally: what was written.
    """

    def __init__(self, sink: Sink, writer: ComparisonWriter | None = None) -> None:
        self._sink = sink
        self._writer = writer
        self._raw: dict[int, Frame] = {}  # by index, while they are under way; for the comparison only
        self.tally = Tally()

    def remember(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Passes frames on and keeps each until its safe frame comes."""
        for frame in frames:
            self._raw[frame.index] = frame
            yield frame

    def open(self) -> None:
        """Nothing to get: the sinks are open."""

    def process(self, item: SafeFrame) -> None:
        """Writes one frame. Raises StageError for anything that is not a SafeFrame, and as the sink does."""
        if not isinstance(item, SafeFrame):
            raise StageError(f"sink: got {type(item).__name__}, want SafeFrame.")
        self._sink.write(item)
        self.tally.add(item)
        if self._writer is not None:
            self._writer.write(self._raw.pop(item.index), item)

    def close(self) -> None:
        """Forgets raw frames. The sinks are committed or aborted when all threads have ended."""
        self._raw.clear()


class PhotoProcessor:
    """Anonymises photos one by one with a chain that is opened once. A context manager."""

    def __init__(self, parts: ChainParts, options: ProcessOptions | None = None) -> None:
        self._options = options or ProcessOptions()
        plans = make_plans(parts, faces=self._options.faces, lookahead_s=None)
        self._chain = InlineChain(plans, on_fault=self._options.on_fault)

    def __enter__(self) -> PhotoProcessor:
        self._chain.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._chain.__exit__(*exc_info)

    def process(self, source: Path, output: Path) -> Summary:
        """Anonymises one photo; the format stays. Raises KeyfaceError; there is no output then."""
        began_s = time.monotonic()
        frame, info = read_photo(source)
        safe: SafeFrame = self._chain.process(frame)
        write_photo(output, safe, info)
        wall_s = time.monotonic() - began_s
        tally = Tally()
        tally.add(safe)
        faults = self._chain.faults
        return Summary(
            source=str(source),
            output=str(output),
            kind="photo",
            frames=1,
            faces=len(tally.tracks),
            replaced=tally.replaced,
            redacted_frames=tally.redacted_frames,
            redacted=dict(tally.redacted),
            faults=dict.fromkeys(faults, 1),
            duration_s=0.0,
            wall_s=wall_s,
            fps=1 / max(wall_s, 1e-9),
            first_frame_s=wall_s,
            stages=self._chain.times(),
            notes=info.notes,
            warnings=_fault_warnings(dict.fromkeys(faults, 1), faults),
        )


def _fault_warnings(faults: dict[str, int], first_fault: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"Stage '{name}' failed on {count} frame{'s' if count > 1 else ''}, which were mosaicked; "
        f"first: {first_fault[name]}."
        for name, count in faults.items()
    )


def _check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    if value is None or (least <= value <= most and math.isfinite(value)):
        return
    want = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
    raise UsageError(f"{name}: got {value:g}, want {want}.", "See `keyface process --help`.")
