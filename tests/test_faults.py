"""Whatever breaks, no raw face reaches a sink, nothing hangs, and the message is clear.

Exceptions, misses, time-outs, damaged frames, the source, the sink and the seal; see fault_chain.py.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_chain import (
    BURST,
    HEIGHT,
    N_FRAMES,
    RAW_CORRELATION,
    STAGES,
    WIDTH,
    Recorder,
    Step,
    change_on,
    correlation,
    fail_on,
    info,
    no_threads_left,
    parts,
    place,
    raw_frame,
    raw_frames,
    run,
)  # fmt: skip

from keyface.configs.errors import EngineError, KeyfaceError, SinkError, SourceError, StageError
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, Redaction, SafeFrame
from keyface.pipeline.media.sink import Mp4Sink
from keyface.pipeline.paste.redact import redact_frame

pytestmark = pytest.mark.timeout(150)


def test_the_search_finds_a_raw_face_and_not_a_mosaic() -> None:
    frame = raw_frame(7)
    assert correlation(frame.image_rgb) > 0.99
    x0, y0, x1, y1 = place(7)
    mosaicked = redact_frame(frame, [Redaction((x0, y0, x1, y1), "requested")])
    assert correlation(mosaicked.image_rgb) < RAW_CORRELATION / 2
    # A corner that sticks out is found too: a quarter of the face is too much.
    part = redact_frame(frame, [Redaction((x0 + 40, y0, x1 + 60, y1), "requested")])
    assert correlation(part.image_rgb) > RAW_CORRELATION


# Nothing broken.


def test_a_sound_chain_replaces_every_face() -> None:
    sink, report = run(parts())
    assert sink.is_committed and [f.index for f in sink.frames] == list(range(N_FRAMES))
    assert all(f.replaced == (1,) and not f.redactions for f in sink.frames)
    sink.assert_no_raw_face()
    assert report.faults == {} and no_threads_left()


# Exceptions.


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("real_paster", [False, True])
def test_an_exception_mosaics_the_frame_and_is_counted(stage: str, real_paster: bool) -> None:
    fault = fail_on(BURST, ValueError("it broke"))
    if real_paster and stage == "paste_fault":
        chain = parts(real_paster=True)
        chain = ChainParts(
            analyse=chain.analyse, observer=None, reenact=chain.reenact,
            paste=Step(chain.paste.process, fault),
        )  # fmt: skip
    else:
        chain = parts(**{stage: fault}, real_paster=real_paster)
    sink, report = run(chain)
    assert sink.is_committed and len(sink.frames) == N_FRAMES
    sink.assert_no_raw_face()
    assert report.faults == {stage.removesuffix("_fault"): len(BURST)}
    assert all(
        any(r.reason == "stage_failed" for r in sink.frames[i].redactions) and not sink.frames[i].replaced
        for i in BURST
    )
    assert no_threads_left()


@pytest.mark.parametrize("stage", STAGES)
def test_a_dead_stage_ends_the_run_without_a_file(stage: str) -> None:
    sink = Recorder()
    with pytest.raises(StageError, match=r"failed on 31 frames in a row, at last: ValueError: it broke") as e:
        run(parts(**{stage: fail_on(range(1000), ValueError("it broke"))}), frames=raw_frames(200), sink=sink)
    assert e.value.way_out
    assert not sink.is_committed
    sink.assert_no_raw_face()
    assert no_threads_left()


@pytest.mark.parametrize("stage", STAGES)
def test_on_fault_stop_ends_the_run_at_once(stage: str) -> None:
    sink = Recorder()
    with pytest.raises(StageError, match="failed on frame 10: ValueError: it broke"):
        run(parts(**{stage: fail_on(BURST, ValueError("it broke"))}), sink=sink, on_fault="stop")
    assert not sink.is_committed
    sink.assert_no_raw_face()


def test_a_failing_look_ahead_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("it broke")

    monkeypatch.setattr("keyface.pipeline.lookahead.Lookahead._release", fail)
    sink = Recorder()
    with pytest.raises(StageError, match="'lookahead' failed"):
        run(parts(), sink=sink)
    assert not sink.is_committed and sink.frames == []
    assert no_threads_left()


# Misses.


@pytest.mark.parametrize("missed", [range(0, 1), range(0, 12), range(10, 20), range(3, 4)])
def test_a_missed_detection_is_made_up_for_by_the_frames_after(missed: range) -> None:
    def miss(analysed: AnalysedFrame) -> AnalysedFrame:
        return AnalysedFrame(analysed.frame, ())

    sink, _ = run(parts(analyse=change_on(missed, miss)))
    sink.assert_no_raw_face()
    assert all(any(r.reason == "late_detection" for r in sink.frames[i].redactions) for i in missed)


def test_a_face_without_virtual_face_is_mosaicked() -> None:
    sink, _ = run(parts(reenact=change_on(BURST, lambda out: ReenactedFrame(out.analysed, ()))))
    sink.assert_no_raw_face()


def test_a_predicted_face_is_mosaicked_by_the_real_paster() -> None:
    def predict(analysed: AnalysedFrame) -> AnalysedFrame:
        faces = tuple(Face(f.track_id, f.box_xyxy, None, 0.0, True, None) for f in analysed.faces)
        return AnalysedFrame(analysed.frame, faces)

    sink, _ = run(parts(analyse=change_on(range(N_FRAMES), predict), real_paster=True))
    sink.assert_no_raw_face()
    assert all(r.reason == "predicted_only" for f in sink.frames for r in f.redactions)


# Time-outs.


@pytest.mark.parametrize("stage", STAGES)
def test_a_stuck_stage_ends_the_run(stage: str) -> None:
    free = threading.Event()

    def wait(output: Any) -> Any:
        free.wait(30)
        return output

    sink = Recorder()
    began_s = time.monotonic()
    try:
        with pytest.raises(StageError, match=r"did not come back from frame 10 within 1.5 s") as caught:
            run(parts(**{stage: change_on([10], wait)}), sink=sink, stage_timeout_s=1.5)
        assert caught.value.way_out
        assert time.monotonic() - began_s < 10
    finally:
        free.set()
    assert not sink.is_committed
    sink.assert_no_raw_face()
    assert no_threads_left()


def test_a_stuck_encoder_ends_the_run() -> None:
    free = threading.Event()
    sink = Recorder(lambda n: None if n != 5 else free.wait(30) and None)
    try:
        with pytest.raises(StageError, match="'write' did not come back"):
            run(parts(), sink=sink, stage_timeout_s=1.5)
    finally:
        free.set()
    assert not sink.is_committed and no_threads_left()


# Damaged frames.


@pytest.mark.parametrize("real_paster", [False, True])
@pytest.mark.parametrize("finds_in_damage", [False, True])
def test_damaged_frames_are_mosaicked(finds_in_damage: bool, real_paster: bool) -> None:
    damaged = range(12, 30)
    frames = [raw_frame(i, is_suspect=i in damaged) for i in range(N_FRAMES)]

    def lose(analysed: AnalysedFrame) -> AnalysedFrame:
        return analysed if finds_in_damage else AnalysedFrame(analysed.frame, ())

    sink, _ = run(parts(analyse=change_on(damaged, lose), real_paster=real_paster), frames=frames)
    sink.assert_no_raw_face()
    assert not any(sink.frames[i].replaced for i in damaged)


def test_damage_with_nothing_known_mosaics_the_whole_frame() -> None:
    frames = [raw_frame(i, is_suspect=True) for i in range(6)]
    sink, _ = run(parts(analyse=change_on(range(6), lambda a: AnalysedFrame(a.frame, ()))), frames=frames)
    sink.assert_no_raw_face()
    assert all(f.redactions[0].box_xyxy == (0, 0, WIDTH, HEIGHT) for f in sink.frames)


# The source and the sink.


def test_a_source_that_breaks_off_leaves_no_file() -> None:
    def frames() -> Iterator[Frame]:
        yield from raw_frames(10)
        raise SourceError("The disk was unplugged.", "Plug it in.")

    sink = Recorder()
    with pytest.raises(SourceError, match="unplugged"):
        run(parts(), frames=frames(), sink=sink)
    assert not sink.is_committed and no_threads_left()


def test_a_raw_frame_never_passes_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with all checks gone, the last stage takes safe frames only."""
    chain = parts(paste_fault=change_on(range(N_FRAMES), lambda out: raw_frame(out.index)))
    monkeypatch.setattr("keyface.pipeline.guard.check_safe", lambda item, output: None)
    sink = Recorder()
    with pytest.raises(StageError, match="got Frame, want SafeFrame"):
        run(chain, sink=sink)
    assert sink.frames == [] and not sink.is_committed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SinkError("The disk is full.", "Make room."), "disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (EngineError("The encoder failed."), "encoder failed"),
    ],
)
def test_a_failing_sink_ends_the_run(error: Exception, said: str) -> None:
    def fault(n: int) -> None:
        if n == 5:
            raise error

    sink = Recorder(fault)
    with pytest.raises(KeyfaceError, match=said):
        run(parts(), sink=sink)
    assert len(sink.frames) == 5 and not sink.is_committed
    sink.assert_no_raw_face()
    assert no_threads_left()


