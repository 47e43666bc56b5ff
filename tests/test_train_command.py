"""`keyface train`: every step runs on tiny settings, goes on where it stopped, and says what is missing."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from training_cases import generated_face

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.face import FaceMesh
from keyface.tools import train_controls
from keyface.tools.main import main

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="training code needs PyTorch: pip install 'keyface[train]'",
)


def train(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """Runs a step, quietly, on one thread; its summary."""
    assert main(["train", *map(str, words), "--threads", "1", "--quiet", "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", ["head", "motion"])
def test_without_torch_one_sentence_says_what_to_do(
    step: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else real(name, *more)
    )
    assert main(["train", step]) == 5
    assert capsys.readouterr().err == (
        f"keyface: 'keyface train {step}' needs PyTorch, which is not installed. "
        "Install it: pip install 'keyface[train]'\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["samples", "--count", "0"], "--count: got 0, want 1 or more."),
        (["samples", "--seconds", "0"], "--seconds: got 0, want more than 0."),
        (["controls", "--data", "nowhere"], "'nowhere' does not exist."),
        (["controls", "--data", "."], "There is no photo and no clip in the folders given."),
        (["identity"], "cannot be read as controls"),
        (["identity", "--labels", "none.toml"], "none.toml is no file of labels"),
    ],
)
def test_bad_options_are_refused(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


@needs_torch
@pytest.mark.parametrize("step", ["head", "motion"])
def test_training_without_its_data_says_how_to_make_them(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", step]) == 2
    assert "keyface train " in capsys.readouterr().err


class StandIn:
    """Stands for detector and landmarker: one face, whose yaw is the picture's mean."""

    def __init__(self) -> None:
        self.n_found = self.n_followed = 0

    def detect(self, image_rgb: Any, *, previous: FaceMesh | None = None, **hints: Any) -> Any:
        from keyface.pipeline.face import Detection

        if not hints and previous is None:
            self.n_found += 1
            return [Detection(np.array([0, 0, 9, 9], np.float32), np.zeros((5, 2), np.float32), 0.9)]
        self.n_followed += previous is not None
        score = 0.2 if image_rgb.mean() < 10 else 0.9
        pose = np.array([image_rgb.mean(), 1, 2], np.float32)
        return FaceMesh(np.zeros((478, 3), np.float32), np.full(52, 0.25, np.float32), pose, score)

    def detect_near(self, *args: Any, **more: Any) -> Any:
        raise AssertionError("not asked for")

    def close(self) -> None: ...


def write_grey(path: Path, level: int) -> None:
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(path)


def test_controls_are_numbers_of_pose_and_expression_only(tmp_path: Path, make_clip: Any) -> None:
    data = tmp_path / "data"
    make_clip("b.mp4", n_frames=9, folder=data / "sub")
    for name, level in (("z.png", 40), ("a.jpg", 80), ("dark.png", 2)):
        write_grey(data / name, level)
    (data / "broken.jpg").write_bytes(b"no photo")
    (data / "notes.txt").write_text("left alone")
    sources = train_controls.list_sources([data])
    assert [p.name for p in sources] == ["a.jpg", "broken.jpg", "dark.png", "z.png", "b.mp4"]
    eye, out, errors = StandIn(), tmp_path / "c.npy", list[SourceError]()
    reader = train_controls.ControlReader(eye, eye)
    done, n_rows = train_controls.read_controls(sources, out, reader, on_unreadable=errors.append)
    rows = train_controls.load_controls(out)
    assert (done, n_rows, rows.shape) == (5, 7, (7, 56)) and len(errors) == 1
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1], "two photos, every second of nine frames"
    assert rows[1, 1] == 40 and (rows[:, 4:] == 0.25).all()
    assert eye.n_followed == 4, "within a clip the face is followed"


def test_controls_go_on_where_they_stopped(tmp_path: Path) -> None:
    for i in range(5):
        write_grey(tmp_path / f"{i}.png", 50 + i)
    sources, out = train_controls.list_sources([tmp_path]), tmp_path / "c.npy"
    eye = StandIn()
    reader = train_controls.ControlReader(eye, eye)
    assert train_controls.read_controls(sources[:2], out, reader) == (2, 2)
    assert train_controls.read_controls(sources, out, reader, seconds=0) == (2, 2)
    assert train_controls.read_controls(sources, out, reader) == (5, 5)
    assert eye.n_found == 5, "no file was read twice"
    assert train_controls.load_controls(out)[:, 1].tolist() == [50, 51, 52, 53, 54]


