"""The file of an identity book: sealed, whole or untouched, and never two programs' work undone by each other."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from book_cases import SECRET, entry, same
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

from keyface.configs.errors import BookError, KeyFileError
from keyface.pipeline.people import book_file
from keyface.pipeline.people.book_file import (
    BookFile,
    entry_from_json,
    entry_to_json,
    open_book,
    seal_book,
    write_private,
)

HERE = Path("my.key.book")
PEOPLE = tuple(entry(number) for number in range(3))
SEALED = seal_book(PEOPLE, SECRET)
HEAD = b"keyface-book v1\n"


@pytest.fixture
def book(tmp_path: Path) -> BookFile:
    """A book with three people."""
    path = tmp_path / "my.key.book"
    path.write_bytes(SEALED)
    return BookFile(path, SECRET)


def test_what_was_sealed_is_opened_again() -> None:
    opened = open_book(HERE, SEALED, SECRET)
    assert len(opened) == 3 and all(same(a, b) for a, b in zip(opened, PEOPLE, strict=True))
    assert open_book(HERE, seal_book((), SECRET), SECRET) == ()


def test_nothing_can_be_read_without_the_key_and_no_two_files_are_alike() -> None:
    assert SEALED.startswith(HEAD) and b"people" not in SEALED and PEOPLE[0].id.encode() not in SEALED
    again = seal_book(PEOPLE, SECRET)
    assert len(again) == len(SEALED) and again[16:28] != SEALED[16:28] and again[28:60] != SEALED[28:60]


@settings(max_examples=examples(300))
@given(at=st.integers(0, len(SEALED) - 1), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    damaged = bytearray(SEALED)
    damaged[at] ^= change
    with pytest.raises(BookError):
        open_book(HERE, bytes(damaged), SECRET)


@settings(max_examples=examples(200))
@given(length=st.integers(0, len(SEALED) - 1), more=st.binary(max_size=40))
def test_a_cut_or_lengthened_file_is_noticed(length: int, more: bytes) -> None:
    for data in (SEALED[:length], SEALED + more + b"x"):
        with pytest.raises(BookError):
            open_book(HERE, data, SECRET)


@settings(max_examples=examples(200))
@given(data=st.binary(max_size=200))
def test_no_other_content_is_taken_for_a_book(data: bytes) -> None:
    for content in (data, HEAD + data):
        with pytest.raises(BookError):
            open_book(HERE, content, SECRET)


@settings(max_examples=examples(30))
@given(secret=st.binary(min_size=32, max_size=32).filter(lambda secret: secret != SECRET))
def test_another_key_does_not_open_it(secret: bytes) -> None:
    with pytest.raises(BookError, match="another key, or it is damaged"):
        open_book(HERE, SEALED, secret)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"0123456789abcdef" * 10, "no identity book"),
        (b"keyface-book v2\n" + SEALED[16:], "version '2'"),
        (HEAD, "does not open"),
        (SEALED[:40], "does not open"),
    ],
)
def test_errors_say_what_it_is(data: bytes, problem: str) -> None:
    with pytest.raises(BookError, match=problem) as caught:
        open_book(HERE, data, SECRET)
    assert "my.key.book" in caught.value.problem and caught.value.way_out
    assert isinstance(caught.value, KeyFileError) and caught.value.exit_code == 3


BAD_ROWS: list[Callable[[dict[str, object]], object]] = [
    lambda row: row.pop("w"),
    lambda row: row.update(w="%%%"),
    lambda row: row.update(w=row["total"]),
    lambda row: row.update(total=entry_to_json(replace(PEOPLE[0], total=np.zeros(128, np.float32)))["total"]),
    lambda row: row.update(made_from=entry_to_json(replace(PEOPLE[0], made_from=np.full(128, np.nan)))["made_from"]),
    lambda row: row.update(id="../x"),
    lambda row: row.update(candidate=-1),
    lambda row: row.update(weight=0),
    lambda row: row.update(weight=float("inf")),
    lambda row: row.update(first_day="yesterday"),
    lambda row: row.update(last_day=20260301),
    lambda row: row.update(clips=None),
]  # fmt: skip


@pytest.mark.parametrize("spoil", BAD_ROWS)
def test_well_sealed_nonsense_is_refused(spoil: Callable[[dict[str, object]], object]) -> None:
    row = entry_to_json(PEOPLE[0])
    assert same(entry_from_json(row), PEOPLE[0])
    spoil(row)
    plain = json.dumps({"people": [row]}).encode()
    sealed = HEAD + bytes(12) + ChaCha20Poly1305(SECRET).encrypt(bytes(12), plain, HEAD)
    with pytest.raises(BookError, match="cannot read"):
        open_book(HERE, sealed, SECRET)


def test_a_book_that_is_full_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_file, "MOST_PEOPLE", 2)
    with pytest.raises(BookError, match=r"full.* 2 people"):
        seal_book(PEOPLE, SECRET)


# On the disk.


def test_a_change_is_written_for_its_owner_alone(book: BookFile) -> None:
    os.chmod(book.path, 0o644)
    before = book.stamp()
    book.change(lambda people: [*people[1:], entry(7)])
    assert [person.id for person in book.read()] == [entry(n).id for n in (1, 2, 7)]
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600 and book.stamp() != before
    assert sorted(p.name for p in book.path.parent.iterdir()) == ["my.key.book", "my.key.book.lock"]


def test_who_is_forgotten_is_not_in_the_file_any_more(book: BookFile) -> None:
    size = book.path.stat().st_size
    book.change(lambda people: people[:1])
    assert book.path.stat().st_size < size / 2
    assert [person.id for person in book.read()] == [PEOPLE[0].id]


def test_a_change_that_changes_nothing_writes_nothing(book: BookFile) -> None:
    before = book.stamp()
    book.change(lambda people: list(people))
    assert book.stamp() == before


def test_links_lead_to_the_book_itself(book: BookFile, tmp_path: Path) -> None:
    link = tmp_path / "link.book"
    link.symlink_to(book.path)
    BookFile(link, SECRET).change(lambda people: people[:1])
    assert link.is_symlink() and len(book.read()) == 1


def test_a_failing_update_leaves_everything_as_it_was(book: BookFile) -> None:
    def fail(people: object) -> tuple[()]:
        raise BookError("No.")

    with pytest.raises(BookError, match="No"):
        book.change(fail)
    assert book.path.read_bytes() == SEALED


def test_a_missing_book_is_an_error_and_not_a_new_one(tmp_path: Path) -> None:
    book = BookFile(tmp_path / "none.book", SECRET)
    for attempt in (book.read, lambda: book.change(lambda people: [entry(1)])):
        with pytest.raises(BookError, match="does not exist"):
            attempt()
    assert not book.exists()
    book.make()
    assert book.read() == ()
    with pytest.raises(BookError, match="exists already"):
        book.make()


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="cannot be read"):
        BookFile(tmp_path, SECRET).read()
    with pytest.raises(BookError, match="cannot be written"):
        BookFile(tmp_path / "no" / "such.book", SECRET).make()


def test_exports_never_replace_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.book"
    write_private(path, b"1")
    with pytest.raises(BookError, match="already exists"):
        write_private(path, b"2")
    assert path.read_bytes() == b"1" and stat.S_IMODE(path.stat().st_mode) == 0o600
    write_private(path, b"2", may_replace=True)
    assert path.read_bytes() == b"2"


# Killed, and many at once.

_PRELUDE = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from book_cases import SECRET, entry
from keyface.pipeline.people import book_file
book = book_file.BookFile(Path(sys.argv[1]), SECRET)
"""


