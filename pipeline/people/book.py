"""The identity book: people seen before under a key are recognised and keep exactly the same virtual face.

Without a book, who somebody becomes is computed anew for each clip from what that clip shows, so the virtual faces of
two clips are alike, not the same; and where another candidate was chosen they are not even alike. The book stores who
was chosen. It holds two things about each person:

- the *pin*: the embedding from which the virtual face was made, the number of the candidate and its w. It never
  changes;
- the *average* of everything seen of the person, by which he is recognised, and which gets better with each clip.

Whether somebody is the one in the book is decided by two scores of averages, both of which must be reached: the
cosine of SFace's embeddings, and that cosine in deviations above what generated people have with either side
(S-norm), since all generated faces are somewhat alike to a recogniser. Measured on 4,344 good photos of LFW and
CelebA: the two accept 0.89 of pairs of single photos of one person; of 9.4 million pairs of different people they
accept 26, almost all of them one person under two names in the data; without those the highest cosine is 0.530.
Shown to a growing book in random order, photos of people in it got their first virtual face in 0.915 of cases, pairs
of photos in 0.979 and triples in 0.998; 7 of 11,115 strangers were taken for one of up to 2,250 people in the book.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from keyface.configs.errors import BookError
from keyface.pipeline.face import F32
from keyface.pipeline.people.book_file import PURPOSE, BookFile, Entry
from keyface.pipeline.people.key import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class BookOptions:
    """When somebody is the one in the book.

    Attributes:
        same_person: least cosine of two averages.
        same_person_norm: least S-norm of it, deviations.
    """

    same_person: float = 0.54
    same_person_norm: float = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """Who stands in for a person for good: candidate number and w (512,)."""

    candidate: int
    w: F32


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """What the book had to do with one clip.

    Attributes:
        known: people who were in the book already; `added`: who came into it.
        passed_by: strangers who were not added, since the book is only read or nothing good was seen of them.
        refused: known people who were mosaicked, since their virtual face is too like them in this clip.
        problem: why the book could not be written, "" if it could.
    """

    known: int
    added: int
    passed_by: int
    refused: int = 0
    problem: str = ""

    def sentences(self) -> tuple[str, ...]:
        """For a summary; none when nobody was seen."""
        if not self.known + self.added + self.passed_by:
            return ()
        told = f"Identity book: {self.known} known, {self.added} added, {self.passed_by} not in it."
        return (told,)

    def warnings(self) -> tuple[str, ...]:
        """What the user should look at."""
        found = []
        if self.refused:
            who = "person is" if self.refused == 1 else "people are"
            found.append(
                f"{self.refused} {who} mosaicked: the virtual face in the identity book is too like them in this "
                "clip, and nobody gets a second one."
            )
        return (*found, self.problem) if self.problem else tuple(found)

    def to_json(self) -> dict[str, int]:
        """As plain values for `json.dumps`."""
        names = ("known", "added", "passed_by", "refused")
        return {name: getattr(self, name) for name in names}


@dataclass
class _Clip:
    """What one clip has shown so far: person -> (sum of weighted embeddings, sum of weights)."""

    known: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    n_passed_by: int = 0
    n_refused: int = 0
    looks: dict[str, tuple[F32, float]] = field(default_factory=dict)
    problem: str = ""


class IdentityBook:
    """A book in use, by one chain at a time. Methods may be called from different threads.

    A stranger is stored when the virtual face is chosen, so that two programs that see him at the same time (two
    cameras) show the same one; what was learnt of people is stored by `end_clip`.

    Args:
        path: of the book.
        key: derives the book's own secret.
        remembers: strangers are added, and what is known of others is kept up to date; a book that is missing is
            made. Otherwise the file is only read.
        today: the day to store; the current one in UTC if not given.

    Raises:
        BookError: the book is missing (unless `remembers`), unreadable, damaged, or made under another key.
    """

    def __init__(
        self,
        path: Path,
        key: Key,
        *,
        remembers: bool = False,
        options: BookOptions | None = None,
        today: Callable[[], str] | None = None,
    ) -> None:
        self._o = options or BookOptions()
        self._remembers = remembers
        self._today = today or _today
        self._lock = threading.RLock()
        self._clip = _Clip()
        self._file = BookFile(path, key.derive(PURPOSE, 32))
        self.is_new = remembers and not self._file.exists()
        if self.is_new:
            with contextlib.suppress(FileExistsError):
                self._file.make()
        self._stamp = self._file.stamp()
        self._people = self._file.read()

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._file.path

    @property
    def remembers(self) -> bool:
        """True when strangers are added."""
        return self._remembers

    @property
    def people(self) -> tuple[Entry, ...]:
        """Everybody in the book, as last read."""
        with self._lock:
            return self._people

    def find(self, average: F32, cohort: F32) -> str | None:
        """The id of the person with this average, None for a stranger.

        Args:
            average: (128,) unit.
            cohort: (n, 128) unit embeddings of generated people.

        Raises:
            BookError: another program has changed the book and it cannot be read.
        """
        with self._lock:
            self._refresh()
            found = find_match(self._people, average, cohort, self._o)
            if found is not None and found.id not in self._clip.added:
                self._clip.known.add(found.id)
            return None if found is None else found.id

    def pin_of(self, person_id: str) -> Pin | None:
        """Who stands in for somebody in the book; None when he was forgotten meanwhile."""
        with self._lock:
            entry = next((entry for entry in self._people if entry.id == person_id), None)
            return None if entry is None else Pin(entry.candidate, entry.w)

    def keep(self, average: F32, cohort: F32, pin: Pin) -> str | None:
        """Stores a stranger; None when the book is only read.

        When another program has stored the same person meanwhile, the answer is the id of that one, and its pin
        counts.

        Raises:
            BookError: the book cannot be written.
        """
        with self._lock:
            if not self._remembers:
                return None
            stored: list[str] = []

            def add(people: tuple[Entry, ...]) -> tuple[Entry, ...]:
                known = find_match(people, average, cohort, self._o)
                if known is not None:
                    stored.append(known.id)
                    return people
                entry = self._entry(average, pin, {entry.id for entry in people})
                stored.append(entry.id)
                self._clip.added.add(entry.id)
                return (*people, entry)

            try:
                self._people = self._file.change(add)
            except BookError as error:
                self._clip.problem = str(error)
                raise
            self._stamp = self._file.stamp()
            return stored[0]

    def pass_by(self) -> None:
        """Counts a stranger who stays one."""
        with self._lock:
            self._clip.n_passed_by += 1

    def refuse(self) -> None:
        """Counts somebody known whose virtual face cannot be shown in this clip."""
        with self._lock:
            self._clip.n_refused += 1

    def learn(self, person_id: str, total: F32, weight: float) -> None:
        """Notes what a clip showed of somebody: (128,) sum of weighted embeddings, sum of weights."""
        with self._lock:
            before, so_far = self._clip.looks.get(person_id, (np.zeros(128, np.float32), 0.0))
            self._clip.looks[person_id] = np.asarray(before + total, np.float32), so_far + weight

    def end_clip(self, *, is_complete: bool = True) -> ClipReport:
        """Stores what the clip has taught, unless it failed, and says what was done. Somebody forgotten meanwhile
        stays forgotten. Never raises for a book that cannot be written: the report has the reason."""
        with self._lock:
            clip, self._clip = self._clip, _Clip()
            if self._remembers and is_complete and clip.looks:
                day = self._today()
                try:
                    self._people = self._file.change(
                        lambda people: tuple(_updated(entry, clip.looks, day) for entry in people)
                    )
                    self._stamp = self._file.stamp()
                except BookError as error:
                    clip.problem = clip.problem or str(error)
            return ClipReport(
                known=len(clip.known), added=len(clip.added), passed_by=clip.n_passed_by,
                refused=clip.n_refused, problem=clip.problem,
            )  # fmt: skip

    def close(self) -> None:
        """Forgets the secret; the book can no longer be used."""
        self._file.close()

    def _refresh(self) -> None:
        """Takes over what other programs have written."""
        if self._file.stamp() != self._stamp:
            self._stamp = self._file.stamp()
            self._people = self._file.read()

    def _entry(self, average: F32, pin: Pin, taken: set[str]) -> Entry:
        person_id = secrets.token_hex(4)
        while person_id in taken:
            person_id = secrets.token_hex(4)
        day = self._today()
        return Entry(
            id=person_id, made_from=average.astype(np.float32), candidate=pin.candidate,
            w=pin.w.astype(np.float32), total=average.astype(np.float32), weight=1.0, first_day=day, last_day=day,
            clips=0,
        )  # fmt: skip


def find_match(
    people: tuple[Entry, ...], average: F32, cohort: F32, options: BookOptions | None = None
) -> Entry | None:
    """Who of `people` has this average (128,): the first in the book of all who are alike enough by both scores.

    Somebody whose first photos were too unlike each other is in the book twice, until the averages are good enough
    for both to match. The first counts then, so that he ends with one virtual face and not with two in turn.
    """
    options = options or BookOptions()
    if not people:
        return None
    averages = np.stack([entry.average for entry in people])
    cosines = averages @ average
    for number in np.flatnonzero(cosines >= options.same_person):
        cosine = float(cosines[number])
        norms = [_deviations(cosine, cohort @ side) for side in (average, averages[number])]
        if sum(norms) / 2 >= options.same_person_norm:
            return people[number]
    return None


def merged(people: tuple[Entry, ...], guests: tuple[Entry, ...], cohort: F32) -> tuple[Entry, ...]:
    """`people` and those of `guests` who are not among them. Who is in both keeps pin and average of `people`: a book
    that is imported twice must not count twice."""
    everybody = list(people)
    for guest in guests:
        is_known = any(entry.id == guest.id for entry in everybody)
        if not is_known and find_match(tuple(everybody), guest.average, cohort) is None:
            everybody.append(guest)
    return tuple(everybody)


def _deviations(cosine: float, cohort: F32) -> float:
    """`cosine` in deviations above the mean of those of a cohort."""
    return (cosine - float(cohort.mean())) / max(float(cohort.std()), 0.02)


def _updated(entry: Entry, looks: dict[str, tuple[F32, float]], day: str) -> Entry:
    if entry.id not in looks:
        return entry
    total, weight = looks[entry.id]
    if entry.clips == 0:  # what it was made from is among these looks
        return replace(entry, total=total, weight=weight, last_day=max(entry.last_day, day), clips=1)
    return replace(
        entry, total=np.asarray(entry.total + total, np.float32), weight=entry.weight + weight,
        last_day=max(entry.last_day, day), clips=entry.clips + 1,
    )  # fmt: skip


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
