"""Progress bars on standard error while models are fetched."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm


class PullBars:
    """A `Progress` for the model store: one bar per download, one line per model built.

    Use as a context manager; silent when `is_quiet`, and plain lines where standard error is no terminal.
    """

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty()
        self._bar: tqdm[None] | None = None
        self._name = ""
        self._told: set[str] = set()

    def __call__(self, name: str, done_bytes: int, total_bytes: int) -> None:
        if self._is_quiet:
            return
        if total_bytes == 0 and done_bytes == 0:
            self._close()
            self._tell(name, f"building {name}")
        elif not self._is_terminal:
            if done_bytes < total_bytes:
                self._tell(name, f"fetching {name} ({total_bytes / 1e6:.1f} MB)")
        elif done_bytes < total_bytes or name == self._name:
            self._show(name, done_bytes, total_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _show(self, name: str, done_bytes: int, total_bytes: int) -> None:
        if self._bar is None or name != self._name:
            self._close()
            self._name = name
            self._bar = tqdm(desc=name, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1000)
        self._bar.total = total_bytes
        self._bar.update(done_bytes - self._bar.n)

    def _tell(self, name: str, line: str) -> None:
        if name not in self._told:
            self._told.add(name)
            print(line, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._name = ""