def start(book: BookFile, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    return subprocess.Popen([sys.executable, "-c", _PRELUDE + code, str(book.path), here, *arguments])


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_program_killed_while_it_writes_leaves_the_old_book(book: BookFile, step: str) -> None:
    code = f"""
book_file.os.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
book.change(lambda people: [*people, entry(8)])
"""
    assert start(book, code).wait(60) == -9
    assert book.path.read_bytes() == SEALED
    left = [p.name for p in book.path.parent.iterdir() if p.name.endswith(".part")]
    assert len(left) == 1, "what was under way when it was killed"
    book.change(lambda people: [*people, entry(9)])  # the lock died with its holder
    assert [person.id for person in book.read()][3:] == [entry(9).id]
    assert not [p for p in book.path.parent.iterdir() if p.name.endswith(".part")]


def test_programs_that_write_at_once_lose_nothing(book: BookFile) -> None:
    code = """
first = int(sys.argv[3])
for number in range(first, first + 6):
    book.change(lambda people: [*people, entry(number)])
"""
    programs = [start(book, code, str(first)) for first in (100, 200, 300)]
    assert [program.wait(120) for program in programs] == [0, 0, 0]
    want = {entry(n).id for n in (0, 1, 2, *range(100, 106), *range(200, 206), *range(300, 306))}
    assert {person.id for person in book.read()} == want


def test_a_held_book_is_waited_for_and_then_given_up(book: BookFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_file, "_LOCK_TIMEOUT_S", 0.2)
    lock = book.path.with_name("my.key.book.lock")
    with book_file.file_lock(lock, timeout_s=1.0), pytest.raises(BookError, match="another program"):
        book.change(lambda people: people[:1])
    assert len(book.read()) == 3
