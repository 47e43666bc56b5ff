"""Aligned crops."""

from __future__ import annotations

import numpy as np
import pytest

from keyface.pipeline.faces.align import ARCFACE_112, align_arcface, align_ffhq, cut_out
from keyface.pipeline.faces.geometry import apply_affine, ffhq_quad, invert_affine

POINTS_5 = np.array([[100, 100], [160, 104], [130, 130], [105, 170], [155, 168]], np.float32)


def gradient(size: int = 300) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[:size, :size]
    return np.stack([x * 255 / size, y * 255 / size, (x + y) * 127 / size], -1).astype(np.uint8)


def test_identity_crop_is_exact() -> None:
    image = gradient(64)
    np.testing.assert_array_equal(cut_out(image, np.eye(2, 3, dtype=np.float32), 64), image)


@pytest.mark.parametrize("step", [0.4, 1.0, 2.5, 7.0])
def test_crop_shows_what_lies_under_the_map(step: float) -> None:
    image = gradient(600)
    frame_from_crop = np.array([[step, 0, 60], [0, step, 40]], np.float32)
    crop = cut_out(image, frame_from_crop, 64)
    where = np.array([[10, 10], [31, 20], [50, 60]])
    for (x, y), (fx, fy) in zip(where, apply_affine(frame_from_crop, where), strict=True):
        if max(fx, fy) < 595:
            assert abs(int(crop[y, x, 0]) - fx * 255 / 600) < 2
            assert abs(int(crop[y, x, 1]) - fy * 255 / 600) < 2


def test_shrinking_does_not_alias() -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    image[:, ::2] = 255
    crop = cut_out(image, np.array([[8, 0, 0], [0, 8, 0]], np.float32), 64)
    assert np.ptp(crop[4:-4, 4:-4].astype(int)) <= 16  # grey, no stripes


def test_beyond_the_border() -> None:
    image = np.full((50, 50, 3), 200, np.uint8)
    away = np.array([[1, 0, -100], [0, 1, -100]], np.float32)
    assert cut_out(image, away, 32, border="black").max() == 0
    assert cut_out(image, away, 32, border="repeat").min() == 200
    far = np.array([[9, 0, -5000], [0, 9, -5000]], np.float32)
    assert cut_out(image, far, 32, border="mirror").shape == (32, 32, 3)


def test_ffhq_crop_is_the_quad() -> None:
    aligned = align_ffhq(gradient(), POINTS_5, 128)
    corners = np.array([[-0.5, -0.5], [-0.5, 127.5], [127.5, 127.5], [127.5, -0.5]])
    np.testing.assert_allclose(apply_affine(aligned.frame_from_crop, corners), ffhq_quad(POINTS_5), atol=1e-2)
    eyes = apply_affine(invert_affine(aligned.frame_from_crop), POINTS_5[:2])
    mouth = apply_affine(invert_affine(aligned.frame_from_crop), POINTS_5[3:]).mean(0)
    assert abs(eyes.mean(0)[0] - 64) < 4 and eyes[:, 1].max() < mouth[1]


def test_arcface_crop_puts_the_points_in_place() -> None:
    truth = np.array([[1.7, -0.4, 30], [0.4, 1.7, 60]], np.float32)
    aligned = align_arcface(gradient(), apply_affine(truth, ARCFACE_112))
    np.testing.assert_allclose(aligned.frame_from_crop, truth, atol=1e-3)
    assert aligned.crop_rgb.shape == (112, 112, 3) and aligned.crop_rgb.dtype == np.uint8
