"""Whatever breaks, no raw face reaches a sink, nothing hangs, and the message is clear.

A random texture stands for a face. Every frame that a sink gets is searched for it by correlation: a
virtual face or a mosaic in its place leaves next to nothing, the raw one gives 1.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import EngineError, KeyfaceError, SinkError, SourceError, StageError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline import paste as paste_module
from keyface.pipeline.capture import SourceInfo
from keyface.pipeline.chain import ChainParts, make_plans
from keyface.pipeline.face import AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Frame, Redaction, SafeFrame
from keyface.pipeline.paste import Paster
from keyface.pipeline.process import run_to_sink
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.redact import redact_frame
from keyface.pipeline.sink import Mp4Sink

pytestmark = pytest.mark.timeout(60)

Image = npt.NDArray[np.uint8]
WIDTH, HEIGHT, FACE_PX, FPS, N_FRAMES = 256, 192, 64, 25, 40
TEXTURE: Image = np.random.default_rng(3).integers(0, 256, (FACE_PX, FACE_PX, 3), np.uint8)
RAW_CORRELATION = 0.35  # above it, the texture is there


# What is filmed.


def place(index: int) -> tuple[int, int, int, int]:
    """Box of the face in frame `index`; it moves."""
    x, y = 60 + index % 80, 50 + index % 40
    return x, y, x + FACE_PX, y + FACE_PX


def raw_frame(index: int, *, is_suspect: bool = False) -> Frame:
    ramp = np.linspace(60, 180, WIDTH, dtype=np.float32)[None, :, None]
    image = np.broadcast_to(ramp, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    x0, y0, x1, y1 = place(index)
    image[y0:y1, x0:x1] = TEXTURE
    return Frame(image, index, index / FPS, index, Fraction(1, FPS), is_suspect)


def raw_frames(n: int = N_FRAMES) -> Iterator[Frame]:
    return (raw_frame(index) for index in range(n))


def correlation(image_rgb: Image) -> float:
    green = np.ascontiguousarray(image_rgb[:, :, 1])
    return float(cv2.matchTemplate(green, TEXTURE[:, :, 1].copy(), cv2.TM_CCOEFF_NORMED).max())


def test_the_search_finds_a_raw_face_and_not_a_mosaic() -> None:
    frame = raw_frame(7)
    assert correlation(frame.image_rgb) > 0.99
    x0, y0, x1, y1 = place(7)
    mosaicked = redact_frame(frame, [Redaction((x0, y0, x1, y1), "requested")])
    assert correlation(mosaicked.image_rgb) < RAW_CORRELATION / 2
    # A corner that sticks out is found too: a quarter of the face is too much.
    part = redact_frame(frame, [Redaction((x0 + 40, y0, x1 + 60, y1), "requested")])
    assert correlation(part.image_rgb) > RAW_CORRELATION


# Stages that work, until they are told to fail.


Fault = Callable[[int, Any], Any]


class Step:
    """A stage with a fault: `fault(index, output)` may raise, wait, or return something else."""

    def __init__(self, work: Callable[[Any], Any], fault: Fault | None = None) -> None:
        self._work = work
        self._fault = fault

    def open(self) -> None:
        pass

    def process(self, item: Any) -> Any:
        output = self._work(item)
        return output if self._fault is None else self._fault(_index_of(item), output)

    def close(self) -> None:
        pass


def _index_of(item: Any) -> int:
    item = getattr(item, "analysed", item)
    return int(getattr(item, "frame", item).index)


def _mesh(points_xyz: npt.NDArray[np.float32]) -> FaceMesh:
    return FaceMesh(points_xyz, np.zeros(52, np.float32), np.zeros(3, np.float32), 1.0)


def find_face(frame: Frame) -> AnalysedFrame:
    """Finds the face where it is."""
    box = np.array(place(frame.index), np.float32)
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = (box[:2] + box[2:]) / 2
    return AnalysedFrame(frame, (Face(1, box, None, 0.9, False, _mesh(points), frame.index),))


def render(analysed: AnalysedFrame) -> ReenactedFrame:
    virtual = []
    for face in analysed.faces:
        if face.mesh is None:
            continue
        matrix = np.array([[1, 0, face.box_xyxy[0]], [0, 1, face.box_xyxy[1]]], np.float32)
        crop = np.full((FACE_PX, FACE_PX, 3), 140, np.uint8)
        virtual.append(VirtualFace(face.track_id, crop, face.mesh, matrix))
    return ReenactedFrame(analysed, tuple(virtual))


def paste(item: ReenactedFrame) -> SafeFrame:
    """A plain paster: squares over boxes, mosaics over what has no virtual face."""
    frame = item.analysed.frame
    image = frame.image_rgb.copy()
    redactions = [*item.analysed.must_redact, *item.must_redact]
    by_id = {virtual.track_id: virtual for virtual in item.virtual}
    replaced = []
    for face in item.analysed.faces:
        virtual = by_id.get(face.track_id)
        if virtual is None:
            x0, y0, x1, y1 = (float(v) for v in face.box_xyxy)
            redactions.append(Redaction((x0, y0, x1, y1), "reenactment_failed", face.track_id))
            continue
        x, y = (round(float(v)) for v in virtual.frame_from_crop[:, 2])
        image[y : y + FACE_PX, x : x + FACE_PX] = virtual.crop_rgb
        replaced.append(face.track_id)
    mosaicked = redact_frame(frame, redactions, base_image=image)
    return paste_module.seal(
        frame, mosaicked.image_rgb, redactions=tuple(redactions), replaced=tuple(replaced)
    )


class Recorder:
    """A sink that searches what it gets."""

    def __init__(self, fault: Callable[[int], None] | None = None) -> None:
        self.frames: list[SafeFrame] = []
        self.notes: list[str] = []
        self.is_committed = False
        self._fault = fault

    def write(self, frame: SafeFrame) -> None:
        if self._fault is not None:
            self._fault(len(self.frames))
        self.frames.append(frame)

    def commit(self) -> None:
        self.is_committed = True

    def abort(self) -> None:
        pass

    def assert_no_raw_face(self) -> None:
        for frame in self.frames:
            assert correlation(frame.image_rgb) < RAW_CORRELATION, f"raw face in frame {frame.index}"


def info() -> SourceInfo:
    return SourceInfo(
        path=Path("none.mp4"), container="mp4", codec="h264", pix_fmt="yuv420p", size_wh=(WIDTH, HEIGHT),
        fps=float(FPS), frame_rate=Fraction(FPS), duration_s=None, n_frames_hint=None,
        time_base=Fraction(1, FPS), first_pts=0,
    )  # fmt: skip


def parts(
    *, analyse: Fault | None = None, reenact: Fault | None = None, paste_fault: Fault | None = None,
    real_paster: bool = False,
) -> ChainParts:  # fmt: skip
    return ChainParts(
        analyse=Step(find_face, analyse),
        observer=None,
        reenact=Step(render, reenact),
        paste=Paster() if real_paster else Step(paste, paste_fault),
    )


def run(
    chain: ChainParts,
    *,
    frames: Sequence[Frame] | Iterator[Frame] | None = None,
    sink: Any = None,
    **options: Any,
) -> tuple[Recorder, Any]:
    sink = sink or Recorder()
    with ExitStack() as stack:
        report, _ = run_to_sink(
            raw_frames() if frames is None else iter(frames),
            info(),
            sink,
            chain,
            ProcessOptions(**options),
            stack,
        )
    return sink, report


def no_threads_left() -> bool:
    deadline_s = time.monotonic() + 1.0
    while any(thread.name.startswith("keyface-") for thread in threading.enumerate()):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def fail_on(indices: Sequence[int], error: Exception) -> Fault:
    def fault(index: int, output: Any) -> Any:
        if index in indices:
            raise error
        return output

    return fault


def change_on(indices: Sequence[int], change: Callable[[Any], Any]) -> Fault:
    return lambda index, output: change(output) if index in indices else output


BURST = range(10, 16)
STAGES = ("analyse", "reenact", "paste_fault")


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
        with pytest.raises(StageError, match=r"did not come back from frame 10 within 0.5 s") as caught:
            run(parts(**{stage: change_on([10], wait)}), sink=sink, stage_timeout_s=0.5)
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
            run(parts(), sink=sink, stage_timeout_s=0.5)
    finally:
        free.set()
    assert not sink.is_committed and no_threads_left()


# NaN and wrong shapes.


def engine_stage(answer: Callable[[int], npt.NDArray[Any]]) -> Step:
    """A reenactor that draws its crop with an engine."""
    spec = TensorSpec("crop", "float32", (FACE_PX, FACE_PX, 3))
    number = iter(range(10_000))
    engine = FakeEngine((), (spec,), lambda _: {"crop": answer(next(number))}, name="generator")

    def work(analysed: AnalysedFrame) -> ReenactedFrame:
        crop = engine.run({})["crop"].astype(np.uint8)
        out = render(analysed)
        virtual = tuple(VirtualFace(v.track_id, crop, v.mesh, v.frame_from_crop) for v in out.virtual)
        return ReenactedFrame(analysed, virtual)

    return Step(work)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.full((FACE_PX, FACE_PX, 3), np.nan, np.float32), "not finite"),
        (np.full((FACE_PX, FACE_PX, 3), np.inf, np.float32), "not finite"),
        (np.zeros((FACE_PX, FACE_PX), np.float32), "want"),
        (np.zeros((FACE_PX, FACE_PX, 3), np.float64), "want float32"),
    ],
)
def test_an_engine_s_bad_output_mosaics_the_frame(bad: npt.NDArray[Any], said: str) -> None:
    good = np.full((FACE_PX, FACE_PX, 3), 120, np.float32)
    chain = ChainParts(
        analyse=Step(find_face),
        observer=None,
        reenact=engine_stage(lambda n: bad if n in BURST else good),
        paste=Step(paste),
    )
    sink, report = run(chain)
    sink.assert_no_raw_face()
    assert report.faults == {"reenact": len(BURST)}
    assert said in report.first_fault["reenact"] and "generator" in report.first_fault["reenact"]


def _with_box(box: Sequence[float]) -> Callable[[AnalysedFrame], AnalysedFrame]:
    def change(analysed: AnalysedFrame) -> AnalysedFrame:
        face = Face(1, np.array(box, np.float32), None, 0.9, False, analysed.faces[0].mesh)
        return AnalysedFrame(analysed.frame, (face,))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _with_box([np.nan, 0, 10, 10]),
        _with_box([0, 0, np.inf, 10]),
        _with_box([10, 10, 10, 20]),
        _with_box([0, 0, 10]),
        lambda out: AnalysedFrame(out.frame, out.faces * 2),
        lambda out: AnalysedFrame(raw_frame(0), out.faces),
        lambda out: out.frame,
        lambda out: None,
    ],
)
@pytest.mark.parametrize("real_paster", [False, True])
def test_a_bad_analysis_mosaics_the_whole_frame(change: Callable[[Any], Any], real_paster: bool) -> None:
    sink, report = run(parts(analyse=change_on(BURST, change), real_paster=real_paster))
    sink.assert_no_raw_face()
    assert report.faults == {"analyse": len(BURST)}
    assert [f.index for f in sink.frames] == list(range(N_FRAMES))


def _with_virtual(**changes: Any) -> Callable[[ReenactedFrame], ReenactedFrame]:
    def change(out: ReenactedFrame) -> ReenactedFrame:
        (v,) = out.virtual
        values = {
            "track_id": v.track_id, "crop_rgb": v.crop_rgb, "mesh": v.mesh,
            "frame_from_crop": v.frame_from_crop, **changes,
        }  # fmt: skip
        return ReenactedFrame(out.analysed, (VirtualFace(**values),))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _with_virtual(frame_from_crop=np.full((2, 3), np.nan, np.float32)),
        _with_virtual(frame_from_crop=np.eye(3, dtype=np.float32)),
        _with_virtual(crop_rgb=np.zeros((64, 32, 3), np.uint8)),
        _with_virtual(crop_rgb=np.zeros((64, 64), np.uint8)),
        _with_virtual(crop_rgb=np.zeros((64, 64, 3), np.float32)),
        _with_virtual(crop_rgb=np.zeros((0, 0, 3), np.uint8)),
        _with_virtual(track_id=99),
        _with_virtual(mesh=_mesh(np.zeros((5, 3), np.float32))),
        _with_virtual(mesh=_mesh(np.full((478, 3), np.nan, np.float32))),
        lambda out: ReenactedFrame(AnalysedFrame(out.analysed.frame, ()), ()),
        lambda out: render(find_face(raw_frame(3))),
        lambda out: out.analysed,
        lambda out: None,
    ],
)
@pytest.mark.parametrize("real_paster", [False, True])
def test_a_bad_virtual_face_mosaics_the_face(change: Callable[[Any], Any], real_paster: bool) -> None:
    sink, report = run(parts(reenact=change_on(BURST, change), real_paster=real_paster))
    sink.assert_no_raw_face()
    assert report.faults == {"reenact": len(BURST)}
    assert all(sink.frames[i].redactions for i in BURST)


def _raw_sealed(out: SafeFrame) -> SafeFrame:
    """What no stage may do: the raw picture, sealed, said to be replaced."""
    frame = raw_frame(out.index)
    return paste_module.seal(frame, frame.image_rgb, replaced=(1,))


@pytest.mark.parametrize(
    "change",
    [
        _raw_sealed,
        lambda out: redact_frame(raw_frame(out.index), []),  # the face is left out
        lambda out: raw_frame(out.index),
        lambda out: paste(render(find_face(raw_frame(2)))),  # another frame's
        lambda out: None,
    ],
)
def test_a_bad_paste_mosaics_the_face(change: Callable[[Any], Any]) -> None:
    sink, report = run(parts(paste_fault=change_on(BURST, change)))
    sink.assert_no_raw_face()
    assert report.faults == {"paste": len(BURST)}
    assert [f.index for f in sink.frames] == list(range(N_FRAMES))


def test_a_lost_redaction_is_noticed() -> None:
    def redact(analysed: AnalysedFrame) -> AnalysedFrame:
        x0, y0, x1, y1 = place(analysed.frame.index)
        return AnalysedFrame(analysed.frame, (), (Redaction((x0, y0, x1, y1), "too_small", 1),))

    def lose(out: SafeFrame) -> SafeFrame:
        return redact_frame(raw_frame(out.index), [])

    sink, report = run(parts(analyse=change_on(range(N_FRAMES), redact), paste_fault=change_on(BURST, lose)))
    sink.assert_no_raw_face()
    assert report.faults == {"paste": len(BURST)}


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
    plans = make_plans(chain)
    monkeypatch.setattr("keyface.pipeline.guard.check_safe", lambda item, output: None)
    sink = Recorder()
    with pytest.raises(StageError, match="got Frame, want SafeFrame"):
        run(chain, sink=sink)
    assert sink.frames == [] and not sink.is_committed and len(plans) == 4


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
                holders.add(f"{room}/{path.name}")
    assert holders == {"pipeline/frame.py", "pipeline/paste.py", "pipeline/redact.py"}


def test_a_safe_frame_cannot_be_made_without_the_seal() -> None:
    frame = raw_frame(0)
    with pytest.raises(TypeError, match="paste only"):
        SafeFrame(frame.image_rgb, 0, 0.0, None, None, (), (), object())  # type: ignore[arg-type]
