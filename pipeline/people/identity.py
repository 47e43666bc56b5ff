"""Who is behind a track, and which virtual person stands in for them.

`Identities` watches analysed frames (it is the chain's observer), averages a recogniser's embedding over a
track's good frames, and fixes it when the track is first shown. The average of a track has far less noise
than one picture. Which frames count is decided by their times alone, never by how far one thread is ahead of
another, so a clip gives the same people each time. A person who comes back under another track is recognised
and gets the same face.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from keyface.configs.errors import BookError
from keyface.pipeline.face import F32, Face
from keyface.pipeline.faces.geometry import points_5_from_mesh
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.frame import Frame
from keyface.pipeline.people.book import IdentityBook, Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityOptions:
    """When a frame is good enough to learn from, and when two tracks are one person.

    Attributes:
        enough: embeddings after which a track is no longer watched.
        interval_s: least time between two embeddings of a track.
        min_side_px: smaller faces are used only until something better comes.
        max_yaw_deg, max_pitch_deg: beyond them a frame counts little.
        same_person: cosine of two averages from which they are one person in a clip (a book has its own rule,
            see pipeline.people.book). Averages of one person from two clips
            have 0.9 and more, those of different people up to 0.2, of different generated people up to 0.6.
        min_looks: embeddings before which nobody is known; for live use, where no look-ahead gathers them.
    """

    enough: int = 10
    interval_s: float = 0.06
    min_side_px: float = 48.0
    max_yaw_deg: float = 25.0
    max_pitch_deg: float = 20.0
    same_person: float = 0.62
    min_looks: int = 1


@dataclass
class _Sight:
    """What is known of a track: (time, weight, embedding) of the frames looked at."""

    looks: list[tuple[float, float, F32]] = field(default_factory=list)
    n_good: int = 0
    person: int | None = None


@dataclass
class _Person:
    """Somebody of this run: (128,) unit average, seen well enough to be stored, id in the book, its pin."""

    average: F32
    is_sure: bool
    book_id: str | None = None
    pin: Pin | None = None


class Identities:
    """Averages embeddings per track and joins tracks of one person. `observe` and `person_of` may be called
    from different threads; the recogniser runs on the observing one.

    Args:
        open_recogniser: opens the recogniser on the observing thread.
        book: knows people from before; None: nobody is known.
        cohort: (n, 128) embeddings of generated people, by which the book compares; needed with a book.
    """

    def __init__(
        self,
        open_recogniser: Callable[[], Recogniser],
        options: IdentityOptions | None = None,
        *,
        book: IdentityBook | None = None,
        cohort: F32 | None = None,
    ) -> None:
        if book is not None and cohort is None:
            raise ValueError("identities: got a book and no cohort to compare by")
        self._open_recogniser = open_recogniser
        self._o = options or IdentityOptions()
        self._book = book
        self._cohort = np.zeros((0, 128), np.float32) if cohort is None else cohort
        self._lock = threading.Lock()
        self._recogniser: Recogniser | None = None
        self._sights: dict[int, _Sight] = {}
        self._people: list[_Person] = []

    def open(self) -> None:
        """Opens the recogniser; people known from an earlier clip of this run stay known, tracks do not."""
        with self._lock:
            self._sights.clear()
        self._recogniser = self._open_recogniser()

    def close(self) -> None:
        """Closes the recogniser."""
        if self._recogniser is not None:
            self._recogniser.close()
            self._recogniser = None

    def observe(self, frame: Frame, face: Face) -> None:
        """Learns from one face of one frame. Raises EngineError."""
        if face.mesh is None or face.is_predicted or self._recogniser is None:
            return
        with self._lock:
            sight = self._sights.setdefault(face.track_id, _Sight())
        if sight.n_good >= self._o.enough or len(sight.looks) >= 3 * self._o.enough:
            return
        if sight.looks and frame.pts_s - sight.looks[-1][0] < self._o.interval_s:
            return
        weight = self._quality(face)
        embedding = self._recogniser.embed(frame.image_rgb, points_5_from_mesh(face.mesh.points_xyz))
        if not np.isfinite(embedding).all():
            return
        with self._lock:
            sight.looks.append((frame.pts_s, weight, embedding))
            sight.n_good += weight == 1.0  # poor frames help until good ones come

    def person_of(self, track_id: int, *, until_pts_s: float = math.inf) -> int | None:
        """Number of the person behind a track, fixed at the first call; None while nothing is known.

        Args:
            until_pts_s: later frames do not count; all up to it must have been observed.
        """
        with self._lock:
            sight = self._sights.get(track_id)
            if sight is None:
                return None
            if sight.person is None and len(sight.looks) < self._o.min_looks:
                return None
            if sight.person is None:
                total, _ = _sum([look for look in sight.looks if look[0] <= until_pts_s])
                if not total.any():
                    return None
                average = np.asarray(total / np.linalg.norm(total), np.float32)
                sight.person = self._find_or_add(average, is_sure=sight.n_good > 0)
            return sight.person

    @property
    def n_people(self) -> int:
        """People of this run; their numbers begin at 0."""
        with self._lock:
            return len(self._people)

    def embedding_of(self, person: int) -> F32:
        """(128,) unit embedding of a person, as this run saw it first."""
        with self._lock:
            return self._people[person].average

    def pin_of(self, person: int) -> Pin | None:
        """Who stands in for a person, from the book or because `keep` said so; None while that is not decided."""
        with self._lock:
            return self._people[person].pin

    def keep(self, person: int, pin: Pin) -> Pin:
        """Holds on to who was chosen for a person, in the book too if there is one and it takes him.

        Returns:
            Who stands in: `pin`, or another one when another program has stored the same person meanwhile.

        Raises:
            BookError: the book cannot be written.
        """
        with self._lock:
            somebody = self._people[person]
            somebody.pin = pin
            if self._book is None:
                return pin
            book_id = None
            if somebody.is_sure:
                try:
                    book_id = self._book.keep(somebody.average, self._cohort, pin)
                except BookError:
                    somebody.pin = None
                    raise
            if book_id is None:
                self._book.pass_by()
                return pin
            somebody.book_id = book_id
            somebody.pin = self._book.pin_of(book_id) or pin
            return somebody.pin

    def refuse(self, person: int) -> None:
        """Notes that who stands in for a person is too like him in this clip, which is mosaicked."""
        with self._lock:
            if self._book is not None and self._people[person].book_id is not None:
                self._book.refuse()

    def leave_book(self) -> None:
        """From now on nobody is known or stored: the key has changed, and the book belongs to the old one."""
        self.teach_book()
        with self._lock:
            self._book = None
            for somebody in self._people:
                somebody.book_id = somebody.pin = None

    def teach_book(self) -> None:
        """Tells the book what the tracks of this clip have shown of people in it; call it once, at the end."""
        with self._lock:
            if self._book is None:
                return
            for sight in self._sights.values():
                somebody = None if sight.person is None else self._people[sight.person]
                if somebody is None or somebody.book_id is None or sight.n_good == 0:
                    continue
                total, weight = _sum(sight.looks)
                if float(somebody.average @ total) >= self._o.same_person * float(np.linalg.norm(total)):
                    self._book.learn(somebody.book_id, total, weight)  # else the track has changed hands

    def _find_or_add(self, average: F32, *, is_sure: bool) -> int:
        if self._people:
            cosines = np.stack([somebody.average for somebody in self._people]) @ average
            best = int(np.argmax(cosines))
            if cosines[best] >= self._o.same_person:
                return best
        newcomer = _Person(average, is_sure)
        if self._book is not None:
            newcomer.book_id = self._book.find(average, self._cohort)
            if newcomer.book_id is not None:
                newcomer.pin = self._book.pin_of(newcomer.book_id)
                for number, somebody in enumerate(self._people):
                    if somebody.book_id == newcomer.book_id:
                        return number
        self._people.append(newcomer)
        return len(self._people) - 1

    def _quality(self, face: Face) -> float:
        assert face.mesh is not None
        yaw, pitch, _ = np.abs(face.mesh.pose_ypr_deg)
        side = float(np.ptp(face.mesh.points_xy, axis=0).max())
        good = yaw <= self._o.max_yaw_deg and pitch <= self._o.max_pitch_deg and side >= self._o.min_side_px
        return 1.0 if good else 0.15


def _sum(looks: list[tuple[float, float, F32]]) -> tuple[F32, float]:
    """(128,) sum of the weighted embeddings of (time, weight, embedding), and the sum of weights."""
    total, weights = np.zeros(128, np.float32), 0.0
    for _, weight, embedding in looks:
        total += np.float32(weight) * embedding
        weights += weight
    return total, weights
