"""`keyface evaluate`: measures an anonymised clip against its original; photos, reenactors: files of their own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import SourceError, UsageError
from keyface.tools.evaluate_images_command import add_images_parser, run_images
from keyface.tools.evaluate_reenactors_command import CLIP_SUFFIXES, add_reenactors_parser, run_reenactors

if TYPE_CHECKING:
    from keyface.configs.evaluation import EvaluationConfig
    from keyface.engines.store import ModelStore
    from keyface.pipeline.measure.evaluation import Evaluation
    from keyface.pipeline.measure.video import Eyes

_DETECTOR = "scrfd_500m"
_LANDMARKER = "face_landmarker"
_COUNTS = ("leak_frames", "frame_count_difference", "audio_tracks_lost", "content_lag")
_COLUMNS = (
    ("leak_frames", "leaks", 0), ("detection_rate", "det", 3), ("yaw_error", "yaw", 1),
    ("pitch_error", "pitch", 1), ("roll_error", "roll", 1), ("jaw_open", "jaw", 2), ("blink", "blink", 2),
    ("smile", "smile", 2), ("gaze_h", "gazeH", 2), ("gaze_v", "gazeV", 2), ("pout", "pout", 2),
    ("brow", "brow", 2), ("expression_mean", "mean", 2), ("smile_offset", "smile+", 2),
    ("identity_consistency", "ident", 3), ("flicker", "flick", 2), ("frame_count_difference", "frames", 0),
    ("timestamp_drift", "drift", 2),
)  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Adds `evaluate video`, `evaluate videos`, `evaluate images` and `evaluate reenactors`."""
    parser = subparsers.add_parser("evaluate", help="measure how well faces are hidden")
    kinds = parser.add_subparsers(dest="evaluate_kind", required=True, metavar="KIND")
    one = kinds.add_parser("video", help="one clip")
    one.add_argument("original", type=Path)
    one.add_argument("anonymised", type=Path)
    many = kinds.add_parser("videos", help="all clips of a folder that have a namesake in another")
    many.add_argument("original", type=Path, metavar="ORIGINAL_FOLDER")
    many.add_argument("anonymised", type=Path, metavar="ANONYMISED_FOLDER")
    for kind in (one, many):
        kind.add_argument(
            "--every", type=int, default=5, metavar="N", help="look at every N-th frame (default 5)"
        )
        kind.add_argument("--json", action="store_true", help="print JSON instead of a table")
        kind.add_argument(
            "--dump", type=Path, metavar="DIR", help="write crops of leaks; they show real faces"
        )
        kind.add_argument("--strict", action="store_true", help="exit with 1 when a figure misses its target")
        kind.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    add_images_parser(kinds)
    add_reenactors_parser(kinds)


def run(args: argparse.Namespace) -> int:
    """Measures and prints. Returns 0; with --strict 1 when a figure misses its target."""
    if args.evaluate_kind == "images":
        return run_images(args)
    if args.evaluate_kind == "reenactors":
        return run_reenactors(args)
    if args.every < 1:
        raise UsageError(f"--every: got {args.every}, want 1 or more.")
    pairs = [(args.original, args.anonymised)] if args.evaluate_kind == "video" else _namesakes(args)
    results: list[Evaluation] = []
    failures: dict[str, str] = {}
    with open_eyes(threads=args.threads) as (eyes, config):
        for original, anonymised in pairs:
            try:
                results.append(_evaluate(original, anonymised, eyes, config, args))
            except SourceError as error:
                if args.evaluate_kind == "video":
                    raise
                failures[original.name] = str(error)
                print(error, file=sys.stderr)
    if args.json:
        print(json.dumps(_json(results, failures, config, args.evaluate_kind), indent=2))
    elif args.evaluate_kind == "video":
        print("\n".join(_lines(results[0])))
    else:
        print("\n".join(_table(results, failures)))
    missed = bool(failures) or any(r.outcome == "fail" for r in results)
    return 1 if args.strict and missed else 0


@contextmanager
def open_eyes(*, threads: int = 1) -> Iterator[tuple[Eyes, EvaluationConfig]]:
    """Pulls and opens the networks that judge. Raises ModelStoreError when they cannot be had."""
    from keyface.configs.evaluation import load_evaluation
    from keyface.engines.open import open_engine
    from keyface.engines.store import ModelStore
    from keyface.pipeline.faces.landmarks_mediapipe import MediaPipeLandmarker
    from keyface.pipeline.measure.eyes import Recogniser, Scrfd
    from keyface.pipeline.measure.video import Eyes

    config, store = load_evaluation(), ModelStore()
    names = [_DETECTOR, *config.recognisers]
    pull_judges(store, [*names, _LANDMARKER])
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(open_engine(store.path(name), name=name, threads=threads))
            for name in names
        }
        recognisers = [
            Recogniser.of(store.manifest[name], engines[name], limit.far_0_1_percent)
            for name, limit in config.recognisers.items()
        ]
        # MediaPipe's own program, which finds the face again by itself, not the chain's way to run its parts.
        landmarker = MediaPipeLandmarker(store.path(_LANDMARKER))
        stack.callback(landmarker.close)
        yield Eyes(Scrfd(engines[_DETECTOR]), recognisers, landmarker), config


