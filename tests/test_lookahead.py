"""The look-ahead: order and latency, and that a face found late hides in the frames before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame, Redaction
from keyface.pipeline.lookahead import Lookahead

FPS = 30.0
IMAGE = np.zeros((4, 4, 3), np.uint8)


def _face(track_id: int, box: Sequence[float]) -> Face:
    return Face(track_id, np.array(box, np.float32), None, 0.9, False, None)


def _frame(
    index: int,
    faces: dict[int, Sequence[float]],
    *,
    is_cut: bool = False,
    must_redact: tuple[Redaction, ...] = (),
    fps: float = FPS,
) -> AnalysedFrame:
    found = tuple(_face(track_id, box) for track_id, box in faces.items())
    return AnalysedFrame(Frame(IMAGE, index, index / fps), found, must_redact, is_cut)


def _run(frames: Sequence[AnalysedFrame], lookahead: Lookahead | None = None) -> list[AnalysedFrame]:
    stage = lookahead or Lookahead()
    stage.open()
    out = [ready for frame in frames for ready in stage.process(frame)]
    out.extend(stage.flush())
    stage.close()
    return out


def _late(frame: AnalysedFrame, track_id: int) -> list[tuple[float, float, float, float]]:
    return [r.box_xyxy for r in frame.must_redact if r.reason == "late_detection" and r.track_id == track_id]


def _contains(outer: Sequence[float], inner: Sequence[float], slack_px: float = 0.5) -> bool:
    return (
        outer[0] <= inner[0] + slack_px
        and outer[1] <= inner[1] + slack_px
        and outer[2] >= inner[2] - slack_px
        and outer[3] >= inner[3] - slack_px
    )


def _box_at(index: int, speed_px: tuple[float, float], size_px: float = 60.0) -> tuple[float, ...]:
    x, y = 200 + speed_px[0] * index, 200 + speed_px[1] * index
    return x, y, x + size_px, y + size_px


@settings(max_examples=examples(80))
@given(
    present=st.lists(st.sets(st.integers(0, 3), max_size=3), min_size=1, max_size=60),
    cuts=st.sets(st.integers(1, 59), max_size=3),
)
def test_order_latency_and_contents_are_kept(present: list[set[int]], cuts: set[int]) -> None:
    frames = [
        _frame(
            i,
            {t: (100 * t, 0, 100 * t + 50, 50) for t in tracks},
            is_cut=i in cuts,
            must_redact=(Redaction((0, 0, 1, 1), "too_small"),),
        )
        for i, tracks in enumerate(present)
    ]
    stage = Lookahead()
    out: list[AnalysedFrame] = []
    for n_in, frame in enumerate(frames, 1):
        out.extend(stage.process(frame))
        assert n_in - len(out) <= 19
    out.extend(stage.flush())
    assert [frame.frame.index for frame in out] == list(range(len(frames)))
    for before, after in zip(frames, out, strict=True):
        assert after.faces == before.faces and after.frame is before.frame
        assert after.must_redact[: len(before.must_redact)] == before.must_redact
        assert after.is_cut == before.is_cut


@settings(max_examples=examples(80))
@given(
    begin=st.integers(0, 50),
    cut=st.integers(0, 50),
    speed=st.tuples(st.floats(-8, 8), st.floats(-8, 8)),
    fps=st.sampled_from([5.0, 12.0, 25.0, 30.0, 60.0]),
)
def test_a_late_track_hides_in_the_frames_before_back_to_the_cut(
    begin: int, cut: int, speed: tuple[float, float], fps: float
) -> None:
    frames = [
        _frame(i, {7: _box_at(i, speed)} if i >= begin else {}, is_cut=i == cut, fps=fps)
        for i in range(begin + 30)
    ]
    out = _run(frames)
    for i, frame in enumerate(out):
        is_near = begin - i <= max(0.5 * fps + 1e-6, 8)
        must_hide = i < begin and is_near and not (i < cut <= begin)
        late = _late(frame, 7)
        assert bool(late) == must_hide, f"frame {i}"
        # A cut right after the first sighting leaves the speed unknown.
        if late and cut != begin + 1:
            assert _contains(late[0], _box_at(i, speed))


@settings(max_examples=examples(50))
@given(gap=st.integers(1, 12), at=st.integers(1, 30), speed=st.tuples(st.floats(-6, 6), st.floats(-6, 6)))
def test_gaps_are_filled(gap: int, at: int, speed: tuple[float, float]) -> None:
    frames = [_frame(i, {} if at <= i < at + gap else {7: _box_at(i, speed)}) for i in range(at + gap + 20)]
    for i, frame in enumerate(_run(frames)):
        late = _late(frame, 7)
        assert bool(late) == (at <= i < at + gap)
        if late:
            assert _contains(late[0], _box_at(i, speed))


def test_a_cut_ends_the_reach() -> None:
    frames = [_frame(i, {1: (0, 0, 50, 50)} if i >= 20 else {}, is_cut=i == 20) for i in range(40)]
    assert not any(frame.must_redact for frame in _run(frames))


def test_a_cut_gives_all_held_frames_back_at_once() -> None:
    stage = Lookahead()
    for i in range(5):
        assert not stage.process(_frame(i, {}))
    ready = stage.process(_frame(5, {}, is_cut=True))
    assert [frame.frame.index for frame in ready] == [0, 1, 2, 3, 4]


def test_the_first_frame_of_a_source_needs_no_redaction() -> None:
    assert not any(f.must_redact for f in _run([_frame(i, {1: (0, 0, 50, 50)}) for i in range(40)]))


@pytest.mark.parametrize(
    ("other", "is_hidden"),
    [
        ((100, 100, 160, 160), False),  # the same place under another id: the face is handled there
        ((80, 80, 200, 200), False),  # behind a larger face
        ((130, 130, 190, 190), True),  # overlaps only a little
        ((400, 400, 460, 460), True),
    ],
)
def test_a_place_covered_by_another_face_is_left_alone(other: Sequence[float], is_hidden: bool) -> None:
    mine = (100, 100, 160, 160)
    frames = [_frame(i, {2: other} if i < 20 else {1: mine}) for i in range(40)]
    out = _run(frames)
    assert bool(_late(out[19], 1)) == is_hidden


def test_large_frames_shorten_the_window_but_not_below_the_frames_promised() -> None:
    stage = Lookahead(max_bytes=13 * IMAGE.nbytes, min_frames=4)
    n_out = 0
    for i in range(60):
        n_out += len(stage.process(_frame(i, {}, fps=60)))
        assert i + 1 - n_out <= 13
    stage = Lookahead(max_bytes=1, min_frames=4)
    for i in range(7):
        assert not stage.process(_frame(i, {}))
    assert len(stage.process(_frame(7, {}))) == 1


def test_it_starts_afresh_after_flush() -> None:
    stage = Lookahead()
    stage.process(_frame(0, {1: (0, 0, 50, 50)}))
    stage.flush()
    stage.process(_frame(1, {}))
    stage.process(_frame(2, {1: (300, 300, 350, 350)}))
    first, _ = stage.flush()
    # Not the gap between (0, 0) and (300, 300): the track before belongs to another scene.
    assert _late(first, 1)[0] == pytest.approx((295, 295, 355, 355))
