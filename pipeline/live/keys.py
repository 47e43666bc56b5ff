"""Keys that work while a stream runs: in the window, and as the status page shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from keyface.configs.errors import KeyfaceError
from keyface.pipeline.live.control import LiveControls

_LOG = logging.getLogger(__name__)

KEYS = {
    "space": "pause: a slate instead of the picture, and back",
    "m": "mosaic everybody at once, and back",
    "k": "change to the next key",
    "b": "boxes around faces, on and off",
    "a": "quality: automatic",
    "+": "quality: one step better",
    "-": "quality: one step lower",
    "h": "this list",
    "q": "end the stream (Esc too)",
}

_SPACE, _ESCAPE = 32, 27


class LiveKeys:
    """Turns pressed keys into changes of the controls.

    Args:
        controls: to change.
        rotate: asks for the next key; None: there is no key to change to. May raise KeyfaceError.

    Attributes:
        shows_help: the list of keys is to be shown.
        message: what went wrong last, '' when nothing did.
    """

    def __init__(self, controls: LiveControls, rotate: Callable[[], None] | None = None) -> None:
        self._controls = controls
        self._rotate = rotate
        self.shows_help = False
        self.message = ""

    def press(self, code: int) -> bool:
        """Acts on one key, by its ASCII code. Returns False for a key that means nothing."""
        action = {
            _SPACE: self._pause, ord("m"): self._panic, ord("k"): self._next_key, ord("b"): self._boxes,
            ord("a"): self._automatic, ord("+"): lambda: self._quality(-1), ord("="): lambda: self._quality(-1),
            ord("-"): lambda: self._quality(1), ord("h"): self._help, ord("q"): self._controls.request_end,
            _ESCAPE: self._controls.request_end,
        }.get(code)  # fmt: skip
        if action is None:
            return False
        self.message = ""
        action()
        return True

    def help_lines(self) -> list[str]:
        """One line for each key."""
        return [f"{name:>5}  {what}" for name, what in KEYS.items()]

    def _pause(self) -> None:
        self._controls.is_paused = not self._controls.is_paused

    def _panic(self) -> None:
        self._controls.is_panic = not self._controls.is_panic

    def _boxes(self) -> None:
        self._controls.shows_boxes = not self._controls.shows_boxes

    def _help(self) -> None:
        self.shows_help = not self.shows_help

    def _automatic(self) -> None:
        self._controls.quality = None

    def _quality(self, by: int) -> None:
        now = self._controls.quality
        wanted = (now if now is not None else 0) + by
        self._controls.quality = min(max(wanted, 0), self._controls.quality_steps - 1)

    def _next_key(self) -> None:
        if self._rotate is None:
            self.message = "There is no key to change to."
            return
        try:
            self._rotate()
        except KeyfaceError as error:
            self.message = error.problem
            _LOG.warning("the key was not changed: %s", error)


def keys_text() -> str:
    """All keys in one sentence, for `--help`."""
    return "; ".join(f"{name}: {what}" for name, what in KEYS.items())
