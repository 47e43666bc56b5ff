"""Engines: checks of tensors and threads, back-ends, their choice, and parity between them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from keyface.configs.errors import EngineError, UsageError
from keyface.configs.manifest import load_manifest
from keyface.configs.schema import EngineOptions, load_preset, preset_names, read_options
from keyface.engines import open as open_module
from keyface.engines.engine import Array, Engine, TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.open import BACKENDS, Backend, OpenRequest, open_engine, register_backend
from keyface.engines.ort import OrtEngine

IMAGE = TensorSpec("image", "float32", (None, 3, None, None))
F32 = npt.NDArray[np.float32]


def _network(path: Path, *, kind: str = "affine") -> Path:
    """A tiny network. affine: y = 2 x + 1; log: y = log x; frozen: as affine, output declared batch 1."""
    weights = [
        numpy_helper.from_array(np.full((1, 3, 1, 1), 2.0, np.float32), "gain"),
        numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "shift"),
    ]
    if kind == "log":
        nodes, weights = [helper.make_node("Log", ["image"], ["result"])], []
    else:
        nodes = [
            helper.make_node("Mul", ["image", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["result"]),
        ]
    batch = 1 if kind == "frozen" else "n"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [batch, 3, "h", "w"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save_model(model, str(path))
    return path


@pytest.fixture
def affine(tmp_path: Path) -> Path:
    return _network(tmp_path / "affine.onnx")


def _image(n: int = 1, seed: int = 0) -> F32:
    return np.random.default_rng(seed).uniform(0.5, 1.0, (n, 3, 8, 6)).astype(np.float32)


def _backends() -> list[str]:
    return [name for name, b in BACKENDS.items() if ".onnx" in b.suffixes and b.is_usable and not b.is_gpu]


# -- checks shared by all back-ends


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4, 8, 8), np.float32), r"got \(1,4,8,8\), want \(any,3,any,any\)"),
        (np.zeros((3, 8, 8), np.float32), r"got \(3,8,8\), want"),
        (np.zeros((1, 3, 8, 8), np.float64), "got float64, want float32"),
        ([[1.0]], "got list, want a numpy array"),
    ],
)
def test_a_bad_input_is_told_with_both_shapes(affine: Path, array: Any, message: str) -> None:
    with OrtEngine(affine, name="detector") as engine, pytest.raises(EngineError, match=message) as caught:
        engine.run({"image": array})
    assert "detector input 'image'" in str(caught.value)


def test_missing_and_unknown_inputs_are_told(affine: Path) -> None:
    with OrtEngine(affine) as engine:
        with pytest.raises(EngineError, match="got none, want image"):
            engine.run({})
        with pytest.raises(EngineError, match="got image, more, want image"):
            engine.run({"image": _image(), "more": _image()})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_an_error(bad: float) -> None:
    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        result = np.array(inputs["image"])
        result[0, 1, 2, 3] = bad
        return {"image": result}

    engine = FakeEngine((IMAGE,), (IMAGE,), answer, name="generator")
    with pytest.raises(EngineError, match=r"generator output 'image': 1 of 144 values not finite"):
        engine.run({"image": _image()})


def test_large_finite_outputs_are_no_false_alarm() -> None:
    engine = FakeEngine((IMAGE,), (IMAGE,), lambda inputs: {"image": np.full_like(inputs["image"], 3e38)})
    assert engine.run({"image": _image()})["image"][0, 0, 0, 0] == np.float32(3e38)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 1, 8, 8)])
def test_an_output_of_wrong_shape_is_an_error(shape: tuple[int, ...]) -> None:
    engine = FakeEngine((IMAGE,), (IMAGE,), lambda _: {"image": np.zeros(shape, np.float32)})
    with pytest.raises(EngineError, match="fake output 'image': got"):
        engine.run({"image": _image()})


def test_an_output_that_is_missing_is_an_error() -> None:
    engine = FakeEngine((IMAGE,), (IMAGE,), lambda _: {})
    with pytest.raises(EngineError, match="did not return it"):
        engine.run({"image": _image()})


def test_a_fault_of_the_back_end_becomes_an_engine_error() -> None:
    def fail(_: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("kernel exploded\nlong trace")

    with pytest.raises(EngineError, match=r"fake failed on fake: kernel exploded\."):
        FakeEngine((IMAGE,), (IMAGE,), fail).run({"image": _image()})


def test_a_fake_without_a_function_answers_zeros_and_counts() -> None:
    engine = FakeEngine((IMAGE,), (TensorSpec("y", "float32", (1, 2)),))
    assert engine.run({"image": _image()})["y"].tolist() == [[0.0, 0.0]]
    assert engine.n_runs == 1


def _run_elsewhere(engine: Engine) -> list[Exception]:
    errors: list[Exception] = []

    def work() -> None:
        try:
            engine.run({"image": _image()})
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return errors


def test_an_engine_stays_on_its_thread(affine: Path) -> None:
    with OrtEngine(affine) as engine:
        (error,) = _run_elsewhere(engine)
        assert "opened on another thread" in str(error)
    with OrtEngine(affine, any_thread=True) as engine:
        assert _run_elsewhere(engine) == []


def test_a_closed_engine_refuses(affine: Path) -> None:
    engine = OrtEngine(affine)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="affine is closed"):
        engine.run({"image": _image()})
    with pytest.raises(EngineError, match="affine is closed"):
        engine.warm_up()


# -- real back-ends on a tiny network


@pytest.mark.parametrize("backend", _backends())
@pytest.mark.parametrize("n", [1, 4])
def test_back_ends_compute_and_give_fresh_arrays(affine: Path, backend: Any, n: int) -> None:
    image = _image(n)
    given = image.copy()
    with open_engine(affine, backend=backend, threads=1) as engine:
        assert engine.backend == backend and engine.name == "affine"
        assert engine.inputs == {"image": IMAGE}
        engine.warm_up()
        first = engine.run({"image": image})["result"]
        kept = first.copy()
        second = engine.run({"image": _image(n, seed=1)})["result"]
    np.testing.assert_allclose(first, 2 * given + 1, rtol=1e-6)
    np.testing.assert_array_equal(first, kept)  # not overwritten by the second run, nor by closing
    np.testing.assert_array_equal(image, given)
    assert first.flags.writeable and not np.shares_memory(first, second)


@pytest.mark.parametrize("backend", _backends())
def test_arrays_that_are_not_contiguous_are_taken(affine: Path, backend: Any) -> None:
    hwc = np.random.default_rng(3).uniform(0, 1, (8, 6, 3)).astype(np.float32)
    with open_engine(affine, backend=backend) as engine:
        result = engine.run({"image": hwc.transpose(2, 0, 1)[None]})["result"]
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), 2 * hwc + 1, rtol=1e-6)


@pytest.mark.parametrize("backend", _backends())
def test_nan_from_a_real_network_is_caught(tmp_path: Path, backend: Any) -> None:
    with open_engine(_network(tmp_path / "log.onnx", kind="log"), backend=backend) as engine:
        engine.warm_up()  # log 0 is infinite, yet warming up must not fail
        with pytest.raises(EngineError, match="not finite"):
            engine.run({"image": -_image()})


def test_a_frozen_output_batch_is_opened_where_the_input_is_open(tmp_path: Path) -> None:
    with OrtEngine(_network(tmp_path / "frozen.onnx", kind="frozen")) as engine:
        assert engine.run({"image": _image(5)})["result"].shape == (5, 3, 8, 6)


def test_bytes_open_as_files_do(affine: Path) -> None:
    with OrtEngine(affine.read_bytes(), name="bytes") as engine:
        np.testing.assert_allclose(engine.run({"image": _image()})["result"], 2 * _image() + 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["broken.onnx", "broken.tflite"])
def test_a_damaged_file_is_an_engine_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no network" * 40)
    with pytest.raises(EngineError, match="broken cannot be opened"):
        open_engine(path)


# -- choosing a back-end


def test_the_files_kind_chooses(affine: Path, tmp_path: Path) -> None:
    with open_engine(affine) as engine:
        assert engine.backend == "onnxruntime"
    with pytest.raises(EngineError, match=r"no back-end reads \.weights files.*\.onnx"):
        open_engine(tmp_path / "x.weights")
    with pytest.raises(EngineError, match=r"back-end litert does not read \.onnx files"):
        open_engine(affine, backend="litert")
    with pytest.raises(EngineError, match="there is no file"):
        open_engine(tmp_path / "nowhere.onnx")


def test_an_unknown_back_end_lists_the_known(affine: Path) -> None:
    with pytest.raises(EngineError, match=r"unknown back-end 'cuda'\. Legal: auto, onnxruntime"):
        open_engine(affine, backend="cuda")  # type: ignore[arg-type]


def test_a_named_back_end_that_is_missing_is_no_silent_fallback(
    affine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"openvino is not installed.*pip install 'keyface\[openvino\]'"):
        open_engine(affine, backend="openvino")


def test_a_recorded_preference_takes_the_first_installed(
    affine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[OpenRequest] = []

    def open_fake(request: OpenRequest) -> Engine:
        opened.append(request)
        return FakeEngine((IMAGE,), (IMAGE,), name=request.name)

    here = Backend("openvino", (".onnx",), "json", "", ("f32",), open_fake)
    monkeypatch.setitem(BACKENDS, "openvino", here)
    options = EngineOptions(backends={"affine": ("openvino", "onnxruntime")}, threads_by_model={"affine": 3})
    open_engine(affine, options=options).close()
    assert opened[0].threads == 3
    gone = Backend("openvino", (".onnx",), "no.such.module", "pip", ("f32",), open_fake)
    monkeypatch.setitem(BACKENDS, "openvino", gone)
    with open_engine(affine, options=options) as engine:
        assert engine.backend == "onnxruntime"


def test_a_back_end_can_be_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_module, "BACKENDS", dict(BACKENDS))
    backend = Backend("another", (".onnx",), "another", "pip", ("f32",), lambda _: FakeEngine((), ()))
    register_backend(backend)
    with pytest.raises(EngineError, match="already registered"):
        register_backend(backend)


def test_a_precision_that_a_back_end_lacks_is_an_error(affine: Path) -> None:
    with pytest.raises(EngineError, match=r"onnxruntime cannot compute in bf16. Legal: f32"):
        open_engine(affine, backend="onnxruntime", precision="bf16")


# -- options


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"thread": 2}, "unknown key 'thread'. Legal keys: allow_spinning, backends, on_device_loss"),
        ({"threads": True}, "threads is True, want a whole number"),
        ({"threads": -1}, "threads of 'threads' is -1"),
        ({"precision": "f64"}, "Legal values: 'f32', 'bf16', 'f16'"),
        ({"backends": {"yunet": "openvino"}}, "backends.yunet is 'openvino', want a list"),
        ({"backends": {"yunet": ["cuda"]}}, "unknown back-end 'cuda'. Legal: onnxruntime"),
        ({"threads_by_model": 3}, "want a table"),
    ],
)
def test_bad_engine_options_are_told(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.").replace("[", r"\[")):
        read_options(EngineOptions, table)


def test_good_engine_options_are_read() -> None:
    options = read_options(EngineOptions, {"threads": 2, "backends": {"yunet": ["openvino", "onnxruntime"]}})
    assert options.threads == 2 and options.backends["yunet"] == ("openvino", "onnxruntime")


def test_presets_are_read_and_name_known_models() -> None:
    known = load_manifest().models
    assert {"default", "exact"} <= set(preset_names())
    for name in preset_names():
        engines = load_preset(name).engines
        named = {*engines.backends, *engines.threads_by_model, *engines.reduced_precision}
        # What decides identity must be the same on every machine.
        assert not {"mapping", "sface", "sface_fast", "face_mesh"} & set(engines.reduced_precision)
        assert named <= set(known), name
    assert load_preset("exact").engines.precision == "f32"


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"no preset is called 'none'\. Legal: default, exact"):
        load_preset("none")


@pytest.mark.parametrize(
    ("name", "can", "want"), [("affine", True, "bf16"), ("affine", False, "f32"), ("other", True, "f32")]
)
def test_reduced_precision_only_where_wished_and_possible(
    affine: Path, monkeypatch: pytest.MonkeyPatch, name: str, can: bool, want: str
) -> None:
    opened: list[OpenRequest] = []

    def open_fake(request: OpenRequest) -> Engine:
        opened.append(request)
        return FakeEngine((IMAGE,), (IMAGE,), name=request.name)

    backend = Backend("openvino", (".onnx",), "json", "", ("f32", "bf16"), open_fake, lambda _: can)
    monkeypatch.setitem(BACKENDS, "openvino", backend)
    options = EngineOptions(precision="bf16", reduced_precision=("affine",))
    open_engine(affine, name=name, backend="openvino", options=options).close()
    assert opened[0].precision == want


def test_a_processor_without_bf16_is_told(affine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("keyface.engines.openvino")
    monkeypatch.setattr(openvino, "computes_in", lambda precision: precision == "f32")
    with pytest.raises(EngineError, match="this processor does not compute in bf16"):
        open_engine(affine, backend="openvino", precision="bf16")


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry, on by default, would leave a number of this machine and a queue in the home folder."""
    _network(tmp_path / "network.onnx")
    home = tmp_path / "home"
    home.mkdir()
    hidden = ("CI", "ORT_", "XDG_")  # telemetry is also off where the variables look like a test
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    code = "import sys; from keyface.engines.ort import OrtEngine; OrtEngine(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "network.onnx")],
        env={**environment, "HOME": str(home)},
        check=True,
        timeout=120,
    )
    assert not list(home.rglob("*"))
