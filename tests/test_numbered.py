"""Numbers in pictures: read back after a codec, refused when damaged, and the age they tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface.pipeline.faults.numbered import FPS, N_FRAMES, age_of_frame_s, age_s, number_of, write_number
from keyface.pipeline.frame import Frame


def picture(number: int, size_wh: tuple[int, int] = (320, 240)) -> np.ndarray:
    image = np.full((size_wh[1], size_wh[0], 3), 90, np.uint8)
    write_number(image, number)
    return image


@given(st.integers(0, 5000), st.sampled_from([(160, 120), (321, 241), (640, 480)]))
def test_a_number_is_read_back(number: int, size_wh: tuple[int, int]) -> None:
    image = picture(number, size_wh)
    noise = np.random.default_rng(number).integers(-15, 16, image.shape)
    assert number_of(np.clip(image + noise, 0, 255).astype(np.uint8)) == number % N_FRAMES
    assert (image[size_wh[1] // 4 :] == 90).all()  # the rest of the picture is left as it is


def test_what_is_no_number_is_not_read() -> None:
    assert number_of(np.full((240, 320, 3), 90, np.uint8)) is None  # grey: neither level
    flipped = picture(37)
    flipped[:60, :32] = 255 - flipped[:60, :32]  # one bit, so the parity is off
    assert number_of(flipped) is None and age_s(flipped, 3.0) is None


@pytest.mark.parametrize("age", [0.0, 0.12, 2.5, 8.5])
def test_the_age_follows_from_the_clock(age: float) -> None:
    sent_s = 1234 / FPS
    frame = Frame(picture(1234), 0, 0.0)
    assert age_of_frame_s(frame, sent_s + age) == pytest.approx(age, abs=1e-6)
