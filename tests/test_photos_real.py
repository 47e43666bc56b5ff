"""`keyface process` on photos with generated faces: size kept, nothing but pixels left, every face replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from real_chain import SAME_PERSON, Likeness, Looker, Seen, open_looker, portraits

from keyface.pipeline.people.key import Key
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(560)

PEOPLE = (38, 2, 5, 7)


@pytest.fixture(scope="module")
def looker(models: Any) -> Iterator[Looker]:
    with open_looker(models) as opened:
        yield opened


@pytest.fixture(scope="module")
def people(models: Any) -> list[np.ndarray]:
    """Four generated people, uint8 (256, 256, 3) each."""
    return portraits(models, PEOPLE)


@pytest.fixture(scope="module")
def likeness(models: Any, looker: Looker) -> Likeness:
    seen = looker.only(portraits(models, range(100, 108)))
    return Likeness(np.stack([one.embedding for one in seen]))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key(bytes(range(32))).save(path)
    return path


def process(
    source: Path, out: Path, key: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    """The summary of `keyface process`."""
    command = ["process", str(source), "-o", str(out), "--key-file", str(key), "--json", *more]
    capsys.readouterr()
    assert main(command) == 0, capsys.readouterr().err
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def save_with_metadata(path: Path, picture: np.ndarray, *, orientation: int = 1) -> None:
    """A JPEG as a telephone writes it: device, place, thumbnail."""
    image = Image.fromarray(picture)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Telephone"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    image.save(path, quality=95, exif=exif, comment=b"taken of me", subsampling=0)


def check_unlike(likeness: Likeness, before: list[Seen], after: list[Seen]) -> None:
    assert len(before) == len(after)
    similarity = likeness.between(before, after)
    assert np.median(similarity) < SAME_PERSON and similarity.max() < 0.5, similarity


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_portrait_keeps_its_size_and_loses_face_and_metadata(
    people: list[np.ndarray], looker: Looker, likeness: Likeness, key: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], orientation: int,
) -> None:  # fmt: skip
    source, out = tmp_path / "me.jpg", tmp_path / "nobody.jpg"
    upright = np.asarray(Image.fromarray(people[0]).resize((420, 420), Image.Resampling.LANCZOS))[:, 40:400]
    stored = upright if orientation == 1 else np.rot90(upright)  # 6: to be turned clockwise
    save_with_metadata(source, np.ascontiguousarray(stored), orientation=orientation)
    summary = process(source, out, key, capsys)
    assert (summary["faces"], summary["replaced"], summary["redacted_frames"]) == (1, 1, 0)
    with Image.open(out) as image:
        assert image.format == "JPEG" and image.size == (360, 420)
        assert not image.getexif() and "exif" not in image.info and "comment" not in image.info
    content = out.read_bytes()
    assert b"Telephone" not in content and b"taken of me" not in content and b"Exif" not in content
    check_unlike(likeness, looker.faces(upright), looker.faces(pixels(out)))
    edge = np.s_[:, :6]
    assert np.abs(pixels(out)[edge].astype(int) - upright[edge]).mean() < 4, "the background is as it was"


def test_everybody_in_a_group_photo_gets_another_face(
    people: list[np.ndarray], looker: Looker, likeness: Likeness, key: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    group = np.vstack([np.hstack(people[:2]), np.hstack(people[2:])])
    source, out = tmp_path / "us.png", tmp_path / "nobodies.png"
    Image.fromarray(group).save(source)
    summary = process(source, out, key, capsys)
    assert (summary["faces"], summary["replaced"], summary["redacted_frames"]) == (4, 4, 0)
    shown = pixels(out)
    assert shown.shape == group.shape
    seen = [looker.only([shown[y : y + 256, x : x + 256]])[0] for y in (0, 256) for x in (0, 256)]
    check_unlike(likeness, looker.only(people), seen)
    between = [likeness.between([seen[i]], [seen[j]])[0] for i in range(4) for j in range(i)]
    assert np.median(between) < SAME_PERSON, "four people, four virtual faces"


def test_the_largest_alone_gets_a_face_when_asked_for(
    people: list[np.ndarray], key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = np.asarray(Image.fromarray(people[1]).resize((128, 128)))
    both = np.full((256, 384, 3), 128, np.uint8)
    both[:, :256], both[:128, 256:] = people[0], small
    source = tmp_path / "two.png"
    Image.fromarray(both).save(source)
    summary = process(source, tmp_path / "out.png", key, capsys, "--faces", "largest")
    assert (summary["faces"], summary["replaced"], summary["redacted"]) == (2, 1, {"requested": 1})


def test_a_photo_without_a_face_stays_as_it_is_and_says_so(
    models: Any, texture: Any, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "wall.png", tmp_path / "same.png"
    Image.fromarray(texture((160, 120))).save(source)
    summary = process(source, out, key, capsys)
    assert (summary["faces"], summary["replaced"], summary["redacted_frames"]) == (0, 0, 0)
    assert np.array_equal(pixels(out), pixels(source))
    again = ["process", str(source), "-o", str(out), "--key-file", str(key), "--force"]
    assert main(again) == 0
    assert "no face" in capsys.readouterr().err


def test_a_photo_gets_the_same_face_each_time(
    people: list[np.ndarray], key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "me.png"
    Image.fromarray(people[3]).save(source)
    outs = [tmp_path / "a.png", tmp_path / "b.png"]
    for out in outs:
        process(source, out, key, capsys, "--preset", "exact", "--threads", "1")
    assert np.array_equal(pixels(outs[0]), pixels(outs[1]))
    assert not np.array_equal(pixels(outs[0]), people[3])
