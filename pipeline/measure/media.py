"""Compares what holds two clips together: frames, timestamps, duration, audio."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.measure.reference import ClipFacts, ClipReader

_MAX_LAG = 3


@dataclass(frozen=True, slots=True)
class MediaComparison:
    """How the containers differ.

    Attributes:
        frame_count_difference: anonymised minus original.
        timestamp_drift_frames: largest shift of a frame, from the first one on, and of the sound
            against the picture, in median frame durations.
        duration_difference_frames: of the containers, in median frame durations.
        audio_tracks_lost: tracks of the original that are missing or not of the same length.
        audio: "none", "identical" (all payloads), "transcoded" or "lost".
        content_lag_frames: shift at which the pictures fit best, 0 when they are in step.
    """

    frame_count_difference: int
    timestamp_drift_frames: float
    duration_difference_frames: float
    audio_tracks_lost: int
    audio: str
    content_lag_frames: int


def compare_media(original: ClipReader, anonymised: ClipReader) -> MediaComparison:
    """Both readers must be exhausted."""
    a, b = original.facts(), anonymised.facts()
    frame_s = 1.0 / a.fps if a.fps else 0.04
    n = min(a.n_frames, b.n_frames)
    ta, tb = (np.array(f.pts_s[:n]) - f.pts_s[0] for f in (a, b))
    drift = float(np.abs(ta - tb).max())
    lost, same = _compare_audio(a, b, frame_s)
    for track_a, track_b in zip(a.audio, b.audio, strict=False):
        shift = (track_a.start_s - a.pts_s[0]) - (track_b.start_s - b.pts_s[0])
        drift = max(drift, abs(shift))
    return MediaComparison(
        b.n_frames - a.n_frames,
        drift / frame_s,
        abs(a.duration_s - b.duration_s) / frame_s,
        lost,
        same,
        _lag(original.thumbnails, anonymised.thumbnails),
    )


def _compare_audio(a: ClipFacts, b: ClipFacts, frame_s: float) -> tuple[int, str]:
    if not a.audio:
        return 0, "none"
    lost, identical = max(0, len(a.audio) - len(b.audio)), len(a.audio) == len(b.audio)
    for track_a, track_b in zip(a.audio, b.audio, strict=False):
        is_same = track_a.payload_sha256 == track_b.payload_sha256
        identical = identical and is_same
        if not is_same and abs(track_a.duration_s - track_b.duration_s) > max(frame_s, 0.05):
            lost += 1
    return lost, "lost" if lost else "identical" if identical else "transcoded"


def _lag(a: list[npt.NDArray[np.int16]], b: list[npt.NDArray[np.int16]]) -> int:
    """Shift of `b` that fits `a` best; 0 unless another fits clearly better."""
    n = min(len(a), len(b))
    if n <= 2 * _MAX_LAG + 4:
        return 0
    first, second = np.stack(a[_MAX_LAG : n - _MAX_LAG]), np.stack(b[:n])
    span = len(first)
    errors = {
        lag: float(np.abs(first - second[_MAX_LAG + lag : _MAX_LAG + lag + span]).mean())
        for lag in range(-_MAX_LAG, _MAX_LAG + 1)
    }
    best = min(errors, key=lambda lag: errors[lag])
    return best if errors[best] < 0.8 * errors[0] else 0


def fit_size(image_rgb: ImageRgb, size_wh: tuple[int, int]) -> ImageRgb:
    """The same picture in the size of the original, where an anonymiser changed it."""
    if (image_rgb.shape[1], image_rgb.shape[0]) == size_wh:
        return image_rgb
    return np.asarray(cv2.resize(image_rgb, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
