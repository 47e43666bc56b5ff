"""The sound that goes with the pictures of one sink: as late as they are, and muted in a pause.

A picture reaches a sink some time after it was captured. The sound of the same moment is handed over just
before that picture, so it has the picture's own, measured delay and the two stay together.
"""

from __future__ import annotations

import time

import numpy as np

from keyface.pipeline.live.audio import AudioPiece, AudioTap
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.source import LiveStatus


class LiveSound:
    """One sink's share of the sound. Used on the sink's thread.

    Args:
        tap: of the source.
        status: of the source.
        controls: who says that the stream is paused; None: never.
    """

    def __init__(self, tap: AudioTap, status: LiveStatus, controls: LiveControls | None = None) -> None:
        self._tap = tap
        self._reader = tap.reader()
        self._status = status
        self._controls = controls
        self._is_paused = False
        self._muted_until_s = -np.inf

    @property
    def is_present(self) -> bool:
        """True when the source has sound; settled before its first picture comes."""
        return self._tap.is_present

    def take(self, until_s: float) -> list[AudioPiece]:
        """The sound that begins before `until_s`, the time of the picture that is about to be shown.

        What was captured during a pause is silence, also when it is fetched after its end.
        """
        is_paused = self._controls is not None and self._controls.mode == "slate"
        if is_paused or self._is_paused:
            # Frames of a file may be a little ahead of the clock.
            self._muted_until_s = max(until_s, time.monotonic() - (self._status.origin_s or 0.0))
        self._is_paused = is_paused
        return [self._heard(piece) for piece in self._reader.take(until_s)]

    def _heard(self, piece: AudioPiece) -> AudioPiece:
        if piece.pts_s >= self._muted_until_s:
            return piece
        return AudioPiece(np.zeros_like(piece.samples), piece.pts_s)
