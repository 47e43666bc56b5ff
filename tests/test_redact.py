"""Mosaics keep nothing of a face, keep to their box, and hold for any box; slates fit their card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.pipeline.frame import Frame, Redaction
from keyface.pipeline.paste.redact import mosaic, redact_frame, redact_whole, slate, slate_frame


def _noise(width: int, height: int, seed: int = 5) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _runs(line: np.ndarray[Any, Any]) -> int:
    """Number of constant runs along a line of pixels."""
    return 1 + int(np.any(line[1:] != line[:-1], axis=-1).sum())


def test_at_most_eight_blocks_and_nothing_else_changes() -> None:
    image = _noise(400, 300)
    out = mosaic(image, (100, 80, 200, 220))
    changed = np.argwhere(np.any(out != image, axis=2))
    (y0, x0), (y1, x1) = changed.min(0), changed.max(0) + 1
    assert (x0, y0) >= (84, 58) and (x1, y1) <= (216, 242)
    patch = out[y0:y1, x0:x1]
    assert max(_runs(row) for row in patch) <= 8
    assert max(_runs(column) for column in patch.transpose(1, 0, 2)) <= 8


def test_a_block_is_the_average_of_its_pixels() -> None:
    image = _noise(160, 160)
    out = mosaic(image, (0, 0, 160, 160), enlarge=1.0)
    expected = image[:20, :20].reshape(-1, 3).mean(0)
    assert np.abs(out[0, 0].astype(float) - expected).max() <= 255 / 31 / 2 + 1
    assert (out[:20, :20] == out[0, 0]).all()


def test_a_tiny_face_has_fewer_blocks() -> None:
    out = mosaic(_noise(100, 100), (40, 40, 60, 60))
    assert _runs(out[50, 37:63]) <= 5


@pytest.mark.parametrize(
    "box",
    [(np.nan, 0, 10, 10), (0, 0, np.inf, 5), (20, 20, 20, 40), (30, 30, 10, 10), (-1e200, 0, 1e200, 1e200)],
)
def test_a_box_that_says_nothing_takes_the_whole_frame(box: tuple[float, ...]) -> None:
    out = mosaic(_noise(120, 90), box)
    assert max(_runs(row) for row in out) <= 8


@settings(max_examples=examples(60))
@given(
    st.tuples(*[st.floats(-300, 600, width=32)] * 4),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 8),
)
def test_any_box_on_any_frame(
    box: tuple[float, float, float, float], width: int, height: int, max_blocks: int
) -> None:
    image = _noise(width, height)
    before = image.copy()
    out = mosaic(image, box, max_blocks=max_blocks)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert (image == before).all()
    x0, y0, x1, y1 = (max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3]))
    if x1 - x0 >= 1 and y1 - y0 >= 1:
        inside = out[int(np.ceil(y0)) : int(y1), int(np.ceil(x0)) : int(x1)]
        if inside.size:
            assert _runs(inside[0]) <= max_blocks


def test_a_box_outside_changes_nothing() -> None:
    image = _noise(64, 48)
    assert (mosaic(image, (500, 500, 600, 600)) == image).all()


@pytest.mark.parametrize("options", [{"enlarge": 0.9}, {"max_blocks": 0}, {"max_blocks": 9}])
def test_weaker_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mosaic: got"):
        mosaic(_noise(20, 20), (0, 0, 10, 10), **options)


def test_redact_frame_mosaics_every_box_of_the_base_image() -> None:
    frame = Frame(_noise(200, 100), 3, 0.12)
    base = _noise(200, 100, seed=9)
    redactions = [Redaction((10, 10, 40, 40), "too_small", 1), Redaction((120, 30, 180, 90), "extreme_pose")]
    safe = redact_frame(frame, redactions, base)
    assert safe.redactions == tuple(redactions) and (safe.index, safe.pts_s) == (3, 0.12)
    for redaction in redactions:
        x0, y0, x1, y1 = (int(v) for v in redaction.box_xyxy)
        assert _runs(safe.image_rgb[(y0 + y1) // 2, x0:x1]) <= 8
    assert (safe.image_rgb[:, 60:100] == base[:, 60:100]).all()


def test_redact_frame_leaves_the_raw_frame_alone() -> None:
    image = _noise(80, 60)
    before = image.copy()
    redact_frame(Frame(image, 0, 0.0), [Redaction((0, 0, 40, 40), "requested")])
    assert (image == before).all()


def test_redact_whole_keeps_eight_blocks_of_the_frame() -> None:
    safe = redact_whole(Frame(_noise(320, 240), 7, 1.5), "stage_failed")
    assert max(_runs(row) for row in safe.image_rgb) <= 8
    assert safe.redactions[0].reason == "stage_failed"


@pytest.mark.parametrize("size_wh", [(1, 1), (16, 9), (640, 360), (360, 1280)])
@pytest.mark.parametrize("text", ["", "No safe picture", "two\nlines", "Gesicht nicht sicher: Größe"])
def test_slates_fit_any_size(size_wh: tuple[int, int], text: str) -> None:
    card = slate(size_wh, text)
    assert card.shape == (size_wh[1], size_wh[0], 3)
    if size_wh == (640, 360) and text:
        assert card.max() > 150
        assert (card[:, :8] == 24).all() and (card[:, -8:] == 24).all()


def test_a_slate_takes_the_frames_place_and_shows_none_of_it() -> None:
    frame = Frame(_noise(64, 48), 11, 0.44)
    safe = slate_frame(frame, "waiting")
    assert (safe.index, safe.pts_s) == (11, 0.44)
    assert (safe.image_rgb == slate((64, 48), "waiting")).all()


def test_a_recogniser_does_not_match_mosaics(models: Any, shared_dir: Path) -> None:
    """SFace, told where the face is, on generated people: no mosaic reaches its threshold for the same
    person (0.363), at 256 px and at 64 px."""
    detector = cv2.FaceDetectorYN.create(str(models.path("yunet")), "", (256, 256))
    recogniser = cv2.FaceRecognizerSF.create(str(models.path("sface")), "")
    paths = sorted((shared_dir / "data/photos/stylegan256").iterdir())[:24]
    similarities = []
    for path in paths:
        image_bgr = cv2.imread(str(path))
        image_bgr = cv2.resize(image_bgr, (256, 256), interpolation=cv2.INTER_AREA)
        _, rows = detector.detect(image_bgr)
        if rows is None:
            continue
        row = rows[0]
        box = (row[0], row[1], row[0] + row[2], row[1] + row[3])
        original = recogniser.feature(recogniser.alignCrop(image_bgr, row)).copy()
        for scale in (1.0, 0.25):
            small = cv2.resize(image_bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            hidden = mosaic(small, tuple(float(v) * scale for v in box))
            hidden = cv2.resize(hidden, (256, 256), interpolation=cv2.INTER_CUBIC)
            feature = recogniser.feature(recogniser.alignCrop(hidden, row)).copy()
            similarities.append(recogniser.match(original, feature, cv2.FaceRecognizerSF_FR_COSINE))
    assert len(similarities) >= 40
    assert max(similarities) < 0.363, sorted(similarities)[-5:]
