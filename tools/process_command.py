"""`keyface process`: anonymises videos and photos."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import KeyfaceError, UsageError

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.assemble import EnginePool
    from keyface.pipeline.batch import Job, ResumeLog
    from keyface.pipeline.people.book import IdentityBook
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.pipeline.summary import Summary


def add_parser(subparsers: Any) -> None:
    """Adds `process` to the sub-commands."""
    from keyface.tools.book_options import add_book_options

    parser = subparsers.add_parser(
        "process",
        help="anonymise videos and photos",
        description="Replaces every face by the virtual face that the key gives its person. A face that "
        "cannot be replaced is mosaicked. Videos become MP4 (H.264), photos keep their format.",
        epilog="Existing files are replaced with --force only. An unfinished file never gets its name.",
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="videos, photos or folders")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT",
        help="file to write; for many inputs or a folder, the folder to write to",
    )  # fmt: skip
    parser.add_argument("--key-file", type=Path, metavar="KEY", help="made by `keyface keygen`")
    _add_what(parser)
    add_book_options(parser)
    _add_how(parser)
    parser.set_defaults(run=run)


def _add_what(parser: argparse.ArgumentParser) -> None:
    from keyface.tools.card_options import add_encoder_option

    what = parser.add_argument_group("what is made")
    what.add_argument("--start", type=float, metavar="S", help="first second of a video to keep")
    what.add_argument("--end", type=float, metavar="S", help="second at which it ends")
    what.add_argument(
        "--faces", choices=("all", "largest"), default="all",
        help="largest: one virtual face, for the largest; all others are mosaicked (default: all)",
    )  # fmt: skip
    what.add_argument(
        "--redact-only", action="store_true", help="mosaic all faces, no virtual ones; needs no key"
    )
    what.add_argument(
        "--side-by-side", action="store_true",
        help="write NAME-side-by-side.mp4 too, which SHOWS THE ORIGINAL FACES beside the new ones",
    )  # fmt: skip
    what.add_argument(
        "--keep-metadata", action="store_true",
        help="keep title, date, place and device of videos; pictures inside are dropped all the same",
    )  # fmt: skip
    what.add_argument("--crf", type=int, default=18, help="quality of H.264: 0 best to 51 (default: 18)")
    add_encoder_option(what)
    what.add_argument("--force", action="store_true", help="replace existing outputs")
    what.add_argument(
        "--resume", action="store_true",
        help="skip what an earlier run with --resume finished with this key and these options; the hidden "
        "file .keyface-resume.json in OUT lists it",
    )  # fmt: skip


def _add_how(parser: argparse.ArgumentParser) -> None:
    from keyface.tools.card_options import add_frames_option
    from keyface.tools.reenactor_option import add_reenactor_option

    how = parser.add_argument_group("how it runs")
    how.add_argument("--json", action="store_true", help="print a summary as JSON on standard output")
    how.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    how.add_argument(
        "--backend",
        choices=("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"),
        default="auto",
        help="default: auto; the last three need a graphics card, see --preset gpu",
    )
    how.add_argument(
        "--generator", type=int, choices=(256, 1024), default=256, metavar="PX",
        help="side of rendered faces: 256, or 1024 for large faces, many times slower (default: 256)",
    )  # fmt: skip
    add_reenactor_option(how)
    how.add_argument(
        "--preset", default="default", metavar="NAME",
        help="how networks are run: default, or exact for the same pixels on every machine, slower",
    )  # fmt: skip
    add_frames_option(how)
    how.add_argument("--threads", type=int, default=0, help="threads of one network (default: as configured)")
    how.add_argument(
        "--on-fault", choices=("redact", "stop"), default="redact",
        help="when a stage fails on a frame: mosaic it and go on, or stop (default: redact)",
    )  # fmt: skip
    how.add_argument(
        "--stage-timeout", type=float, default=30.0, metavar="S",
        help="longest time for one frame in one stage (default: 30)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Processes all inputs; a failed file of many does not stop the others. Returns the exit code of the
    first failure, else 0."""
    from keyface.pipeline.batch import plan_jobs
    from keyface.pipeline.media.encoder import check_encoder
    from keyface.tools.book_options import open_book

    options = _options(args)
    check_encoder(options.encoder)
    with ExitStack() as stack:
        key = load_key(args, stack)
        book = open_book(args, key, stack)
        jobs = plan_jobs(args.inputs, args.output, may_replace=args.force or args.resume)
        log = _resume_log(args, options, key, book)
        _check_side_by_side(args, jobs)
        todo = [job for job in jobs if log is None or not log.is_finished(job)]
        if log is not None and not args.force:
            _refuse_strangers(todo)
        store = ensure_models(options, args.quiet or args.json, is_needed=bool(todo))
        session = _Session(args, options, key, store, stack, is_batch=len(jobs) > 1, book=book)
        for job in todo:
            session.do(job, log)
    n_skipped = len(jobs) - len(todo)
    if args.json:
        print(json.dumps(session.to_json(n_skipped), indent=2))
    elif n_skipped and not args.quiet:
        print(f"{n_skipped} finished before and skipped", file=sys.stderr)
    return session.exit_code


