"""`keyface preview`: the virtual face that a key gives somebody, and other keys to choose from."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import KeyFileError, UsageError

if TYPE_CHECKING:
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.preview import PreviewedFace
    from keyface.pipeline.process_options import ProcessOptions

_MOST_PROPOSALS = 24


def add_parser(subparsers: Any) -> None:
    """Adds `preview` to the sub-commands."""
    from keyface.tools.reenactor_option import add_reenactor_option

    parser = subparsers.add_parser(
        "preview",
        help="show the virtual face that a key gives somebody, and propose other keys",
        description="Writes a sheet of pictures: the photo around the face as `keyface process` would write it, and "
        "the virtual person at rest, turned and smiling. The photo itself is not changed and its face is not shown. "
        "In a video the virtual face may differ a little: there the person is judged by many frames.",
        epilog="With --reroll, new random keys are made in memory and shown below the present one. One of them is "
        "saved when it is chosen: typed when asked in a terminal, or with --save. The others are forgotten.",
    )
    parser.add_argument("key", type=Path, metavar="KEY", help="made by `keyface keygen`")
    parser.add_argument(
        "--photo", type=Path, required=True, metavar="FILE", help="JPEG, PNG or WebP with a face"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("preview.png"), metavar="FILE",
        help="sheet to write: PNG, JPEG or WebP (default: preview.png)",
    )  # fmt: skip
    parser.add_argument(
        "--faces", choices=("largest", "all"), default="largest", help="of the photo (default: largest)"
    )
    parser.add_argument(
        "--book", nargs="?", const="", metavar="FILE",
        help="show who is in this identity book as the book has him; it is only read (default: KEY.book)",
    )  # fmt: skip
    _add_reroll(parser)
    parser.add_argument("--force", action="store_true", help="replace the sheet if it exists")
    parser.add_argument("--json", action="store_true", help="answer in JSON, without pictures; asks nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--preset", default="default", metavar="NAME", help="how networks are run")
    add_reenactor_option(parser)
    parser.set_defaults(run=run)


def _add_reroll(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("other keys")
    group.add_argument(
        "--reroll", type=int, default=0, metavar="N", help=f"propose N other keys, up to {_MOST_PROPOSALS}"
    )
    group.add_argument(
        "--save", nargs=2, metavar=("I", "NEW.KEY"), help="save proposal I (1 to N); never replaces a file"
    )
    group.add_argument(
        "--passphrase", action="store_true", help="lock the saved key, as `keyface keygen` does"
    )


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A key and what it makes of the faces; `number` is 0 for the present key."""

    number: int
    title: str
    fingerprint: str
    key: Key
    faces: Sequence[PreviewedFace]