@pytest.mark.parametrize("stage", [*STAGES, "source", "none"])
def test_a_real_file_appears_only_when_all_went_well(stage: str, tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        for frame in raw_frames():
            if stage == "source" and frame.index == 30:
                raise SourceError("gone")
            yield frame

    faults = {stage: fail_on([30], ValueError("it broke"))} if stage in STAGES else {}
    path = tmp_path / "out.mp4"
    with Mp4Sink(path, info()) as sink:
        if stage == "none":
            run(parts(), sink=sink)
        else:
            with pytest.raises(KeyfaceError):
                run(parts(**faults), frames=frames(), sink=sink, on_fault="stop")
    assert [p.name for p in tmp_path.iterdir()] == (["out.mp4"] if stage == "none" else [])


def test_the_written_file_shows_no_raw_face(tmp_path: Path) -> None:
    import av

    path = tmp_path / "out.mp4"
    with Mp4Sink(path, info()) as sink:
        run(
            parts(
                analyse=fail_on(range(3, 6), ValueError()),
                reenact=fail_on(range(8, 12), ValueError()),
                paste_fault=fail_on(range(14, 18), ValueError()),
            ),
            sink=sink,
        )
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == N_FRAMES
    assert max(correlation(image) for image in images) < RAW_CORRELATION


def test_a_full_disk_in_the_encoder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = Mp4Sink.write

    def write(self: Mp4Sink, frame: SafeFrame) -> None:
        written.append(frame)
        if len(written) == 20:
            with self._file.guarded():
                raise OSError(errno.ENOSPC, "No space left on device")
        real(self, frame)

    monkeypatch.setattr(Mp4Sink, "write", write)
    with Mp4Sink(tmp_path / "out.mp4", info()) as sink, pytest.raises(SinkError, match="disk is full"):
        run(parts(), sink=sink)
    assert list(tmp_path.iterdir()) == []
    assert no_threads_left()


# The seal.


def test_only_paste_and_redact_hold_the_seal() -> None:
    """No other source of the product imports or names what makes safe frames."""
    root = Path(__file__).resolve().parent.parent
    names = re.compile(r"\b(seal|_SEAL|_Seal)\b")
    holders = set()
    for room in ("pipeline", "engines", "configs", "models", "tools", "examples"):
        for path in (root / room).rglob("*.py"):
            code = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
            code = re.sub(r'"""[\s\S]*?"""', "", code)
            if names.search(code) or re.search(r"\bSafeFrame\(", code):
                holders.add(path.relative_to(root).as_posix())
    assert holders == {"pipeline/frame.py", "pipeline/paste/paster.py", "pipeline/paste/redact.py"}


def test_a_safe_frame_cannot_be_made_without_the_seal() -> None:
    frame = raw_frame(0)
    with pytest.raises(TypeError, match="paster only"):
        SafeFrame(frame.image_rgb, 0, 0.0, None, None, (), (), object())  # type: ignore[arg-type]