class _Session:
    """The files of one command: does them one by one and remembers how they went."""

    def __init__(
        self,
        args: argparse.Namespace,
        options: ProcessOptions,
        key: Key | None,
        store: ModelStore,
        stack: ExitStack,
        *,
        is_batch: bool,
        book: IdentityBook | None,
    ) -> None:
        self._args = args
        self._options = options
        self._key = key
        self._store = store
        self._stack = stack
        self._is_batch = is_batch
        self._book = book
        self._pool: EnginePool | None = None
        self._summaries: list[Summary] = []
        self._failures: list[tuple[Path, KeyfaceError]] = []

    @property
    def exit_code(self) -> int:
        return self._failures[0][1].exit_code if self._failures else 0

    def do(self, job: Job, log: ResumeLog | None) -> None:
        """Processes one file. Raises KeyfaceError when it is the only one."""
        try:
            if self._is_batch:
                _make_folder(job.output.parent)
            summary = self._photo(job) if job.kind == "photo" else self._video(job)
            if self._book is not None:
                summary = summary.with_book(self._book.end_clip())
            if log is not None:
                log.add(job)
        except KeyfaceError as error:
            if self._book is not None:
                self._book.end_clip(is_complete=False)
            if not self._is_batch:
                raise
            self._failures.append((job.source, error))
            print(f"keyface: {job.source}: {error}", file=sys.stderr)
            return
        self._summaries.append(summary)
        for warning in summary.warnings:
            print(f"keyface: warning: {job.source}: {warning}", file=sys.stderr)
        if not (self._args.quiet or self._args.json):
            print(_sentence(summary), file=sys.stderr)

    def to_json(self, n_skipped: int) -> dict[str, Any]:
        """The only file's summary, or all of them."""
        if not self._is_batch and self._summaries:
            return self._summaries[0].to_json()
        return {
            "files": [summary.to_json() for summary in self._summaries],
            "failed": [{"source": str(path), "error": str(error)} for path, error in self._failures],
            "skipped": n_skipped,
        }

    def _video(self, job: Job) -> Summary:
        from keyface.pipeline.assemble import make_parts
        from keyface.pipeline.process import process_video
        from keyface.tools.progress import FrameBar

        parts = make_parts(self._store, self._key, self._options, book=self._book)
        comparison = side_by_side_path(job.output) if self._args.side_by_side else None
        with FrameBar(job.source.name, is_quiet=self._args.quiet) as bar:
            return process_video(
                job.source, job.output, parts=parts, options=self._options, comparison=comparison, on_tick=bar
            )

    def _photo(self, job: Job) -> Summary:
        from keyface.pipeline.assemble import EnginePool, make_parts, network_opener
        from keyface.pipeline.process import process_photo

        if self._pool is None:
            pool = EnginePool(network_opener(self._store, self._options))
            self._pool = self._stack.enter_context(pool)
        parts = make_parts(
            self._store, self._key, self._options, open_network=self._pool, is_still=True, book=self._book
        )
        return process_photo(job.source, job.output, parts=parts, options=self._options)


def side_by_side_path(output: Path) -> Path:
    """a.mp4 -> a-side-by-side.mp4"""
    return output.with_name(f"{output.stem}-side-by-side{output.suffix}")


