"""Holds frames back for a moment, so that a face found late also hides in the frames before.

A detector finds a face that enters, turns towards the camera or comes out of the dark some frames after
a viewer could have recognised it. When a track begins at frame t, and frame t does not follow a cut, the
frames before t still held get a mosaic where the face was probably: its boxes extrapolated backwards in
time, united with the first box, and enlarged. Gaps in a track are filled likewise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from keyface.pipeline.face import F32, AnalysedFrame, Face
from keyface.pipeline.faces.geometry import enlarge_box
from keyface.pipeline.frame import Redaction

# Boxes of the first frames of a track that give its speed.
_FIT_FRAMES = 6
# Frames awaited beyond the window, so that the speed of a track is known when the frame at the far end
# of its reach, where speed matters most, is given back.
_SETTLE_FRAMES = 3
_ROUNDING_S = 1e-6  # a frame exactly one window later counts, whatever the last bit of its time


@dataclass(frozen=True, slots=True)
class _Sighting:
    pts_s: float
    box_xyxy: F32


class Lookahead:
    """A buffered stage over `AnalysedFrame`: gives each frame back, in order, with redactions added.

    A frame is held until frames up to `window_s` later, and at least `min_frames`, have come, and three
    more, or the scene is cut, or the source ends. What it adds has the reason "late_detection".

    Args:
        window_s: how far back a late detection reaches.
        min_frames: reach in frames where these last longer than `window_s`; the detector's interval
            counts in frames too.
        max_bytes: pixels held at most; large frames shorten the window, not below `min_frames`.
        enlarge: factor on the sides of the extrapolated boxes; the mosaic then enlarges by 1.3, together
            by 1.56.
        covered_share: a face of another track that covers this share of the place makes it safe.
    """

    def __init__(
        self,
        *,
        window_s: float = 0.5,
        min_frames: int = 8,
        max_bytes: int = 512 << 20,
        enlarge: float = 1.2,
        covered_share: float = 0.8,
    ) -> None:
        self._window_s = window_s
        self._min_frames = min_frames
        self._max_bytes = max_bytes
        self._enlarge = enlarge
        self._covered_share = covered_share
        self._held: deque[AnalysedFrame] = deque()
        self._last_seen: dict[int, _Sighting] = {}  # in frames already given back, since the last cut

    def open(self) -> None:
        """Nothing to get."""

    def close(self) -> None:
        """Forgets all frames."""
        self._held.clear()
        self._last_seen.clear()

    def process(self, item: AnalysedFrame) -> Sequence[AnalysedFrame]:
        """Takes a frame in, returns those that need not wait any longer, oldest first."""
        ready: list[AnalysedFrame] = []
        if item.is_cut:
            ready.extend(self.flush())
        self._held.append(item)
        while self._is_first_due():
            ready.append(self._release())
        return ready

    def flush(self) -> Sequence[AnalysedFrame]:
        """Returns all held frames; what comes next starts afresh, as after a cut."""
        ready = []
        while self._held:
            ready.append(self._release())
        self._last_seen.clear()
        return ready

    def _is_first_due(self) -> bool:
        n_later = len(self._held) - 1 - _SETTLE_FRAMES
        if n_later < self._min_frames:
            return False
        span_s = self._held[n_later].frame.pts_s - self._held[0].frame.pts_s
        n_bytes = len(self._held) * self._held[0].frame.image_rgb.nbytes
        return span_s >= self._window_s or n_bytes > self._max_bytes

    def _release(self) -> AnalysedFrame:
        """Takes the oldest frame out and adds what the later ones tell about it."""
        known_until_s = self._held[-1].frame.pts_s
        item = replace(self._held.popleft(), known_until_s=known_until_s)
        present = {face.track_id for face in item.faces}
        late = [
            Redaction(_to_tuple(box), "late_detection", track_id)
            for track_id, box in self._boxes_of_later_tracks(item, present)
        ]
        for face in item.faces:
            self._last_seen[face.track_id] = _Sighting(item.frame.pts_s, face.box_xyxy)
        return replace(item, must_redact=(*item.must_redact, *late)) if late else item

    def _boxes_of_later_tracks(self, item: AnalysedFrame, present: set[int]) -> Iterator[tuple[int, F32]]:
        for track_id, sightings in self._later_sightings(item, present).items():
            place, area = self._place_at(item.frame.pts_s, sightings, self._last_seen.get(track_id))
            if not any(self._covers(face, place) for face in item.faces):
                yield track_id, enlarge_box(area, self._enlarge)

    def _later_sightings(self, item: AnalysedFrame, present: set[int]) -> dict[int, list[_Sighting]]:
        """The first boxes, in the frames held, of each track that `item` lacks and that appears in reach."""
        found: dict[int, list[_Sighting]] = {}
        for n_later, later in enumerate(self._held, 1):
            is_in_reach = (
                later.frame.pts_s - item.frame.pts_s <= self._window_s + _ROUNDING_S
                or n_later <= self._min_frames
            )
            for face in later.faces:
                if face.track_id in present or not (is_in_reach or face.track_id in found):
                    continue
                seen = found.setdefault(face.track_id, [])
                if len(seen) < _FIT_FRAMES:
                    seen.append(_Sighting(later.frame.pts_s, face.box_xyxy))
        return found

    def _place_at(self, pts_s: float, later: list[_Sighting], before: _Sighting | None) -> tuple[F32, F32]:
        """Where a track probably was: its likeliest box, and the area that it may have been in."""
        first = later[0]
        if before is not None and first.pts_s - before.pts_s <= 2 * self._window_s:
            share = (pts_s - before.pts_s) / max(first.pts_s - before.pts_s, 1e-6)
            place = before.box_xyxy + np.float32(share) * (first.box_xyxy - before.box_xyxy)
            return place, place
        place = _extrapolate(later, pts_s)
        return place, _union(place, first.box_xyxy)

    def _covers(self, face: Face, place: F32) -> bool:
        """True when this face's own box hides the place: two tracks of one face, or one face behind."""
        left_top = np.maximum(face.box_xyxy[:2], place[:2])
        right_bottom = np.minimum(face.box_xyxy[2:], place[2:])
        shared = float(np.prod(np.maximum(right_bottom - left_top, 0)))
        return shared >= self._covered_share * float(np.prod(place[2:] - place[:2]))


def _extrapolate(sightings: list[_Sighting], pts_s: float) -> F32:
    """The box at `pts_s` from a straight line through the sightings; its size is the first one's."""
    first = sightings[0]
    t_s = np.array([sighting.pts_s - first.pts_s for sighting in sightings])
    if len(sightings) < 2 or t_s[-1] <= 0:
        return first.box_xyxy
    centres = np.array([(s.box_xyxy[:2] + s.box_xyxy[2:]) / 2 for s in sightings], dtype=np.float64)
    # Least squares through the first sighting, whose place is certain.
    speed_px_s = (t_s[:, None] * (centres - centres[0])).sum(axis=0) / (t_s**2).sum()
    shift = (speed_px_s * (pts_s - first.pts_s)).astype(np.float32)
    box: F32 = first.box_xyxy + np.concatenate([shift, shift])
    return box


def _union(a: F32, b: F32) -> F32:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def _to_tuple(box_xyxy: F32) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return x0, y0, x1, y1
