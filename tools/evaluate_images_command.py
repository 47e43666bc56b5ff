"""`keyface evaluate images`: anonymises a folder of people with the product's own chain and measures the result."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import SinkError, StageError, UsageError

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.chain import ChainParts
    from keyface.pipeline.measure.evaluation_keys import EvaluationKeys
    from keyface.pipeline.measure.people_folder import Photo
    from keyface.pipeline.measure.people_render import Rendered, Task
    from keyface.pipeline.measure.people_report import PeopleReport
    from keyface.pipeline.measure.people_table import PeopleTable
    from keyface.pipeline.people.book import IdentityBook
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.process_options import ProcessOptions

_SPLITS = ("all", "train", "validation", "test")


def add_images_parser(kinds: Any) -> None:
    """Adds `evaluate images`."""
    parser = kinds.add_parser(
        "images",
        help="a folder of people: anonymise their photos and measure",
        description="Anonymises photos of people (one sub-folder a person, as LFW) under keys derived from the "
        "one given and measures anonymity, diversity, synchronism and more, by recognisers that the anonymiser "
        "was not trained against. Interrupted, it goes on where it was with the same command. The out folder "
        "holds real faces and data about them: keep it to yourself.",
    )
    parser.add_argument("folder", type=Path, help="one sub-folder a person, with two photos or more")
    parser.add_argument("--key-file", type=Path, required=True, metavar="KEY")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("keyface-evaluation"))
    parser.add_argument("--people", type=int, default=60, metavar="N", help="at most so many (default 60)")
    parser.add_argument("--photos", type=int, default=4, metavar="N", help="of each, at most (default 4)")
    parser.add_argument(
        "--split", choices=_SPLITS, default="all",
        help="only people of this part of the 8:1:1 split by name; for LFW, whose others may have been trained "
        "on, take test (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--extra", type=int, default=12, metavar="N",
        help="photos for key lengths, the flipped bit and the second pass; 0 leaves them out (default 12)",
    )  # fmt: skip
    parser.add_argument(
        "--book", action="store_true",
        help="anonymise all photos once more, with an identity book, and give its synchronism too",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="programs at once (default 1)")
    parser.add_argument("--no-pictures", action="store_true", help="no contact sheets and no t-SNE plot")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure misses its target")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--shard", default="", help=argparse.SUPPRESS)


def run_images(args: argparse.Namespace) -> int:
    """Returns 0; with --strict 1 when a figure misses its target."""
    if args.jobs < 1 or args.extra < 0:
        raise UsageError(f"--jobs {args.jobs} --extra {args.extra}: want 1 or more, and 0 or more.")
    with ExitStack() as stack:
        work = _Work(args, stack)
        if args.shard:
            number, _, count = args.shard.partition("/")
            work.render(work.tasks[int(number) :: int(count)])
            return 0
        work.render_all()
        report = work.measure()
    return _tell(report, args)


class _Work:
    """One evaluation: what is to be made, where it lies, and how it is measured."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        from keyface.pipeline.measure.evaluation_keys import EvaluationKeys
        from keyface.pipeline.measure.people_folder import find_photos
        from keyface.pipeline.measure.people_render import Rendered, recipe
        from keyface.pipeline.process_options import ProcessOptions
        from keyface.tools.process_command import ensure_models

        split = None if args.split == "all" else args.split
        self._args, self._stack = args, stack
        self._book: IdentityBook | None = None
        self.photos: list[Photo] = find_photos(
            args.folder, people=args.people, photos=args.photos, split=split
        )
        if args.out.resolve().is_relative_to(args.folder.resolve()):
            raise UsageError(f"--out: '{args.out}' lies in the folder of photos.", "Name another folder.")
        self._options: ProcessOptions = ProcessOptions()
        self._key: Key = _load_key(args, stack)
        self._keys: EvaluationKeys = EvaluationKeys(self._key)
        self._store: ModelStore = ensure_models(self._options, args.quiet or args.json, is_needed=True)
        self._rendered: Rendered = Rendered(args.out, recipe(self._store, self._key, self._options))
        self.tasks: list[Task] = plan_tasks(self.photos, n_extra=args.extra, with_book=args.book)

    def render_all(self) -> None:
        """All that is missing; what hangs on what was made before comes last, on this program alone."""
        from keyface.pipeline.measure.evaluation_keys import BOOK, RECOVERED

        first = [task for task in self.tasks if task.condition not in (BOOK, RECOVERED)]
        todo = self._rendered.todo(first)
        helpers = [self._start(n) for n in range(1, self._args.jobs)] if len(todo) > self._args.jobs else []
        try:
            self.render(first[:: self._args.jobs] if helpers else first)
            for helper in helpers:
                if helper.wait():
                    raise StageError("a helping program of --jobs failed; see above.", "Try --jobs 1.")
        finally:
            for helper in helpers:
                helper.terminate()
                helper.wait()
        self.render(self.tasks)

    def render(self, tasks: Sequence[Task]) -> None:
        """Anonymises what is missing of these."""
        from tqdm import tqdm

        from keyface.pipeline.assemble import EnginePool, make_parts, network_opener
        from keyface.pipeline.measure.people_render import render

        todo = self._rendered.todo(tasks)
        if not todo:
            return
        is_shown = not self._args.quiet and sys.stderr.isatty()
        with EnginePool(network_opener(self._store, self._options)) as pool:

            def parts(key: Key, task: Task) -> ChainParts:
                book = self._book_of(task, key)
                made = make_parts(
                    self._store, key, self._options, open_network=pool, is_still=True, book=book
                )
                return made if book is None else replace(made, release=_ending_clip(made, book))

            done = render(todo, self._rendered, self._keys, parts, options=self._options)
            for _ in tqdm(done, "anonymised", len(todo), unit="photo", disable=not is_shown):
                continue

    def _book_of(self, task: Task, key: Key) -> IdentityBook | None:
        """The identity book of the condition `book`, opened once and kept; None for other conditions."""
        from keyface.pipeline.measure.evaluation_keys import BOOK
        from keyface.pipeline.people.book import IdentityBook

        if task.condition != BOOK:
            return None
        if self._book is None:
            self._book = IdentityBook(self._rendered.book_path, key, remembers=True)
            self._stack.callback(self._book.close)
        return self._book

    def measure(self) -> PeopleReport:
        """Looks at everything and forms the figures."""
        from keyface.configs.papers import load_papers
        from keyface.pipeline.measure.people_figures import measure_figures
        from keyface.pipeline.measure.people_report import PeopleReport
        from keyface.tools.photo_eyes import open_photo_eyes

        with open_photo_eyes() as (eyes, config):
            table, n_faceless = self._look(eyes)
        about = {
            "folder": self._args.folder.name,
            "part": self._args.split,
            "photos of a person": f"up to {self._args.photos}",
            "photos without a face that the judges find": n_faceless,
            "key": self._key.fingerprint,
        }
        judges = config.image_recognisers
        figures = measure_figures(table, judges)
        report = PeopleReport(figures, judges, config.image_targets, load_papers(), about)
        _write_files(report, table, self._rendered, self._args)
        return report

    def _look(self, eyes: Any) -> tuple[PeopleTable, int]:
        from tqdm import tqdm

        from keyface.configs.errors import SourceError
        from keyface.pipeline.measure.people_table import PeopleTable, Row
        from keyface.pipeline.measure.seen_faces import MEASURES_FOLDER, SeenFaces

        seen = SeenFaces(self._args.out / MEASURES_FOLDER, [r.name for r in eyes.recognisers])
        rows, n_faceless = [], 0
        by_photo: dict[str, list[Task]] = {}
        for task in self.tasks:
            by_photo.setdefault(task.photo.name, []).append(task)
        is_shown = not self._args.quiet and sys.stderr.isatty()
        for own in tqdm(by_photo.values(), "measured", unit="photo", disable=not is_shown):
            photo = own[0].photo
            original = seen.original(photo.path, eyes)
            if original is None:
                n_faceless += 1
                continue
            pairs = {}
            for task in own:
                outcome = self._rendered.outcome(task)
                if outcome is not None:
                    face = seen.anonymised(self._rendered.path(task), original, photo.path, eyes)
                    pairs[task.condition] = (outcome, face)
            rows.append(Row(photo, original, pairs))
        if not rows:
            raise SourceError(f"no face was found in any photo of '{self._args.folder}'.")
        return PeopleTable(rows), n_faceless

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        """A second program that anonymises every n-th photo; it ends by itself."""
        args = self._args
        command = [sys.executable, "-m", "keyface.tools.main", "evaluate", "images", str(args.folder)]
        command += ["--key-file", str(args.key_file), "--out", str(args.out), "--split", args.split]
        command += ["--people", str(args.people), "--photos", str(args.photos), "--extra", str(args.extra)]
        command += ["--shard", f"{number}/{args.jobs}", "--quiet"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _ending_clip(parts: ChainParts, book: IdentityBook) -> Callable[[], None]:
    def release() -> None:
        parts.release()
        book.end_clip()

    return release


def plan_tasks(photos: Sequence[Photo], *, n_extra: int, with_book: bool = False) -> list[Task]:
    """Every photo under the shared key and its person's own; some, of different people, in all other ways."""
    from keyface.pipeline.measure.evaluation_keys import (
        BOOK,
        KEY_LENGTHS,
        OWN,
        RECOVERED,
        SHARED,
        bits_condition,
    )
    from keyface.pipeline.measure.people_render import Task

    tasks = [Task(photo, condition) for photo in photos for condition in (SHARED, OWN)]
    firsts = {photo.person: photo for photo in reversed(photos)}
    extra = [firsts[person] for person in sorted(firsts)][:n_extra]
    for n_bits in KEY_LENGTHS:
        for is_flipped in (False, True):
            tasks += [Task(photo, bits_condition(n_bits, is_flipped=is_flipped)) for photo in extra]
    tasks += [Task(photo, BOOK) for photo in photos if with_book]
    return tasks + [Task(photo, RECOVERED) for photo in extra]


def _load_key(args: argparse.Namespace, stack: ExitStack) -> Key:
    """The key; a passphrase that was typed is handed on to the helping programs in their environment."""
    from keyface.pipeline.people.key import Key, is_locked
    from keyface.tools.keygen_command import ask_passphrase

    passphrase = ask_passphrase(args.key_file) if is_locked(args.key_file) else None
    if passphrase is not None and args.jobs > 1:
        os.environ["KEYFACE_PASSPHRASE"] = passphrase
    key = stack.enter_context(Key.load(args.key_file, passphrase))
    for warning in key.warnings:
        print(f"keyface: warning: {warning}", file=sys.stderr)
    return key


def _write_files(
    report: PeopleReport, table: PeopleTable, rendered: Rendered, args: argparse.Namespace
) -> None:
    from keyface.pipeline.measure.people_pictures import write_pictures
    from keyface.pipeline.measure.people_report import to_json, to_markdown

    try:
        (args.out / "figures.json").write_text(json.dumps(to_json(report), indent=2) + "\n", encoding="utf-8")
        (args.out / "figures.md").write_text(to_markdown(report) + "\n", encoding="utf-8")
    except OSError as error:
        raise SinkError(f"'{args.out}' cannot be written: {error.strerror}.", "Make room.") from error
    if not args.no_pictures:
        for note in write_pictures(args.out / "pictures", table, rendered, report.independent[0]):
            print(f"keyface: {note}", file=sys.stderr)


def _tell(report: PeopleReport, args: argparse.Namespace) -> int:
    from keyface.pipeline.measure.people_report import to_json, to_markdown

    print(json.dumps(to_json(report), indent=2) if args.json else to_markdown(report))
    if not args.json and not args.quiet:
        print(f"keyface: written to {args.out}, which shows real faces", file=sys.stderr)
    return 1 if args.strict and any(v.outcome != "pass" for v in report.verdicts()) else 0
