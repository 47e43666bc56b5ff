"""`keyface models`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from keyface.configs.errors import ModelStoreError
from keyface.tools.main import main
from keyface.tools.pull_bars import PullBars


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache" / "models"
    monkeypatch.setenv("KEYFACE_MODEL_DIR", str(root))
    return root


def test_models_list_where_and_licences(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "yunet" in capsys.readouterr().out
    assert main(["models", "list", "--json", "evaluate"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["group"] for row in rows} == {"evaluate"} and {row["state"] for row in rows} == {"missing"}
    assert main(["models", "where"]) == 0
    assert capsys.readouterr().out.strip() == str(empty_cache)
    assert main(["models", "where", "yunet"]) == 0
    assert capsys.readouterr().out.strip().endswith("face_detection_yunet_2023mar.onnx")
    assert main(["models", "licences"]) == 0
    assert "NON-COMMERCIAL" in capsys.readouterr().out
    assert main(["models", "licences", "sface"]) == 0
    assert capsys.readouterr().out.startswith("# SFace")
    assert not empty_cache.exists()


def test_models_verify_says_what_is_missing(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify"]) == ModelStoreError.exit_code
    assert "Run 'keyface models pull'" in capsys.readouterr().out
    assert main(["models", "verify", "--json"]) == ModelStoreError.exit_code
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_models_pull_tells_bad_names_and_folders(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "pull", "nonsense"]) == ModelStoreError.exit_code
    assert "no model is called 'nonsense'" in capsys.readouterr().err
    assert main(["models", "pull", "--from", str(empty_cache / "no")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_models_pull_from_a_folder(
    empty_cache: Path, tmp_path: Path, models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    (folder / "face_landmarker_v2_with_blendshapes.task").write_bytes(
        models.path("face_landmarker").read_bytes()
    )
    assert main(["models", "pull", "face_mesh", "face_blendshapes", "--from", str(folder)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("2 models, 4 MB, verified in") and "verified" not in output.err


def test_the_default_group_is_in_order(models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(models.verify("default").values()) == {"ok"}
    assert main(["models", "verify", "default"]) == 0


def test_bars_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with PullBars() as bars:
        for done in (0, 5_000_000, 10_000_000):
            bars("sample 1.0", done, 10_000_000)
        bars("a", 7, 7)
        bars("b", 0, 0)
        bars("b", 9, 9)
    assert capsys.readouterr().err == "fetching sample 1.0 (10.0 MB)\nbuilding b\n"
    with PullBars(is_quiet=True) as bars:
        bars("sample 1.0", 0, 10)
    assert capsys.readouterr().err == ""


def test_bars_move_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with PullBars() as bars:
        bars("sample 1.0", 3_000_000, 10_000_000)
        bars("sample 1.0", 10_000_000, 10_000_000)
        bars("a", 7, 7)
    error = capsys.readouterr().err
    assert "sample 1.0: 100%" in error and "10.0M/10.0M" in error
