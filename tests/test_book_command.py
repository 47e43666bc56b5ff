"""`keyface book`, and how other commands open a book."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from book_cases import SECRET, entry, same

from keyface.pipeline.people.book_file import PURPOSE, BookFile, open_book, seal_book
from keyface.pipeline.people.key import Key
from keyface.tools.main import main

PEOPLE = [entry(1, day="2026-01-10"), entry(2, day="2026-02-10", clips=4), entry(3, day="2026-03-10")]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key(SECRET).save(path)
    (tmp_path / "my.key.book").write_bytes(seal_book(PEOPLE, derived(path)))
    return path


def derived(key: Path) -> bytes:
    with Key.load(key) as opened:
        return opened.derive(PURPOSE, 32)


def people(key: Path, book: Path | None = None) -> list[str]:
    return [person.id for person in BookFile(book or Path(f"{key}.book"), derived(key)).read()]


def ask(capsys: pytest.CaptureFixture[str], *command: object, code: int = 0) -> tuple[Any, str]:
    """JSON on standard output (None if there is none) and what standard error says."""
    capsys.readouterr()
    assert main([str(word) for word in command]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out.startswith("{") else None), err


def test_list_shows_days_and_clips_and_no_embedding(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, _ = ask(capsys, "book", "list", key, "--json")
    assert [row["id"] for row in answer["people"]] == [person.id for person in PEOPLE]
    assert answer["people"][1]["clips"] == 4 and answer["people"][1]["last_day"] == "2026-02-10"
    assert set(answer["people"][0]) == {"id", "first_day", "last_day", "clips", "candidate", "looks"}
    assert main(["book", "list", str(key)]) == 0
    out = capsys.readouterr().out
    assert PEOPLE[2].id in out and "2026-03-10" in out and "3 people" in out


@pytest.mark.parametrize(
    ("how", "left"),
    [
        (["00000002"], (1, 3)),
        (["00000001", "00000003"], (2,)),
        (["--all"], ()),
        (["--before", "2026-02-11"], (3,)),
    ],
)
def test_forget(key: Path, how: list[str], left: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    answer, _ = ask(capsys, "book", "forget", key, *how, "--json")
    assert people(key) == [entry(n).id for n in left] and answer["left"] == len(left)
    assert len(answer["forgotten"]) == 3 - len(left)


@pytest.mark.parametrize("how", [[], ["00000002", "--all"], ["00000002", "deadbeef"], ["--before", "May"]])
def test_forget_wants_to_know_whom(key: Path, how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(f"{key}.book").read_bytes()
    _, err = ask(capsys, "book", "forget", key, *how, code=2)
    assert err.startswith("keyface: ") and Path(f"{key}.book").read_bytes() == before


def test_an_export_is_encrypted_and_comes_back(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.book"
    answer, err = ask(capsys, "book", "export", key, "-o", out, "--person", "00000002", "--json")
    assert answer["exported"] == 1 and answer["encrypted"] and err == ""
    (person,) = open_book(out, out.read_bytes(), derived(key))
    assert same(person, PEOPLE[1]) and stat.S_IMODE(out.stat().st_mode) == 0o600
    ask(capsys, "book", "forget", key, "--all")
    answer, _ = ask(capsys, "book", "import", key, out, "--json")
    assert (answer["added"], answer["known"]) == (1, 0) and people(key) == ["00000002"]
    answer, _ = ask(capsys, "book", "import", key, out, "--json")
    assert (answer["added"], answer["known"]) == (0, 1) and people(key) == ["00000002"]
    _, err = ask(capsys, "book", "export", key, "-o", out, code=3)
    assert "already exists" in err


def test_a_plain_export_is_warned_of(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people.json"
    answer, err = ask(capsys, "book", "export", key, "-o", out, "--plain", "--json")
    assert "not encrypted" in err and not answer["encrypted"]
    assert [row["id"] for row in json.loads(out.read_text())["people"]] == [person.id for person in PEOPLE]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_people_can_be_taken_over_to_another_key(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, out = tmp_path / "new.key", tmp_path / "moved.book"
    Key(bytes(range(1, 33))).save(new)
    _, err = ask(capsys, "book", "export", key, "-o", out, "--for", new)
    assert "link" in err
    _, err = ask(capsys, "book", "import", key, out, code=3)
    assert "another key" in err
    ask(capsys, "book", "import", new, out)
    moved = BookFile(tmp_path / "new.key.book", derived(new)).read()
    assert all(same(a, b) for a, b in zip(moved, PEOPLE, strict=True))
    _, err = ask(capsys, "book", "export", key, "-o", out, "--for", new, "--plain", "--force", code=2)
    assert "exclude" in err


def test_the_book_is_not_its_own_export(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = ask(capsys, "book", "export", key, "-o", f"{key}.book", "--force", code=2)
    assert "the book itself" in err and len(people(key)) == 3


@pytest.mark.parametrize("action", ["list", "forget", "export", "import"])
def test_help_is_complete(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["book", "--help"], ["book", action, "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "biometric" in out and action in out


# A book that does not open stops everything before it starts.


@pytest.mark.parametrize("more", [["--book"], ["--remember"], ["--book", "other.book", "--remember"]])
@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "other key"])
def test_nothing_runs_with_a_book_that_does_not_open(
    key: Path, tmp_path: Path, spoil: str, more: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    book = tmp_path / ("other.book" if "other.book" in more else "my.key.book")
    whole = seal_book(PEOPLE, bytes(32) if spoil == "other key" else derived(key))
    book.write_bytes(
        {"cut": whole[:-9], "empty": b"", "flip": whole[:99] + b"~~" + whole[101:]}.get(spoil, whole)
    )
    before = book.read_bytes()
    photo, out = tmp_path / "in.png", tmp_path / "out.png"
    photo.write_bytes(b"not even read")
    _, err = ask(capsys, "process", photo, "-o", out, "--key-file", key, *more, code=3)
    assert "book" in err and not out.exists() and book.read_bytes() == before
    _, err = ask(capsys, "stream", "--source", "test", "--sink", "null", "--key-file", key, *more, code=3)
    assert "book" in err and book.read_bytes() == before


def test_a_book_needs_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--book"], ["--remember"]):
        command = ["process", tmp_path / "a.png", "-o", tmp_path / "b.png", "--redact-only", *more]
        _, err = ask(capsys, *command, code=2)
        assert "needs a key" in err


def test_a_missing_book_is_an_error_unless_people_are_to_be_remembered(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["process", tmp_path / "no.png", "-o", tmp_path / "b.png", "--key-file", key]
    _, err = ask(capsys, *command, f"--book={tmp_path / 'x.book'}", code=3)
    assert "does not exist" in err and not (tmp_path / "x.book").exists()


def test_a_book_that_is_not_used_is_mentioned(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["process", tmp_path / "no.png", "-o", tmp_path / "b.png", "--key-file", key]
    _, err = ask(capsys, *command, code=6)
    assert "is not used" in err