def run(args: argparse.Namespace) -> int:
    """Writes the sheet and saves what was chosen."""
    from keyface.pipeline.media.contact_sheet import write_picture
    from keyface.pipeline.media.photo import read_photo
    from keyface.pipeline.preview import preview_sheet
    from keyface.tools.book_options import open_key

    _check(args)
    with ExitStack() as stack:
        key = open_key(args.key, stack)
        passphrase = _passphrase(args)
        photo, _ = read_photo(args.photo)
        proposals = _proposals(args, key, photo, stack)
        write_picture(args.out, preview_sheet([(shown.title, shown.faces) for shown in proposals]))
        if not args.json:
            _tell(args.out, proposals)
        saved = _save(_choice(args), proposals, passphrase)
    if args.json:
        print(json.dumps(_to_json(args, proposals, saved), indent=2))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before anything is made."""
    from keyface.pipeline.media.photo import PHOTO_SUFFIXES

    if not 0 <= args.reroll <= _MOST_PROPOSALS:
        raise UsageError(f"--reroll: got {args.reroll}.", f"Legal: 0 to {_MOST_PROPOSALS}.")
    if args.out.suffix.lower() not in PHOTO_SUFFIXES:
        raise UsageError(f"--out: '{args.out}' is no name of a picture.", "End it in .png, .jpg or .webp.")
    if os.path.lexists(args.out) and not args.force:
        raise UsageError(f"'{args.out}' already exists.", "Pass --force to replace it.")
    if args.passphrase and not args.reroll:
        raise UsageError("--passphrase is for a key that --reroll proposes.", "Add --reroll N.")
    if args.save is not None:
        if not args.save[0].isdecimal() or not 1 <= int(args.save[0]) <= args.reroll:
            raise UsageError(
                f"--save: there is no proposal '{args.save[0]}'.",
                f"Legal with --reroll {args.reroll}: 1 to {args.reroll}."
                if args.reroll
                else "Add --reroll N.",
            )
        _refuse_existing(Path(args.save[1]))


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise KeyFileError(
            f"Key file '{path}' already exists.", "Choose another name: keys are not replaced here."
        )


def _options(args: argparse.Namespace) -> ProcessOptions:
    from keyface.pipeline.process_options import ProcessOptions

    return ProcessOptions(preset=args.preset, reenactor=args.reenactor)


def _proposals(args: argparse.Namespace, key: Key, photo: Any, stack: ExitStack) -> list[_Proposal]:
    from keyface.pipeline.people.book import IdentityBook
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.preview import Previewer
    from keyface.tools.book_options import book_path
    from keyface.tools.process_command import ensure_models

    book = None
    if args.book is not None:
        book = IdentityBook(book_path(args.key, args.book), key)
        stack.callback(book.close)
    options = _options(args)
    store = ensure_models(options, args.quiet or args.json, is_needed=True)
    proposals = []
    with Previewer(store, options) as previewer:
        for number in range(args.reroll + 1):
            shown = key if number == 0 else stack.enter_context(Key.generate())
            faces = previewer.preview(photo, shown, faces=args.faces, book=book if number == 0 else None)
            who = f"present key ({args.key.name})" if number == 0 else f"proposal {number}"
            proposals.append(
                _Proposal(number, f"{who}, {shown.fingerprint}", shown.fingerprint, shown, faces)
            )
            if not (args.quiet or args.json) and args.reroll:
                print(f"  {who}, fingerprint {shown.fingerprint}", file=sys.stderr)
    return proposals


def _tell(out: Path, proposals: Sequence[_Proposal]) -> None:
    print(f"{out}: {len(proposals)} key{'s' if len(proposals) > 1 else ''}, nobody in it is real")
    for shown in proposals:
        for face in shown.faces:
            what = "replaced" if face.reason is None else f"mosaicked ({face.reason.replace('_', ' ')})"
            print(f"  {shown.title}, face {face.number}: {what}")


def _choice(args: argparse.Namespace) -> tuple[int, Path] | None:
    """Which proposal to save and where; asked for in a terminal."""
    if args.save is not None:
        return int(args.save[0]), Path(args.save[1])
    if not args.reroll or args.json:
        return None
    if not sys.stdin.isatty():
        print("No proposal was saved: --save I NEW.KEY saves one.", file=sys.stderr)
        return None
    try:
        number = input(f"Look at {args.out}. Proposal to save (1 to {args.reroll}, Enter for none): ").strip()
        if not number:
            return None
        if not number.isdecimal() or not 1 <= int(number) <= args.reroll:
            raise UsageError(f"There is no proposal '{number}'; nothing was saved.", "Run the command again.")
        path = Path(input("File for the key: ").strip())
    except EOFError:
        return None
    if not path.name:
        raise UsageError("No file was named; nothing was saved.", "Run the command again.")
    return int(number), path


def _save(
    choice: tuple[int, Path] | None, proposals: Sequence[_Proposal], passphrase: str | None
) -> tuple[int, Path] | None:
    if choice is None:
        return None
    number, path = choice
    _refuse_existing(path)
    proposals[number].key.save(path, passphrase=passphrase)
    print(f"{path}: key with fingerprint {proposals[number].fingerprint}", file=sys.stderr)
    return choice


def _to_json(
    args: argparse.Namespace, proposals: Sequence[_Proposal], saved: tuple[int, Path] | None
) -> dict[str, Any]:
    return {
        "sheet": str(args.out),
        "reenactor": _options(args).reenactor_used,
        "keys": [
            {
                "proposal": shown.number,
                "fingerprint": shown.fingerprint,
                "faces": [
                    {
                        "number": face.number, "box_xyxy": [round(value, 1) for value in face.box_xyxy],
                        "mosaicked": face.reason, "candidate": face.candidate,
                    }
                    for face in shown.faces
                ],
            }
            for shown in proposals
        ],
        "saved": None if saved is None else {"proposal": saved[0], "file": str(saved[1])},
    }  # fmt: skip


def _passphrase(args: argparse.Namespace) -> str | None:
    from keyface.tools.keygen_command import ask_new_passphrase

    return ask_new_passphrase() if args.passphrase else None