def _options(args: argparse.Namespace) -> ProcessOptions:
    from keyface.pipeline.process_options import ProcessOptions

    return ProcessOptions(
        faces=args.faces,
        redact_only=args.redact_only,
        start_s=args.start,
        end_s=args.end,
        keep_metadata=args.keep_metadata,
        crf=args.crf,
        encoder=args.encoder,
        on_fault=args.on_fault,
        stage_timeout_s=args.stage_timeout,
        generator_px=args.generator,
        reenactor=args.reenactor,
        preset=args.preset,
        backend=args.backend,
        threads=args.threads,
        frames_on_card=args.frames_on_card,
    )


def load_key(args: argparse.Namespace, stack: ExitStack) -> Key | None:
    from keyface.pipeline.people.key import Key, is_locked
    from keyface.tools.keygen_command import ask_passphrase

    if args.redact_only:
        return None
    if args.key_file is None:
        raise UsageError(
            "A key is needed: --key-file KEY.", "Make one with `keyface keygen KEY`, or use --redact-only."
        )
    passphrase = ask_passphrase(args.key_file) if is_locked(args.key_file) else None
    key = stack.enter_context(Key.load(args.key_file, passphrase))
    for warning in key.warnings:
        print(f"keyface: warning: {warning}", file=sys.stderr)
    return key


def _resume_log(
    args: argparse.Namespace, options: ProcessOptions, key: Key | None, book: IdentityBook | None
) -> ResumeLog | None:
    from keyface.pipeline.batch import ResumeLog

    if not args.resume:
        return None
    if not args.output.is_dir() and len(args.inputs) == 1 and not args.inputs[0].is_dir():
        raise UsageError("--resume is for many files.", "Name a folder with -o.")
    fingerprint = "" if key is None else key.fingerprint
    settings = options.settings()
    if book is not None:
        settings["book"] = os.path.realpath(book.path)
    return ResumeLog(args.output, settings=settings, fingerprint=fingerprint)


def _refuse_strangers(todo: list[Job]) -> None:
    """With --resume, an output that is there but not on the list may be anybody's."""
    strangers = [job.output for job in todo if os.path.lexists(job.output)]
    if strangers:
        raise UsageError(
            f"Output '{strangers[0]}' exists, and this key and these options did not make it with --resume.",
            "Pass --force to replace what is there.",
        )


def _check_side_by_side(args: argparse.Namespace, jobs: list[Job]) -> None:
    if not args.side_by_side:
        return
    sources = {job.source.resolve() for job in jobs} | {job.output.resolve() for job in jobs}
    for job in jobs:
        path = side_by_side_path(job.output)
        if job.kind == "photo":
            continue
        if path.resolve() in sources:
            raise UsageError(f"'{path}' is needed for --side-by-side.", "Choose another output name.")
        if os.path.lexists(path) and not (args.force or args.resume):
            raise UsageError(f"Output '{path}' already exists.", "Pass --force to replace it.")
    if not args.quiet:
        print("keyface: warning: the side-by-side video shows the original faces.", file=sys.stderr)


def ensure_models(options: ProcessOptions, is_quiet: bool, *, is_needed: bool) -> ModelStore:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.assemble import model_names
    from keyface.tools.pull_bars import PullBars

    store = ModelStore()
    if is_needed:
        with PullBars(is_quiet=is_quiet) as bars:
            store.ensure(model_names(options), bars)
    return store


def _make_folder(folder: Path) -> None:
    from keyface.configs.errors import SinkError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"Folder '{folder}' cannot be made: {error.strerror or error}.", "Choose another output folder."
        ) from error


def _sentence(summary: Summary) -> str:
    """One line (and one for each note) on what was done."""
    parts = [f"{summary.frames} frames at {summary.fps:.1f} fps"] if summary.kind == "video" else []
    if summary.faces == 0:
        parts.append("no face found, the picture is as it was")
    else:
        parts.append(f"{summary.faces} face{'s' if summary.faces > 1 else ''}")
    if summary.redacted:
        reasons = ", ".join(
            f"{reason.replace('_', ' ')} {count}" for reason, count in sorted(summary.redacted.items())
        )
        parts.append(f"mosaic in {summary.redacted_frames} frames ({reasons})")
    return "\n  ".join([f"{summary.output}: {', '.join(parts)}", *summary.notes])
