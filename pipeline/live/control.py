"""What somebody may change while a stream runs: pause, panic, quality, boxes, another key, the end.

A `LiveControls` is shared between whoever turns the knobs (keys in the window, the status page) and the
stages that obey. Each call is short and takes one lock, so that neither side ever waits for the other.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from keyface.pipeline.people.key import Key

Mode = Literal["live", "mosaic", "slate"]
"""live: virtual faces; mosaic: every face is mosaicked (panic); slate: paused, no picture at all."""

QUALITY_STEPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """The controls at one moment.

    Attributes:
        mode: what is shown.
        is_paused, is_panic: the two switches behind it; a pause hides a panic and does not end it.
        shows_boxes: frames are drawn around what was replaced or mosaicked.
        quality: fixed step, 0 is the best; None: chosen by how busy the machine is.
        is_rotating: another key was asked for and is not in use yet.
        rotations: keys that came into use since the start.
        wants_end: the stream is to end.
        changes: times that anything was changed; whoever watches sees by it that it missed nothing.
    """

    mode: Mode
    is_paused: bool
    is_panic: bool
    shows_boxes: bool
    quality: int | None
    is_rotating: bool
    rotations: int
    wants_end: bool
    changes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values for `json.dumps`."""
        return asdict(self)


class LiveControls:
    """The knobs of one stream. May be used on any thread.

    Args:
        mode: at the start.
        shows_boxes: at the start.
        quality: at the start; see `ControlState`.
        quality_steps: how many there are.
    """

    def __init__(
        self,
        *,
        mode: Mode = "live",
        shows_boxes: bool = False,
        quality: int | None = None,
        quality_steps: int = QUALITY_STEPS,
    ) -> None:
        if quality_steps < 1:
            raise ValueError(f"live controls: got {quality_steps} quality steps, want >= 1")
        self._lock = threading.Lock()
        self.quality_steps = quality_steps
        self._shows_boxes = shows_boxes
        self._quality = self._checked_quality(quality)
        # Pause and panic are two switches: who ends a pause must not end a panic with it.
        self._is_paused = _checked_mode(mode) == "slate"
        self._is_panic = mode == "mosaic"
        self._waiting: Key | None = None
        self._is_rotating = False
        self._rotations = self._changes = 0
        self._wants_end = self._is_closed = False

    @property
    def mode(self) -> Mode:
        """What is shown. Setting "live" ends a pause and a panic; "mosaic" ends a pause; "slate" keeps the
        panic, which goes on when the pause is over. Raises ValueError for anything else."""
        with self._lock:
            return self._mode()

    @mode.setter
    def mode(self, value: Mode) -> None:
        _checked_mode(value)
        with self._lock:
            self._is_paused = value == "slate"
            if value != "slate":
                self._is_panic = value == "mosaic"
            self._changes += 1

    @property
    def is_paused(self) -> bool:
        """Whether a slate is shown; when a pause ends, what was shown before it goes on."""
        with self._lock:
            return self._is_paused

    @is_paused.setter
    def is_paused(self, value: bool) -> None:
        with self._lock:
            self._is_paused = bool(value)
            self._changes += 1

    @property
    def is_panic(self) -> bool:
        """Whether every face is mosaicked; also set while a pause hides it."""
        with self._lock:
            return self._is_panic

    @is_panic.setter
    def is_panic(self, value: bool) -> None:
        with self._lock:
            self._is_panic = bool(value)
            self._changes += 1

    @property
    def shows_boxes(self) -> bool:
        """Whether frames are drawn around faces, on safe pictures only."""
        with self._lock:
            return self._shows_boxes

    @shows_boxes.setter
    def shows_boxes(self, value: bool) -> None:
        with self._lock:
            self._shows_boxes = bool(value)
            self._changes += 1

    @property
    def quality(self) -> int | None:
        """The fixed step, 0 (best) to `quality_steps` - 1, or None for automatic. Raises ValueError for
        others when set."""
        with self._lock:
            return self._quality

    @quality.setter
    def quality(self, value: int | None) -> None:
        checked = self._checked_quality(value)
        with self._lock:
            self._quality = checked
            self._changes += 1

    def request_key(self, key: Key) -> None:
        """Asks for a rotation to `key`, which is owned by the controls until it is taken. A key that still
        waits is wiped and forgotten: the last one asked for counts. After `close` it is wiped at once."""
        with self._lock:
            unwanted = key
            if not self._is_closed:
                unwanted, self._waiting = self._waiting or key, key
                self._is_rotating = True
            is_kept = self._waiting is unwanted
            self._changes += 1
        if not is_kept:
            unwanted.close()

    def take_key(self) -> Key | None:
        """The key asked for, once; the caller owns it then, and calls `confirm_key` when it is in use."""
        with self._lock:
            key, self._waiting = self._waiting, None
            return key

    def confirm_key(self) -> None:
        """Says that the key taken last is in use from now on."""
        with self._lock:
            self._rotations += 1
            self._is_rotating = self._waiting is not None
            self._changes += 1

    def request_end(self) -> None:
        """Ends the stream; recordings are complete then."""
        with self._lock:
            self._wants_end = True
            self._changes += 1

    @property
    def wants_end(self) -> bool:
        """True once the end was asked for."""
        with self._lock:
            return self._wants_end

    def state(self) -> ControlState:
        """All of it at one moment."""
        with self._lock:
            return ControlState(
                mode=self._mode(), is_paused=self._is_paused, is_panic=self._is_panic,
                shows_boxes=self._shows_boxes, quality=self._quality,
                is_rotating=self._is_rotating, rotations=self._rotations, wants_end=self._wants_end,
                changes=self._changes,
            )  # fmt: skip

    def close(self) -> None:
        """Wipes a key that nobody took. May be called again."""
        with self._lock:
            key, self._waiting = self._waiting, None
            self._is_closed = True
        if key is not None:
            key.close()

    def _mode(self) -> Mode:
        if self._is_paused:
            return "slate"
        return "mosaic" if self._is_panic else "live"

    def _checked_quality(self, value: int | None) -> int | None:
        is_step = type(value) is int and 0 <= value < self.quality_steps
        if value is not None and not is_step:
            raise ValueError(f"quality: got {value!r}, want None or 0 to {self.quality_steps - 1}")
        return value


def _checked_mode(value: str) -> str:
    if value not in get_args(Mode):
        raise ValueError(f"mode: got {value!r}, want one of {get_args(Mode)}")
    return value