def pull_judges(store: ModelStore, names: list[str]) -> None:
    """Fetches what is missing, having said under which licence; the chain itself needs none of these."""
    from keyface.tools.pull_bars import PullBars

    for name in names:
        if store.status(name) != "ok":
            entry = store.manifest[name]
            print(f"keyface: fetching {name} ({entry.licence}). {entry.licence_note}", file=sys.stderr)
    with PullBars() as bars:
        store.ensure(names, bars)


def _namesakes(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    for folder in (args.original, args.anonymised):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder.", "For two files use: keyface evaluate video.")
    outputs = {p.stem: p for p in sorted(args.anonymised.iterdir()) if p.suffix.lower() in CLIP_SUFFIXES}
    clips = [p for p in sorted(args.original.iterdir()) if p.suffix.lower() in CLIP_SUFFIXES]
    pairs = [(p, outputs[p.stem]) for p in clips if p.stem in outputs]
    if not pairs:
        raise UsageError(f"no clip of {args.original} has a namesake in {args.anonymised}.")
    for clip in clips:
        if clip.stem not in outputs:
            print(f"{clip.name}: no namesake, left out", file=sys.stderr)
    return pairs


def _evaluate(
    original: Path, anonymised: Path, eyes: Eyes, config: EvaluationConfig, args: argparse.Namespace
) -> Evaluation:
    from tqdm import tqdm

    from keyface.pipeline.measure.evaluation import evaluate
    from keyface.pipeline.measure.video import measure_video

    dump = args.dump / original.stem if args.dump and args.evaluate_kind == "videos" else args.dump
    with tqdm(desc=original.name, unit="frame", disable=not sys.stderr.isatty(), leave=False) as bar:
        measures = measure_video(
            original, anonymised, eyes, every=args.every, dump=dump, progress=lambda _: bar.update()
        )
    return evaluate(measures, config.targets)


def _json(
    results: list[Evaluation], failures: dict[str, str], config: EvaluationConfig, kind: str
) -> dict[str, Any]:
    from keyface.engines.machine import describe_machine, package_versions
    from keyface.pipeline.measure.evaluation import to_json

    around = {
        "machine": describe_machine().as_dict(),
        "versions": package_versions(),
        "thresholds": {name: r.far_0_1_percent for name, r in config.recognisers.items()},
        "threshold_provenance": dict(config.provenance),
    }
    if kind == "video":
        return to_json(results[0]) | around
    return {
        "schema": "keyface/evaluate-videos/1",
        "clips": [to_json(r) for r in results],
        "failed": failures,
    } | around


def _lines(result: Evaluation) -> list[str]:
    """The report on one clip."""
    from keyface.pipeline.measure.evaluation import figure_rows

    a, b = result.measures.original, result.measures.anonymised
    lines = [
        f"{result.original} ({a.n_frames} frames) against {result.anonymised} ({b.n_frames} frames)",
        f"{result.measures.n_frames_compared} frames compared, {result.n_faces} faces of 40 px or more, "
        f"{result.n_tracks} people or tracks, audio {result.measures.media.audio}",
        "",
        f"{'figure':26s} {'measured':>10s}  {'target':26s} verdict",
    ]
    for name, value, wish, outcome in figure_rows(result):
        digits = 0 if name in _COUNTS else 3
        lines.append(f"{name:26s} {_number(value, digits):>10s}  {wish:26s} {outcome}".rstrip())
    lines.append("")
    for name, row in result.recognisers.items():
        lines.append(
            f"{name:26s} similarity {row['mean_similarity']:.3f}, threshold {row['mean_bar']:.3f}, "
            f"recognises {row['recognised_rate']:.1%} of the faces"
        )
    if result.leak_frames:
        shown = ", ".join(str(n) for n in result.leak_frames[:20])
        lines.append(f"leak frames: {shown}{' ...' if len(result.leak_frames) > 20 else ''}")
    lines += list(result.remarks)
    return [*lines, f"verdict: {result.outcome}"]


def _table(results: list[Evaluation], failures: dict[str, str]) -> list[str]:
    """One line a clip, and the means."""
    width = max([len(r.original) for r in results] + [8])
    head = (
        f"{'clip':{width}s} faces "
        + " ".join(f"{title:>6s}" for _, title, _ in _COLUMNS)
        + " audio      verdict"
    )
    lines = [head]
    for r in results:
        cells = " ".join(f"{_number(r.figures.get(key), digits):>6s}" for key, _, digits in _COLUMNS)
        lines.append(
            f"{r.original:{width}s} {r.n_faces:5d} {cells} {r.measures.media.audio:10s} "
            + (", ".join(v.figure for v in r.verdicts if v.outcome == "fail") or r.outcome)
        )
    means = []
    for key, _, digits in _COLUMNS:
        values = [v for r in results if (v := r.figures.get(key)) is not None]
        means.append(_number(sum(values) / len(values) if values else None, max(digits, 2)))
    faces = sum(r.n_faces for r in results)
    lines.append(f"{'mean':{width}s} {faces:5d} " + " ".join(f"{cell:>6s}" for cell in means))
    return lines + [f"{name}: {why}" for name, why in failures.items()]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
