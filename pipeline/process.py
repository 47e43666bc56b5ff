"""Anonymises one file: from a source through the chain to a sink that appears under its name only whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from keyface.configs.errors import SourceError, StageError
from keyface.pipeline.chain import ChainParts, make_plans
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.media.capture import FileSource, SourceInfo
from keyface.pipeline.media.photo import read_photo, write_photo
from keyface.pipeline.media.sink import ComparisonWriter, Mp4Sink
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.runner import Runner, RunReport
from keyface.pipeline.stage import StagePlan
from keyface.pipeline.summary import Summary, Tally

_LOG = logging.getLogger(__name__)
_LARGE_PIXELS = 4096 * 2304  # above it, one frame waits before each stage instead of two


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
        stack.callback(parts.release)
        frames = FileSource(source, start_s=options.start_s, end_s=options.end_s)
        stack.callback(frames.close)
        info = frames.info
        sink = Mp4Sink(
            output, info, crf=options.crf, audio_from=source, keep_metadata=options.keep_metadata,
            encoder=options.encoder,
        )  # fmt: skip
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
        reenactor=parts.reenactor,
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


def process_photo(
    source: Path,
    output: Path,
    *,
    parts: ChainParts,
    options: ProcessOptions | None = None,
    on_safe: Callable[[SafeFrame], None] | None = None,
) -> Summary:
    """Anonymises a photo; its format stays. `output` appears only when all of it was written.

    Args:
        source: JPEG, PNG or WebP.
        output: of the same format; replaced if it exists.
        parts: of the chain, fresh ones for each photo, so that none knows another; opened and closed
            here, on this thread. An `EnginePool` saves opening the networks each time.
        on_safe: gets the anonymised frame, which knows what became of each face, once it is written.

    Raises:
        KeyfaceError: as `process_video`.
    """
    options = options or ProcessOptions()
    began_s = time.monotonic()
    with ExitStack() as stack:
        stack.callback(parts.release)
        frame, info = read_photo(source)
        plans = make_plans(parts, faces=options.faces, lookahead_s=None)
        chain = stack.enter_context(InlineChain(plans, on_fault=options.on_fault))
        safe = chain.process(frame)
        faults, stages = chain.faults, chain.times()
    write_photo(output, safe, info)
    if on_safe is not None:
        on_safe(safe)
    wall_s = time.monotonic() - began_s
    tally = Tally()
    tally.add(safe)
    return Summary(
        source=str(source),
        output=str(output),
        kind="photo",
        frames=1,
        faces=len(tally.tracks),
        replaced=tally.replaced,
        redacted_frames=tally.redacted_frames,
        redacted=dict(tally.redacted),
        reenactor=parts.reenactor,
        faults=dict.fromkeys(faults, 1),
        duration_s=0.0,
        wall_s=wall_s,
        fps=1 / max(wall_s, 1e-9),
        first_frame_s=wall_s,
        stages=stages,
        notes=info.notes,
        warnings=_fault_warnings(dict.fromkeys(faults, 1), faults),
    )


def _fault_warnings(faults: dict[str, int], first_fault: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"Stage '{name}' failed on {count} frame{'s' if count > 1 else ''}, which were mosaicked; "
        f"first: {first_fault[name]}."
        for name, count in faults.items()
    )
