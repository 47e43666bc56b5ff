"""Which faces get a virtual face: all of them, or the largest track; the others are mosaicked."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.guard import redactions_of

FacesChoice = Literal["all", "largest"]

_LARGER_BY = 1.5  # in area, before another track takes over
_TAKE_OVER_S = 0.5  # and for this long, so that two people at one distance do not swap at every step


class FaceChooser:
    """Turns the faces that were not chosen into redactions with the reason "requested".

    Args:
        choice: "all" leaves frames as they are; "largest" keeps one track, and moves to another when
            that has left the picture or another face has been half as large again for half a second.
    """

    def __init__(self, choice: FacesChoice) -> None:
        self._choice = choice
        self._track_id: int | None = None
        self._rival_since_s: float | None = None

    def apply(self, analysed: AnalysedFrame) -> AnalysedFrame:
        """Call on each frame, in order."""
        if self._choice == "all" or not analysed.faces:
            return analysed
        self._track_id = self._choose(analysed)
        others = [face for face in analysed.faces if face.track_id != self._track_id]
        if not others:
            return analysed
        return replace(
            analysed,
            faces=tuple(face for face in analysed.faces if face.track_id == self._track_id),
            must_redact=(*analysed.must_redact, *redactions_of(others, "requested", enlarge=1.0)),
        )

    def _choose(self, analysed: AnalysedFrame) -> int:
        largest = max(analysed.faces, key=_area)
        current = next((face for face in analysed.faces if face.track_id == self._track_id), None)
        if current is None:
            self._rival_since_s = None
            return largest.track_id
        if _area(largest) <= _LARGER_BY * _area(current):
            self._rival_since_s = None
            return current.track_id
        now_s = analysed.frame.pts_s
        if self._rival_since_s is None:
            self._rival_since_s = now_s
        if now_s - self._rival_since_s < _TAKE_OVER_S:
            return current.track_id
        self._rival_since_s = None
        return largest.track_id


def _area(face: Face) -> float:
    return float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))
