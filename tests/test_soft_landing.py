"""When the card fails: smaller batches, then the CPU, always said; or a stop; and never silently another back-end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_tensorrt_engine import Bench, affine, check, image

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError, EngineError
from keyface.configs.schema import EngineOptions, load_preset
from keyface.engines import chain_network
from keyface.engines.chain_network import open_chain_network, uses_card
from keyface.engines.engine import Array, Engine, TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.engines.open import BACKENDS, Backend, OpenRequest
from keyface.engines.ort import OrtEngine
from keyface.engines.soft_landing import SoftLanding
from keyface.engines.tensorrt_build import build_plan
from keyface.engines.tensorrt_engine import TensorRtEngine

ONE = TensorSpec("image", "float32", (None, 3, None, None))


def _cpu() -> Engine:
    return OrtEngine(affine(), name="affine", threads=1)


def test_a_lost_card_is_followed_by_the_cpu_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.WARNING), SoftLanding(bench.engine, _cpu) as engine:
        check(engine, image())  # type: ignore[arg-type]
        assert engine.backend == "tensorrt" and engine.notes == []
        bench.card.lose()
        for seed in range(3):
            check(engine, image(seed=seed))  # type: ignore[arg-type]
        assert engine.backend == "onnxruntime"
        assert engine.notes == [
            "affine: the card was lost: stand-in. It goes on on the CPU (onnxruntime), more slowly."
        ]
    assert caplog.text.count("goes on on the CPU") == 1


@pytest.mark.parametrize("after", range(1, 14))
def test_wherever_the_card_is_lost_the_result_is_right(after: int) -> None:
    bench = Bench()
    with SoftLanding(bench.engine, _cpu) as engine:
        bench.card.lose(after_calls=after)
        for seed in range(4):
            check(engine, image(seed=seed))  # type: ignore[arg-type]


def test_with_stop_the_loss_is_the_callers() -> None:
    bench = Bench()
    engine = SoftLanding(bench.engine, _cpu, on_loss="stop")
    bench.card.lose()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="the card was lost"):
            engine.run({"image": image()})
    assert engine.backend == "tensorrt"


def test_too_little_memory_is_first_a_smaller_batch_then_the_cpu() -> None:
    bench = Bench(graphs=False)
    with SoftLanding(bench.engine, _cpu) as engine:
        bench.trt.max_batch_in_memory = 2
        check(engine, image(8))  # type: ignore[arg-type]
        assert engine.backend == "tensorrt" and "batches of 2 from now on" in engine.notes[-1]
        bench.trt.max_batch_in_memory = 0
        check(engine, image(8))  # type: ignore[arg-type]
        assert engine.backend == "onnxruntime" and len(engine.notes) >= 1


def test_a_warm_up_without_memory_lands_too() -> None:
    bench = Bench(memory_bytes=64)
    with SoftLanding(bench.engine, _cpu) as engine:
        engine.warm_up()
        assert engine.backend == "onnxruntime"


def test_a_fault_that_is_not_the_cards_stays_a_fault() -> None:
    bench = Bench()
    engine = SoftLanding(bench.engine, _cpu)
    bench.trt.fails_with = ["Error Code 3: API Usage Error"]
    with pytest.raises(EngineError, match="API Usage Error"):
        engine.run({"image": image()})
    assert engine.backend == "tensorrt"


def test_a_cpu_that_fails_too_is_the_callers() -> None:
    bench = Bench()

    def fail(_: Mapping[str, Array]) -> dict[str, Array]:
        raise DeviceLostError("the other card was lost.")

    engine = SoftLanding(bench.engine, lambda: FakeEngine((ONE,), (ONE,), fail))
    bench.card.lose()
    with pytest.raises(DeviceLostError, match="the other card"):
        engine.run({"image": image()})


def test_two_engines_on_one_card_each_land_on_their_own() -> None:
    """As two programs on one card: one takes the memory, the other goes on on the CPU, then the card goes."""
    bench = Bench(memory_bytes=6000)
    plan = build_plan(bench.flavour, affine(), name="affine", ranges={"image": _range()}).content
    second = TensorRtEngine(plan, flavour=bench.flavour, device=bench.card, name="second", max_batch=8)
    first, other = SoftLanding(bench.engine, _cpu), SoftLanding(second, _cpu)
    check(first, image(4))  # type: ignore[arg-type]  # 4608 bytes and 16 of the card's 6000
    check(other, image(4))  # type: ignore[arg-type]
    assert first.backend == "tensorrt" and "batches of" in other.notes[0]
    bench.card.lose()
    check(first, image(4))  # type: ignore[arg-type]
    check(other, image(4))  # type: ignore[arg-type]
    assert first.backend == other.backend == "onnxruntime"


def _range() -> Any:
    from test_tensorrt_engine import RANGES

    return RANGES["image"]


# -- choosing for the chain


class Store:
    """A model store with one file under every name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def path(self, name: str) -> Path:
        return self._path


