"""Flags of `keyface stream` from a TOML file: the same names, the same values; what the command line says wins.

source = "rtsp://camera.local/stream"
key-file = "my.key"
sink = ["page", "record.mp4"]
loop = true
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keyface.configs.errors import UsageError

# Of these, one that the command line names takes the place of all that the file names.
_RIVALS = (("source", "source_env", "source_file"), ("width", "height"))
# Of a URL, what may be secret: a user, a query, and the path of a service that takes streams.
_SECRET = re.compile(r"://[^\s\"']*[@?]|\b(rtmps?|srt)://[^\s\"'/]+/.")
_NOT_IN_FILES = {"help", "config"}


class Flags:
    """All flags of a parser, with their defaults. The parser leaves out of its result what was not given.

    Args:
        parser: complete; changed so that it sets no defaults of its own.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._actions: dict[str, argparse.Action] = {}
        self._defaults: dict[str, Any] = {}
        for action in parser._actions:
            names = [name.removeprefix("--") for name in action.option_strings if name.startswith("--")]
            if not names or names[0] in _NOT_IN_FILES:
                continue
            self._actions[names[0]] = action
            self._defaults[action.dest] = action.default
            action.default = argparse.SUPPRESS

    def names(self) -> list[str]:
        """Legal keys of a file, sorted."""
        return sorted(self._actions)

    def settle(self, args: argparse.Namespace) -> argparse.Namespace:
        """All values: of the command line, else of the file `args.config`, else the defaults.

        Raises:
            UsageError: the file cannot be read, or has an unknown key or a bad value.
        """
        given = vars(args)
        config: Path | None = given.get("config")
        from_file = {} if config is None else self._read(config)
        for group in _RIVALS:
            if any(dest in given for dest in group):
                from_file = {dest: value for dest, value in from_file.items() if dest not in group}
        return argparse.Namespace(**{**self._defaults, **from_file, **given})

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            table = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"--config: {file} cannot be read: {error.strerror or error}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            # The parser's sentence names line and column and repeats no value.
            raise UsageError(f"--config: {file} is not valid TOML: {error}.") from None
        values: dict[str, Any] = {}
        for name, value in table.items():
            action = self._actions.get(name)
            if action is None:
                raise UsageError(
                    f"--config: {file}: unknown key {name!r}.", f"Legal keys: {', '.join(self.names())}."
                )
            values[action.dest] = _converted(action, value, f"--config: {file}: {name}")
        return values


def config_warnings(file: Path) -> tuple[str, ...]:
    """A sentence when a file that holds a password can be read by other users."""
    if os.name != "posix" or not stat.S_IMODE(file.stat().st_mode) & 0o044:
        return ()
    if not _SECRET.search(file.read_text("utf-8")):
        return ()
    return (
        f"'{file}' may hold a password in a URL and can be read by other users: run `chmod 600 '{file}'`.",
    )


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """The value as the command line would have given it."""
    if action.nargs == 0:  # a switch
        if type(value) is not bool:
            raise UsageError(f"{where}: want true or false.")
        return value
    if _takes_several(action):
        items = value if isinstance(value, list) else [value]
        return [_converted_one(action, item, where) for item in items]
    return _converted_one(action, value, where)


def _takes_several(action: argparse.Action) -> bool:
    return type(action) is argparse._AppendAction


def _converted_one(action: argparse.Action, value: Any, where: str) -> Any:
    kind: Callable[[str], Any] = action.type if callable(action.type) else str
    wanted, name = _WANT.get(kind, ((str,), "text"))
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise UsageError(f"{where}: want {name}.")
    try:
        converted = kind(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise UsageError(f"{where}: the value cannot be used.") from None
    if action.choices is not None and converted not in action.choices:
        legal = ", ".join(str(choice) for choice in action.choices)
        raise UsageError(f"{where}: got {converted!r}.", f"Legal: {legal}.")
    return converted


_WANT: Mapping[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}
