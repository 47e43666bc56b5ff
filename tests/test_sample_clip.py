"""The sample clip's frames: right number, time and size, moved as the script says."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.sample.clip import FPS, n_frames, sample_frames, write_sample_clip, write_voice
from keyface.pipeline.sample.performance import SAMPLE_RATE_HZ, Performance


class DotPortrait:
    """A grey picture with a dot right of its middle, so that rotation and shift can be measured."""

    def __init__(self, side: int = 256) -> None:
        self.side = side
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []

    def render(self, pose_ypr_deg: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
        self.asked.append((pose_ypr_deg, blendshapes))
        picture = np.full((self.side, self.side, 3), 90, np.uint8)
        at, radius = round(0.8 * self.side), self.side // 32
        middle = self.side // 2
        picture[middle - radius : middle + radius, at - radius : at + radius] = 255
        return picture


def dot_xy(image: np.ndarray) -> np.ndarray:
    return np.argwhere(image[:, :, 0] > 180).mean(axis=0)[::-1]


def test_makes_every_frame_with_its_time() -> None:
    performance, portrait = Performance(2.0), DotPortrait()
    frames = list(sample_frames(portrait, performance, size_px=128))
    assert len(frames) == n_frames(performance) == 2 * FPS
    assert [frame.index for frame in frames] == list(range(2 * FPS))
    assert frames[-1].pts_s == pytest.approx((2 * FPS - 1) / FPS)
    assert all(frame.image_rgb.shape == (128, 128, 3) for frame in frames)
    for index, (pose, blendshapes) in enumerate(portrait.asked):
        moment = performance.at(index / FPS)
        assert np.array_equal(pose, moment.pose_ypr_deg) and np.array_equal(blendshapes, moment.blendshapes)


@pytest.mark.parametrize("side", [128, 1024])
def test_roll_turns_clockwise_in_the_picture(side: int) -> None:
    performance = Performance(4.0)
    for frame in sample_frames(DotPortrait(side), performance, size_px=256):
        moment = performance.at(frame.pts_s)
        offset = dot_xy(frame.image_rgb) - 127.5 - np.multiply(moment.sway_xy, 256)
        angle_deg = np.degrees(np.arctan2(offset[1], offset[0]))
        assert angle_deg == pytest.approx(float(moment.pose_ypr_deg[2]), abs=1.0)


def test_corners_stay_filled() -> None:
    frames = sample_frames(DotPortrait(), Performance(3.0), size_px=96)
    assert min(int(frame.image_rgb.min()) for frame in frames) >= 60


def test_voice_file_is_as_long_as_the_clip(tmp_path: Path) -> None:
    write_voice(tmp_path / "voice.wav", Performance(2.5))
    with wave.open(str(tmp_path / "voice.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE_HZ)
        assert file.getnframes() == 2.5 * SAMPLE_RATE_HZ
        assert np.frombuffer(file.readframes(file.getnframes()), "<i2").max() > 5000


def test_clip_has_all_frames_and_sound(tmp_path: Path) -> None:
    performance, seen = Performance(2.0), []
    path = tmp_path / "sample.mp4"
    write_sample_clip(path, DotPortrait(), performance, size_px=128, on_frame=lambda: seen.append(1))
    with FileSource(path) as source:
        frames = list(source)
        assert source.info.size_wh == (128, 128) and source.info.has_audio
    assert len(frames) == len(seen) == 2 * FPS
    assert frames[-1].pts_s == pytest.approx((2 * FPS - 1) / FPS, abs=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sample.mp4"]
