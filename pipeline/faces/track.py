"""Tracks: which face of this frame is which face of the frames before.

A constant-velocity Kalman filter carries each box through time, detections are assigned by overlap and
distance, a track that loses its face is kept as a prediction for about a second (and redacted meanwhile),
and a face that appears later is compared, by appearance, with those that were lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import cv2
import numpy as np

from keyface.pipeline.face import F32, Detection, Face, FaceMesh
from keyface.pipeline.faces.geometry import F64, enlarge_box, iou_matrix
from keyface.pipeline.frame import ImageRgb

Reidentify = Callable[[ImageRgb, Detection], F32]
"""Embedding of a detected face, any length; compared by cosine."""

DETECTION_SIGMA = 0.05  # standard deviation of a box's centre and log size, in sides of the box
MESH_SIGMA = 0.015
_ACCELERATION = np.array([20.0, 20.0, 4.0])  # sides per s^2, twice, and log size per s^2
_FIRST_SPEED = np.array([2.0, 2.0, 0.5])  # standard deviation of the unknown first speed, per s
_COAST_S = 0.3  # time in which the speed of an unseen face decays to 1/e
_SIGHTS_S = 0.4  # before a face was last seen: where it was then, it may be again
_FASTEST = 4.0  # sides a second: heads hardly move faster
_PORTRAIT_PX = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """How tracks live and die.

    Attributes:
        tentative_s: a doubtful newcomer must be seen a second time within this; until then it is not
            reported.
        max_gap_s: a face that is not seen is predicted for that long, then lost.
        max_followed_s: the same for one that the landmarks still follow where the detector finds none.
        growth_per_s: sides of a predicted box grow by this share each second without sight.
        max_growth: most that they grow by.
        match_iou: overlap from which a detection may belong to a track.
        match_distance: distance of centres, in sides, up to which it may without overlap.
        same_cosine: similarity of embeddings from which a newcomer is a lost face.
        memory: number of lost faces that are remembered.
    """

    tentative_s: float = 0.3
    max_gap_s: float = 1.0
    max_followed_s: float = 1.0
    growth_per_s: float = 0.8
    max_growth: float = 0.8
    match_iou: float = 0.2
    match_distance: float = 0.9
    same_cosine: float = 0.45
    memory: int = 64


class BoxFilter:
    """Kalman filter on centre x, centre y (px) and log side, each with its speed; the box's aspect is
    smoothed beside it. Noise is in sides of the box, so that faces of all sizes are filtered alike."""

    def __init__(self, box_xyxy: F32) -> None:
        place, self._log_aspect = _split(box_xyxy)
        self._state: F64 = np.column_stack([place, np.zeros(3)])
        unit = self._units()
        self._cov: F64 = np.zeros((3, 2, 2))
        self._cov[:, 0, 0] = (DETECTION_SIGMA * unit) ** 2
        self._cov[:, 1, 1] = (_FIRST_SPEED * unit) ** 2

    @property
    def box_xyxy(self) -> F32:
        """(4,) px."""
        cx, cy, log_side = self._state[:, 0]
        side, aspect = float(np.exp(log_side)), float(np.exp(self._log_aspect))
        half_w, half_h = side * np.sqrt(aspect) / 2, side / np.sqrt(aspect) / 2
        return np.array([cx - half_w, cy - half_h, cx + half_w, cy + half_h], np.float32)

    @property
    def side_px(self) -> float:
        """Geometric mean of the sides."""
        return float(np.exp(self._state[2, 0]))

    def predict(self, dt_s: float, *, is_coasting: bool = False) -> None:
        """Moves the box on by `dt_s`; a coasting one slows down."""
        step = np.array([[1.0, dt_s], [0.0, 1.0]])
        noise = np.array([[dt_s**4 / 4, dt_s**3 / 2], [dt_s**3 / 2, dt_s**2]])
        # A jump, as between two scenes whose cut went unseen, looks like a huge speed, and would carry an unseen
        # box off the face.
        most = _FASTEST * self._units()
        self._state[:, 1] = np.clip(self._state[:, 1], -most, most)
        if is_coasting:
            self._state[:, 1] *= np.exp(-dt_s / _COAST_S)
        self._state = self._state @ step.T
        self._state[2, 0] = np.clip(self._state[2, 0], 0.0, 12.0)
        power = (_ACCELERATION * self._units()) ** 2
        self._cov = step @ self._cov @ step.T + power[:, None, None] * noise

    def update(self, box_xyxy: F32, sigma: float) -> None:
        """Takes in a measured box whose deviation is `sigma` sides."""
        place, log_aspect = _split(box_xyxy)
        innovation_cov = self._cov[:, 0, 0] + (sigma * self._units()) ** 2
        gain = self._cov[:, :, 0] / innovation_cov[:, None]
        self._state += gain * (place - self._state[:, 0])[:, None]
        self._cov -= gain[:, :, None] * self._cov[:, None, 0, :]
        self._log_aspect += 0.3 * (log_aspect - self._log_aspect)

    def jump(self, box_xyxy: F32) -> float:
        """How implausible a measured box is: shift of the centre in sides, or of the log side, beyond
        two deviations of the prediction."""
        place, _ = _split(box_xyxy)
        unit = self._units()
        off = np.abs(place - self._state[:, 0]) - 2 * np.sqrt(self._cov[:, 0, 0])
        return float(np.maximum(off / unit, 0.0).max())

    def _units(self) -> F64:
        side = float(np.exp(self._state[2, 0]))
        return np.array([side, side, 1.0])


def _split(box_xyxy: F32) -> tuple[F64, float]:
    box = np.asarray(box_xyxy, np.float64)
    w, h = np.maximum(box[2:] - box[:2], 1.0)
    return np.array([*(box[:2] + box[2:]) / 2, np.log(w * h) / 2]), float(np.log(w / h))


@dataclass(slots=True, eq=False)
class Portrait:
    """The best view of a track so far: a small cut-out, the face in it, and how good it is."""

    image_rgb: ImageRgb
    detection: Detection
    quality: float
    embedding: F32 | None = None


@dataclass(slots=True, eq=False)
class Track:
    """One face through time. `mesh`, `points_5`, `score` and `is_seen` are those of the present frame."""

    track_id: int
    filter: BoxFilter
    last_seen_s: float
    is_tentative: bool = False
    is_seen: bool = True
    score: float = 0.0
    mesh: FaceMesh | None = None
    points_5: F32 | None = None
    age: int = 0
    n_seen: int = 0
    n_meshless: int = 0  # frames since it last had a mesh
    gap_s: float = 0.0
    ghost: FaceMesh | None = None  # the last mesh, by which an unseen face is followed
    followed_s: float = 0.0  # time of the last frame in which that worked
    step_xy: F64 = field(default_factory=lambda: np.zeros(2))  # predicted motion into this frame, px
    portrait: Portrait | None = None
    sights: list[tuple[float, F32]] = field(
        default_factory=list
    )  # times and boxes of `_SIGHTS_S` before the last

    def see(
        self, box_xyxy: F32, *, sigma: float, score: float, points_5: F32 | None, mesh: FaceMesh | None
    ) -> None:
        """This frame shows the face here."""
        self.filter.update(box_xyxy, sigma)
        self.score, self.points_5, self.mesh, self.is_seen = score, points_5, mesh, True

    def follow(self, box_xyxy: F32, mesh: FaceMesh, *, sigma: float, pts_s: float) -> None:
        """The landmarks say that the face is here; the detector does not, so it stays unseen."""
        self.filter.update(box_xyxy, sigma)
        self.ghost, self.followed_s = mesh, pts_s

    def note_sight(self, now_s: float) -> None:
        """The box is where the face is at this moment."""
        self.sights = [(t, box) for t, box in self.sights if now_s - t <= _SIGHTS_S]
        self.sights.append((now_s, self.filter.box_xyxy))

    def _whereabouts(self) -> F32:
        """(4,) where an unseen face may be: on its way, or still where it was lately. A cut that went unseen, or a
        head that turns back, makes a prediction run away from the face."""
        boxes = np.stack([self.filter.box_xyxy, *(box for _, box in self.sights)])
        return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]).astype(np.float32)

    def to_face(self, options: TrackOptions) -> Face:
        """The face for the next stage; an unseen one has a grown box and neither points nor mesh."""
        if self.is_seen:
            return Face(
                self.track_id, self.filter.box_xyxy, self.points_5, self.score, False, self.mesh, self.age
            )
        growth = min(options.growth_per_s * self.gap_s, options.max_growth)
        box = enlarge_box(self._whereabouts(), 1.1 + growth)
        return Face(self.track_id, box, None, self.score, True, None, self.age)


class Tracker:
    """All tracks of one source. No image work but portraits; the analyser feeds it.

    Args:
        reidentify: gives embeddings, by which a newcomer is compared with lost faces; it is called only
            when there are both. None: a face that comes back after its track was lost gets a new id.
    """

    def __init__(self, options: TrackOptions | None = None, reidentify: Reidentify | None = None) -> None:
        self.options = options or TrackOptions()
        self._reidentify = reidentify
        self._ids = count()
        self._pts_s: float | None = None
        self.tracks: list[Track] = []
        self._lost: list[Track] = []

    @property
    def now_s(self) -> float:
        """Time of the present frame."""
        return self._pts_s or 0.0

    def advance(self, pts_s: float, *, is_cut: bool = False) -> None:
        """Begins a frame: every track is predicted to `pts_s` and counts as unseen until it is seen.

        After a cut all motion is void: the tracks are lost, and only appearance can bring them back.
        """
        dt_s = 0.0 if self._pts_s is None else float(np.clip(pts_s - self._pts_s, 1e-3, 0.5))
        self._pts_s = pts_s
        if is_cut:
            self._lose(self.tracks)
            self.tracks = []
        for track in self.tracks:
            before = track.filter.box_xyxy
            track.filter.predict(dt_s, is_coasting=not track.is_seen)
            track.step_xy = np.asarray((track.filter.box_xyxy - before).reshape(2, 2).mean(0), np.float64)
            track.is_seen = False
            track.age += 1

    def assign(
        self, detections: Sequence[Detection]
    ) -> tuple[list[tuple[Track, Detection]], list[Detection]]:
        """Pairs of track and detection, and the detections left over. Best pairs first, older tracks before
        younger ones where the overlap is equal."""
        if not detections or not self.tracks:
            return [], list(detections)
        boxes = np.stack([track.filter.box_xyxy for track in self.tracks])
        found = np.stack([d.box_xyxy for d in detections])
        iou = iou_matrix(boxes, found)
        merit = np.where(iou >= self.options.match_iou, iou, 0) + _nearness(
            boxes, found, self.options.match_distance
        )
        pairs: list[tuple[Track, Detection]] = []
        free_t, free_d = set(range(len(boxes))), set(range(len(found)))
        for flat in np.argsort(-merit, axis=None, kind="stable"):
            t, d = divmod(int(flat), len(found))
            if merit[t, d] <= 0:
                break
            if t in free_t and d in free_d:
                free_t.discard(t)
                free_d.discard(d)
                pairs.append((self.tracks[t], detections[d]))
        return pairs, [detections[d] for d in sorted(free_d)]

    def begin(
        self, detection: Detection, mesh: FaceMesh | None, image_rgb: ImageRgb, *, is_sure: bool = True
    ) -> Track:
        """A new track, or a lost one found again. One that is not sure is reported from the second sight on,
        or at once with a mesh."""
        is_sure = is_sure or mesh is not None
        old = self._find_again(detection, image_rgb) if is_sure else None
        track_id, age = (old.track_id, old.age + 1) if old else (next(self._ids), 0)
        track = Track(track_id, BoxFilter(detection.box_xyxy), self._pts_s or 0.0, not is_sure, age=age)
        track.portrait = old.portrait if old else None
        track.see(
            detection.box_xyxy,
            sigma=DETECTION_SIGMA,
            score=detection.score,
            points_5=detection.points_5,
            mesh=mesh,
        )
        self.tracks.append(track)
        return track

    def finish(self, image_rgb: ImageRgb) -> tuple[Face, ...]:
        """Ends a frame: the faces to report. Tracks unseen for too long, or out of the frame, are lost."""
        now = self._pts_s or 0.0
        height, width = image_rgb.shape[:2]
        for track in self.tracks:
            if track.is_seen:
                track.n_seen += 1
                track.n_meshless = 0 if track.mesh is not None else track.n_meshless + 1
                track.last_seen_s, track.gap_s = now, 0.0
                track.is_tentative = track.is_tentative and track.n_seen < 2 and track.mesh is None
                track.ghost, track.followed_s = track.mesh, now
                track.note_sight(now)
                self._portray(track, image_rgb)
            else:
                if track.mesh is not None:
                    track.ghost, track.followed_s = track.mesh, now
                track.mesh = track.points_5 = None
                track.gap_s = now - track.last_seen_s
        gone = [track for track in self.tracks if self._is_gone(track, (width, height), now)]
        gone += [track for track in self._doubles() if track not in gone]
        self.tracks = [track for track in self.tracks if track not in gone]
        self._lose([track for track in gone if not track.is_tentative])
        return tuple(t.to_face(self.options) for t in self.tracks if not t.is_tentative)

    def _is_gone(self, track: Track, size_wh: tuple[int, int], now_s: float) -> bool:
        limit_s = self.options.tentative_s if track.is_tentative else self.options.max_gap_s
        if self.options.max_followed_s > limit_s and track.followed_s >= now_s > track.last_seen_s:
            limit_s = self.options.max_followed_s
        if track.gap_s > limit_s:
            return True
        box = track.filter.box_xyxy
        centre = (box[:2] + box[2:]) / 2
        margin = 0.3 * track.filter.side_px
        is_outside = bool((centre < -margin).any() or (centre > np.array(size_wh) + margin).any())
        return is_outside and not track.is_seen

    def _doubles(self) -> list[Track]:
        """Of two tracks on one face the one to drop: unseen before seen, younger before older."""
        order = sorted(self.tracks, key=lambda t: (not t.is_seen, t.is_tentative, -t.age, t.track_id))
        if len(order) < 2:
            return []
        boxes = np.stack([t.filter.box_xyxy for t in order])
        iou = iou_matrix(boxes, boxes)
        dropped: list[int] = []
        for j in range(1, len(order)):
            rivals = [i for i in range(j) if i not in dropped]
            # An unseen track under a seen one is an occlusion: kept unless it is the same place.
            if rivals and iou[rivals, j].max() > (0.55 if order[j].is_seen else 0.7):
                dropped.append(j)
        return [order[j] for j in dropped]

    # ------------------------------------------------------------ appearance
    def _lose(self, tracks: Sequence[Track]) -> None:
        self._lost = [*self._lost, *tracks][-self.options.memory :]

    def _portray(self, track: Track, image_rgb: ImageRgb) -> None:
        if self._reidentify is None or track.points_5 is None:
            return
        quality = track.score * min(track.filter.side_px / 112.0, 1.0)
        if track.mesh is not None:
            quality *= float(np.cos(np.radians(track.mesh.pose_ypr_deg[0])))
        if track.portrait is None or quality > 1.05 * track.portrait.quality:
            track.portrait = cut_portrait(
                image_rgb, Detection(track.filter.box_xyxy, track.points_5, track.score), quality
            )

    def _find_again(self, detection: Detection, image_rgb: ImageRgb) -> Track | None:
        # Among them tracks that are still predicted, but elsewhere: a face may move faster than a track.
        missing = [track for track in self.tracks if not track.is_seen and not track.is_tentative]
        candidates = [track for track in (*self._lost, *missing) if track.portrait is not None]
        if self._reidentify is None or not candidates:
            return None
        newcomer = _unit(self._reidentify(image_rgb, detection))
        best, best_cosine = None, self.options.same_cosine
        for track in candidates:
            portrait = track.portrait
            if portrait is None:
                continue
            if portrait.embedding is None:
                portrait.embedding = _unit(self._reidentify(portrait.image_rgb, portrait.detection))
            cosine = float(portrait.embedding @ newcomer)
            if cosine >= best_cosine:
                best, best_cosine = track, cosine
        if best is not None:
            self._lost = [track for track in self._lost if track is not best]
            self.tracks = [track for track in self.tracks if track is not best]
        return best


def cut_portrait(image_rgb: ImageRgb, detection: Detection, quality: float) -> Portrait:
    """Copies the surroundings of a face, at most `_PORTRAIT_PX` wide and high."""
    height, width = image_rgb.shape[:2]
    x0, y0, x1, y1 = enlarge_box(detection.box_xyxy, 1.6)
    left, right = (int(np.clip(v, 0, width)) for v in (x0, x1 + 1))
    top, bottom = (int(np.clip(v, 0, height)) for v in (y0, y1 + 1))
    part = image_rgb[top : max(bottom, top + 1), left : max(right, left + 1)]
    if part.size == 0:
        part = np.zeros((1, 1, 3), np.uint8)
    scale = min(1.0, _PORTRAIT_PX / max(part.shape[:2]))
    size_wh = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    small = np.asarray(cv2.resize(part, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    origin = np.array([left, top], np.float32)
    box = (detection.box_xyxy - np.tile(origin, 2)) * np.float32(scale)
    points = (detection.points_5 - origin) * np.float32(scale)
    return Portrait(small, Detection(box, points, detection.score), quality)


def _nearness(boxes_a: F32, boxes_b: F32, reach: float) -> F32:
    """(N, M): 0.5 for equal centres down to 0 at `reach` sides; -1 where sizes differ more than twofold."""
    centre_a, centre_b = (boxes_a[:, :2] + boxes_a[:, 2:]) / 2, (boxes_b[:, :2] + boxes_b[:, 2:]) / 2
    side_a = np.sqrt(np.maximum((boxes_a[:, 2:] - boxes_a[:, :2]).prod(1), 1.0))
    side_b = np.sqrt(np.maximum((boxes_b[:, 2:] - boxes_b[:, :2]).prod(1), 1.0))
    distance = np.linalg.norm(centre_a[:, None] - centre_b[None], axis=2) / side_a[:, None]
    near = 0.5 * (1.0 - distance / reach)
    ratio = np.abs(np.log(side_a[:, None] / side_b[None]))
    return np.where(ratio > np.log(2.0), -1.0, np.maximum(near, 0.0)).astype(np.float32)


def _unit(embedding: F32) -> F32:
    vector = np.asarray(embedding, np.float32).ravel()
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
