"""The scripted performance: it moves what it should, smoothly, in range, and its sound fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyface.pipeline.face import BLENDSHAPE_NAMES
from keyface.pipeline.sample.performance import SAMPLE_RATE_HZ, Performance

FPS = 25


def column(values: np.ndarray, name: str) -> np.ndarray:
    return values[:, BLENDSHAPE_NAMES.index(name)]


@pytest.fixture(scope="module")
def played() -> tuple[np.ndarray, np.ndarray]:
    moments = [Performance(8.0).at(index / FPS) for index in range(8 * FPS)]
    return np.array([m.blendshapes for m in moments]), np.array([m.pose_ypr_deg for m in moments])


def test_turns_the_head_both_ways(played: tuple[np.ndarray, np.ndarray]) -> None:
    _, pose = played
    assert pose[:, 0].min() < -15 and pose[:, 0].max() > 15
    assert np.ptp(pose[:, 1]) > 8 and np.ptp(pose[:, 2]) > 4
    assert np.abs(pose).max() < 30


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("eyeBlinkLeft", 0.9),
        ("jawOpen", 0.4),
        ("mouthSmileRight", 0.6),
        ("mouthPucker", 0.4),
        ("eyeLookOutLeft", 0.5),
        ("eyeLookOutRight", 0.5),
        ("browInnerUp", 0.5),
    ],
)
def test_every_action_happens_and_rests(
    played: tuple[np.ndarray, np.ndarray], name: str, peak: float
) -> None:
    track = column(played[0], name)
    assert track.max() >= peak
    assert track.min() == 0.0


def test_blinks_are_separate_and_short(played: tuple[np.ndarray, np.ndarray]) -> None:
    closed = column(played[0], "eyeBlinkLeft") > 0.5
    starts = np.flatnonzero(np.diff(closed.astype(int)) == 1)
    assert len(starts) == 5
    assert closed.sum() / len(starts) <= 0.3 * FPS


@given(duration_s=st.floats(2.0, 60.0), part=st.floats(0.0, 1.0))
def test_is_in_range_at_any_time(duration_s: float, part: float) -> None:
    moment = Performance(duration_s).at(part * duration_s)
    assert moment.blendshapes.dtype == np.float32 and moment.blendshapes.shape == (52,)
    assert np.isfinite(moment.pose_ypr_deg).all()
    assert moment.blendshapes.min() >= 0.0 and moment.blendshapes.max() <= 1.0


def test_moves_without_jumps(played: tuple[np.ndarray, np.ndarray]) -> None:
    blendshapes, pose = played
    assert np.abs(np.diff(pose, axis=0)).max() < 5.0
    assert np.abs(np.diff(blendshapes, axis=0)).max() < 0.75  # a blink closes within two frames


def test_voice_is_heard_when_the_mouth_moves() -> None:
    performance = Performance(8.0)
    voice = performance.voice()
    assert voice.dtype == np.float32 and len(voice) == 8 * SAMPLE_RATE_HZ
    assert 0.25 < np.abs(voice).max() <= 0.3
    loudness = np.sqrt((voice.reshape(-1, SAMPLE_RATE_HZ // FPS) ** 2).mean(1))
    jaw = column(np.array([performance.at(i / FPS).blendshapes for i in range(8 * FPS)]), "jawOpen")
    assert np.corrcoef(loudness, jaw)[0, 1] > 0.5
    assert loudness[: int(0.9 * FPS)].max() == 0.0 and loudness[-2 * FPS :].max() == 0.0


def test_syllables_do_not_overlap_much_and_leave_a_pause() -> None:
    syllables = Performance(8.0).syllables()
    gaps = [b.start_s - (a.start_s + a.duration_s) for a, b in itertools.pairwise(syllables)]
    assert min(gaps) > -0.05 and max(gaps) > 0.2
    assert {s.viseme for s in syllables} == set("aeioum")


@pytest.mark.parametrize("duration_s", [0.0, 1.9, 121.0, float("nan")])
def test_refuses_other_lengths(duration_s: float) -> None:
    with pytest.raises(ValueError, match="want 2 to 120"):
        Performance(duration_s)
