"""`keyface train warp --size full` from pairs to exported networks, on a tiny network; and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'keyface[train]'")

from test_train_warp import keypoint_file  # noqa: E402
from warp_full_cases import TINY, performed  # noqa: E402

from keyface.configs.errors import EngineError, UsageError  # noqa: E402
from keyface.engines.open import open_engine  # noqa: E402
from keyface.models.facevid2vid import FaceVid2Vid  # noqa: E402
from keyface.models.facevid2vid_config import FaceVid2VidConfig  # noqa: E402
from keyface.models.facevid2vid_export import export_facevid2vid  # noqa: E402
from keyface.models.facevid2vid_layout import load_facevid2vid  # noqa: E402
from keyface.models.facevid2vid_pass import run_pass  # noqa: E402
from keyface.models.warp_batches import Batcher  # noqa: E402
from keyface.models.warp_pairs import load_pairs, make_pairs  # noqa: E402
from keyface.pipeline.face import FaceMesh  # noqa: E402
from keyface.tools import train_warp, train_warp_full  # noqa: E402
from keyface.tools.main import main  # noqa: E402
from keyface.tools.train_performers import _view  # noqa: E402

SCHEDULE = """people = 1
views = 2
steps = 3
lr = 1e-3
n_scales = 1
critic_scales = 1
critic_channels = 4
reading_from = 0.0
adversarial_from = 0.5
"""


def written(path: Path, schedule: str = SCHEDULE, **network: Any) -> Path:
    """A configuration of the tiny network."""
    table = asdict(TINY) | network
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    path.write_text("\n".join([schedule, "[network]", *lines]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "pairs"
    assert make_pairs(path, lambda n: performed(n, views=3), people=3, views=3) == 3
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    command = ["train", "warp", "--size", "full", "--threads", "1", "--quiet", "--json", *map(str, words)]
    assert main(command) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def onnx(path: Path, **inputs: torch.Tensor) -> dict[str, Any]:
    with open_engine(path, backend="onnxruntime", threads=1) as engine:
        return engine.run({name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()})


@pytest.mark.parametrize("learns", [True, False], ids=["learned", "mesh"])
def test_from_pairs_to_exported_networks(
    models: Any, learns: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after a step and gone on with; every file is there, and ONNX Runtime gives what PyTorch gives."""
    config = written(tmp_path / "tiny.toml", learns_keypoints=learns)
    out, own = tmp_path / "full", keypoint_file(tmp_path / "keypoints.safetensors")
    words = ("--pairs", folder, "--out", out, "--held", "1", "--config", config, "--keypoints", own)
    first = run(capsys, *words, "--minutes", "1e-9")
    assert (first["steps"], first["wanted"]) == (0, 3) and (tmp_path / "full.ckpt").is_file()
    told = run(capsys, *words)
    assert told["steps"] == told["wanted"] == 3 and told["export_difference"] < 1e-3
    assert told["lpips"] > 0 and told["lpips_points"] > 0 and "identity" in told
    exported = {"facevid2vid_source.onnx", "facevid2vid_driving.onnx", "facevid2vid.pth.tar"}
    exported |= {"facevid2vid_motion.onnx"} if learns else set()
    pictured = {"validation.jpg", "losses.csv", "losses.png"}
    assert {path.name for path in out.iterdir()} == exported | pictured
    curves = (out / "losses.csv").read_text().splitlines()[0].split(",")
    assert {"perceptual", "adversarial", "matching", "identity", "reading"} <= set(curves)
    assert ({"equivariance", "prior", "pose", "expression"} <= set(curves)) == learns

    network = load_facevid2vid(out / "facevid2vid.pth.tar", FaceVid2VidConfig(**asdict(TINY) | {
        "learns_keypoints": learns, "is_spectral": False,
    }))  # fmt: skip
    pairs = load_pairs(folder)
    b = Batcher(pairs, train_warp_full.true_points(pairs), 64, 64).batch([(1, 0)], [(1, 2, False)])
    with torch.no_grad():
        wanted = run_pass(network, b)
    features = onnx(out / "facevid2vid_source.onnx", image=b.image)["features"]
    made = onnx(
        out / "facevid2vid_driving.onnx", features=torch.from_numpy(features),
        source_points=wanted.source_points, driving_points=wanted.driving_points,
    )  # fmt: skip
    np.testing.assert_allclose(made["image"], wanted.image.numpy(), atol=1e-3)
    if learns and wanted.learned is not None:
        seen = onnx(out / "facevid2vid_motion.onnx", image=b.target)
        np.testing.assert_allclose(seen["degrees"], wanted.learned.driver.degrees.numpy(), atol=1e-2)


