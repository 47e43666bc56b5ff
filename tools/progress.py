"""The progress bar of a video: frames, fps and time left, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from keyface.pipeline.media.capture import SourceInfo
    from keyface.pipeline.runner import RunReport


class FrameBar:
    """An `on_tick` of `process_video`. A context manager; silent when quiet or without a terminal."""

    def __init__(self, name: str, *, is_quiet: bool = False) -> None:
        self._name = name
        self._is_shown = not is_quiet and sys.stderr.isatty()
        self._bar: Any = None

    def __call__(self, report: RunReport, info: SourceInfo) -> None:
        """Shows the frames written so far."""
        if not self._is_shown:
            return
        if self._bar is None:
            self._bar = tqdm(desc=self._name, total=info.n_frames_hint, unit="frame", dynamic_ncols=True)
        self._bar.update(report.delivered - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
