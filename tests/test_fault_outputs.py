"""Outputs that cannot be trusted - NaN, wrong shapes, wrong frames - never let a raw face through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fault_chain import (
    BURST,
    FACE_PX,
    N_FRAMES,
    Step,
    change_on,
    find_face,
    mesh_of,
    parts,
    paste,
    place,
    raw_frame,
    render,
    run,
)  # fmt: skip

from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Redaction, SafeFrame
from keyface.pipeline.paste import paster as paste_module
from keyface.pipeline.paste.redact import redact_frame

pytestmark = pytest.mark.timeout(150)


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
        _with_virtual(mesh=mesh_of(np.zeros((5, 3), np.float32))),
        _with_virtual(mesh=mesh_of(np.full((478, 3), np.nan, np.float32))),
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
