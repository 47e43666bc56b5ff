"""The benchmark for cards, tried out on the CPU with few runs, so that it cannot fail on a slip on the day."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeTensorRt
from host_kernels import compiled, kernel_card

from keyface.configs.errors import EngineError
from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.gpu_networks import GPU_NETWORKS
from keyface.engines.half_precision import pack_weights, to_half
from keyface.engines.ort import OrtEngine
from keyface.tools import bench_gpu, bench_gpu_pixels, bench_gpu_tensorrt
from keyface.tools.bench_gpu_pixels import STEPS

ROOT = Path(__file__).resolve().parent.parent

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'keyface[train]'")


@pytest.fixture(scope="module")
def exported(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    assert bench_gpu.main(["--export", str(folder)]) == 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 48e6  # fits one transfer beside the code
    return folder


def _measure(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    code = bench_gpu.main(
        ["--onnx", str(folder), "--out", str(out), "--device", "cpu", "--runs", "1", *options]
    )
    assert code == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_every_network_runs_and_the_report_goes_on(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    quick = ("--precisions", "f32", "--batches", "1,2")
    first = _measure(exported, out, "--networks", "mapping", "--modes", "eager", *quick)
    assert [row["key"] for row in first["rows"]] == [
        "mapping/torch-eager/f32/batch1", "mapping/torch-eager/f32/batch2",
    ]  # fmt: skip
    assert _measure(exported, out, "--networks", "mapping", "--seconds", "0", *quick)["rows"] == first["rows"]
    assert "run it again to go on" in capsys.readouterr().out
    full = _measure(exported, out, "--modes", "eager", *quick)
    assert full["rows"][:2] == first["rows"]  # kept, not measured again
    assert full["problems"] == {}
    pixels = {f"pixels_{step}" for step in STEPS}
    assert {row["network"] for row in full["rows"]} == {*bench_gpu.NETWORKS, "chain", *pixels}
    assert {row["runner"] for row in full["rows"] if row["network"] in pixels} == {
        "opencv"
    }  # there is no card
    assert {row["batch"] for row in full["rows"] if row["network"] == "chain"} == {1, 2}
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in full["rows"])
    assert bench_gpu.main(["--table", str(out)]) == 0
    assert "| synthesis_256 | 1 | f32 | torch-eager |" in capsys.readouterr().out


def test_half_and_compiled_rows_and_what_fails_is_noted(exported: Path, tmp_path: Path) -> None:
    small = ("--networks", "mapping,face_blendshapes", "--batches", "1")
    report = _measure(
        exported, tmp_path / "r.json", *small, "--modes", "eager,compiled,cuda_graph", "--compiler", "eager"
    )
    keys = {row["key"] for row in report["rows"]}
    assert {
        f"mapping/torch-{mode}/{p}/batch1" for mode in ("eager", "compiled") for p in ("f32", "f16")
    } <= keys
    (exported / "mapping.onnx").rename(tmp_path / "kept")
    try:
        broken = _measure(exported, tmp_path / "b.json", *small, "--modes", "eager")
    finally:
        (tmp_path / "kept").rename(exported / "mapping.onnx")
    assert "FileNotFoundError" in broken["problems"]["mapping/torch-eager/f32/batch1"]
    assert any(row["network"] == "face_blendshapes" for row in broken["rows"])


def test_rows_of_tensorrt_run_on_the_stand_in(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = NumpyDevice()
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(card))  # type: ignore[arg-type]
    monkeypatch.setattr("keyface.engines.device_memory.open_device", lambda: card)
    args = bench_gpu._parser().parse_args(["--onnx", str(exported), "--runs", "3"])
    for precision in ("f32", "f16"):
        row = bench_gpu._tensorrt_measure(args, "tensorrt", "mapping", 8, precision)()
        assert row["key"] == f"mapping/tensorrt/{precision}/batch8" and row["runs"] == 3 and row["p50_ms"] > 0
    assert card.n_open == 0


@pytest.fixture
def pixel_card(monkeypatch: pytest.MonkeyPatch) -> NumpyDevice:
    """A card that runs the kernels, in place of the first one."""
    card = kernel_card()
    monkeypatch.setattr("keyface.engines.device_memory.open_device", lambda: card)
    monkeypatch.setattr("keyface.engines.kernel_compile.frame_kernels", lambda architecture: compiled())
    monkeypatch.setattr(bench_gpu_pixels, "_WARM_UPS", 0)
    return card


def test_rows_of_pixels_run_on_the_stand_in(pixel_card: NumpyDevice) -> None:
    args = bench_gpu._parser().parse_args(["--onnx", "x", "--runs", "2", "--batches", "1,2"])
    rows = {key: measure for key, measure in bench_gpu_pixels.pixel_rows(args) if "/kernels/" in key}
    assert len(rows) == 7  # the detector's has no faces
    for key, measure in rows.items():
        row = measure()
        assert row["key"] == key and row["runs"] == 2 and 0 < row["p50_ms"] <= row["p99_ms"]
        assert (row["device_ms"] is None) == key.startswith("pixels_frame/")
        assert pixel_card.n_open == 0
    # The table takes them as they are.
    assert "| pixels_frame | 2 | u8 | kernels |" in "\n".join(
        bench_gpu.table({"rows": [row], "problems": {}})
    )


def test_rows_of_the_analysis_run_on_the_stand_in(
    exported: Path, pixel_card: NumpyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(pixel_card))  # type: ignore[arg-type]
    monkeypatch.setattr(bench_gpu_tensorrt, "is_installed", lambda flavour: flavour == "tensorrt")
    args = bench_gpu._parser().parse_args(["--onnx", str(exported), "--runs", "1", "--batches", "2"])
    rows = {key: measure() for key, measure in bench_gpu_tensorrt.analysis_rows(args)}
    assert list(rows) == [f"analysis/tensorrt-{path}/f16/batch2" for path in ("host", "card")]
    assert all(row["p50_ms"] > 0 and row["key"] == key for key, row in rows.items())
    assert (
        pixel_card.n_kernels == 4
    )  # of one frame of the card's row: three for the detector, one for two faces
    assert pixel_card.n_open == 0


def test_kernels_that_are_wrong_are_not_measured(
    pixel_card: NumpyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_kernel = pixel_card.run_kernel

    def shifted(kernel: int, grid: Any, block: Any, arguments: Any, stream: int) -> None:
        if "small_from_crop" in str(getattr(arguments[-1], "dtype", "")):
            arguments = (*arguments[:-1], arguments[-1].copy())
            arguments[-1]["faces"]["small_from_crop"][0, 2] += 1
        run_kernel(kernel, grid, block, arguments, stream)

    monkeypatch.setattr(pixel_card, "run_kernel", shifted)
    with pytest.raises(EngineError, match=r"kernels are wrong by \d+ levels"):
        bench_gpu_pixels.on_card("pixels_crops/kernels/u8/batch1", "crops", 1, 1)


def test_packed_weights_compute_the_same_in_float32_and_in_half(models: Any) -> None:
    path = models.path("mapping")
    packed = pack_weights(onnx.load(str(path)))
    assert len(packed.SerializeToString()) < path.stat().st_size * 0.55
    z = np.random.default_rng(5).normal(size=(3, 512)).astype(np.float32)
    with OrtEngine(path, threads=1) as engine:
        want = engine.run({"z": z})["w"]
    for model in (packed, to_half(packed)):
        with OrtEngine(model.SerializeToString(), threads=1) as engine:
            np.testing.assert_allclose(engine.run({"z": z})["w"], want, atol=1e-2)


@pytest.mark.parametrize(
    "name", ["yunet_dynamic", "face_mesh", "face_blendshapes", "sface_fast", "synthesis_256"]
)
def test_the_graphs_in_pytorch_compute_what_onnx_runtime_computes(models: Any, name: str) -> None:
    from keyface.models.gpu_bench import _example
    from keyface.models.onnx_graph import OnnxGraph

    source = models.ensure([GPU_NETWORKS[name].source])[GPU_NETWORKS[name].source]
    graph = OnnxGraph(source)
    given = _example(graph.input_shape, 1)
    with torch.inference_mode():
        got = graph(given)
    with OrtEngine(source, threads=1) as engine:
        want = engine.run({graph.input_name: given.numpy()})
    for key, tensor in zip(graph.output_names, got, strict=True):
        scale = max(1.0, float(np.abs(want[key]).max()))
        np.testing.assert_allclose(tensor.numpy(), want[key], atol=2e-4 * scale, err_msg=key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--onnx and --out are needed"),
        (["--onnx", "x", "--out", "y", "--networks", "hat", "--device", "cpu"], "--networks: got hat"),
        (["--table", "nowhere.json"], "cannot be read"),
    ],
)
def test_bad_options_are_told(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert bench_gpu.main(options) == 2
    assert message in capsys.readouterr().err


def test_without_a_card_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    assert bench_gpu.main(["--onnx", str(tmp_path), "--out", str(tmp_path / "r.json")]) == 5
    assert "sees no card" in capsys.readouterr().err


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with nothing but numpy, onnx and PyTorch."""
    block = tmp_path / "sitecustomize.py"
    block.write_text(
        "import sys\n"
        "for name in ('av', 'cv2', 'mediapipe', 'onnxruntime', 'openvino', 'ai_edge_litert', 'tqdm', 'PIL',\n"
        "             'cryptography', 'argon2', 'safetensors', 'scipy'):\n"
        "    sys.modules[name] = None\n"
    )
    return {
        **os.environ, "PYTHONPATH": str(tmp_path), "OUT": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip


def test_the_kernels_rows_need_no_opencv(bare: dict[str, str]) -> None:
    code = (
        "from keyface.tools.bench_gpu_pixels import Scene; scene = Scene(2); image = scene.frames()[0]\n"
        "assert len(scene.crops(image, 256)) == len(scene.crops(image, 112)) == 2; scene.pasting_on_card()\n"
        "import keyface.engines.card_frame, keyface.engines.card_paste"
    )
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_script_for_a_bare_machine_needs_nothing_but_numpy_onnx_and_torch(
    exported: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    folder = tmp_path / "carried"
    shutil.copytree(exported, folder)
    command = ["bash", str(ROOT / "examples/gpu-bench.sh"), str(folder), "--device", "cpu", "--runs", "1"]
    options = ["--networks", "mapping,pixels", "--modes", "eager", "--precisions", "f32", "--batches", "1"]
    done = subprocess.run(
        [*command, *options], env=bare, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["network"] for row in report["rows"]] == ["mapping"]
    assert set(report["problems"]) == {
        f"pixels_{step}/opencv/u8/batch1" for step in STEPS
    }  # no OpenCV: noted
