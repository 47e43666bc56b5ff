"""The `keyface` command: finds the sub-command, runs it, prints errors, chooses the exit code.

Each sub-command lives in `tools/<name>_command.py` with `add_parser(subparsers)` and `run(args) -> int`.
Only the one that is asked for is imported, so that `keyface --help` needs no heavy library.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from keyface.configs.errors import KeyfaceError, UsageError

COMMANDS = {
    "process": "anonymise videos and photos",
    "stream": "anonymise a camera or a stream, live",
    "keygen": "make a key file",
    "preview": "show the virtual face that a key gives somebody, and propose other keys",
    "book": "who is in an identity book; forget, export and import people",
    "models": "list, fetch and verify the models",
    "engines": "build and check the engines of graphics cards",
    "doctor": "what this machine has, what is missing, what to do",
    "demo": "make a clip of a generated person and anonymise it",
    "bench": "measure the speed on this machine",
    "evaluate": "measure how well faces are hidden, in clips and photos",
    "train": "make the weights that keyface carries (for developers)",
}

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came; ends the program in the same clean way as Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; bad options end in SystemExit(2), as argparse does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        parser = _build_parser(arguments)
        if not arguments:
            parser.print_help(sys.stderr)
            return UsageError.exit_code
        args = parser.parse_args(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyfaceError as error:
        print(f"keyface: {error}", file=sys.stderr)
        return error.exit_code
    except Terminated:
        print("keyface: Terminated; nothing unfinished was kept.", file=sys.stderr)
        return _TERMINATED
    except KeyboardInterrupt:
        print("keyface: Interrupted; nothing unfinished was kept.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. What is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows every command by name and only the one asked for in full."""
    parser = argparse.ArgumentParser(
        prog="keyface",
        description="Replaces every face in videos and photos by a virtual face that a secret key decides.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and end")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == wanted:
            module = importlib.import_module(f"keyface.tools.{name}_command")
            module.add_parser(subparsers)
            subparsers.choices[name].set_defaults(run=module.run)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"keyface {version('keyface')}")
        parser.exit()


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
