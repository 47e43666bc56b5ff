"""The identity book in use: who is recognised, what is pinned, what is learnt, and two programs at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from book_cases import COHORT, alike, entry, face_w, key, same, somebody, unit

from keyface.configs.errors import BookError
from keyface.pipeline.people.book import BookOptions, IdentityBook, Pin, find_match, merged
from keyface.pipeline.people.key import Key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my.key.book"


def open_book(path: Path, *, remembers: bool = True, day: str = "2026-03-01") -> IdentityBook:
    return IdentityBook(path, key(), remembers=remembers, today=lambda: day)


def meet(book: IdentityBook, number: int, *, candidate: int = 3) -> str:
    """Stores somebody new."""
    assert book.find(somebody(number), COHORT) is None
    kept = book.keep(somebody(number), COHORT, Pin(candidate, face_w(number)))
    assert kept is not None
    return kept


# Who is recognised.


@pytest.mark.parametrize(("cosine", "is_known"), [(0.53, False), (0.55, True), (0.9, True), (-0.9, False)])
def test_the_cosine_decides(cosine: float, is_known: bool) -> None:
    people = (entry(1), entry(2))
    found = find_match(people, alike(somebody(2), cosine), COHORT)
    assert (found is people[1]) if is_known else found is None


def test_likeness_is_held_against_what_generated_people_have() -> None:
    common = somebody(50)  # what all generated faces share
    cohort = np.stack([alike(common, 0.75, n) for n in range(64)])
    people = (entry(1),)
    one, other = alike(common, 0.75, 901), alike(common, 0.75, 902)
    people = (merged((), (entry(1),), cohort)[0],)
    people[0].total[:] = one
    assert float(one @ other) > BookOptions().same_person and find_match(people, other, cohort) is None
    assert find_match(people, alike(one, 0.97), cohort) is people[0]


def test_the_first_in_the_book_counts_where_several_match() -> None:
    me = somebody(1)
    people = (entry(5), entry(1), entry(6))
    people[2].total[:] = alike(me, 0.8)
    assert find_match(people, unit(people[2].average + 0.2 * me), COHORT) is people[1]
    assert find_match((), me, COHORT) is None


# What is pinned, and what is learnt.


def test_the_pin_stays_while_the_average_moves(path: Path) -> None:
    book = open_book(path)
    me = meet(book, 1, candidate=4)
    for number in range(20):
        look = alike(somebody(1), 0.8, number)
        assert book.find(look, COHORT) == me
        book.learn(me, 2 * look, 2.0)
        book.end_clip()
    (stored,) = open_book(path, remembers=False).people
    assert stored.candidate == 4 and np.array_equal(stored.w, face_w(1))
    assert np.array_equal(stored.made_from, somebody(1))
    assert stored.weight == pytest.approx(40) and stored.clips == 20
    assert float(stored.average @ somebody(1)) > 0.96, "the noise of twenty clips has averaged out"
    pin = book.pin_of(me)
    assert pin is not None and pin.candidate == 4 and np.array_equal(pin.w, face_w(1))


def test_days_and_clips_are_counted(path: Path) -> None:
    for day in ("2026-03-01", "2026-03-04", "2026-03-02"):
        book = open_book(path, day=day)
        me = book.find(somebody(1), COHORT) or meet(book, 1)
        book.learn(me, somebody(1), 1.0)
        book.learn(me, somebody(1), 1.0)  # a second track of the same clip
        book.end_clip()
    (stored,) = book.people
    assert (stored.first_day, stored.last_day, stored.clips) == ("2026-03-01", "2026-03-04", 3)


def test_a_failed_clip_teaches_nothing(path: Path) -> None:
    book = open_book(path)
    me = meet(book, 1)
    book.learn(me, somebody(1), 5.0)
    assert book.end_clip(is_complete=False).added == 1
    book.end_clip()
    (stored,) = book.people
    assert stored.clips == 0 and stored.weight == 1.0


def test_reports_tell_who_was_known(path: Path) -> None:
    book = open_book(path)
    meet(book, 1)
    book.pass_by()
    first = book.end_clip()
    assert (first.known, first.added, first.passed_by, first.refused) == (0, 1, 1, 0)
    book.find(somebody(1), COHORT)
    book.find(somebody(1), COHORT)
    book.refuse()
    second = book.end_clip()
    assert (second.known, second.added, second.passed_by, second.refused) == (1, 0, 0, 1)
    assert "1 known" in second.sentences()[0] and "too like them" in second.warnings()[0]
    assert book.end_clip().sentences() == () and book.end_clip().warnings() == ()


# Consent, and what is wrong with a book.


def test_without_consent_the_book_is_only_read(path: Path) -> None:
    meet(open_book(path), 1)
    before = path.read_bytes()
    book = open_book(path, remembers=False)
    assert book.keep(somebody(2), COHORT, Pin(0, face_w(2))) is None
    me = book.find(somebody(1), COHORT)
    assert me is not None
    book.learn(me, somebody(1), 3.0)
    book.end_clip()
    assert path.read_bytes() == before and not book.remembers


def test_a_missing_book_is_made_only_where_people_are_to_be_remembered(path: Path) -> None:
    with pytest.raises(BookError, match="does not exist"):
        open_book(path, remembers=False)
    assert not path.exists()
    assert open_book(path).is_new and path.exists() and not open_book(path).is_new


@pytest.mark.parametrize("remembers", [False, True])
def test_a_book_that_does_not_open_is_an_error_and_stays(path: Path, remembers: bool) -> None:
    meet(open_book(path), 1)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:200], b"", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]):
        path.write_bytes(content)
        with pytest.raises(BookError):
            open_book(path, remembers=remembers)
        assert path.read_bytes() == content
    path.write_bytes(whole)
    with pytest.raises(BookError, match="another key"):
        IdentityBook(path, Key(bytes(range(1, 33))), remembers=remembers)


def test_a_book_that_vanishes_is_not_begun_anew(path: Path) -> None:
    book = open_book(path)
    meet(book, 1)
    path.unlink()
    with pytest.raises(BookError, match="does not exist"):
        book.find(somebody(1), COHORT)
    with pytest.raises(BookError, match="does not exist"):
        book.keep(somebody(2), COHORT, Pin(0, face_w(2)))
    report = book.end_clip()
    assert "does not exist" in report.problem and report.warnings() == (report.problem,)
    assert not path.exists()


# Two programs at once: two cameras that see the same people.


def test_two_programs_agree_on_a_newcomer(path: Path) -> None:
    left, right = open_book(path), open_book(path)
    assert left.find(somebody(1), COHORT) is None and right.find(somebody(1), COHORT) is None
    kept = left.keep(somebody(1), COHORT, Pin(2, face_w(1)))
    late = right.keep(alike(somebody(1), 0.8), COHORT, Pin(7, face_w(2)))
    assert late == kept and kept is not None
    pin = right.pin_of(kept)
    assert pin is not None and pin.candidate == 2 and np.array_equal(pin.w, face_w(1))
    assert (left.end_clip().added, right.end_clip().added) == (1, 0)


def test_each_program_sees_and_keeps_what_the_other_wrote(path: Path) -> None:
    left, right = open_book(path), open_book(path)
    a, b = meet(left, 1), meet(right, 2)
    assert left.find(somebody(2), COHORT) == b and right.find(somebody(1), COHORT) == a
    left.learn(a, somebody(1), 2.0)
    right.learn(a, somebody(1), 3.0)
    left.end_clip()
    right.end_clip()
    stored = {person.id: person for person in open_book(path).people}
    assert set(stored) == {a, b} and stored[a].weight == 5.0 and stored[a].clips == 2


def test_who_is_forgotten_while_a_clip_runs_stays_forgotten(path: Path) -> None:
    book, other = open_book(path), open_book(path)
    me = meet(book, 1)
    other.find(somebody(1), COHORT)
    other._file.change(lambda people: [])
    book.learn(me, somebody(1), 2.0)
    book.end_clip()
    assert book.people == () and book.pin_of(me) is None and book.find(somebody(1), COHORT) is None


def test_imported_people_do_not_touch_those_who_are_there() -> None:
    people = (entry(1), entry(2))
    twin = entry(9)
    twin.total[:] = alike(somebody(2), 0.8)
    both = merged(people, (entry(1), twin, entry(3)), COHORT)
    assert [person.id for person in both] == [entry(n).id for n in (1, 2, 3)]
    assert all(same(a, b) for a, b in zip(both, people, strict=False))
    assert [p.id for p in merged(both, both, COHORT)] == [p.id for p in both]
