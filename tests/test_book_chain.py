"""The book inside the chain: people of a clip, and who stands in for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from book_cases import COHORT, alike, face_w, key, somebody
from fake_puppet import Basis, People, Script, World

from keyface.configs.errors import BookError
from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame
from keyface.pipeline.people.book import IdentityBook, Pin
from keyface.pipeline.people.identity import Identities, IdentityOptions
from keyface.pipeline.reenact.reenactor import Reenactor

MakeMesh = Callable[..., Any]
PIN = Pin(5, face_w(1))


class Eye:
    """The recogniser: answers with what the test says."""

    def __init__(self) -> None:
        self.sees = somebody(1)

    def embed(self, image_rgb: np.ndarray, points_5: np.ndarray) -> np.ndarray:
        return self.sees

    def close(self) -> None:
        pass


@pytest.fixture
def eye() -> Eye:
    return Eye()


@pytest.fixture
def book(tmp_path: Path) -> IdentityBook:
    return IdentityBook(tmp_path / "my.key.book", key(), remembers=True)


@pytest.fixture
def clip(eye: Eye, book: IdentityBook, mesh_at: MakeMesh) -> Callable[..., Identities]:
    """`clip({0: embedding, 1: ...}, n=4, yaw=0)`: the people of a clip with these tracks."""

    def make(tracks: dict[int, np.ndarray], *, n: int = 4, yaw: float = 0.0, book: Any = book) -> Identities:
        options = IdentityOptions(interval_s=0.0)
        people = Identities(lambda: eye, options, book=book, cohort=COHORT)  # type: ignore[arg-type, return-value]
        people.open()
        box = np.array([10, 10, 90, 110], np.float32)
        mesh = replace(mesh_at(box), pose_ypr_deg=np.array([yaw, 0, 0], np.float32))
        for track_id, eye.sees in tracks.items():
            for index in range(n):
                frame = Frame(np.zeros((4, 4, 3), np.uint8), index, 0.1 * (10 * track_id + index))
                people.observe(frame, Face(track_id, box, None, 0.9, False, mesh))
        return people

    return make


def number_of(people: Identities, track_id: int = 0) -> int:
    number = people.person_of(track_id)
    assert number is not None
    return number


def test_somebody_seen_before_has_the_same_stand_in_in_the_next_clip(
    clip: Callable[..., Identities], book: IdentityBook
) -> None:
    first = clip({0: somebody(1)})
    assert first.pin_of(number_of(first)) is None
    assert first.keep(number_of(first), PIN).candidate == 5
    first.teach_book()
    assert book.end_clip().added == 1
    second = clip({0: somebody(2), 1: alike(somebody(1), 0.8)})
    assert second.pin_of(number_of(second)) is None
    pin = second.pin_of(number_of(second, 1))
    assert pin is not None and pin.candidate == 5 and np.array_equal(pin.w, PIN.w)
    assert book.people[0].weight == pytest.approx(4.0) and book.people[0].clips == 1


def test_two_tracks_of_one_person_in_the_book_are_one_person(clip: Callable[..., Identities]) -> None:
    first = clip({0: somebody(1)})
    first.keep(number_of(first), PIN)
    looks = {0: alike(somebody(1), 0.72, 1), 1: alike(somebody(1), 0.72, 2)}
    assert float(looks[0] @ looks[1]) < IdentityOptions().same_person
    second = clip(looks)
    assert number_of(second, 0) == number_of(second, 1)


def test_who_was_seen_badly_only_is_not_stored(clip: Callable[..., Identities], book: IdentityBook) -> None:
    people = clip({0: somebody(1)}, yaw=50.0)
    assert people.keep(number_of(people), PIN) is PIN
    people.teach_book()
    report = book.end_clip()
    assert (report.added, report.passed_by) == (0, 1) and book.people == ()


def test_bad_looks_teach_nothing_about_somebody_known(
    clip: Callable[..., Identities], book: IdentityBook
) -> None:
    first = clip({0: somebody(1)})
    first.keep(number_of(first), PIN)
    first.teach_book()
    book.end_clip()
    second = clip({0: somebody(1)}, yaw=50.0)
    assert second.pin_of(number_of(second)) is not None, "known all the same"
    second.teach_book()
    book.end_clip()
    assert book.people[0].weight == pytest.approx(4.0)


def test_a_track_that_changes_hands_teaches_nothing(
    clip: Callable[..., Identities], book: IdentityBook, eye: Eye, mesh_at: MakeMesh
) -> None:
    people = clip({0: somebody(1)}, n=2)
    people.keep(number_of(people), PIN)
    mesh = mesh_at((10, 10, 90, 110))
    eye.sees = somebody(2)
    for index in range(6):
        frame = Frame(np.zeros((4, 4, 3), np.uint8), 5 + index, 1.0 + index)
        people.observe(frame, Face(0, np.array([10, 10, 90, 110], np.float32), None, 0.9, False, mesh))
    people.teach_book()
    book.end_clip()
    assert book.people[0].clips == 0 and np.allclose(book.people[0].average, somebody(1), atol=1e-6)


def test_another_key_leaves_the_book(clip: Callable[..., Identities], book: IdentityBook) -> None:
    people = clip({0: somebody(1), 1: somebody(2)})
    people.keep(number_of(people), PIN)
    people.leave_book()
    assert people.pin_of(number_of(people)) is None
    people.keep(number_of(people, 1), PIN)
    people.teach_book()
    book.end_clip()
    assert len(book.people) == 1 and book.people[0].clips == 1, (
        "what came before is learnt, what came after is not"
    )


def test_a_book_that_cannot_be_written_is_told_and_keeps_nobody(
    clip: Callable[..., Identities], book: IdentityBook
) -> None:
    people = clip({0: somebody(1)})
    number = number_of(people)
    book.path.unlink()
    with pytest.raises(BookError, match="does not exist"):
        people.keep(number, PIN)
    assert people.pin_of(number) is None and book.end_clip().problem


def test_without_a_book_the_choice_is_held_for_the_run(clip: Callable[..., Identities]) -> None:
    people = clip({0: somebody(1)}, book=None)
    people.keep(number_of(people), PIN)
    assert people.pin_of(number_of(people)) is PIN
    with pytest.raises(ValueError, match="no cohort"):
        Identities(Eye, book=object())  # type: ignore[arg-type]


# Who stands in.


@pytest.fixture
def world(mesh_at: MakeMesh) -> World:
    return World(mesh_at((14, 16, 50, 54)))


@pytest.fixture
def play(world: World, mesh_at: MakeMesh) -> Callable[[], list[str]]:
    """One frame with one face through a reenactor of the world: the reasons for mosaics."""

    def run() -> list[str]:
        people: Any = People(world)
        reenactor = Reenactor(world.open_engines, Script(), Basis(), people, people)  # type: ignore[arg-type]
        reenactor.open()
        world.forget()
        box = np.array([100, 80, 172, 156], np.float32)
        face = Face(0, box, None, 0.9, False, mesh_at(box))
        out = reenactor.process(AnalysedFrame(Frame(np.zeros((200, 300, 3), np.uint8), 0, 0.0), (face,)))
        return [redaction.reason for redaction in out.must_redact]

    return run


def pin(candidate: int) -> Pin:
    """As `People.w` makes them."""
    return Pin(candidate, np.full(512, candidate, np.float32))


def test_a_choice_is_kept(world: World, play: Callable[[], list[str]]) -> None:
    world.similarity = (0.5, 0.5, *(0.0,) * 10)
    assert play() == [] and world.kept == [(0, 2)]


def test_who_is_pinned_is_not_chosen_again(world: World, play: Callable[[], list[str]]) -> None:
    world.similarity = (0.0,) * 9 + (0.2,) * 3  # likeness 2.0: nobody would choose 9, and he may stay
    world.pins[0] = pin(9)
    assert play() == [] and set(world.candidates) == {9} and world.kept == world.refused == []


def test_who_is_pinned_and_too_alike_now_is_mosaicked_and_nobody_takes_his_place(
    world: World, play: Callable[[], list[str]]
) -> None:
    world.similarity = (0.0,) * 9 + (0.4,) * 3
    world.pins[0] = pin(9)
    assert play() == ["too_alike"] and set(world.candidates) == {9} and world.refused == [0]


def test_the_one_stored_by_another_program_counts(world: World, play: Callable[[], list[str]]) -> None:
    world.stored_meanwhile = pin(7)
    assert play() == [] and world.kept == [(0, 0)] and world.candidates[-1] == 7
    world.similarity = (0.0,) * 7 + (0.9,) * 5
    assert play() == ["too_alike"]


def test_a_choice_that_cannot_be_kept_is_not_shown(world: World, play: Callable[[], list[str]]) -> None:
    world.book_problem = "The disk is full."
    assert play() == ["reenactment_failed"]
