"""`keyface keygen`: makes a key file."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from pathlib import Path
from typing import Any

from keyface.configs.errors import UsageError

PASSPHRASE_VARIABLE = "KEYFACE_PASSPHRASE"


def add_parser(subparsers: Any) -> None:
    """Adds `keygen` to the sub-commands."""
    parser = subparsers.add_parser(
        "keygen",
        help="make a key file",
        description="Writes 256 random bits from the operating system to KEY, readable by you alone.",
        epilog="The same person gets the same virtual face under the same key, and another one under "
        "another key. A lost key cannot be made again.",
    )
    parser.add_argument("key", type=Path, metavar="KEY", help="the file to write")
    parser.add_argument(
        "--passphrase",
        action="store_true",
        help=f"lock the file with a passphrase, typed twice or taken from {PASSPHRASE_VARIABLE}",
    )
    parser.add_argument("--force", action="store_true", help="replace KEY if it exists")


def run(args: argparse.Namespace) -> int:
    """Makes the key and prints its fingerprint."""
    from keyface.pipeline.people.key import Key

    passphrase = ask_new_passphrase() if args.passphrase else None
    with Key.generate() as key:
        key.save(args.key, passphrase=passphrase, replace=args.force)
        print(f"{args.key}: key with fingerprint {key.fingerprint}")
    return 0


def ask_passphrase(path: Path) -> str:
    """The passphrase of a locked key file: from the environment, else typed.

    Raises:
        UsageError: there is neither a variable nor a terminal.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    return given if given is not None else _type_passphrase(f"Passphrase of {path}: ")


def ask_new_passphrase() -> str:
    """A passphrase for a new key file: from the environment, else typed twice. Raises UsageError."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    passphrase = _type_passphrase("New passphrase: ") if given is None else given
    if not passphrase:
        raise UsageError("The passphrase is empty.", "Leave out --passphrase for a key without one.")
    if given is None and _type_passphrase("The same again: ") != passphrase:
        raise UsageError("The two passphrases differ.", "Run the command again.")
    return passphrase


def _type_passphrase(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "A passphrase is needed and there is no terminal to type it.",
            f"Set the environment variable {PASSPHRASE_VARIABLE}.",
        )
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise UsageError("No passphrase was typed.", "Run the command again.") from None
