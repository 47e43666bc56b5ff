"""The options by which commands use an identity book, and how they open it."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from keyface.configs.errors import UsageError

if TYPE_CHECKING:
    from keyface.pipeline.people.book import IdentityBook
    from keyface.pipeline.people.key import Key

BIOMETRIC = (
    "The book holds embeddings of faces. They are biometric data (GDPR, article 9): it is encrypted, and needs the "
    "same care and the same legal ground as the originals."
)


def add_book_options(parser: argparse.ArgumentParser) -> None:
    """Adds --book and --remember."""
    group = parser.add_argument_group(
        "identity book",
        "An encrypted file beside the key, by which people seen before are recognised and keep exactly their "
        f"virtual face. {BIOMETRIC} See `keyface book --help`.",
    )
    group.add_argument(
        "--book", nargs="?", const="", metavar="FILE",
        help="recognise people in this book; without FILE: KEY.book, beside the key. It is only read, unless "
        "--remember is given",
    )  # fmt: skip
    group.add_argument(
        "--remember", action=argparse.BooleanOptionalAction, default=False,
        help="add strangers to the book, and keep it up to date; makes the book if it is missing",
    )  # fmt: skip


def book_path(key_path: Path, given: str | None) -> Path:
    """Where the book is: as given, else my.key -> my.key.book."""
    return Path(given) if given else key_path.with_name(f"{key_path.name}.book")


def open_book(args: argparse.Namespace, key: Key | None, stack: ExitStack) -> IdentityBook | None:
    """The book that was asked for, closed with `stack`; None without one.

    Raises:
        UsageError: a book without a key.
        BookError: it is missing, damaged, or of another key; nothing may run then.
    """
    from keyface.pipeline.people.book import IdentityBook

    is_asked = args.book is not None or args.remember
    if key is None or args.key_file is None:
        if is_asked:
            raise UsageError("A book needs a key.", "Leave out --redact-only, or --book and --remember.")
        return None
    path = book_path(args.key_file, args.book)
    if not is_asked:
        if path.exists() and not args.quiet:
            print(f"keyface: note: identity book '{path}' is not used; --book uses it.", file=sys.stderr)
        return None
    book = IdentityBook(path, key, remembers=args.remember)
    stack.callback(book.close)
    if book.is_new and not args.quiet:
        print(f"keyface: identity book '{path}' was made. {BIOMETRIC}", file=sys.stderr)
    return book


def open_key(path: Path, stack: ExitStack) -> Key:
    """The key in a file, closed with `stack`; asks for its passphrase. Raises KeyFileError and UsageError."""
    from keyface.pipeline.people.key import Key, is_locked
    from keyface.tools.keygen_command import ask_passphrase

    key = stack.enter_context(Key.load(path, ask_passphrase(path) if is_locked(path) else None))
    for warning in key.warnings:
        print(f"keyface: warning: {warning}", file=sys.stderr)
    return key
