"""`keyface evaluate reenactors`: the same clips by each reenactor, measured side by side."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from keyface.configs.errors import SinkError, SourceError, UsageError
from keyface.configs.schema import ReenactorName

if TYPE_CHECKING:
    from keyface.configs.evaluation import EvaluationConfig
    from keyface.engines.store import ModelStore
    from keyface.pipeline.measure.reenactor_report import ClipFigures, ReenactorReport
    from keyface.pipeline.measure.self_reenactment import SelfEyes, SelfMeasures, WarpNetworks
    from keyface.pipeline.measure.video import Eyes
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.summary import Summary

CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
REENACTORS = get_args(ReenactorName)
_LPIPS = "lpips"
_SETTLING = (
    15  # frames whose time does not count: the search for a stand-in, its rehearsals, engines that warm up
)


def add_reenactors_parser(kinds: Any) -> None:
    """Adds `evaluate reenactors`."""
    parser = kinds.add_parser(
        "reenactors",
        help="clips by each reenactor, side by side",
        description="Anonymises clips with each reenactor under one key, and measures the results with the judges of "
        "`evaluate video`, the time of a frame of both in one run, and for `warp` self-reenactment: the first frame "
        "of a clip drives the rest, by LPIPS. The out folder holds real faces: keep it to yourself.",
    )
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP", help="clips, or folders of clips")
    parser.add_argument("--key-file", type=Path, required=True, metavar="KEY")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("keyface-reenactors"))
    parser.add_argument(
        "--reenactors", nargs="+", choices=REENACTORS, default=list(REENACTORS), metavar="NAME",
        help="of latent and warp (default: both)",
    )  # fmt: skip
    parser.add_argument(
        "--every", type=int, default=5, metavar="N", help="measure every N-th frame (default 5)"
    )
    parser.add_argument("--end", type=float, metavar="S", help="only the first S seconds of each clip")
    parser.add_argument(
        "--timed", type=int, default=50, metavar="N",
        help="frames of each clip whose time is taken; 0: none (default 50)",
    )  # fmt: skip
    parser.add_argument("--no-pictures", action="store_true", help="no contact sheets")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure misses its target")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(redact_only=False)


def run_reenactors(args: argparse.Namespace) -> int:
    """Returns 0; with --strict 1 when a figure misses its target or a clip was left out."""
    from keyface.pipeline.measure.reenactor_report import to_json, to_markdown

    if args.every < 1 or args.timed < 0:
        raise UsageError(f"--every {args.every} --timed {args.timed}: want 1 or more, and 0 or more.")
    clips = list_clips(args.clips)
    with ExitStack() as stack:
        report = _Work(args, clips, stack).measure()
    told = json.dumps(to_json(report), indent=2)
    _write(args.out / "figures.json", told)
    _write(args.out / "figures.md", to_markdown(report))
    print(told if args.json else to_markdown(report))
    if not args.json and not args.quiet:
        print(f"keyface: written to {args.out}, which shows real faces", file=sys.stderr)
    missed = bool(report.failures) or any(v.outcome != "pass" for v in report.verdicts())
    return 1 if args.strict and missed else 0


def list_clips(given: Sequence[Path]) -> list[Path]:
    """The clips, those of a folder sorted by name. Raises UsageError."""
    clips: list[Path] = []
    for path in given:
        if path.is_dir():
            clips += sorted(p for p in path.iterdir() if p.suffix.lower() in CLIP_SUFFIXES)
        elif path.is_file():
            clips.append(path)
        else:
            raise UsageError(f"'{path}': there is no such clip or folder.")
    if not clips:
        raise UsageError("there is no clip in the folders given.", f"Want {', '.join(CLIP_SUFFIXES)}.")
    names = [clip.stem for clip in clips]
    for clip in clips:
        if names.count(clip.stem) > 1:
            raise UsageError(f"two clips are called '{clip.stem}'.", "Give one of them another name.")
    return clips


class _Work:
    """One comparison: its options, key, networks and what has been measured so far."""

    def __init__(self, args: argparse.Namespace, clips: Sequence[Path], stack: ExitStack) -> None:
        from keyface.pipeline.process_options import ProcessOptions
        from keyface.tools.bench_reenact import Runner
        from keyface.tools.evaluate_command import open_eyes, pull_judges
        from keyface.tools.process_command import ensure_models, load_key

        self._args, self._clips = args, clips
        key = load_key(args, stack)
        assert key is not None
        self._key: Key = key
        base = ProcessOptions(end_s=args.end, threads=args.threads)
        names = list(dict.fromkeys(args.reenactors))
        self._options: dict[str, ProcessOptions] = {name: replace(base, reenactor=name) for name in names}
        is_quiet = args.quiet or args.json
        stores = [ensure_models(options, is_quiet, is_needed=True) for options in self._options.values()]
        self._store: ModelStore = stores[0]
        if "warp" in names:
            pull_judges(self._store, [_LPIPS])
        _make_folder(args.out)
        eyes: tuple[Eyes, EvaluationConfig] = stack.enter_context(open_eyes())
        self._eyes, self._config = eyes
        self._rows: list[ClipFigures] = []
        self._runners = {name: Runner() for name in names}
        self._failures: dict[str, str] = {}

    def measure(self) -> ReenactorReport:
        """Does all clips; one that cannot be read or processed is told and left out."""
        from keyface.engines.machine import describe_machine, package_versions
        from keyface.pipeline.measure.reenactor_report import ReenactorReport

        for clip in self._clips:
            try:
                self._do(clip)
            except SourceError as error:
                self._failures[clip.name] = str(error)
                print(f"keyface: {clip.name}: {error}", file=sys.stderr)
        if not self._rows:
            raise SourceError("no clip could be measured.", "See the messages above.")
        about = {
            "clips": len(self._clips) - len(self._failures),
            "every": self._args.every,
            "seconds of each": "all" if self._args.end is None else self._args.end,
            "key": self._key.fingerprint,
            "recognisers": ", ".join(self._config.recognisers),
            "of them in a loss of training": ", ".join(self._in_losses()) or "none",
            "machine": describe_machine().as_dict(),
            "versions": package_versions(),
        }
        targets = self._config.reenactor_targets
        times = {
            name: runner.durations["total"].times()
            for name, runner in self._runners.items()
            if runner.durations
        }
        return ReenactorReport(tuple(self._rows), times, targets, self._failures, about)

    def _in_losses(self) -> list[str]:
        judges = self._config.image_recognisers
        return [
            name for name in self._config.recognisers if name in judges and judges[name].is_used_in_training
        ]

    def _do(self, clip: Path) -> None:
        from keyface.pipeline.measure.reenactor_report import ClipFigures

        rows, outputs = [], {}
        for name in self._options:
            output = self._args.out / "clips" / name / f"{clip.stem}.mp4"
            _make_folder(output.parent)
            summary = self._process(clip, output, name)
            rows.append(ClipFigures(clip.name, name, self._figures(clip, output, summary)))
            outputs[name] = output
        if self._args.timed:
            self._time(clip)
        measured = self._measure_self(clip) if "warp" in self._options else None
        if measured is not None:
            rows = [
                replace(row, figures={**row.figures, **measured.figures()})
                if row.reenactor == "warp"
                else row
                for row in rows
            ]
        self._rows += rows
        if not self._args.no_pictures:
            self._draw(clip, outputs, measured)

    def _process(self, clip: Path, output: Path, name: str) -> Summary:
        from keyface.pipeline.assemble import make_parts
        from keyface.pipeline.process import process_video
        from keyface.tools.progress import FrameBar

        options = self._options[name]
        parts = make_parts(self._store, self._key, options)
        with FrameBar(f"{clip.name} {name}", is_quiet=self._args.quiet) as bar:
            return process_video(clip, output, parts=parts, options=options, on_tick=bar)

    def _figures(self, clip: Path, output: Path, summary: Summary) -> dict[str, float | None]:
        from keyface.pipeline.measure.evaluation import evaluate
        from keyface.pipeline.measure.reenactor_report import clip_figures
        from keyface.pipeline.measure.video import measure_video

        measures = measure_video(clip, output, self._eyes, every=self._args.every)
        return clip_figures(evaluate(measures, self._config.targets), summary)

    def _time(self, clip: Path) -> None:
        """Adds the times of a clip's largest face to those before, both reenactors in turn on the same frames."""
        from keyface.pipeline.assemble import EnginePool, make_parts, network_opener
        from keyface.pipeline.media.capture import FileSource
        from keyface.tools import bench_reenact

        with ExitStack() as stack:
            chains = {}
            first = next(iter(self._options.values()))
            pool = stack.enter_context(EnginePool(network_opener(self._store, first)))
            for name, options in self._options.items():
                runner = self._runners[name]
                parts = make_parts(self._store, self._key, options, open_network=runner.timed(pool))
                stack.callback(parts.release)
                chains[name] = parts, runner
            source = stack.enter_context(FileSource(clip, end_s=self._args.end))
            frames = itertools.islice(source, _SETTLING + self._args.timed)
            bench_reenact.measure(frames, chains, n_skipped=_SETTLING, faces="largest")

    def _measure_self(self, clip: Path) -> SelfMeasures:
        from keyface.pipeline.measure.self_reenactment import measure_self

        with open_self_judges(self._store, self._eyes) as (eyes, networks):
            return measure_self(clip, eyes, networks, every=self._args.every, until_s=self._args.end)

    def _draw(self, clip: Path, outputs: Mapping[str, Path], measured: SelfMeasures | None) -> None:
        from keyface.pipeline.measure.reenactor_pictures import write_self_sheet, write_side_by_side

        folder = self._args.out / "sheets"
        _make_folder(folder)
        sheet = folder / f"{clip.stem}.jpg"
        if not write_side_by_side(sheet, clip, outputs, self._eyes.detector, end_s=self._args.end):
            print(f"keyface: {clip.name}: no face in the moments looked at, no sheet", file=sys.stderr)
        if measured is not None:
            write_self_sheet(folder / f"{clip.stem}-self.jpg", measured.pictures)


@contextmanager
def open_self_judges(store: ModelStore, eyes: Eyes) -> Iterator[tuple[SelfEyes, WarpNetworks]]:
    """Opens what self-reenactment needs: the warping networks, the product's landmarks, LPIPS."""
    from keyface.engines.open import open_engine
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker
    from keyface.pipeline.measure.self_reenactment import SelfEyes, WarpNetworks
    from keyface.pipeline.reenact.keypoints import KeypointModel

    with ExitStack() as stack:
        names = ("warp_source", "warp_motion", "warp_decode", _LPIPS)
        source, motion, decode, lpips = (
            stack.enter_context(open_engine(store.path(name), name=name, threads=1)) for name in names
        )
        parts = (
            open_engine(store.path(name), name=name, threads=1) for name in ("face_mesh", "face_blendshapes")
        )
        landmarker = LiteRtLandmarker(*parts)
        stack.callback(landmarker.close)
        networks = WarpNetworks(KeypointModel.load(store.path("keypoints")), source, motion, decode)
        yield SelfEyes(eyes.detector, landmarker, lpips), networks


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"Folder '{folder}' cannot be made: {error.strerror}.", "Name another.") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SinkError(f"'{path}' cannot be written: {error.strerror}.", "Make room.") from error
