"""`keyface stream`, also `keyface-stream`: anonymises a camera or a stream while it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import KeyfaceError, UsageError

if TYPE_CHECKING:
    from keyface.pipeline.chain import ChainParts
    from keyface.pipeline.live.address import SourceAddress
    from keyface.pipeline.live.board import LiveBoard
    from keyface.pipeline.live.control import LiveControls
    from keyface.pipeline.live.page import LivePage
    from keyface.pipeline.live.run import LiveReport
    from keyface.pipeline.live.sink import LiveSink
    from keyface.pipeline.people.book import IdentityBook
    from keyface.pipeline.people.key import Key

TOKEN_VARIABLE = "KEYFACE_PAGE_TOKEN"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point `keyface-stream`; returns the exit code."""
    from keyface.tools.main import main as keyface

    return keyface(["stream", *(sys.argv[1:] if argv is None else argv)])


def add_parser(subparsers: Any) -> None:
    """Adds `stream` to the sub-commands."""
    from keyface.tools.stream_config import Flags
    from keyface.tools.stream_flags import add_flags

    parser = subparsers.add_parser(
        "stream",
        help="anonymise a camera or a stream, live",
        description="Shows a camera, a stream or a file with a virtual face for every person, or a mosaic "
        "where that is not possible. Live pictures are not held back: a face is hidden from the frame on in "
        "which it is detected, not before.",
        epilog="Ctrl-C and SIGTERM end the stream; recordings are complete then. Passwords in URLs are "
        "never printed, but other users of this machine can see command lines: give such a URL with "
        "--source-env or --source-file, or in a --config file that only you can read.",
    )
    add_flags(parser)
    parser.set_defaults(run=run, flags=Flags(parser))


def run(args: argparse.Namespace) -> int:
    """Streams until the end; returns 0 when it came on purpose."""
    from keyface.pipeline.live.log import log_event
    from keyface.tools.stream_console import open_log

    args = args.flags.settle(args)
    if args.log_json == "-" and args.json:
        raise UsageError("--log-json - and --json both write to standard output.", "Log to a file.")
    if args.config is not None:
        _warn(_config_warnings(args.config))
    with ExitStack() as stack:
        if args.log_json is not None:
            open_log(args.log_json, stack)
        try:
            return _stream(args, stack)
        except KeyfaceError as error:
            log_event("error", {"error": str(error), "exit_code": error.exit_code})
            raise


def _stream(args: argparse.Namespace, stack: ExitStack) -> int:
    from keyface.pipeline.live.address import read_source
    from keyface.pipeline.live.log import figures, log_event
    from keyface.pipeline.live.metrics import sink_kind
    from keyface.pipeline.live.run import LiveOptions, run_live
    from keyface.pipeline.live.source import LiveSource
    from keyface.tools.book_options import open_book
    from keyface.tools.stream_console import ConsoleLine, sentence, summary

    address = read_source(text=args.source, env=args.source_env, file=args.source_file)
    options = LiveOptions(faces=args.faces, duration_s=args.duration)
    source = LiveSource(address, _source_options(args))
    controls = _controls(args, stack)
    board = _board(controls, source)
    key, rotate = _keys(args, stack, controls)
    book = open_book(args, key, stack)
    sinks, page = _sinks(args, address, controls, board, rotate)
    if page is not None:
        stack.enter_context(page)
        _tell_page(page, args.quiet)
    parts = _parts(args, key, book)
    line = None if args.quiet else ConsoleLine(board)
    log_event("start", {"source": address.kind, "sinks": [sink_kind(sink.name) for sink in sinks]})
    try:
        report, ending = run_live(
            source, sinks, parts, options, on_tick=_all_of(board, line), controls=controls
        )
    finally:
        board.has_ended = True
        if line is not None:
            line.end()
    log_event("end", {"ending": ending, **figures(report, board.rates())})
    seen = None if book is None else book.end_clip()
    _warn(() if seen is None else seen.warnings())
    if args.json:
        answer = {**summary(source, sinks, report, ending), "reenactor": parts.reenactor}
        print(json.dumps(answer if seen is None else {**answer, "book": seen.to_json()}, indent=2))
    elif not args.quiet:
        print("\n  ".join([sentence(report, ending), *(seen.sentences() if seen else ())]), file=sys.stderr)
    return 0


def _all_of(board: LiveBoard, line: Callable[[LiveReport], None] | None) -> Callable[[LiveReport], None]:
    from keyface.pipeline.live.log import EventWatch

    watch = EventWatch(board)

    def tick(report: LiveReport) -> None:
        board(report)
        watch(report)
        if line is not None:
            line(report)

    return tick


def _controls(args: argparse.Namespace, stack: ExitStack) -> LiveControls:
    from keyface.pipeline.live.control import LiveControls

    try:
        controls = LiveControls(mode=args.start_mode, shows_boxes=args.boxes, quality=args.quality)
    except ValueError as error:
        raise UsageError(f"--quality: {error}.") from None
    stack.callback(controls.close)
    return controls


def _board(controls: LiveControls, source: Any) -> LiveBoard:
    from keyface.pipeline.live.board import LiveBoard

    return LiveBoard(controls, source=source.address.label, problem=lambda: str(source.status.problem))


