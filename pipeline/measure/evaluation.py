"""From measures to figures, and from figures to verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from keyface.configs.evaluation import Target
from keyface.pipeline.measure.motion import MotionPair, measure_consistency, measure_motion
from keyface.pipeline.measure.reference import ClipFacts
from keyface.pipeline.measure.video import FaceSample, VideoMeasures

SCHEMA = "keyface/evaluate-video/1"
Outcome = Literal["pass", "fail", "not measured"]

# Figures beyond those with a target, in the order of printing.
_MORE = (
    "brow", "smile_offset", "blendshape_error", "original_consistency", "background_difference",
    "unchanged_rate", "content_lag",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure beside its target; value None: it could not be measured here."""

    figure: str
    value: float | None
    target: Target

    @property
    def outcome(self) -> Outcome:
        """ "pass", "fail" or "not measured"."""
        if self.value is None:
            return "not measured"
        return "pass" if self.target.is_met(self.value) else "fail"


@dataclass(frozen=True)
class Evaluation:
    """The result for a pair of clips: figures by name, verdicts, leaks, and remarks in words."""

    original: str
    anonymised: str
    figures: Mapping[str, float | None]
    verdicts: tuple[Verdict, ...]
    leak_frames: tuple[int, ...]
    recognisers: Mapping[str, Mapping[str, float]]
    n_faces: int
    n_tracks: int
    remarks: tuple[str, ...]
    measures: VideoMeasures

    @property
    def outcome(self) -> Outcome:
        """Fails with any figure; "not measured" when nothing about faces could be."""
        if any(v.outcome == "fail" for v in self.verdicts):
            return "fail"
        return "pass" if self.n_faces else "not measured"


def evaluate(measures: VideoMeasures, targets: Mapping[str, Target]) -> Evaluation:
    """Sums up; figures that need more than the clip gives are None."""
    samples = measures.samples
    figures = _media_figures(measures) | _face_figures(samples) | _motion_figures(samples)
    figures["background_difference"] = _mean(measures.background)
    verdicts = tuple(Verdict(name, figures.get(name), target) for name, target in targets.items())
    return Evaluation(
        original=measures.original.name,
        anonymised=measures.anonymised.name,
        figures=figures,
        verdicts=verdicts,
        leak_frames=tuple(sorted({s.frame for s in samples if s.is_leak})),
        recognisers=_recogniser_figures(samples),
        n_faces=len(samples),
        n_tracks=len({s.track for s in samples}),
        remarks=_remarks(measures),
        measures=measures,
    )


def _media_figures(measures: VideoMeasures) -> dict[str, float | None]:
    media = measures.media
    return {
        "frame_count_difference": float(media.frame_count_difference),
        "timestamp_drift": media.timestamp_drift_frames,
        "duration_difference": media.duration_difference_frames,
        "audio_tracks_lost": float(media.audio_tracks_lost),
        "content_lag": float(media.content_lag_frames),
    }


def _face_figures(samples: Sequence[FaceSample]) -> dict[str, float | None]:
    flicker = np.array([s.flicker for s in samples if s.flicker is not None])
    tracks = [s.track for s in samples]
    first = next(iter(samples[0].embeddings), None) if samples else None
    consistent: dict[str, float | None] = {}
    if first is not None:
        consistent = {
            "identity_consistency": measure_consistency(
                tracks, [s.embeddings[first].anonymised for s in samples]
            ),
            "original_consistency": measure_consistency(
                tracks, [s.embeddings[first].original for s in samples]
            ),
        }
    ratio = float(flicker[:, 1].mean() / max(float(flicker[:, 0].mean()), 1e-6)) if len(flicker) else None
    return {
        # With nothing to see nothing leaked; frames without a partner are counted elsewhere.
        "leak_frames": float(len({s.frame for s in samples if s.is_leak})),
        "unchanged_rate": _mean([float(s.change.is_unchanged) for s in samples]),
        "detection_rate": _mean([float(s.detected) for s in samples]),
        "flicker": ratio,
        **consistent,
    }


def _motion_figures(samples: Sequence[FaceSample]) -> dict[str, float | None]:
    pairs = [
        MotionPair(s.track, s.meshes[0], s.meshes[1])
        for s in samples
        if s.meshes[0] is not None and s.meshes[1] is not None
    ]
    motion = measure_motion(pairs)
    figures: dict[str, float | None] = {
        "expression_mean": motion.mean_correlation,
        "blendshape_error": motion.blendshape_error,
    }
    if motion.pose_error_ypr_deg is not None:
        figures |= dict(
            zip(("yaw_error", "pitch_error", "roll_error"), motion.pose_error_ypr_deg, strict=True)
        )
    figures |= motion.correlation
    figures |= {f"{name}_offset": value for name, value in motion.offset.items()}
    return figures


