"""`keyface stream`, also `keyface-stream`: anonymises a camera or a stream while it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import UsageError

if TYPE_CHECKING:
    from keyface.pipeline.chain import ChainParts
    from keyface.pipeline.live import LiveReport
    from keyface.pipeline.live_address import SourceAddress
    from keyface.pipeline.live_sink import LiveSink
    from keyface.pipeline.live_source import LiveSource

_LINE_EVERY_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point `keyface-stream`; returns the exit code."""
    from keyface.tools.main import main as keyface

    return keyface(["stream", *(sys.argv[1:] if argv is None else argv)])


def add_parser(subparsers: Any) -> None:
    """Adds `stream` to the sub-commands."""
    parser = subparsers.add_parser(
        "stream",
        help="anonymise a camera or a stream, live",
        description="Shows a camera, a stream or a file with a virtual face for every person, or a mosaic "
        "where that is not possible. Live pictures are not held back: a face is hidden from the frame on in "
        "which it is detected, not before.",
        epilog="Ctrl-C and SIGTERM end the stream; recordings are complete then. Passwords in URLs are "
        "never printed, but other users of this machine can see command lines.",
    )
    parser.add_argument(
        "--source", required=True, metavar="SOURCE",
        help="camera number or /dev/videoN, rtsp://, rtmp:// or http(s):// URL, video file, or 'test'",
    )  # fmt: skip
    parser.add_argument("--key-file", type=Path, metavar="KEY", help="made by `keyface keygen`")
    parser.add_argument(
        "--sink", action="append", metavar="SINK", dest="sinks",
        help="virtual (a camera for other programs), virtual:DEVICE, window, null or FILE.mp4; may be given "
        "several times (default: virtual)",
    )  # fmt: skip
    _add_what(parser)
    _add_how(parser)
    parser.set_defaults(run=run)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is shown")
    what.add_argument(
        "--redact-only", action="store_true", help="mosaic all faces, no virtual ones; needs no key"
    )
    what.add_argument(
        "--faces", choices=("all", "largest"), default="all",
        help="largest: one virtual face, for the largest; all others are mosaicked (default: all)",
    )  # fmt: skip
    what.add_argument("--width", type=int, metavar="PX", help="asked of a camera; others are scaled to it")
    what.add_argument("--height", type=int, metavar="PX", help="likewise; give both or none")
    what.add_argument("--fps", type=float, help="asked of a camera, and of the test pattern")
    what.add_argument("--duration", type=float, metavar="S", help="end after that much of the stream")
    what.add_argument("--loop", action="store_true", help="begin a file again at its end")
    what.add_argument("--force", action="store_true", help="replace existing recordings")


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--json", action="store_true", help="print a summary as JSON on standard output at the end"
    )
    how.add_argument("--quiet", action="store_true", help="no line each second")
    how.add_argument(
        "--detect-every", type=int, choices=(1, 2), default=1, metavar="N",
        help="2: look for new faces in every second frame only; faster, and shows a new face for one frame "
        "more (default: 1)",
    )  # fmt: skip
    how.add_argument(
        "--backend", choices=("auto", "onnxruntime", "openvino"), default="auto", help="default: auto"
    )
    how.add_argument("--preset", default="default", metavar="NAME", help="how networks are run")
    how.add_argument("--threads", type=int, default=0, help="threads of one network (default: as configured)")


def run(args: argparse.Namespace) -> int:
    """Streams until the end; returns 0 when it came on purpose."""
    from keyface.pipeline.live import LiveOptions, run_live
    from keyface.pipeline.live_address import parse_source
    from keyface.pipeline.live_sink import make_sink
    from keyface.pipeline.live_source import LiveSource

    address = parse_source(args.source)
    options = LiveOptions(faces=args.faces, duration_s=args.duration)
    source = LiveSource(address, _source_options(args))
    sinks = [make_sink(text, may_replace=args.force) for text in args.sinks or ["virtual"]]
    _check_targets(address, sinks)
    with ExitStack() as stack:
        parts = _parts(args, stack)
        line = None if args.quiet else ConsoleLine()
        report, ending = run_live(source, sinks, parts, options, on_tick=line)
    if args.json:
        print(json.dumps(_summary(source, sinks, report, ending), indent=2))
    elif not args.quiet:
        print(_sentence(report, ending), file=sys.stderr)
    return 0


