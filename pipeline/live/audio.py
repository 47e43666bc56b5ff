"""The sound of a live source on its way to the sinks, on the same clock as the pictures.

Whatever the source sends (8 kHz mono, 44.1 kHz stereo, another rate after it came back) leaves here as
48 kHz stereo, so that a sink opens its encoder once. Each sink that wants sound takes a reader of its own;
what a slow one does not fetch is forgotten, oldest first, so that no memory grows.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

AUDIO_RATE_HZ = 48_000
AUDIO_CHANNELS = 2

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class AudioPiece:
    """A short piece of sound.

    Attributes:
        samples: float32 (n, 2), left and right, -1 to 1, `AUDIO_RATE_HZ` a second; read-only, shared by
            readers.
        pts_s: of the first sample, on the clock of `Frame.pts_s`. Pieces follow one another without a gap
            unless sound was lost, and never go back.
    """

    samples: Samples
    pts_s: float

    def __post_init__(self) -> None:
        if self.samples.dtype != np.float32 or self.samples.shape[1:] != (AUDIO_CHANNELS,):
            raise ValueError(
                f"audio: got {self.samples.dtype} {self.samples.shape}, want float32 (n, {AUDIO_CHANNELS})"
            )
        self.samples.flags.writeable = False

    @property
    def end_s(self) -> float:
        """Where the next piece begins."""
        return self.pts_s + len(self.samples) / AUDIO_RATE_HZ


class AudioReader:
    """One consumer's view of an `AudioTap`; see `AudioTap.reader`."""

    def __init__(self, capacity_s: float, lock: threading.Lock) -> None:
        self._pieces: deque[AudioPiece] = deque()
        self._capacity_s = capacity_s
        self._held_s = 0.0
        self._dropped_s = 0.0
        self._lock = lock

    @property
    def dropped_s(self) -> float:
        """Sound that was forgotten because nobody fetched it in time."""
        with self._lock:
            return self._dropped_s

    def take(self, until_s: float = math.inf) -> list[AudioPiece]:
        """All pieces that begin before `until_s`, oldest first; never waits."""
        taken: list[AudioPiece] = []
        with self._lock:
            while self._pieces and self._pieces[0].pts_s < until_s:
                taken.append(self._pop())
        return taken

    def _add(self, piece: AudioPiece) -> None:
        # With the tap's lock held.
        self._pieces.append(piece)
        self._held_s += piece.end_s - piece.pts_s
        while self._held_s > self._capacity_s and len(self._pieces) > 1:
            oldest = self._pop()
            self._dropped_s += oldest.end_s - oldest.pts_s

    def _pop(self) -> AudioPiece:
        piece = self._pieces.popleft()
        self._held_s = max(0.0, self._held_s - (piece.end_s - piece.pts_s))
        return piece


class AudioTap:
    """Hands the sound of one source to any number of readers. All methods may be called on any thread.

    Args:
        capacity_s: most sound held for each reader; the oldest is dropped beyond it.

    Attributes:
        is_present: True once the source turned out to have sound; settled before its first picture comes.
    """

    def __init__(self, capacity_s: float = 10.0) -> None:
        if not 0 < capacity_s < math.inf:
            raise ValueError(f"audio capacity: got {capacity_s:g} s, want more than 0")
        self.is_present = False
        self._capacity_s = capacity_s
        self._lock = threading.Lock()
        self._readers: list[AudioReader] = []

    def reader(self) -> AudioReader:
        """A new reader; it gets what is put from now on."""
        made = AudioReader(self._capacity_s, self._lock)
        with self._lock:
            self._readers.append(made)
        return made

    def put(self, piece: AudioPiece) -> None:
        """Gives a piece to all readers; never waits."""
        with self._lock:
            for reader in self._readers:
                reader._add(piece)
