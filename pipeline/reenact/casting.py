"""Casting: who stands in for a person. The candidates of the key are tried in a fixed order.

One trial takes four looks at a rendered face, and up to twenty candidates are tried, so a search may last two
seconds. It can therefore be paused after every rendering: a file runs it through in one frame; a live picture goes on
meanwhile, with a mosaic over that face or with the virtual face of the key before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from keyface.configs.errors import BookError
from keyface.pipeline.face import F32, AnalysedFrame, Face, VirtualFace
from keyface.pipeline.frame import RedactionReason
from keyface.pipeline.people.book import Pin
from keyface.pipeline.people.identity import Identities
from keyface.pipeline.people.virtual import IdentityBasis, VirtualIdentities
from keyface.pipeline.reenact.face_cover import face_cover
from keyface.pipeline.reenact.likeness import Likeness
from keyface.pipeline.reenact.motion import controls_of
from keyface.pipeline.reenact.puppet import Actor, Person, Role

Place = Callable[[Role, F32, Face], VirtualFace | RedactionReason]
"""Renders a role with controls (54,) and lays it on a driver's face."""

Search = Generator[None, None, Person | RedactionReason]
"""A search that pauses at each `yield`; what it returns in the end: the person, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CastingOptions:
    """Who may stand in.

    Attributes:
        wanted_likeness: of a candidate who is taken at once, see `Likeness`, deviations. Most have 0.3 to 2.
        max_likeness: of the most unlike candidate, taken when none is as unlike as wanted.
        max_candidates: tried at most.
        max_cover: of a candidate's face (`FaceCover.excess`) who is tried at once; who is more covered waits until
            all others were tried.
    """

    wanted_likeness: float = 0.8
    max_likeness: float = 2.6
    max_candidates: int = 20
    max_cover: float = 1.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Who was tried: his number, how like the driver he is as far as that is known, and how covered."""

    number: int
    person: Person
    likeness: float
    cover: float = 0.0


@dataclass(slots=True)
class Scene:
    """What a search looks at; may be exchanged for a later frame of the same person while the search pauses."""

    item: AnalysedFrame
    face: Face


class Casting:
    """Chooses stand-ins on the thread that owns the engines.

    Args:
        likeness: of virtual faces and drivers.
        place: see `Place`.
        virtual: turns a person's embedding into candidates under the key.
    """

    def __init__(
        self,
        likeness: Likeness,
        puppet: Actor,
        place: Place,
        basis: IdentityBasis,
        identities: Identities,
        virtual: VirtualIdentities,
        options: CastingOptions,
    ) -> None:
        self._likeness, self._puppet, self._place = likeness, puppet, place
        self._basis, self._identities, self._virtual = basis, identities, virtual
        self._o = options

    def stand_in(self, number: int, driver: F32, scene: Scene) -> Search:
        """Who the book says stands in for a person, or else who is chosen now, and kept. The one in the book is held
        to the same limit, and nobody takes his place: another face would be another pseudonym."""
        pin = self._identities.pin_of(number)
        if pin is None:
            chosen = yield from self._choose(driver, scene)
            if chosen is None:
                return "too_alike"
            candidate, person = chosen
            try:
                pin = self._identities.keep(number, Pin(candidate, person.w))
            except BookError:
                return "reenactment_failed"  # the book has noted why
            if np.array_equal(pin.w, person.w):
                return person
        known = self._puppet.meet(pin.w)
        yield
        if known is not None:
            likeness = yield from self._likeness_of(known, driver, scene)
            if likeness < self._o.max_likeness:
                return known
        self._identities.refuse(number)
        return "too_alike"

    def _choose(self, driver: F32, scene: Scene) -> Generator[None, None, tuple[int, Person] | None]:
        """The first candidate as unlike the driver as wanted, else the most unlike of all, and its number; None when
        all are too like. Those whose faces are covered, by hair above all, come last, the least covered first: nobody
        who is more like the driver takes a covered one's place.

        Most are too like once pasted: who is need not be seen at rest as well before nobody better is found."""
        covered: list[_Candidate] = []
        others: list[_Candidate] = []
        for number in range(self._o.max_candidates):
            person = self._puppet.meet(self._virtual.w(driver, number))
            yield
            if person is None:
                continue
            likeness, cover = (yield from self._pasted(person, driver, scene)), 0.0
            yield
            if likeness < self._o.wanted_likeness:
                alone, cover = yield from self._at_rest(person, driver)
                likeness = max(likeness, alone)
            seen = _Candidate(number, person, likeness, cover)
            if likeness >= self._o.wanted_likeness:
                others.append(seen)
            elif cover > self._o.max_cover:
                covered.append(seen)
                yield
            else:
                return number, person
        if covered:
            seen = min(covered, key=lambda one: (one.cover, one.number))
            return seen.number, seen.person
        return (yield from self._most_unlike(others, driver))

    def _most_unlike(
        self, tried: list[_Candidate], driver: F32
    ) -> Generator[None, None, tuple[int, Person] | None]:
        """Of those who are not as unlike as wanted."""
        chosen, least = None, self._o.max_likeness
        for seen in sorted(tried, key=lambda one: one.likeness):
            if seen.likeness >= least:
                break
            alone, _ = yield from self._at_rest(seen.person, driver)
            if max(alone, seen.likeness) < least:
                chosen, least = (seen.number, seen.person), max(alone, seen.likeness)
            yield
        return chosen

    def _likeness_of(self, person: Person, driver: F32, scene: Scene) -> Generator[None, None, float]:
        """How like the driver a candidate is; infinite where no face is found. The larger of two scores (`Likeness`):
        of the virtual person at rest from the front, and of the face pasted over the driver's."""
        alone, _ = yield from self._at_rest(person, driver)
        yield
        return max(alone, (yield from self._pasted(person, driver, scene)))

    def _at_rest(self, person: Person, driver: F32) -> Generator[None, None, tuple[float, float]]:
        """How like the driver a person is at rest from the front, and how covered; infinite and 0 where no face is
        found. Cover is seen in the rendering that others are made from, where there is one: so it is the same
        whichever way people are shown."""
        at_rest = np.concatenate([np.zeros(2, np.float32), self._basis.resting])
        shown = self._puppet.show(person, at_rest, person.own_mesh)
        crop, mesh = (None, None) if isinstance(shown, str) else shown
        if crop is None or mesh is None:
            return math.inf, 0.0
        yield
        source, own = self._puppet.source_of(person) or (crop, mesh)
        alone = self._likeness.alone(self._puppet.embed(crop, mesh), driver)
        return alone, face_cover(source, own.points_xyz).excess

    def _pasted(self, person: Person, driver: F32, scene: Scene) -> Generator[None, None, float]:
        """How like the driver a person is once pasted over his face; the least there is where that cannot be seen."""
        item, face = scene.item, scene.face
        assert face.mesh is not None
        self._likeness.look_at_driver(item, face)
        yield
        found = self._place(Role(person, driver, self._basis.resting), controls_of(face.mesh), face)
        if not isinstance(found, VirtualFace):
            return -math.inf
        yield
        # The frame in which it was placed: the driver may have moved on since.
        seen = self._likeness.of_pasted(item, face, found, driver)
        return -math.inf if seen is None else seen[0]
