"""The virtual face takes the source's light, colours, sharpness and grain, and nothing of its features."""

from __future__ import annotations

import cv2
import numpy as np

from keyface.pipeline.paste.colour import fit_light
from keyface.pipeline.paste.sharpness import add_grain, grain_of, match_texture


def test_light_is_found_and_cannot_carry_features() -> None:
    n = 36
    steps = np.linspace(-1, 1, n, dtype=np.float32)
    uv = np.stack(np.meshgrid(steps, steps), -1)
    virtual = np.full((n, n, 3), (170, 130, 110), np.uint8)
    gain = np.exp(np.array([-0.3, -0.4, -0.5]) + 0.25 * uv[..., :1])
    source = np.clip(virtual * gain, 0, 255).astype(np.uint8)
    ones = np.ones((n, n), np.float32)
    light = fit_light(source, virtual, ones, ones, uv)
    assert light is not None
    assert np.abs(light.apply(virtual, uv) - source)[4:-4, 4:-4].max() < 8
    marked = source.copy()
    marked[10:14, 8:28] = 20  # brows, glasses: must not shade the virtual face
    again = fit_light(marked, virtual, ones, ones, uv)
    assert again is not None
    assert np.abs(again.gain(uv) / light.gain(uv) - 1).max() < 0.12


def test_lips_are_no_redder_than_the_drivers_and_highlights_are_not_burnt() -> None:
    n = 36
    steps = np.linspace(-1, 1, n, dtype=np.float32)
    uv, ones = np.stack(np.meshgrid(steps, steps), -1), np.ones((n, n), np.float32)
    virtual = np.full((n, n, 3), (170, 130, 110), np.uint8)
    source = np.full((n, n, 3), (240, 205, 190), np.uint8)
    virtual[26:30, 12:24], source[26:30, 12:24] = (230, 40, 30), (215, 150, 145)
    virtual[4:8, 12:24] = (200, 165, 145)
    light = fit_light(source, virtual, ones, ones, uv)
    assert light is not None
    lit = light.apply(virtual, uv)
    redness = [x[28, 18, 0] - x[28, 18, 1] for x in (source.astype(float), lit)]
    assert redness[1] < redness[0] * 1.3 + 10
    assert lit[6, 18].mean() < 245 and lit[6, 18].sum() > lit[15, 18].sum() + 4


def test_fair_hair_in_the_rim_does_not_burn_the_face_and_a_shaded_rim_does_not_dim_it() -> None:
    n = 36
    steps = np.linspace(-1, 1, n, dtype=np.float32)
    uv, ones = np.stack(np.meshgrid(steps, steps), -1), np.ones((n, n), np.float32)
    radius = np.linalg.norm(uv, axis=-1)
    middle = radius < 0.5
    skin = (radius > 0.6).astype(np.float32)  # eyes, nose and mouth are no skin
    virtual = np.full((n, n, 3), (150, 115, 95), np.uint8)
    for rim in ((235, 190, 165), (135, 104, 88)):
        source = np.full((n, n, 3), (180, 140, 120), np.uint8)
        source[radius > 0.6] = rim
        light = fit_light(source, virtual, skin, ones, uv)
        assert light is not None
        off = np.log(light.apply(virtual, uv)[middle].mean() / source[middle].mean())
        assert abs(off) < 0.12  # by the rim alone: 0.25 and more


def test_light_needs_skin_in_view() -> None:
    n = 36
    grey = np.full((n, n, 3), 120, np.uint8)
    none = np.zeros((n, n), np.float32)
    assert fit_light(grey, grey, none, none, np.zeros((n, n, 2), np.float32)) is None


def test_sharpness_follows_the_source() -> None:
    rng = np.random.default_rng(0)
    crisp = cv2.GaussianBlur(rng.normal(128, 60, (144, 144, 3)).astype(np.float32), (0, 0), 0.8)
    soft = cv2.GaussianBlur(crisp, (0, 0), 1.5)
    crisp8, soft8 = (np.clip(x, 0, 255).astype(np.uint8) for x in (crisp, soft))
    assert match_texture(soft8, crisp8).treatment > 0.9
    assert match_texture(crisp8, soft8).treatment < -0.4
    assert abs(match_texture(crisp8, crisp8).treatment) < 0.2


def test_grain_is_measured_and_repeated() -> None:
    flat = np.full((128, 128), 120, np.float32)
    noisy = flat + np.random.default_rng(0).normal(0, 4, flat.shape).astype(np.float32)
    assert abs(grain_of(noisy) - 4) < 0.8 and grain_of(flat) < 0.1
    image = np.full((90, 70, 3), 120, np.uint8)
    first, second = add_grain(image, 3.0, 5), add_grain(image, 3.0, 5)
    assert (first == second).all() and 2 < first.astype(float).std() < 4
    assert (first != add_grain(image, 3.0, 6)).any()
    assert add_grain(image, 0.0, 5) is image