def _recogniser_figures(samples: Sequence[FaceSample]) -> dict[str, dict[str, float]]:
    """By recogniser: mean similarity, share of faces recognised, share that it cannot read anyway."""
    names = list(samples[0].recognitions) if samples else []
    rows = {}
    for name in names:
        own = [s.recognitions[name] for s in samples]
        rows[name] = {
            "mean_similarity": float(np.mean([r.similarity for r in own])),
            "recognised_rate": float(np.mean([r.is_match for r in own])),
            "mean_bar": float(np.mean([r.bar for r in own])),
        }
    return rows


def _remarks(measures: VideoMeasures) -> tuple[str, ...]:
    a, b = measures.original, measures.anonymised
    remarks = []
    if not measures.samples:
        remarks.append(
            "No face of 40 px or more was found in the original, so nothing about faces is measured."
        )
    if a.n_frames != b.n_frames:
        remarks.append(
            f"The original has {a.n_frames} frames, the anonymised clip {b.n_frames}: frames are compared by "
            "number, and those without a partner not at all."
        )
    if a.size_wh != b.size_wh:
        remarks.append(
            f"The size changed from {a.size_wh[0]}x{a.size_wh[1]} to {b.size_wh[0]}x{b.size_wh[1]}."
        )
    if measures.media.content_lag_frames:
        remarks.append(f"The pictures fit best when shifted by {measures.media.content_lag_frames} frames.")
    if measures.media.audio == "transcoded":
        remarks.append("The audio was transcoded.")
    for clip in (a, b):
        if clip.n_damaged:
            remarks.append(f"{clip.name}: {clip.n_damaged} packets could not be decoded.")
    return tuple(remarks)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def figure_rows(result: Evaluation) -> list[tuple[str, float | None, str, str]]:
    """(figure, value, target, outcome) in the order of printing; figures without a target last."""
    rows = [(v.figure, v.value, v.target.wish, str(v.outcome)) for v in result.verdicts]
    rows += [(name, result.figures[name], "", "") for name in _MORE if name in result.figures]
    return rows


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """As plain values."""
    return {
        "figure": verdict.figure,
        "value": _round(verdict.value),
        "target": verdict.target.wish,
        "meaning": verdict.target.meaning,
        "outcome": verdict.outcome,
    }


def to_json(result: Evaluation) -> dict[str, Any]:
    """Plain values for JSON, rounded to six digits; no path, no pixel, no embedding."""
    measures = result.measures
    return {
        "schema": SCHEMA,
        "outcome": result.outcome,
        "original": _clip_json(measures.original),
        "anonymised": _clip_json(measures.anonymised),
        "every": measures.every,
        "frames_compared": measures.n_frames_compared,
        "faces": result.n_faces,
        "tracks": result.n_tracks,
        "audio": measures.media.audio,
        "figures": {name: _round(value) for name, value in result.figures.items()},
        "verdicts": [verdict_json(v) for v in result.verdicts],
        "recognisers": {n: {k: _round(v) for k, v in row.items()} for n, row in result.recognisers.items()},
        "leak_frames": list(result.leak_frames),
        "leaks": [_leak_json(s) for s in measures.samples if s.is_leak],
        "remarks": list(result.remarks),
    }


def _clip_json(clip: ClipFacts) -> dict[str, Any]:
    return {
        "name": clip.name,
        "size_wh": list(clip.size_wh),
        "fps": _round(clip.fps),
        "frames": clip.n_frames,
        "duration_s": _round(clip.duration_s),
        "codec": clip.codec,
        "audio": [asdict(track) for track in clip.audio],
        "damaged_packets": clip.n_damaged,
    }


def _leak_json(sample: FaceSample) -> dict[str, Any]:
    return {
        "frame": sample.frame,
        "track": sample.track,
        "box_xyxy": [round(float(v), 1) for v in sample.box_xyxy],
        "unchanged": sample.change.is_unchanged,
        "recognised_by": [name for name, r in sample.recognitions.items() if r.is_match],
        "similarity": {name: _round(r.similarity) for name, r in sample.recognitions.items()},
    }


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)
