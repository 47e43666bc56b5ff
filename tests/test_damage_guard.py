"""What is mosaicked in damaged frames, and that a cut ends what was known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame
from keyface.pipeline.guard import DamageGuard

HEIGHT, WIDTH = 120, 160


def frame(*boxes: tuple[float, ...], is_suspect: bool = False, is_cut: bool = False) -> AnalysedFrame:
    faces = tuple(
        Face(number, np.array(box, np.float32), None, 0.9, False, None) for number, box in enumerate(boxes)
    )
    image = Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 0, 0.0, is_suspect=is_suspect)
    return replace(AnalysedFrame(image, faces), is_cut=is_cut)


def test_places_of_the_last_sound_frame_are_mosaicked_and_grow() -> None:
    guard = DamageGuard()
    assert guard.apply(frame((20, 20, 60, 60))).must_redact == ()
    first, second = (guard.apply(frame(is_suspect=True)) for _ in range(2))
    assert [r.track_id for r in first.must_redact] == [0] and not first.faces
    x0, y0, x1, y1 = first.must_redact[0].box_xyxy
    assert x0 < 20 and y0 < 20 and x1 > 60 and y1 > 60
    assert second.must_redact[0].box_xyxy[0] < x0


def test_without_a_place_all_is_mosaicked() -> None:
    (whole,) = DamageGuard().apply(frame(is_suspect=True)).must_redact
    assert whole.box_xyxy == (0.0, 0.0, WIDTH, HEIGHT) and whole.track_id is None


def test_after_a_cut_into_damage_all_is_mosaicked_until_a_sound_frame() -> None:
    guard = DamageGuard()
    guard.apply(frame((20, 20, 60, 60)))
    for is_cut in (True, False, False):
        (whole,) = guard.apply(frame(is_suspect=True, is_cut=is_cut)).must_redact
        assert whole.box_xyxy == (0.0, 0.0, WIDTH, HEIGHT)
    guard.apply(frame((30, 30, 70, 70)))
    (known,) = guard.apply(frame(is_suspect=True)).must_redact
    assert known.track_id == 0
