"""Scene cuts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from keyface.pipeline.faces.scene_cut import SceneCutDetector

Image = npt.NDArray[np.uint8]


def scene(kind: int, shift: int = 0, size_wh: tuple[int, int] = (320, 180)) -> Image:
    """Blocks of colour, another set for each kind, moved sideways by `shift` px."""
    rng = np.random.default_rng(kind)
    blocks = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
    blocks[..., kind % 3] //= 4
    image = np.kron(blocks, np.ones((size_wh[1] // 6, size_wh[0] // 10, 1), np.uint8))
    return np.roll(image, shift, 1)


def cuts(frames: list[Image]) -> list[int]:
    detector = SceneCutDetector()
    return [i for i, frame in enumerate(frames) if detector.is_cut(frame)]


def test_finds_each_cut_once() -> None:
    assert cuts([scene(1)] * 8 + [scene(2)] * 8 + [scene(3)] * 8) == [8, 16]


def test_a_pan_is_no_cut() -> None:
    assert cuts([scene(1, shift=12 * i) for i in range(25)]) == []


def test_a_cut_within_motion_is_found() -> None:
    assert cuts([scene(1, 2 * i) for i in range(10)] + [scene(2, 2 * i) for i in range(10)]) == [10]


def test_a_cut_after_damaged_pictures_is_found() -> None:
    """Blocks that jump about are not how the scene moves."""
    rng, detector = np.random.default_rng(0), SceneCutDetector()
    frames = [(scene(1), False)] * 8
    for _ in range(12):
        torn = scene(1)
        for y, x in rng.integers(0, (120, 240), (4, 2)):
            torn[y : y + 60, x : x + 80] = rng.integers(0, 256, 3)
        frames.append((torn, True))
    frames += [(scene(1), False)] * 2 + [(scene(2), False)] * 4
    found = [
        i for i, (image, is_suspect) in enumerate(frames) if detector.is_cut(image, is_suspect=is_suspect)
    ]
    assert 22 in found


def test_noise_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(scene(1).astype(int) + rng.normal(0, 20, (180, 320, 3)), 0, 255).astype(np.uint8)
        for _ in range(10)
    ]
    assert cuts(noisy) == []


def test_reset_forgets() -> None:
    detector = SceneCutDetector()
    detector.is_cut(scene(1))
    detector.reset()
    assert not detector.is_cut(scene(2))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (2160, 3840)])
def test_any_size(shape: tuple[int, int]) -> None:
    detector = SceneCutDetector()
    frame = np.zeros((*shape, 3), np.uint8)
    assert not detector.is_cut(frame) and not detector.is_cut(frame)
