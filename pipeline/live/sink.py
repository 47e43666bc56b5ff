"""Where a live picture goes: what every sink is, and which one a name stands for. All take `SafeFrame` only.

A sink is opened with the size of the picture, written and closed on one thread. `finish` comes after all
threads have ended and decides about recordings: one that was stopped on purpose, or whose source ended, is
complete and gets its name; one that a failure cut short does not.

Three attributes are optional. `queue_frames` says how many frames may wait for the sink, for those that would
rather have all than the newest. `interrupt()`, on any thread, makes a call that waits for something outside
come back at once. `problem` says in a sentence what keeps the sink from its work for the time being.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from keyface.configs.errors import SinkError, UsageError
from keyface.configs.schema import EncoderName
from keyface.pipeline.frame import ImageRgb, SafeFrame
from keyface.pipeline.live.audio import AudioPiece

LEGAL_SINKS = (
    "virtual, virtual:DEVICE, window, page, page:PORT, null, FILE.mp4, FILE.m3u8, hls:SECONDS:FILE.m3u8, or a URL of "
    "rtsp, rtsps, rtmp, rtmps, srt or udp, or env:NAME for what an environment variable holds of these"
)


class LiveSink(Protocol):
    """One output of a live stream.

    Attributes:
        name: for messages and the summary.
        wants_end: True when the user has ended the stream through this sink.
    """

    name: str
    wants_end: bool

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Called once, before the first `write`. Raises SinkError."""
        ...

    def write(self, frame: SafeFrame) -> bool | None:
        """Shows one frame now. False says that it was left out, as by a push that waits for its receiver.

        Raises:
            TypeError: not a `SafeFrame`.
            SinkError: it failed for good.
        """
        ...

    def close(self) -> None:
        """Gives the device back; on the same thread; also when `open` failed or was never called."""
        ...

    def finish(self, *, is_complete: bool) -> None:
        """After `close`, on any thread: keeps or drops what was recorded."""
        ...


@runtime_checkable
class SoundSink(LiveSink, Protocol):
    """A sink that takes sound beside the picture."""

    def expect_sound(self) -> None:
        """Called before `open` when there will be sound."""
        ...

    def write_sound(self, piece: AudioPiece) -> None:
        """Takes the sound up to the next frame's time, before that frame. Raises SinkError."""
        ...


def make_sink(text: str, *, may_replace: bool = False, encoder: EncoderName = "software") -> LiveSink:
    """The sink that a `--sink` names, checked as far as possible before anything is opened.

    Args:
        text: one of `LEGAL_SINKS`, but not the page, which is made with the controls. A URL is not repeated
            in any message.
        may_replace: an existing file is replaced.
        encoder: of what encodes; see `media.encoder`.

    Raises:
        UsageError: no such kind of sink, or the file exists.
        SinkError: what it needs is missing.
    """
    choices = _Choices(may_replace, encoder)
    for kind, make in _KINDS.items():
        if text == kind or text.startswith(f"{kind}:"):
            return make(text.partition(":")[2], choices)
    if "://" in text:
        return _push(text, choices)
    make_file = _FILES.get(Path(text).suffix.lower())
    if make_file is None:
        raise UsageError(f"--sink: got {text!r}.", f"Legal: {LEGAL_SINKS}.")
    return make_file(text, choices)


def checked_pixels(frame: SafeFrame, subject: str) -> ImageRgb:
    """The pixels of a safe frame, C-contiguous. Raises TypeError for anything else."""
    if type(frame) is not SafeFrame:
        raise TypeError(f"{subject}: got {type(frame).__name__}, want SafeFrame")
    return np.ascontiguousarray(frame.image_rgb)


class NullSink:
    """Takes frames and shows them to nobody: for measuring."""

    def __init__(self) -> None:
        self.name = "null"
        self.wants_end = False
        self.n_frames = 0

    def open(self, size_wh: tuple[int, int], fps: float) -> None:
        """Nothing to open."""

    def write(self, frame: SafeFrame) -> None:
        """Counts."""
        checked_pixels(frame, "sink null")
        self.n_frames += 1

    def close(self) -> None:
        """Nothing to close."""

    def finish(self, *, is_complete: bool) -> None:
        """Nothing to keep."""


@dataclass(frozen=True, slots=True)
class _Choices:
    """What `make_sink` was told besides the name."""

    may_replace: bool
    encoder: EncoderName


# What a name stands for is loaded when it is asked for: a stream to a window needs no encoder.


def _null(rest: str, choices: _Choices) -> LiveSink:
    return NullSink()


def _window(rest: str, choices: _Choices) -> LiveSink:
    from keyface.pipeline.live.sink_window import WindowSink

    return WindowSink()


def _virtual_camera(rest: str, choices: _Choices) -> LiveSink:
    from keyface.pipeline.live.sink_camera import VirtualCameraSink

    return VirtualCameraSink(rest or None)


def _recording(text: str, choices: _Choices) -> LiveSink:
    from keyface.pipeline.live.sink_encode import LiveCoding
    from keyface.pipeline.live.sink_recording import RecordingSink

    return RecordingSink(_new_file(text, choices.may_replace), coding=LiveCoding(encoder=choices.encoder))


def _from_environment(rest: str, choices: _Choices) -> LiveSink:
    text = os.environ.get(rest, "").strip()
    if not text:
        raise UsageError(f"--sink env: the variable {rest!r} is not set or empty.", "Put the URL into it.")
    try:
        return make_sink(text, may_replace=choices.may_replace, encoder=choices.encoder)
    except UsageError as error:
        if "://" in text:
            raise
        # What is no URL may be a password that got into the wrong variable.
        raise UsageError(f"--sink env: the variable {rest!r} names no sink.", error.way_out) from None


def _hls(rest: str, choices: _Choices) -> LiveSink:
    from keyface.pipeline.live.sink_hls import HlsSink

    seconds, _, name = rest.partition(":") if re.match(r"[\d.]+:", rest) else ("", "", rest)
    if Path(name).suffix.lower() != ".m3u8":
        raise UsageError("--sink hls: the playlist is not named.", "Write hls:FILE.m3u8 or hls:60:FILE.m3u8.")
    try:
        keep_s = float(seconds) if seconds else None
    except ValueError:
        keep_s = 0.0
    if keep_s is not None and not 1 <= keep_s <= 86_400:
        raise UsageError(f"--sink hls: got {seconds} s.", "Want 1 to 86400 s, or nothing to keep all.")
    return HlsSink(_new_file(name, choices.may_replace), keep_s=keep_s, encoder=choices.encoder)


def _push(text: str, choices: _Choices) -> LiveSink:
    from keyface.pipeline.live.sink_address import parse_push
    from keyface.pipeline.live.sink_push import PushSink

    return PushSink(parse_push(text), encoder=choices.encoder)


def _new_file(text: str, may_replace: bool) -> Path:
    path = Path(text)
    if not may_replace and os.path.lexists(path):
        raise UsageError(f"Output '{path}' already exists.", "Pass --force to replace it.")
    if not path.parent.is_dir():
        raise SinkError(f"The folder {path.parent} does not exist.", "Create it first.")
    return path


_KINDS: dict[str, Callable[[str, _Choices], LiveSink]] = {
    "null": _null,
    "window": _window,
    "virtual": _virtual_camera,
    "hls": _hls,
    "env": _from_environment,
}
_FILES: dict[str, Callable[[str, _Choices], LiveSink]] = {".mp4": _recording, ".m3u8": _hls}
