"""`keyface evaluate images` from end to end, on generated people."""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
from generated_people import write_people

from keyface.pipeline.people.key import Key
from keyface.tools.main import main


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    with Key(bytes(range(32))) as key:
        key.save(tmp_path / "me.key")
    return tmp_path / "me.key"


def folder_of_noise(folder: Path) -> Path:
    for name in ("a", "b"):
        for n in range(2):
            path = folder / name / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((32, 32, 3), 90, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--jobs", "0"], "want 1 or more"),
        (["--people", "1"], "--people: got 1, want 2 or more"),
        (["--photos", "1"], "--photos: got 1, want 2 or more"),
        (["--split", "test"], "people of the test part with 2 photos"),
        (["--out", "people/out"], "lies in the folder of photos"),
    ],
)
def test_bad_options_are_told(
    options: list[str],
    told: str,
    tmp_path: Path,
    key_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of_noise(tmp_path / "people")
    assert main(["evaluate", "images", "people", "--key-file", str(key_file), *options]) != 0
    assert told in capsys.readouterr().err


def test_a_folder_that_is_missing_is_told(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "images", str(tmp_path / "none"), "--key-file", str(key_file)]) != 0
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_people_from_photos_to_figures(
    models: object, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import jsonschema

    people, out = write_people(tmp_path / "people", [3, 5]), tmp_path / "out"
    command = ["evaluate", "images", str(people), "--key-file", str(key_file), "--out", str(out)]
    command += ["--photos", "2", "--extra", "0", "--jobs", "2", "--quiet"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    schema = json.loads((Path(str(files("keyface.configs"))) / "evaluate_images.schema.json").read_text())
    jsonschema.validate(told, schema)
    assert (told["photos"], told["people"]) == (4, 2)
    independent = [n for n, r in told["recognisers"].items() if not r["is_used_in_training"]]
    assert len(independent) >= 3
    assert told["picture"]["replaced_rate"]["value"] == 1.0
    assert told["picture"]["detection_rate"]["value"] == 1.0
    for name in independent:
        assert told["recognisers"][name]["figures"]["anonymity"]["count"] == 8
    assert set(told["frechet"]["shared"]) == {"features", "features_192"}
    assert {p.name for p in (out / "pictures").iterdir()} >= {"faces-1.jpg"}
    assert "# Evaluation on photos of people" in (out / "figures.md").read_text()

    # The second run makes nothing anew and says the same.
    before = {p: p.stat().st_mtime_ns for p in (out / "faces").rglob("*.jpg")}
    assert len(before) == 8
    began = time.monotonic()
    assert main([*command, "--json", "--no-pictures"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert {p: p.stat().st_mtime_ns for p in (out / "faces").rglob("*.jpg")} == before
    assert time.monotonic() - began < 300
    assert main([*command, "--strict"]) in (0, 1)