def _keys(
    args: argparse.Namespace, stack: ExitStack, controls: LiveControls
) -> tuple[Key | None, Callable[[], None] | None]:
    """The key to begin with, and what asks for the next one."""
    from keyface.pipeline.people.key_ring import KeyRing
    from keyface.tools.keygen_command import ask_passphrase

    if args.redact_only:
        return None, None
    if args.key_file is None:
        raise UsageError(
            "A key is needed: --key-file KEY.", "Make one with `keyface keygen KEY`, or use --redact-only."
        )
    ring = KeyRing([args.key_file, *(args.next_key_files or [])], ask_passphrase)
    _warn(ring.warnings)

    def rotate() -> None:
        controls.request_key(ring.next())

    return stack.enter_context(ring.first()), rotate


def _sinks(
    args: argparse.Namespace,
    address: SourceAddress,
    controls: LiveControls,
    board: LiveBoard,
    rotate: Callable[[], None] | None,
) -> tuple[list[LiveSink], LivePage | None]:
    from keyface.pipeline.live.keys import LiveKeys
    from keyface.pipeline.live.page import LivePage
    from keyface.pipeline.live.sink import make_sink
    from keyface.pipeline.media.encoder import check_encoder

    texts = args.sinks or ["virtual"]
    pages = [text for text in texts if text == "page" or text.startswith("page:")]
    if len(pages) > 1:
        raise UsageError("--sink: the page is named twice.", "Name it once; several browsers may look at it.")
    check_encoder(args.encoder)
    sinks = [
        make_sink(text, may_replace=args.force, encoder=args.encoder) for text in texts if text not in pages
    ]
    for sink in sinks:
        if hasattr(sink, "keys"):
            sink.keys = LiveKeys(controls, rotate)
    _check_targets(address, sinks)
    if not pages:
        return sinks, None
    page = LivePage(controls, board, _page_options(args, pages[0]), rotate=rotate)
    return [*sinks, page.sink], page


def _page_options(args: argparse.Namespace, text: str) -> Any:
    from keyface.pipeline.live.page import DEFAULT_PORT, PageOptions

    port = text.partition(":")[2] or str(DEFAULT_PORT)
    if not port.isdecimal():
        raise UsageError(f"--sink: got {text!r}.", "Want page or page:PORT.")
    token = os.environ.get(TOKEN_VARIABLE, "")
    if args.page_token_file is not None:
        try:
            lines = args.page_token_file.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"--page-token-file: {args.page_token_file} cannot be read as text.") from None
        token = lines[0].strip()
        if not token:
            raise UsageError(f"--page-token-file: the first line of {args.page_token_file} is empty.")
    return PageOptions(
        port=int(port), address=args.page_address, host_names=tuple(args.page_hosts or ()), token=token
    )


def _tell_page(page: LivePage, is_quiet: bool) -> None:
    """Prints where the page is. A random token is nowhere else to be had, so it is printed in any case."""
    if not (is_quiet and page.options.token):
        print(f"keyface: page {page.shown_url}", file=sys.stderr, flush=True)
    if not page.options.is_local:
        _warn(
            (f"the page on {page.options.address} can be reached from other machines, without encryption.",)
        )


def _parts(args: argparse.Namespace, key: Key | None, book: IdentityBook | None) -> ChainParts:
    from keyface.pipeline.assemble import make_parts
    from keyface.pipeline.live.run import LIVE_IDENTITY, live_analysis
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.tools.process_command import ensure_models

    networks = ProcessOptions(
        redact_only=args.redact_only, reenactor=args.reenactor, preset=args.preset, backend=args.backend,
        threads=args.threads, frames_on_card=args.frames_on_card,
    )  # fmt: skip
    store = ensure_models(networks, args.quiet or args.json, is_needed=True)
    analyse = live_analysis(args.detect_every)
    return make_parts(store, key, networks, analyse=analyse, identity=LIVE_IDENTITY, book=book)


def _source_options(args: argparse.Namespace) -> Any:
    from keyface.pipeline.live.source import LiveSourceOptions

    if (args.width is None) != (args.height is None):
        raise UsageError("--width and --height belong together.", "Give both or none.")
    size_wh = None if args.width is None else (args.width, args.height)
    return LiveSourceOptions(
        size_wh=size_wh, fps=args.fps, camera_format=args.camera_format, is_looped=args.loop,
        with_audio=args.audio, rtsp_transport=args.rtsp_transport,
    )  # fmt: skip


def _check_targets(address: SourceAddress, sinks: list[LiveSink]) -> None:
    names = [os.path.realpath(sink.name) for sink in sinks if sink.name.lower().endswith((".mp4", ".m3u8"))]
    if len(set(names)) < len(names):
        raise UsageError("--sink: a recording is named twice.", "Name each file once.")
    if address.kind == "file" and os.path.realpath(address.target) in names:
        raise UsageError("--sink: the recording is the source itself.", "Choose another name.")


def _config_warnings(file: Path) -> tuple[str, ...]:
    from keyface.tools.stream_config import config_warnings

    return config_warnings(file)


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"keyface: warning: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
