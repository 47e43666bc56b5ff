"""`keyface preview`: what a key makes of a face, other keys to choose from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from book_cases import SECRET
from PIL import Image
from real_chain import Likeness, open_looker, portraits

from keyface.pipeline.people.key import Key, is_locked
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(560)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key(SECRET).save(path)
    return path


@pytest.fixture(scope="module")
def people(models: Any) -> list[np.ndarray]:
    return portraits(models, (38, 2))


def save(picture: np.ndarray, path: Path) -> Path:
    Image.fromarray(picture).save(path)
    return path


def preview(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[Any, str]:
    capsys.readouterr()
    assert main(["preview", *(str(word) for word in words)]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return (json.loads(out) if out.startswith("{") else out), err


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--reroll", "99"], 2, "0 to 24"),
        (["--reroll", "2", "--save", "3", "new.key"], 2, "1 to 2"),
        (["--reroll", "2", "--save", "0", "new.key"], 2, "no proposal"),
        (["--save", "1", "new.key"], 2, "--reroll"),
        (["--passphrase"], 2, "--reroll"),
        (["--reroll", "2", "--save", "1", "my.key"], 3, "already exists"),
        (["--out", "sheet.gif"], 2, "picture"),
        (["--out", "there.png"], 2, "already exists"),
        (["--book"], 3, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    key: Path, tmp_path: Path, more: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"precious")
    photo = save(np.zeros((64, 64, 3), np.uint8), tmp_path / "me.png")
    _, err = preview(capsys, key, "--photo", photo, *more, code=code)
    assert says in err and not (tmp_path / "new.key").exists() and not (tmp_path / "preview.png").exists()
    assert (tmp_path / "there.png").read_bytes() == b"precious"


def test_a_wrong_key_and_a_missing_photo(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save(np.zeros((64, 64, 3), np.uint8), tmp_path / "me.png")
    out = tmp_path / "sheet.png"
    _, err = preview(capsys, tmp_path / "no.key", "--photo", photo, "-o", out, code=3)
    assert "does not exist" in err
    _, err = preview(capsys, key, "--photo", tmp_path / "no.jpg", "-o", out, code=6)
    assert "no.jpg" in err and not out.exists()


def test_a_photo_without_a_face(
    models: Any, key: Path, texture: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = save(texture((160, 160)), tmp_path / "wall.png")
    _, err = preview(capsys, key, "--photo", photo, "-o", tmp_path / "sheet.png", code=6)
    assert "No face" in err and not (tmp_path / "sheet.png").exists()


def test_a_sheet_shows_the_face_that_the_key_gives_and_not_the_original(
    models: Any, people: list[np.ndarray], key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out, processed = save(people[0], tmp_path / "me.png"), tmp_path / "sheet.png", tmp_path / "out.png"
    answer, _ = preview(capsys, key, "--photo", photo, "-o", out, "--json")
    (shown,) = answer["keys"]
    with Key.load(key) as opened:
        assert shown["fingerprint"] == opened.fingerprint and answer["saved"] is None
    (face,) = shown["faces"]
    assert face["mosaicked"] is None and face["candidate"] is not None
    assert main(["process", str(photo), "-o", str(processed), "--key-file", str(key), "--quiet"]) == 0
    with Image.open(out) as image, Image.open(processed) as result, open_looker(models) as looker:
        sheet, final = np.asarray(image.convert("RGB")), np.asarray(result.convert("RGB"))
        seen = looker.faces(sheet)
        assert len(seen) == 5, "pasted, at rest, turned twice, smiling"
        gallery = np.stack([one.embedding for one in looker.only(portraits(models, range(100, 104)))])
        (original,), (pasted,) = looker.faces(people[0]), looker.faces(final)
    likeness = Likeness(gallery)
    to_original = likeness.between(seen, [original] * 5)
    to_result = likeness.between(seen, [pasted] * 5)
    assert to_original.max() < 0.5 and to_result[0] > 0.8, (to_original, to_result)
    yaws = [float(one.mesh.pose_ypr_deg[0]) for one in seen]
    assert yaws[2] < yaws[1] - 12 and yaws[3] > yaws[1] + 12, yaws


def test_reroll_proposes_keys_and_saves_the_chosen_one_only(
    people: list[np.ndarray], key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "a secret")
    photo = save(np.hstack([people[0], people[1][::2, ::2].repeat(2, 0)[:, :128]]), tmp_path / "us.png")
    before = {path.name for path in tmp_path.iterdir()}
    words = [key, "--photo", photo, "-o", "s.png", "--reroll", "2", "--json"]
    answer, _ = preview(capsys, *words, "--save", "2", "new.key", "--passphrase")
    assert [shown["proposal"] for shown in answer["keys"]] == [0, 1, 2]
    fingerprints = [shown["fingerprint"] for shown in answer["keys"]]
    assert len(set(fingerprints)) == 3 and answer["saved"] == {"proposal": 2, "file": "new.key"}
    assert {path.name for path in tmp_path.iterdir()} - before == {"s.png", "new.key"}
    assert is_locked(tmp_path / "new.key")
    with Key.load(tmp_path / "new.key", "a secret") as saved:
        assert saved.fingerprint == fingerprints[2]
    again, _ = preview(capsys, *words, "--force")
    assert again["saved"] is None and again["keys"][1]["fingerprint"] not in fingerprints
