"""The figures of several reenactors on the same clips, side by side: JSON, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from keyface.configs.evaluation import Target
from keyface.pipeline.measure.evaluation import Evaluation, Verdict, verdict_json
from keyface.pipeline.measure.motion import measure_consistency
from keyface.pipeline.stage_times import StageTimes
from keyface.pipeline.summary import Summary

SCHEMA = "keyface/evaluate-reenactors/1"
LATENT, WARP = "latent", "warp"


class Figure(NamedTuple):
    """name, what it is in words, which end is the better one ("" for neither), digits printed."""

    name: str
    meaning: str
    better: Literal["low", "high", ""]
    digits: int


_FIRST = (
    Figure("frame_ms", "time of a face and frame, p50, ms", "low", 1),
    Figure("frame_ms_p95", "the same, p95, ms", "low", 1),
    Figure("stage_ms", "the same while the whole chain runs, p50, ms", "low", 1),
    Figure("pose_error", "pose error, mean of yaw, pitch, roll, degrees", "low", 2),
    Figure("yaw_error", "yaw error, degrees", "low", 2),
    Figure("pitch_error", "pitch error, degrees", "low", 2),
    Figure("roll_error", "roll error, degrees", "low", 2),
    Figure("expression_mean", "correlation of the expressions that vary, mean", "high", 3),
    Figure("jaw_open", "correlation of jawOpen", "high", 3),
    Figure("blink", "correlation of blinks", "high", 3),
    Figure("smile", "correlation of mouthSmile", "high", 3),
    Figure("gaze_h", "correlation of horizontal gaze", "high", 3),
    Figure("gaze_v", "correlation of vertical gaze", "high", 3),
    Figure("blendshape_error", "mean error of 52 blendshapes", "low", 4),
    Figure("identity_least", "identity within a clip, cosine, least of the recognisers", "high", 3),
)
_LAST = (
    Figure("flicker", "flicker after flow compensation, times the source's", "low", 2),
    Figure("detection_rate", "faces that are detected", "high", 3),
    Figure("mosaic_rate", "frames with a mosaic", "low", 3),
    Figure("leak_frames", "frames with a leak", "low", 1),
    Figure("self_lpips_crop", "self-reenactment, LPIPS, whole crop", "low", 3),
    Figure("self_lpips_face", "self-reenactment, LPIPS, face alone", "low", 3),
    Figure("self_lpips_crop_still", "(first frame unmoved, whole crop)", "", 3),
    Figure("self_lpips_face_still", "(first frame unmoved, face alone)", "", 3),
)
_IDENTITY = "identity_"


@dataclass(frozen=True, slots=True)
class ClipFigures:
    """One clip by one reenactor."""

    clip: str
    reenactor: str
    figures: Mapping[str, float | None]


@dataclass(frozen=True)
class ReenactorReport:
    """Figures of all clips and reenactors, with what they are held against.

    Attributes:
        rows: in the order measured.
        times: by reenactor, of a face in one frame, both in one run; empty when none were taken.
        targets: of the reenactor `warp`.
        failures: clip -> why it was left out.
        about: what was evaluated and how, plain values.
    """

    rows: tuple[ClipFigures, ...]
    times: Mapping[str, StageTimes]
    targets: Mapping[str, Target]
    failures: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reenactors(self) -> tuple[str, ...]:
        """In the order measured."""
        return tuple(dict.fromkeys(row.reenactor for row in self.rows))

    @property
    def clips(self) -> tuple[str, ...]:
        """In the order measured."""
        return tuple(dict.fromkeys(row.clip for row in self.rows))

    def means(self, reenactor: str) -> dict[str, float | None]:
        """Over the clips in which a figure could be measured, each counting once; and the times."""
        own = [row.figures for row in self.rows if row.reenactor == reenactor]
        found: dict[str, float | None] = {}
        for name in dict.fromkeys(name for figures in own for name in figures):
            values = [v for figures in own if (v := figures.get(name)) is not None and math.isfinite(v)]
            found[name] = float(np.mean(values)) if values else None
        times = self.times.get(reenactor)
        if times is not None and times.count:
            found |= {"frame_ms": times.p50_ms, "frame_ms_p95": times.p95_ms}
        return found

    def figures(self) -> list[Figure]:
        """Those that were measured of any reenactor, in the order of printing."""
        known = {name for r in self.reenactors for name, value in self.means(r).items() if value is not None}
        judges = sorted(n for n in known if n.startswith(_IDENTITY) and n != "identity_least")
        of_judges = [
            Figure(n, f"identity within a clip, by {n.removeprefix(_IDENTITY)}", "high", 3) for n in judges
        ]
        return [figure for figure in (*_FIRST, *of_judges, *_LAST) if figure.name in known]

    def verdicts(self) -> tuple[Verdict, ...]:
        """The reenactor `warp` against its targets; none when it was not measured."""
        if WARP not in self.reenactors:
            return ()
        warp, latent = self.means(WARP), self.means(LATENT) if LATENT in self.reenactors else {}
        values = dict(warp)
        ours, theirs = warp.get("frame_ms"), latent.get("frame_ms")
        values["frame_ms_ratio"] = ours / theirs if ours is not None and theirs else None
        values["identity_gain"] = _least_gain(warp, latent)
        return tuple(Verdict(name, values.get(name), target) for name, target in self.targets.items())

    def better_in(self, figure: Figure) -> tuple[int, int]:
        """Clips in which the last reenactor has the better figure than the first, and clips that both have."""
        first, last = self.reenactors[0], self.reenactors[-1]
        wins = count = 0
        for clip in self.clips:
            values = {row.reenactor: row.figures.get(figure.name) for row in self.rows if row.clip == clip}
            a, b = values.get(first), values.get(last)
            if a is not None and b is not None:
                count += 1
                wins += b < a if figure.better == "low" else b > a
        return wins, count


def _least_gain(warp: Mapping[str, float | None], latent: Mapping[str, float | None]) -> float | None:
    gains = [
        ours - theirs
        for name, ours in warp.items()
        if name.startswith(_IDENTITY) and name != "identity_least" and ours is not None
        if (theirs := latent.get(name)) is not None
    ]
    return min(gains) if gains else None


def clip_figures(evaluation: Evaluation, summary: Summary) -> dict[str, float | None]:
    """The figures of one processed clip: what was measured of it, and what the chain says of itself."""
    figures = dict(evaluation.figures)
    errors = [figures.get(f"{axis}_error") for axis in ("yaw", "pitch", "roll")]
    known = [error for error in errors if error is not None]
    figures["pose_error"] = float(np.mean(known)) if len(known) == len(errors) else None
    samples = evaluation.measures.samples
    tracks = [sample.track for sample in samples]
    for name in evaluation.recognisers:
        figures[_IDENTITY + name] = measure_consistency(
            tracks, [sample.embeddings[name].anonymised for sample in samples]
        )
    by_judge = [figures[_IDENTITY + name] for name in evaluation.recognisers]
    consistent = [value for value in by_judge if value is not None]
    figures["identity_least"] = min(consistent) if consistent else None
    figures.pop("identity_consistency", None)
    stage = summary.stages.get("reenact")
    figures["stage_ms"] = stage.p50_ms if stage is not None and stage.count else None
    figures["mosaic_rate"] = summary.redacted_frames / max(summary.frames, 1)
    return figures


def to_json(report: ReenactorReport) -> dict[str, Any]:
    """Plain values; no path, no pixel, no embedding."""
    return {
        "schema": SCHEMA,
        "about": dict(report.about),
        "reenactors": {
            name: {key: _round(value) for key, value in report.means(name).items()}
            for name in report.reenactors
        },
        "timed_frames": {name: times.count for name, times in report.times.items()},
        "clips": [
            {
                "clip": row.clip,
                "reenactor": row.reenactor,
                "figures": {key: _round(value) for key, value in row.figures.items()},
            }
            for row in report.rows
        ],
        "failed": dict(report.failures),
        "verdicts": [verdict_json(v) for v in report.verdicts()],
    }


def to_markdown(report: ReenactorReport) -> str:
    """Means side by side, targets, and the figures of each clip."""
    lines = ["# Reenactors side by side", ""]
    lines += [f"- {name}: {value}" for name, value in report.about.items() if not isinstance(value, dict)]
    lines += ["", "## Means over the clips", "", *_mean_lines(report)]
    if report.verdicts():
        lines += [
            "",
            "## Targets of warp",
            "",
            "| figure | measured | target | verdict |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {v.target.meaning} | {_number(v.value, 3)} | {v.target.wish} | {v.outcome} |"
            for v in report.verdicts()
        ]
    lines += ["", "## Each clip", "", *_clip_lines(report)]
    lines += ["", *(f"- {name}: left out: {why}" for name, why in report.failures.items())]
    return "\n".join(lines).rstrip()


def _mean_lines(report: ReenactorReport) -> list[str]:
    names = report.reenactors
    is_pair = len(names) == 2
    head = ["figure", *names, *(["better", f"clips in which {names[-1]} is better"] if is_pair else [])]
    lines = [_row(head), _row(["---"] * len(head))]
    means = {name: report.means(name) for name in names}
    for figure in report.figures():
        values = [means[name].get(figure.name) for name in names]
        cells = [figure.meaning, *(_number(value, figure.digits) for value in values)]
        if is_pair:
            cells += [_better(figure, names, values), _wins(report, figure)]
        lines.append(_row(cells))
    return lines


def _better(figure: Figure, names: Sequence[str], values: Sequence[float | None]) -> str:
    if not figure.better or None in values:
        return "-"
    a, b = (round(float(value or 0.0), figure.digits) for value in values)
    if a == b:
        return "even"
    return names[int((b < a) == (figure.better == "low"))]


def _wins(report: ReenactorReport, figure: Figure) -> str:
    wins, count = report.better_in(figure)
    return f"{wins} of {count}" if count and figure.better else "-"


def _clip_lines(report: ReenactorReport) -> list[str]:
    shown = [f for f in report.figures() if f.name in _OF_CLIP or f.name.startswith(_IDENTITY)]
    head = ["clip", "reenactor", *(f.name for f in shown)]
    lines = [_row(head), _row(["---"] * len(head))]
    for row in sorted(report.rows, key=lambda r: report.clips.index(r.clip)):
        lines.append(
            _row([row.clip, row.reenactor, *(_number(row.figures.get(f.name), f.digits) for f in shown)])
        )
    return lines


_OF_CLIP = {
    "stage_ms", "pose_error", "expression_mean", "jaw_open", "blink", "flicker", "detection_rate", "mosaic_rate",
    "self_lpips_crop", "self_lpips_face",
}  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