def test_networks_that_differ_are_not_passed_over(tmp_path: Path, folder: Path) -> None:
    """An export of other weights is told from its network."""
    plain = FaceVid2VidConfig(**asdict(TINY) | {"is_spectral": False, "learns_keypoints": False})
    torch.manual_seed(0)
    network, other = FaceVid2Vid(plain).eval(), FaceVid2Vid(plain).eval()
    pairs = load_pairs(folder)
    b = Batcher(pairs, train_warp_full.true_points(pairs), 64, 64).batch([(0, 0)], [(0, 1, False)])
    exported = export_facevid2vid(network, tmp_path / "out")
    assert train_warp_full.compare(network, exported, b, threads=1) < 1e-3
    with pytest.raises(EngineError, match="from PyTorch's"):
        train_warp_full.compare(other, exported, b, threads=1)


@pytest.mark.parametrize(
    ("schedule", "network", "sentence"),
    [
        ("spets = 3\n", {}, "unknown key 'spets'"),
        ("people = 0\n", {}, "people is 0, want 1 or more."),
        ("steps = 'many'\n", {}, "steps is 'many', want a whole number."),
        ("n_scales = 1\n", {"decoder": "oil"}, "decoder is 'oil'"),
        ("n_scales = 1\n", {"n_down": 3, "motion_n_blocks": 4}, "side_px 64 cannot be halved as often"),
        ("n_scales = 1\n", {"upscale": 4}, "upscale is 4"),
        ("n_scales = 1\n", {"side_px": 512, "upscale": 1}, "256 px wide, and the network makes 512 px."),
    ],
)
def test_a_bad_configuration_is_refused_in_a_sentence(
    schedule: str,
    network: dict[str, Any],
    sentence: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = written(tmp_path / "bad.toml", schedule, **network)
    words = ["--pairs", str(folder), "--held", "1", "--config", str(config), "--out", str(tmp_path / "out")]
    assert main(["train", "warp", "--size", "full", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error and error.count("\n") <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("minutes", ["0", "-3", "nan"])
def test_a_time_that_cannot_be_is_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "warp", "--size", "full", "--minutes", minutes]) == 2
    assert "--minutes: got" in capsys.readouterr().err


def test_help_names_what_the_full_size_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "warp", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "full: FaceVid2Vid, for graphics cards" in told and "--minutes" in told


# ---------------------------------------------------------------- pairs of other sides
def test_pairs_of_more_sides_are_refused(folder: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    make_pairs(large, lambda n: performed(n, views=3, side_px=512), people=2, views=3, side_px=512)
    assert load_pairs(large).side_px == 512 and load_pairs(folder).side_px == 256
    with pytest.raises(UsageError, match="pictures of 256 and 512 px"):
        train_warp.load_all_pairs([folder, large], 1)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, source in enumerate((folder, large)):
        shutil.copy(source / "pairs-0000.npz", mixed / f"pairs-000{number}.npz")
    with pytest.raises(UsageError, match="more than one side"):
        load_pairs(mixed)


def test_a_view_is_kept_at_the_side_asked_for() -> None:
    """Whatever the side of what was rendered, points are pixels of the picture at 256 px."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1023, (478, 3)).astype(np.float32)
    mesh = FaceMesh(points, np.zeros(52, np.float32), np.zeros(3, np.float32), 1.0)
    crop = np.zeros((1024, 1024, 3), np.uint8)
    crop[512:, :, 0] = 200
    view = _view(crop, mesh, 512)
    assert view is not None and view.image_rgb.shape == (512, 512, 3)
    assert view.image_rgb[255, 0, 0] == 0 and view.image_rgb[256, 0, 0] == 200
    half = np.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose((view.points + half) * 4, points + half, rtol=1e-5)
    assert _view(crop, None, 512) is None