@pytest.fixture
def store(tmp_path: Path) -> Any:
    path = tmp_path / "affine.onnx"
    onnx.save(onnx.load_from_string(affine()), str(path))
    return Store(path)


def _card_backend(opened: list[OpenRequest], problem: str = "") -> Backend:
    def open_it(request: OpenRequest) -> Engine:
        opened.append(request)
        if problem:
            raise DeviceError(problem)
        return Bench().engine

    return Backend("tensorrt", (".onnx",), "json", "pip", ("f32", "f16"), open_it, is_gpu=True)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("synthesis_256", "f16"),
        ("warp_decode", "f16"),
        ("sface_fast", "f32"),
        ("face_mesh", "f32"),
        ("warp_motion", "f32"),
        ("warp_source", "f32"),
    ],
)
def test_half_renders_and_float32_decides(
    store: Any, monkeypatch: pytest.MonkeyPatch, name: str, want: str
) -> None:
    opened: list[OpenRequest] = []
    monkeypatch.setitem(BACKENDS, "tensorrt", _card_backend(opened))
    with open_chain_network(store, name, options=load_preset("gpu").engines) as engine:
        assert engine.backend == "tensorrt" and opened[0].precision == want
    with open_chain_network(store, name, backend="tensorrt", options=load_preset("exact").engines):
        assert opened[1].precision == "f32"


def test_asked_for_by_name_it_is_an_error_and_with_auto_a_stated_fallback(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BACKENDS, "tensorrt", _card_backend([], "there is no NVIDIA driver here."))
    monkeypatch.setattr(chain_network, "_told", set())
    options = EngineOptions(backends={"synthesis_256": ("tensorrt", "onnxruntime")})
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        open_chain_network(store, "synthesis_256", backend="tensorrt", options=options)
    with (
        caplog.at_level(logging.WARNING),
        open_chain_network(store, "synthesis_256", options=options) as engine,
    ):
        assert engine.backend == "onnxruntime"
        np.testing.assert_allclose(engine.run({"image": image()})["result"], 2 * image() + 1, rtol=1e-6)
    assert caplog.text.count("tensorrt is passed over: there is no NVIDIA driver here.") == 1
    open_chain_network(store, "synthesis_256", options=options).close()
    assert caplog.text.count("passed over") == 1  # told once


def test_the_cpu_presets_ask_for_no_card(store: Any) -> None:
    for name in ("default", "exact"):
        assert not uses_card("auto", load_preset(name).engines)
    assert uses_card("auto", load_preset("gpu").engines) and uses_card("tensorrt", EngineOptions())
    with open_chain_network(store, "synthesis_256", backend="onnxruntime") as engine:
        assert engine.backend == "onnxruntime"


def test_loss_is_handled_as_the_options_say(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    backend = Backend("tensorrt", (".onnx",), "json", "", ("f32", "f16"), lambda _: bench.engine, is_gpu=True)
    monkeypatch.setitem(BACKENDS, "tensorrt", backend)
    options = EngineOptions(on_device_loss="stop")
    engine = chain_network.open_chain_network(store, "synthesis_256", backend="tensorrt", options=options)
    bench.trt.fails_with = ["out of memory"] * 3
    with pytest.raises(DeviceMemoryError):
        engine.run({"image": image()})
