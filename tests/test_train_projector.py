"""`keyface train projector` from photos to weights, on people who do not exist and with little of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs PyTorch: pip install 'keyface[train]'")

from keyface.configs.errors import UsageError
from keyface.configs.people_split import people_of, split_of
from keyface.models import rendered_people
from keyface.pipeline.people.projector import Projector
from keyface.tools.main import main
from keyface.tools.train_photos import PARTS, list_photos

NAMES = [f"person_{i:02}" for i in range(60)]
CAST = people_of("train", NAMES)[:6] + people_of("validation", NAMES)[:3]
CONFIG = """n_code = 8
hidden = [16]
batch = 8
steps = 30
fine_steps = 1
fine_batch = 1

[weights]
anonymity = 0.5
contrast = 1.0
"""


@pytest.fixture(scope="module")
def people(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine generated people with two photos each."""
    import cv2

    from keyface.pipeline.assemble import open_portrait

    root = tmp_path_factory.mktemp("people")
    for number, name in enumerate(CAST):
        (root / name).mkdir()
        with open_portrait(models, number) as portrait:
            for yaw in (-8.0, 8.0):
                picture = portrait.render(np.array([yaw, 0, 0], np.float32), np.full(52, 0.05, np.float32))
                cv2.imwrite(str(root / name / f"{yaw:.0f}.png"), picture[..., ::-1])
    return root


def test_photos_are_listed_by_person_and_part(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        for file in ("2.jpg", "1.png", "note.txt"):
            (tmp_path / name / file).touch()
    listed = list_photos([tmp_path])
    assert [(p.path.name, p.person) for p in listed] == [
        ("1.png", 0),
        ("2.jpg", 0),
        ("1.png", 1),
        ("2.jpg", 1),
    ]
    assert [PARTS[p.part] for p in listed] == [split_of("a")] * 2 + [split_of("b")] * 2


def test_folders_without_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no photo"):
        list_photos([tmp_path])
    with pytest.raises(UsageError, match="is no folder"):
        list_photos([tmp_path / "missing"])


@pytest.mark.slow
def test_a_projector_is_trained_and_going_on_makes_nothing_again(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendered_people, "N_GUESSED_FROM", 30)
    monkeypatch.setattr(rendered_people, "SHARD", 20)
    monkeypatch.setattr("keyface.tools.train_projector.FIRST_STEPS", 5)
    config = tmp_path / "small.toml"
    config.write_text(CONFIG)
    work, out = tmp_path / "work", tmp_path / "p.safetensors"
    command = [
        "train", "projector", "--config", str(config), "--data", str(people), "--work", str(work),
        "--out", str(out), "--renders", "40", "--renders-again", "20", "--surrogate-steps", "20",
        "--threads", "1", "--no-compile", "--quiet", "--json",
    ]  # fmt: skip
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == {"surrogate": 30, "fine": 1} and summary["people"] == 3
    assert 0 <= summary["eer_b"] <= 1 and 0 < summary["rms"] < 1
    projector = Projector.load(out)
    assert projector.n_code == 8 and projector.n_axes == 128
    assert out.with_suffix(".png").stat().st_size > 1000
    made = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    names = {path.name for path in made}
    assert {"photos.npz", "guess.npz", "people-0001.npz", "pasted-0000.npz"} <= names
    with np.load(work / "photos.npz") as kept:
        assert set(kept.files) == {"embeddings", "about", "done"} and len(kept["embeddings"]) == 18
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["eer_b"] == summary["eer_b"]
    assert all(path.stat().st_mtime_ns == made[path] for path in made if path.name != "photos.npz")