class ConsoleLine:
    """An `on_tick` of `run_live`: one line a second on standard error, with rates over that second."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self._last: LiveReport | None = None

    def __call__(self, report: LiveReport) -> None:
        """Prints when a second has passed."""
        now_s = time.monotonic()
        passed_s = now_s - self._last_s
        if passed_s < _LINE_EVERY_S:
            return
        last_in, last_out = (self._last.frames_in, self._last.frames_out) if self._last else (0, 0)
        rate_in, rate_out = (report.frames_in - last_in) / passed_s, (report.frames_out - last_out) / passed_s
        self._last_s, self._last = now_s, report
        line = (
            f"{report.wall_s:7.1f} s  {report.state:8}  in {rate_in:4.1f} fps  out {rate_out:4.1f} fps  "
            f"dropped {report.dropped}  faces {report.faces}  mosaics {report.redacted_frames}  "
            f"age {report.age.p50_ms:.0f}/{report.age.p95_ms:.0f} ms"
        )
        if report.reconnects:
            line += f"  reconnects {report.reconnects}"
        print(line, file=sys.stderr, flush=True)


def _parts(args: argparse.Namespace, stack: ExitStack) -> ChainParts:
    from keyface.pipeline.assemble import make_parts
    from keyface.pipeline.live import LIVE_IDENTITY, live_analysis
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.tools.process_command import ensure_models, load_key

    networks = ProcessOptions(
        redact_only=args.redact_only, preset=args.preset, backend=args.backend, threads=args.threads
    )
    key = load_key(args, stack)
    store = ensure_models(networks, args.quiet or args.json, is_needed=True)
    return make_parts(store, key, networks, analyse=live_analysis(args.detect_every), identity=LIVE_IDENTITY)


def _source_options(args: argparse.Namespace) -> Any:
    from keyface.pipeline.live_source import LiveSourceOptions

    if (args.width is None) != (args.height is None):
        raise UsageError("--width and --height belong together.", "Give both or none.")
    size_wh = None if args.width is None else (args.width, args.height)
    return LiveSourceOptions(size_wh=size_wh, fps=args.fps, is_looped=args.loop)


def _check_targets(address: SourceAddress, sinks: list[LiveSink]) -> None:
    names = [os.path.realpath(sink.name) for sink in sinks if sink.name.lower().endswith(".mp4")]
    if len(set(names)) < len(names):
        raise UsageError("--sink: a recording is named twice.", "Name each file once.")
    if address.kind == "file" and os.path.realpath(address.target) in names:
        raise UsageError("--sink: the recording is the source itself.", "Choose another name.")


def _summary(source: LiveSource, sinks: list[LiveSink], report: LiveReport, ending: str) -> dict[str, Any]:
    return {
        "source": source.address.label,
        "sinks": [sink.name for sink in sinks],
        "ending": ending,
        "size_wh": source.status.size_wh,
        **report.to_json(),
    }


def _sentence(report: LiveReport, ending: str) -> str:
    return (
        f"keyface: {ending.replace('_', ' ')} after {report.wall_s:.1f} s: {report.frames_out} frames at "
        f"{report.fps_out:.1f} fps, {report.dropped} dropped, {report.people} faces, mosaic in "
        f"{report.redacted_frames} frames, age {report.age.p50_ms:.0f}/{report.age.p95_ms:.0f} ms (p50/p95)"
    )


if __name__ == "__main__":
    sys.exit(main())
