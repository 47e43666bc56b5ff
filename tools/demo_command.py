"""`keyface demo`: makes a clip of a generated person and anonymises it, to show what keyface does."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import SinkError, UsageError

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.people.key import Key

ORIGINAL, ANONYMISED, COMPARISON, SHEET = (
    "original.mp4", "anonymised.mp4", "side-by-side.mp4", "contact-sheet.png",
)  # fmt: skip
PLAIN_PERSON = 38  # an adult before a plain background
COLUMNS = 6


def add_parser(subparsers: Any) -> None:
    """Adds `demo` to the sub-commands."""
    parser = subparsers.add_parser(
        "demo",
        help="make a clip of a generated person and anonymise it",
        description="Makes a clip of a person who does not exist, who turns the head, speaks, blinks and "
        f"smiles, and anonymises it with two keys. Writes {ORIGINAL}, {ANONYMISED}, {COMPARISON} and {SHEET} "
        "into DIR. Models that are missing are fetched.",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="length (default: 8)")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="width and height (default: 512)")
    parser.add_argument(
        "--person", type=int, default=PLAIN_PERSON, metavar="N", help=f"who acts (default: {PLAIN_PERSON})"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Makes the clip, anonymises it, and says where everything is."""
    from keyface.pipeline.media.contact_sheet import contact_sheet, moments, write_picture

    _check(args)
    store = _models(is_quiet=args.quiet)
    _say(args, "making a clip of a generated person")
    original = args.out / ORIGINAL
    _make_clip(args, store, original)
    rows = [("original: a generated person", moments(original, count=COLUMNS))]
    with tempfile.TemporaryDirectory(prefix="keyface-demo-") as folder:
        for number, clip in enumerate((args.out / ANONYMISED, Path(folder) / ANONYMISED), 1):
            _say(args, f"anonymising it with key {number}")
            with _key(args.out / f"demo-{number}.key") as key:
                _anonymise(args, store, key, original, clip, args.out / COMPARISON if number == 1 else None)
            rows.append((f"anonymised, key {number}", moments(clip, count=COLUMNS)))
    write_picture(args.out / SHEET, contact_sheet(rows))
    for name in (ORIGINAL, ANONYMISED, COMPARISON, SHEET):
        print(args.out / name)
    _say(args, f"now yours: keyface process IN.mp4 -o OUT.mp4 --key-file {args.out / 'demo-1.key'}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 2.0 <= args.seconds <= 120.0:
        raise UsageError(f"--seconds: got {args.seconds:g}, want 2 to 120.")
    if not 128 <= args.size <= 1024 or args.size % 2:
        raise UsageError(f"--size: got {args.size}, want an even number from 128 to 1024.")
    if args.person < 0:
        raise UsageError(f"--person: got {args.person}, want 0 or more.")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"Folder '{args.out}' cannot be made: {error.strerror or error}.") from error


def _models(*, is_quiet: bool) -> ModelStore:
    from keyface.engines.store import ModelStore
    from keyface.tools.pull_bars import PullBars

    store = ModelStore()
    with PullBars(is_quiet=is_quiet) as bars:
        store.ensure("default", bars)
    return store


def _make_clip(args: argparse.Namespace, store: ModelStore, path: Path) -> None:
    from tqdm import tqdm

    from keyface.pipeline.assemble import open_portrait
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.sample.clip import n_frames, write_sample_clip
    from keyface.pipeline.sample.performance import Performance

    performance = Performance(args.seconds)
    is_silent = args.quiet or not sys.stderr.isatty()
    with (
        open_portrait(store, args.person, ProcessOptions(generator_px=1024)) as portrait,
        tqdm(desc=path.name, total=n_frames(performance), unit="frame", disable=is_silent) as bar,
    ):
        write_sample_clip(path, portrait, performance, size_px=args.size, on_frame=bar.update)


def _key(path: Path) -> Key:
    from keyface.pipeline.people.key import Key

    if not path.exists():
        with Key.generate() as key:
            key.save(path)
    return Key.load(path)


def _anonymise(
    args: argparse.Namespace, store: ModelStore, key: Key, source: Path, output: Path, comparison: Path | None
) -> None:
    from keyface.pipeline.assemble import make_parts
    from keyface.pipeline.process import process_video
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.tools.progress import FrameBar

    options = ProcessOptions()
    with FrameBar(output.name, is_quiet=args.quiet) as bar:
        summary = process_video(
            source,
            output,
            parts=make_parts(store, key, options),
            options=options,
            comparison=comparison,
            on_tick=bar,
        )
    _say(args, f"{summary.frames} frames at {summary.fps:.1f} fps, mosaic in {summary.redacted_frames}")


def _say(args: argparse.Namespace, sentence: str) -> None:
    if not args.quiet:
        print(f"keyface demo: {sentence}", file=sys.stderr, flush=True)
