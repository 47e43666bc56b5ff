"""Flags from a file: the same names and values, strict, and the command line wins."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from keyface.configs.errors import UsageError
from keyface.tools.stream_config import Flags, config_warnings
from keyface.tools.stream_flags import add_flags

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "stream.toml"


def settle(*arguments: str, text: str | None = None, folder: Path | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = Flags(parser)
    if text is not None:
        assert folder is not None
        file = folder / "stream.toml"
        file.write_text(text, "utf-8")
        arguments = ("--config", str(file), *arguments)
    return flags.settle(parser.parse_args(list(arguments)))


def test_without_a_file_the_defaults_hold() -> None:
    args = settle("--source", "0")
    assert (args.source, args.sinks, args.faces, args.detect_every) == ("0", None, "all", 1)
    assert args.loop is False and args.quiet is False and args.config is None
    assert args.page_address == "127.0.0.1" and args.next_key_files is None


def test_a_file_gives_what_the_flags_would(tmp_path: Path) -> None:
    args = settle(text="""
        source = "rtsp://camera.example/x"
        key-file = "a.key"
        next-key-file = ["b.key", "c.key"]
        sink = ["page:8701", "null"]
        width = 640
        height = 480
        fps = 25
        loop = true
        faces = "largest"
        detect-every = 2
        page-host = "cam.example"
        duration = 1.5
    """, folder=tmp_path)  # fmt: skip
    line = settle(
        "--source", "rtsp://camera.example/x", "--key-file", "a.key", "--next-key-file", "b.key",
        "--next-key-file", "c.key", "--sink", "page:8701", "--sink", "null", "--width", "640",
        "--height", "480", "--fps", "25", "--loop", "--faces", "largest", "--detect-every", "2",
        "--page-host", "cam.example", "--duration", "1.5", "--config", str(tmp_path / "stream.toml"),
    )  # fmt: skip
    assert vars(args) == vars(line)
    assert args.key_file == Path("a.key") and args.fps == 25.0 and isinstance(args.fps, float)


def test_the_command_line_wins(tmp_path: Path) -> None:
    text = 'source = "a"\nsink = ["null"]\nloop = true\nwidth = 640\nheight = 480\nredact-only = true\n'
    args = settle(
        "--sink", "page", "--no-loop", "--width", "320", "--height", "200", text=text, folder=tmp_path
    )
    assert args.sinks == ["page"] and args.loop is False and (args.width, args.height) == (320, 200)
    assert args.source == "a" and args.redact_only is True
    # One way to name the source takes the place of all others.
    args = settle("--source-env", "CAMERA", text=text, folder=tmp_path)
    assert args.source is None and args.source_env == "CAMERA"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sorce = "0"', "unknown key 'sorce'"),
        ("config = 'x.toml'", "unknown key 'config'"),
        ("help = true", "unknown key 'help'"),
        ("[page]\nport = 1", "unknown key 'page'"),
        ("loop = 1", "loop: want true or false"),
        ('loop = "yes"', "loop: want true or false"),
        ("no-loop = true", "unknown key 'no-loop'"),
        ("source = 0", "source: want text"),
        ("width = 640.0", "width: want a whole number"),
        ("width = true", "width: want a whole number"),
        ('fps = "25"', "fps: want a number"),
        ('faces = "some"', "Legal: all, largest"),
        ("detect-every = 3", "Legal: 1, 2"),
        ("sink = [1]", "sink: want text"),
        ("sink = {a = 1}", "sink: want text"),
        ('source = ["a", "b"]', "source: want text"),
        ("source = ", "is not valid TOML"),
        ('source = "\\q"', "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        settle(text=text, folder=tmp_path)
    assert said in str(caught.value) and "stream.toml" in str(caught.value)


def test_values_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        settle(text='fps = "rtsp://user:hidden-password@host/"', folder=tmp_path)
    assert "hidden" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        settle("--config", str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ('source = "rtsp://user:word@host/x"', True), ('sink = ["rtmp://live.example/app/stream-key"]', True),
        ('source = "http://host/x?token=y"', True), ('source = "rtsp://host/x"', False), ('source = "0"', False),
    ],
)  # fmt: skip
def test_a_password_that_others_can_read_is_told(text: str, is_secret: bool, tmp_path: Path) -> None:
    file = tmp_path / "stream.toml"
    file.write_text(text, "utf-8")
    file.chmod(0o644)
    warnings = config_warnings(file)
    assert bool(warnings) == is_secret and "word@" not in "".join(warnings)
    file.chmod(0o600)
    assert config_warnings(file) == ()


def legal_names() -> list[str]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return Flags(parser).names()


def test_the_example_can_be_read_and_names_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = EXAMPLE.read_text("utf-8")
    args = settle(text=text, folder=tmp_path)
    assert args.sinks and args.key_file
    lines = [line.lstrip("# ") for line in text.splitlines()]
    named = {line.split("=", 1)[0].strip() for line in lines if "=" in line}
    assert set(legal_names()) <= named, "each flag is shown, as it is or behind a #"
    everything = "\n".join(line for line in lines if line.split("=", 1)[0].strip() in legal_names())
    values: dict[str, Any] = vars(settle(text=_first_of_each(everything), folder=tmp_path))
    assert values["source"] and os.fspath(values["key_file"])


def _first_of_each(text: str) -> str:
    """Without the lines that name a key again."""
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        name = line.split("=", 1)[0].strip()
        if name not in seen:
            lines.append(line)
        seen.add(name)
    return "\n".join(lines)
