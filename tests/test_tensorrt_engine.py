"""The TensorRT back-end on a stand-in for card and library: bindings, streams, graphs, memory, and its failures."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from fake_tensorrt import FakeTensorRt
from onnx import TensorProto, helper, numpy_helper

from keyface.configs.errors import DeviceLostError, DeviceMemoryError, EngineError
from keyface.engines import open as open_module
from keyface.engines.device_memory import DeviceInfo
from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.open import BACKENDS, open_engine
from keyface.engines.tensorrt_build import ShapeRange, build_plan, unsupported_operators
from keyface.engines.tensorrt_engine import TensorRtEngine
from keyface.engines.tensorrt_flavour import (
    Flavour,
    choose_flavour,
    load_flavour,
    parse_architectures,
)

F32 = npt.NDArray[np.float32]
RANGES = {"image": ShapeRange((1, 3, 8, 6), (1, 3, 8, 6), (8, 3, 8, 6))}


def affine() -> bytes:
    """y = 2 x + 1 and its mean over the picture, in any batch."""
    weights = [
        numpy_helper.from_array(np.full((1, 3, 1, 1), 2.0, np.float32), "gain"),
        numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "shift"),
    ]
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"], name="scale"),
        helper.make_node("Add", ["scaled", "shift"], ["result"], name="shift_it"),
        helper.make_node("ReduceMean", ["result"], ["level"], axes=[1, 2, 3], keepdims=0, name="mean"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("result", TensorProto.FLOAT, ["n", 3, "h", "w"]),
            helper.make_tensor_value_info("level", TensorProto.FLOAT, ["n"]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Bench:
    """A card, a library and an engine on both."""

    def __init__(self, *, graphs: bool = True, max_batch: int | None = 8, **card: Any) -> None:
        self.card = NumpyDevice(**card)
        self.trt = FakeTensorRt(self.card)
        self.flavour = Flavour("tensorrt", self.trt, self.trt.__version__)
        plan = build_plan(self.flavour, affine(), name="affine", ranges=RANGES).content
        self.engine = TensorRtEngine(
            plan,
            flavour=self.flavour,
            device=self.card,
            name="affine",
            max_batch=max_batch,
            uses_graphs=graphs,
        )


def image(n: int = 1, seed: int = 0, size: tuple[int, int] = (8, 6)) -> F32:
    return np.random.default_rng(seed).uniform(0.5, 1.0, (n, 3, *size)).astype(np.float32)


def check(engine: TensorRtEngine, given: F32) -> None:
    kept = given.copy()
    got = engine.run({"image": given})
    np.testing.assert_allclose(got["result"], 2 * kept + 1, rtol=1e-6)
    np.testing.assert_allclose(got["level"], (2 * kept + 1).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(given, kept)


def test_it_computes_in_any_batch_and_frees_everything() -> None:
    bench = Bench()
    with bench.engine as engine:
        assert engine.backend == "tensorrt" and list(engine.inputs) == ["image"]
        assert engine.inputs["image"].shape == (None, 3, None, None)
        for n in (1, 8, 3):
            check(engine, image(n, seed=n))
        check(engine, image(2).transpose(0, 1, 3, 2))  # not contiguous
        first = engine.run({"image": image(1)})["result"]
        kept = first.copy()
        engine.run({"image": image(1, seed=9)})
        np.testing.assert_array_equal(first, kept)  # fresh arrays, not the pinned ones
    assert bench.card.n_open == 0 and engine.notes == []


def test_a_batch_beyond_what_was_built_for_runs_in_parts() -> None:
    bench = Bench(max_batch=4)
    check(bench.engine, image(11))
    assert bench.trt.n_executed == 3


def test_the_third_run_of_a_shape_is_a_graph_and_changing_shapes_ends_it() -> None:
    bench = Bench()
    for seed in range(5):
        check(bench.engine, image(seed=seed))
    assert bench.card.n_launches == 3
    check(bench.engine, image(2))
    check(bench.engine, image(1, seed=7))
    assert bench.card.n_launches == 3  # not with a graph of shapes that have changed
    bench.engine.close()
    assert bench.card.n_open == 0


def test_no_graphs_when_they_are_not_wanted() -> None:
    bench = Bench(graphs=False)
    for seed in range(5):
        check(bench.engine, image(seed=seed))
    assert bench.card.n_launches == 0


def test_only_the_latest_shapes_keep_buffers() -> None:
    bench = Bench()
    for size in range(2, 14, 2):
        check(bench.engine, image(size=(size, size)))
    used = bench.card.used_bytes
    for size in range(2, 14, 2):
        check(bench.engine, image(size=(size, size)))
    assert bench.card.used_bytes == used


def test_a_capture_that_fails_is_noted_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from keyface.configs.errors import DeviceError

    bench = Bench()

    def refuse(stream: int) -> None:
        raise DeviceError("this driver captures nothing.")

    monkeypatch.setattr(bench.card, "begin_capture", refuse)
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            check(bench.engine, image(seed=seed))
    assert len(bench.engine.notes) == 1 and "without a CUDA graph" in bench.engine.notes[0]
    assert "captures nothing" in caplog.text


def test_too_little_memory_halves_the_batch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.trt.max_batch_in_memory = 2
    with caplog.at_level(logging.WARNING):
        check(bench.engine, image(8))
    assert bench.engine.notes[-1].endswith("batches of 2 from now on") and "batches of 2" in caplog.text
    executed = bench.trt.n_executed
    check(bench.engine, image(8, seed=1))
    assert bench.trt.n_executed == executed + 4


def test_too_little_memory_for_one_is_an_error() -> None:
    bench = Bench(memory_bytes=100)
    with pytest.raises(DeviceMemoryError, match="too little free memory"):
        bench.engine.run({"image": image(8)})
    assert bench.card.used_bytes == 0


@pytest.mark.parametrize(
    ("logged", "kind"),
    [
        ("CUDA error: an illegal memory access (unspecified launch failure)", DeviceLostError),
        ("Error Code 1: Cuda Runtime (out of memory)", DeviceMemoryError),
        ("Error Code 3: API Usage Error", EngineError),
    ],
)
def test_what_the_library_logs_tells_the_failure(logged: str, kind: type[EngineError]) -> None:
    bench = Bench()
    bench.trt.fails_with = [logged, logged, logged]
    with pytest.raises(kind) as caught:
        bench.engine.run({"image": image()})
    assert type(caught.value) is kind and logged.rstrip(".") in str(caught.value)


def test_a_card_lost_in_the_middle_is_told_and_closing_still_works(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    check(bench.engine, image())
    bench.card.lose()
    with pytest.raises(DeviceLostError, match="the card was lost"):
        bench.engine.run({"image": image()})
    with caplog.at_level(logging.WARNING):
        bench.engine.close()
    assert "could not be freed" in caplog.text


def test_an_engine_of_another_version_is_refused_with_the_librarys_reason() -> None:
    bench = Bench()
    with pytest.raises(EngineError, match=r"refuses the engine: version mismatch.*engines build --force"):
        TensorRtEngine(b"PLAN 10.0\nx", flavour=bench.flavour, device=bench.card, name="old")


def test_an_engine_stays_on_its_thread() -> None:
    bench = Bench()
    problems: list[str] = []

    def work() -> None:
        try:
            bench.engine.run({"image": image()})
        except EngineError as error:
            problems.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert problems and "opened on another thread" in problems[0]


# -- building


def test_operators_that_are_not_supported_are_listed_by_name() -> None:
    trt = FakeTensorRt(NumpyDevice(), unsupported=("ReduceMean", "Add"))
    flavour = Flavour("tensorrt", trt, "11.4.0")
    with pytest.raises(EngineError, match=r"Add shift_it: no importer.*; ReduceMean mean: no importer"):
        build_plan(flavour, affine(), name="affine", ranges=RANGES)
    assert unsupported_operators(flavour, affine()) == ("Add", "ReduceMean")


def test_open_sizes_without_a_range_are_told() -> None:
    bench = Bench()
    with pytest.raises(EngineError, match="input 'image' has open sizes, and no range"):
        build_plan(bench.flavour, affine(), name="affine", ranges={})


def test_building_ahead_wants_the_library_that_can() -> None:
    bench = Bench()
    with pytest.raises(EngineError, match=r"tensorrt cannot build ahead of time for sm89\. Use tensorrt_rtx"):
        build_plan(bench.flavour, affine(), name="affine", ranges=RANGES, architectures=("sm89",))
    rtx = Flavour("tensorrt_rtx", FakeTensorRt(NumpyDevice(), ahead=(75, 120, 89)), "1.7")
    assert rtx.architectures == ("sm75", "sm89", "sm120")
    with pytest.raises(EngineError, match=r"for sm90\. It builds for sm75, sm89, sm120"):
        build_plan(rtx, affine(), name="affine", ranges=RANGES, architectures=("sm89", "sm90"))
    assert build_plan(rtx, affine(), name="affine", ranges=RANGES, architectures=("sm75", "sm89")).layers == 3


def test_a_build_that_fails_gives_the_librarys_reason() -> None:
    bench = Bench()
    bench.trt.fails_with = ["no tactic found"]
    with pytest.raises(EngineError, match="could not build the engine: no tactic found"):
        build_plan(bench.flavour, affine(), name="affine", ranges=RANGES)


def test_ranges_must_be_in_order() -> None:
    with pytest.raises(EngineError, match="want least <= best <= most"):
        ShapeRange((2, 3), (1, 3), (4, 3))


# -- choosing the library


def test_the_library_is_chosen_by_card_and_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NumpyDevice()
    full, rtx = FakeTensorRt(card), FakeTensorRt(card, version="1.7.1", ahead=(75, 89))
    ada, hopper = (DeviceInfo("card", cc, 1, 13_000) for cc in ((8, 9), (9, 0)))
    monkeypatch.setitem(sys.modules, "tensorrt", full)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)  # type: ignore[arg-type]
    assert choose_flavour(ada).name == "tensorrt" and choose_flavour().name == "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    assert choose_flavour(ada).name == "tensorrt_rtx"
    with pytest.raises(EngineError, match=r"tensorrt is not installed.*has no code for card \(sm90\)"):
        choose_flavour(hopper)


def test_a_library_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(NumpyDevice(), version="8.6.1"))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"tensorrt 8\.6\.1 is too old, want 10\.0"):
        load_flavour("tensorrt")


def test_an_old_card_is_told() -> None:
    flavour = Flavour("tensorrt", FakeTensorRt(NumpyDevice()), "11.4.0")
    with pytest.raises(EngineError, match="wants a card of SM75 or newer, GTX is sm61"):
        flavour.check_card(DeviceInfo("GTX", (6, 1), 1, 12_000))


@pytest.mark.parametrize(
    ("text", "want"), [("89", ("sm89",)), ("120, sm75,SM_89,75", ("sm75", "sm89", "sm120"))]
)
def test_architectures_are_read(text: str, want: tuple[str, ...]) -> None:
    assert parse_architectures(text) == want


@pytest.mark.parametrize("text", ["", "8.9", "ada", "89,,75"])
def test_odd_architectures_are_told(text: str) -> None:
    with pytest.raises(EngineError, match="Want numbers with commas"):
        parse_architectures(text)


# -- as a back-end


def test_asked_for_and_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "affine.onnx"
    onnx.save(onnx.load_from_string(affine()), str(path))
    for name, message in (
        ("tensorrt", "tensorrt is not installed"),
        ("tensorrt_rtx", "tensorrt_rtx is not installed"),
    ):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(EngineError, match=message):
            open_engine(path, backend=name)  # type: ignore[arg-type]


def test_onnx_runtime_for_cpus_is_not_taken_for_a_card(tmp_path: Path) -> None:
    from keyface.engines import ort_cuda

    if not ort_cuda.why_not():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    path = tmp_path / "affine.onnx"
    path.write_bytes(affine())
    with pytest.raises(EngineError, match=r"onnxruntime_cuda cannot be used: .*CPU only.*onnxruntime-gpu"):
        open_engine(path, backend="onnxruntime_cuda")
    with pytest.raises(EngineError, match="cannot be used"):
        ort_cuda.OrtCudaEngine(path)
    assert not BACKENDS["onnxruntime_cuda"].is_usable and open_module.BACKENDS["onnxruntime"].is_usable


def test_a_cuda_provider_that_falls_back_to_the_cpu_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyface.engines import ort_cuda

    monkeypatch.setattr(ort_cuda, "why_not", lambda: "")
    monkeypatch.setattr(ort_cuda.OrtCudaEngine, "providers", ("CPUExecutionProvider",))
    path = tmp_path / "affine.onnx"
    path.write_bytes(affine())
    with pytest.raises(EngineError, match="could not start its CUDA provider"):
        ort_cuda.OrtCudaEngine(path)