@pytest.mark.parametrize("shape", [(0, 56), (3, 55), (56,)])
def test_foreign_controls_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "c.npy"
    np.save(path, np.zeros(shape, np.float32))
    with pytest.raises(UsageError, match="Make it: keyface train controls"):
        train_controls.load_controls(path)


@pytest.fixture
def small_population(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of 600 draws in the place of 20,000."""
    from keyface.models import population

    monkeypatch.setattr(population, "measure_population", partial(population.measure_population, n=600))


@needs_torch
def test_every_step_runs_on_tiny_settings(
    models: Any,
    small_population: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The documented order of commands, with few samples, a step or two and no compiler; later calls go on.

    The files made have the names, shapes and precision of those that the package carries.
    """
    from keyface.models import train_head

    monkeypatch.setattr(train_head, "N_HELD_OUT", 2)
    made, photos, controls = tmp_path / "samples", tmp_path / "photos", tmp_path / "controls.npy"
    assert train(capsys, "samples", "--out", made, "--count", "5")["samples"] == 5
    assert train(capsys, "samples", "--out", made, "--count", "10")["samples"] == 10
    photos.mkdir()
    for seed in (3, 8):
        Image.fromarray(generated_face(models, seed)).save(photos / f"{seed}.png")
    assert train(capsys, "controls", "--data", photos, "--out", controls)["rows"] == 2

    small = ("--samples", made, "--no-compile")
    head, motion, identity = (tmp_path / f"{name}.safetensors" for name in ("head", "motion", "identity"))
    assert train(capsys, "head", *small, "--out", head, "--steps", "1")["steps"] == 1
    for steps in (1, 2):
        words = ("--controls", controls, "--head", head, "--people", "1", "--steps", str(steps))
        assert train(capsys, "motion", *small, *words, "--out", motion)["steps"] == steps
    tuned = tmp_path / "tuned.safetensors"
    words = (
        "--controls",
        controls,
        "--people",
        "1",
        "--steps",
        "1",
        "--start",
        motion,
        "--keyed",
        "1",
        "--rate",
        "0",
    )
    assert train(capsys, "motion", *small, *words, "--out", tuned)["steps"] == 1
    before, after = load_file(str(motion)), load_file(str(tuned))
    for (
        name,
        value,
    ) in before.items():  # at rate 0 nothing is learnt, but the guards round the basis once more
        off = np.linalg.norm(value.astype(np.float32) - after[name]) / max(np.linalg.norm(value), 1e-6)
        assert off < (0.05 if name == "basis" else 1e-6), name
    foreign = ("--samples", made, "--controls", controls, "--out", tmp_path / "x", "--start", head)
    assert main(["train", "motion", *map(str, foreign)]) == 2
    assert "holds no motion map" in capsys.readouterr().err

    labels = tmp_path / "labels.toml"
    labels.write_text("[sampler]\nseed = 7\nn_seen = 10\n[samples_with]\nhat = [1, 2]\ncap = [3]\n")
    rows = train_controls.load_controls(controls)
    rows[:, [1, 2, *range(4, 56)]] = 0.0  # two faces at rest
    np.save(controls, rows)
    words = ("--samples", made, "--controls", controls, "--labels", labels, "--out", identity)
    assert {"quality_hat", "quality_cap", "quality_cover"} <= train(capsys, "identity", *words).keys()

    for name, file in (("head256", head), ("motion_map", motion), ("identity_basis", identity)):
        ours, carried = load_file(str(file)), load_file(str(models.path(name)))
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
            k: (v.shape, v.dtype) for k, v in carried.items()
        }
        assert all(np.isfinite(v).all() for v in ours.values())


@needs_torch
def test_the_carried_labels_want_the_samples_that_they_are_about(
    models: Any, small_population: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(capsys, "samples", "--out", tmp_path, "--count", "2")
    np.save(tmp_path / "c.npy", np.zeros((2, 56), np.float32))
    assert main(["train", "identity", "--samples", str(tmp_path), "--controls", str(tmp_path / "c.npy")]) == 2
    assert "The labels are about 900 samples of seed 7" in capsys.readouterr().err
