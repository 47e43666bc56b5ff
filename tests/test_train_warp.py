"""`keyface train pairs`, `keypoints` and `warp`: what they read, refuse and write, on little of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="training needs PyTorch: pip install 'keyface[train]'")

import torch
from test_evaluate import write_clip

from keyface.configs.errors import UsageError
from keyface.models.warp_pairs import Pairs, View, load_pairs, make_pairs
from keyface.pipeline.face import BLENDSHAPE_NAMES
from keyface.pipeline.faces.canonical import CANONICAL_XYZ
from keyface.pipeline.faces.geometry import pose_from_mesh, rotation_from_ypr
from keyface.pipeline.reenact.keypoints import _SHAPES, KeypointModel
from keyface.tools import train_warp
from keyface.tools.main import main

F32 = npt.NDArray[np.float32]


def mesh(rng: np.random.Generator, yaw_deg: float) -> F32:
    """(478, 3) px of a 256 px crop: a canonical face of random width, turned."""
    xyz = np.concatenate([CANONICAL_XYZ, np.repeat(CANONICAL_XYZ[[159, 386]], 5, axis=0)])
    xyz = xyz * np.array([rng.uniform(0.9, 1.1), 1, 1])
    turned = xyz @ rotation_from_ypr(np.array([yaw_deg, 0, 0])).T * np.array([1.0, -1.0, -1.0])
    return (turned * 7.5 + np.array([128, 140, 0])).astype(np.float32)


def perform(number: int, views: int = 3) -> list[View | None]:
    """Noise with a mesh; the last view of person 1 shows no face."""
    rng = np.random.default_rng(number)
    found: list[View | None] = []
    for view in range(views):
        points = mesh(rng, 0.0 if view == 0 else rng.uniform(-20, 20))
        controls = np.concatenate([pose_from_mesh(points)[:2] / 30, rng.uniform(0, 0.4, 52)]).astype(
            np.float32
        )
        picture = rng.integers(0, 256, (256, 256, 3), np.uint8)
        found.append(View(picture, points, controls, pose_from_mesh(points)))
    if number == 1:
        found[-1] = None
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "pairs"
    assert make_pairs(path, perform, people=4, views=3) == 4
    return path


def keypoint_file(path: Path) -> Path:
    from safetensors.numpy import save_file

    save_file({name: np.zeros(shape, np.float32) for name, shape in _SHAPES.items()}, str(path))
    return path


# ---------------------------------------------------------------- pieces
def test_shapes_are_the_meshes_without_their_pose(folder: Path) -> None:
    found = load_pairs(folder)
    shapes = train_warp.shapes_of(found)
    lain = shapes.scale[:, None, None] * shapes.canonical[:, 0] @ shapes.rotation.transpose(0, 2, 1)
    px = (lain + shapes.shift[:, None] + np.array([1, 1, 0])) * 128 - np.array([0.5, 0.5, 0])
    assert np.abs(px - found.points[:, 0]).max() < 0.01
    width = np.ptp(shapes.canonical[..., 0], axis=2)  # of one person, whichever way he looks
    assert np.ptp(width, axis=1).max() < 0.35 * width.mean()


def test_points_that_drive_are_the_keypoint_models(folder: Path, tmp_path: Path) -> None:
    found = load_pairs(folder)
    drive = train_warp.drive_of(KeypointModel.load(keypoint_file(tmp_path / "k.safetensors")), found)
    points = drive(0, 0, 2)
    assert points.shape == (478, 3)
    # nothing deforms, so only the pose moves them: near the true ones, whose person is the same
    true = (found.points[0, 2] + np.array([0.5, 0.5, 0])) / 128 - np.array([1, 1, 0])
    still = (found.points[0, 0] + np.array([0.5, 0.5, 0])) / 128 - np.array([1, 1, 0])
    centred = [p[:, :2] - p[:, :2].mean(0) for p in (points, true, still)]
    assert np.abs(centred[0] - centred[1]).mean() < np.abs(centred[2] - centred[1]).mean()


def test_people_are_held_out_of_the_first_folder_only(folder: Path) -> None:
    train, held = train_warp.load_all_pairs([folder, folder], 1)
    assert (len(train), len(held)) == (7, 1)
    assert (held.images[0] == load_pairs(folder).images[0]).all()
    assert (train.images[3] == held.images[0]).all()


def test_pairs_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    make_pairs(tmp_path / "other", lambda n: perform(n, views=2), people=2, views=2)
    with pytest.raises(UsageError, match="2 and 3 views"):
        train_warp.load_all_pairs([folder, tmp_path / "other"], 1)
    for n_held in (0, 4):
        with pytest.raises(UsageError, match="--held"):
            train_warp.load_all_pairs([folder], n_held)
    with pytest.raises(UsageError, match="keyface train pairs"):
        train_warp.load_all_pairs([tmp_path / "none"], 1)


def test_frames_come_from_the_first_shot_in_the_order_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shots = [
        rng.integers(0, 255, (120, 160, 3), np.uint8) // 3,
        255 - rng.integers(0, 60, (120, 160, 3), np.uint8),
    ]
    shots[1][:60] = (250, 10, 10)
    shades = [np.clip(shots[0] + 2 * i, 0, 255).astype(np.uint8) for i in range(9)]
    clip = write_clip(tmp_path / "cut.mp4", [*shades, *[shots[1]] * 6])
    assert train_warp.first_shot_frames(clip) == 9
    levels = [float(frame.mean()) for frame in train_warp.pick_frames(clip, [8, 0, 4, 0])]
    assert levels[0] > levels[2] > levels[1] == levels[3]


def test_the_carried_schedule_is_read_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    from keyface.configs.schema import load_options
    from keyface.models.train_warp import WarpConfig

    config = load_options(WarpConfig, Path(__file__).parent.parent / "configs/warp/mobile.toml")
    assert 0 <= config.reading_from < config.adversarial_from < 1 and config.steps > 1000
    (tmp_path / "bad.toml").write_text("spets = 3\n")
    with pytest.raises(UsageError, match="spets"):
        load_options(WarpConfig, tmp_path / "bad.toml")


# ---------------------------------------------------------------- validation
class _Measured:
    def __init__(self, image: Any) -> None:
        level = image.mean((1, 2, 3))
        self.pose = torch.stack([level, -level], 1)
        self.blendshapes = level[:, None].expand(-1, 52)
        self.embedding = torch.nn.functional.normalize(torch.stack([level] * 128, 1) + 2, dim=1)


class _Judges:
    def lpips(self, a: Any, b: Any) -> Any:
        return (a - b).abs().mean((1, 2, 3))

    def measure(self, image: Any) -> _Measured:
        return _Measured(image)


def test_validation_has_figures_a_grid_and_curves(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from keyface.models.loss_plot import plot_losses
    from keyface.models.warp_mobile import WarpMobile
    from keyface.models.warp_validation import validate, write_grid, write_history

    _, held = train_warp.load_all_pairs([folder], 2)
    drive = train_warp.drive_of(KeypointModel.load(keypoint_file(tmp_path / "k.safetensors")), held)
    model = WarpMobile().train()
    found = validate(model, held, drive, _Judges())  # type: ignore[arg-type]
    assert model.training and {"lpips", "lpips_points", "lpips_still", "identity", "yaw_error"} <= set(
        found.figures
    )
    assert found.figures["lpips_still"] == pytest.approx(
        np.mean([np.abs(i[1].astype(float) - i[0]).mean() / 127.5 for i in held.images]), rel=1e-3
    )
    write_grid(tmp_path / "grid.png", found)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 * 128, 2 * 128)  # the source, and three for the view that is no source
    write_history(
        tmp_path / "losses.csv", [{"step": 25.0, "pixel": 2.0}, {"step": 50.0, "pixel": 1.0, "close": 1.0}]
    )
    plot_losses(tmp_path / "losses.csv", tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as curves:
        assert curves.size == (960, 540)


# ---------------------------------------------------------------- command line
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pairs", "--people", "0"], "--people: got 0"),
        (["pairs", "--views", "2"], "--views: got 2"),
        (["pairs", "--controls", "none.npy"], "cannot be read as controls"),
        (["pairs", "--clips", "nowhere"], "There is no clip in the folders given."),
        (["keypoints", "--pairs", "nowhere"], "keyface train pairs"),
        (["warp", "--pairs", "nowhere"], "keyface train pairs"),
        (["warp", "--steps", "0"], "--steps: got 0"),
        (["warp", "--config", "none.toml"], "none.toml cannot be read"),
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
    assert main(["train", *words, "--no-compile"] if words[0] == "warp" else ["train", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def train(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main(["train", *map(str, words), "--threads", "1", "--quiet", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_from_pairs_to_networks_and_on_from_there(
    models: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from keyface.engines.open import open_engine

    file, out = tmp_path / "keypoints.safetensors", tmp_path / "warp"
    told = train(capsys, "keypoints", "--pairs", folder, "--out", file, "--steps", "3")
    assert told["steps"] == told["wanted"] == 3 and KeypointModel.load(file).deformation(
        np.zeros(52)
    ).shape == (478, 3)
    (tmp_path / "short.toml").write_text(
        "people = 1\nviews = 1\nreading_from = 0.0\nadversarial_from = 0.0\n"
    )
    words = ("warp", "--pairs", folder, "--keypoints", file, "--out", out, "--held", "1", "--no-compile")
    words = (*words, "--config", tmp_path / "short.toml", "--steps")
    assert train(capsys, *words, "1")["steps"] == 1
    told = train(capsys, *words, "2")
    assert told["steps"] == told["wanted"] == 2 and told["lpips"] > 0
    names = {"warp_source.onnx", "warp_motion.onnx", "warp_decode.onnx", "validation.jpg"}
    assert names <= {p.name for p in out.iterdir()} and (tmp_path / "warp.ckpt").is_file()
    with open_engine(out / "warp_source.onnx", name="warp_source", threads=1) as engine:
        made = engine.run({
            "image": np.zeros((1, 3, 256, 256), np.float32), "points": np.zeros((1, 478, 3), np.float32)
        })  # fmt: skip
    assert set(made) == {"features", "details"}


def test_generated_people_make_faces(models: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse
    from dataclasses import asdict

    from keyface.models.arrays import write_arrays
    from keyface.models.population import FILE, measure_population
    from keyface.tools import train_networks

    samples, controls = tmp_path / "samples", tmp_path / "controls.npy"
    samples.mkdir()
    with train_networks.mapping_network(models, argparse.Namespace(threads=1)) as mapping:
        write_arrays(samples / FILE, **asdict(measure_population(mapping, n=600)))
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((30, 1)), rng.normal(0, 8, (30, 3)), rng.uniform(0, 0.3, (30, 52))], 1)
    np.save(controls, rows.astype(np.float32))
    words = ("pairs", "--out", tmp_path / "pairs", "--people", "2", "--views", "3", "--seed", "5")
    told = train(capsys, *words, "--samples", samples, "--controls", controls)
    assert told["people"] == told["wanted"] == 2
    found: Pairs = load_pairs(tmp_path / "pairs")
    assert found.images.shape == (2, 3, 256, 256, 3) and found.images.std() > 30
    assert np.abs(found.controls[:, 0, :2] * 30).max() < 12  # the first view looks ahead
    jaw, lids = 2 + BLENDSHAPE_NAMES.index("jawOpen"), 2 + BLENDSHAPE_NAMES.index("eyeBlinkLeft")
    for column in (jaw, lids):  # the last one laughs with closed eyes
        assert (found.controls[:, -1, column] > found.controls[:, 0, column] + 0.1).all()
    assert len({found.images[i, j].tobytes() for i in range(2) for j in range(3)}) == 6
    words = ("pairs", "--out", tmp_path / "large", "--people", "1", "--views", "3", "--seed", "5")
    train(capsys, *words, "--samples", samples, "--controls", controls, "--side", "512")
    twice = load_pairs(tmp_path / "large")
    assert twice.images.shape == (1, 3, 512, 512, 3)
    # the same person by the larger generator, her points in the same pixels
    assert np.abs(twice.points[0, 0, :, :2] - found.points[0, 0, :, :2]).mean() < 3
    assert np.abs(twice.images[0, 0, ::2, ::2].astype(float) - found.images[0, 0]).mean() < 12
