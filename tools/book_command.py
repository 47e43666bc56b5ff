"""`keyface book`: who is in an identity book; forgets, exports and imports people."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import UsageError
from keyface.tools.book_options import BIOMETRIC, book_path, open_key

if TYPE_CHECKING:
    from keyface.pipeline.people.book_file import BookFile


def add_parser(subparsers: Any) -> None:
    """Adds `book` with its actions."""
    parser = subparsers.add_parser(
        "book",
        help="who is in an identity book; forget, export and import people",
        description="An identity book lets people who were seen before under a key keep exactly their virtual "
        "face. `keyface process --remember` and `keyface-stream --remember` write it, --book reads it. "
        f"{BIOMETRIC}",
        epilog="A book belongs to one key: under another one it does not open. To keep the virtual faces when the "
        "key changes, `export --for NEW.key` and `import` them: videos of both keys can be linked by them then. To "
        "cut the link, begin a new book. Forgetting replaces the file by one without the person; copies of the old "
        "file (backups, snapshots, blocks of a disk that were not overwritten) still have him, and whoever holds "
        "the key can read them.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_action(actions, "list", "who is in the book", "Shows each person's id, first and last day, and number of "
                "clips. A book has no names.")  # fmt: skip
    forget = _add_action(actions, "forget", "take people out", "Takes people out of the book, for good. Seen "
                         "again, they are strangers, and are added again where --remember is given.")  # fmt: skip
    forget.add_argument("people", nargs="*", metavar="ID", help="as `list` shows them")
    forget.add_argument("--all", action="store_true", help="everybody")
    forget.add_argument("--before", metavar="DAY", help="who was last seen before that day, as 2026-05-31")
    _add_export(actions)
    bring = _add_action(
        actions, "import", "take people over from another book", "Adds the people of an exported book. Who is in "
        "the book already stays as he is: his virtual face does not change.",
    )  # fmt: skip
    bring.add_argument("file", type=Path, metavar="FILE", help="written by `export` for this key")
    parser.set_defaults(run=run)


def _add_action(actions: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=description)
    parser.add_argument("key", type=Path, metavar="KEY", help="the key that the book was made with")
    parser.add_argument("--book", metavar="FILE", help="the book (default: KEY.book, beside the key)")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    return parser


def _add_export(actions: Any) -> None:
    export = _add_action(actions, "export", "write people to another file", "Writes the people of a book to another "
                         "file, encrypted under the same key, or under another one.")  # fmt: skip
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--person", action="append", metavar="ID", help="only this one; may be given several times"
    )
    export.add_argument(
        "--for", dest="for_key", type=Path, metavar="KEY", help="encrypt for that key instead"
    )
    export.add_argument(
        "--plain", action="store_true",
        help="as readable JSON with embeddings, NOT ENCRYPTED: whoever gets the file can recognise these people",
    )  # fmt: skip
    export.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> int:
    """Does one action and prints what was done."""
    from keyface.pipeline.people.book_file import PURPOSE, BookFile

    actions: dict[str, Callable[[argparse.Namespace, BookFile, ExitStack], dict[str, Any]]] = {
        "list": _list, "forget": _forget, "export": _export, "import": _import,
    }  # fmt: skip
    with ExitStack() as stack:
        key = open_key(args.key, stack)
        book = BookFile(book_path(args.key, args.book), key.derive(PURPOSE, 32))
        stack.callback(book.close)
        answer = actions[args.action](args, book, stack)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print(answer["people_table"] if args.action == "list" else _told(args.action, answer))
    return 0


def _list(args: argparse.Namespace, book: BookFile, stack: ExitStack) -> dict[str, Any]:
    people = [
        {
            "id": entry.id, "first_day": entry.first_day, "last_day": entry.last_day, "clips": entry.clips,
            "candidate": entry.candidate, "looks": round(entry.weight, 2),
        }
        for entry in book.read()
    ]  # fmt: skip
    if args.json:
        return {"book": str(book.path), "people": people}
    rows = [("id", "first seen", "last seen", "clips"), *(tuple(row.values())[:4] for row in people)]
    table = "\n".join(f"{a:<10}{b:<12}{c:<12}{d!s:>5}" for a, b, c, d in rows)
    count = "1 person" if len(people) == 1 else f"{len(people)} people"
    return {"people_table": f"{table}\n{count} in {book.path}" if people else f"nobody in {book.path}"}


def _forget(args: argparse.Namespace, book: BookFile, stack: ExitStack) -> dict[str, Any]:
    from keyface.pipeline.people.book_file import Entry

    if bool(args.people) + args.all + (args.before is not None) != 1:
        raise UsageError("Say whom to forget.", "Give ids, or --all, or --before DAY.")
    day = None if args.before is None else _day(args.before)
    gone: list[str] = []

    def without(people: tuple[Entry, ...]) -> list[Entry]:
        _check_ids(args.people, people, book)
        named = set(args.people)
        leaving = {
            entry.id for entry in people if args.all or entry.id in named or (day and entry.last_day < day)
        }
        gone[:] = sorted(leaving)
        return [entry for entry in people if entry.id not in leaving]

    left = book.change(without)
    return {"book": str(book.path), "forgotten": gone, "left": len(left)}


def _export(args: argparse.Namespace, book: BookFile, stack: ExitStack) -> dict[str, Any]:
    from keyface.pipeline.people.book_file import PURPOSE, entry_to_json, seal_book, write_private

    if args.plain and args.for_key is not None:
        raise UsageError("--plain and --for exclude each other.", "Choose one.")
    if args.output.resolve() == book.path.resolve():
        raise UsageError("--output is the book itself.", "Choose another name.")
    people = book.read()
    _check_ids(args.person or [], people, book)
    chosen = [entry for entry in people if not args.person or entry.id in args.person]
    if args.plain:
        content = json.dumps({"people": [entry_to_json(entry) for entry in chosen]}, indent=1).encode()
    else:
        key = open_key(args.key if args.for_key is None else args.for_key, stack)
        content = seal_book(chosen, key.derive(PURPOSE, 32))
    write_private(args.output, content, may_replace=args.force)
    if args.plain:
        print(
            f"keyface: warning: '{args.output}' is not encrypted: whoever gets it can recognise these people. "
            "Delete it when it has served.",
            file=sys.stderr,
        )
    elif args.for_key is not None:
        print(
            "keyface: warning: the same virtual faces under two keys link the videos of both.",
            file=sys.stderr,
        )
    return {
        "book": str(book.path),
        "file": str(args.output),
        "exported": len(chosen),
        "encrypted": not args.plain,
    }


def _import(args: argparse.Namespace, book: BookFile, stack: ExitStack) -> dict[str, Any]:
    from keyface.pipeline.people.book import merged
    from keyface.pipeline.people.book_file import PURPOSE, BookFile, Entry

    key = open_key(args.key, stack)
    other = BookFile(args.file, key.derive(PURPOSE, 32))
    stack.callback(other.close)
    guests, cohort = other.read(), _cohort()
    if not book.exists():
        book.make()
    n_before: list[int] = []

    def with_guests(people: tuple[Entry, ...]) -> tuple[Entry, ...]:
        n_before[:] = [len(people)]
        return merged(people, guests, cohort)

    n_after = len(book.change(with_guests))
    n_added = n_after - n_before[0]
    return {"book": str(book.path), "added": n_added, "known": len(guests) - n_added, "people": n_after}


def _told(action: str, answer: dict[str, Any]) -> str:
    if action == "forget":
        return f"{len(answer['forgotten'])} forgotten, {answer['left']} left in {answer['book']}"
    if action == "export":
        how = "encrypted" if answer["encrypted"] else "NOT encrypted"
        return f"{answer['exported']} exported to {answer['file']}, {how}"
    return f"{answer['added']} added, {answer['known']} were known, {answer['people']} in {answer['book']}"


def _check_ids(wanted: list[str], people: Any, book: BookFile) -> None:
    missing = set(wanted) - {entry.id for entry in people}
    if missing:
        raise UsageError(
            f"'{sorted(missing)[0]}' is nobody in '{book.path}'.", "See `keyface book list KEY` for the ids."
        )


def _day(text: str) -> str:
    from datetime import date

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"--before: got '{text}'.", "Give a day as 2026-05-31.") from None


def _cohort() -> Any:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.people.virtual import IdentityBasis

    return IdentityBasis.load(ModelStore().path("identity_basis")).cohort
