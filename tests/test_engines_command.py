"""`keyface engines` and opening what it built: on stand-ins, and with TensorRT-RTX itself, which needs no card."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeTensorRt
from test_tensorrt_engine import RANGES, affine, image

from keyface.configs.errors import DeviceError, EngineError
from keyface.engines import gpu_networks, gpu_open
from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.engine_cache import EngineCache
from keyface.engines.gpu_networks import GPU_NETWORKS, GpuNetwork, graph_for
from keyface.engines.tensorrt_build import build_plan, unsupported_operators
from keyface.engines.tensorrt_flavour import load_flavour
from keyface.tools import engines_command
from keyface.tools.main import main

CARDS = ("sm75", "sm80", "sm86", "sm89", "sm120")


class Place:
    """A card, a library, one network's file, and a cache, all stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.card = NumpyDevice()
        self.trt = FakeTensorRt(self.card)
        self.path = folder / "affine.onnx"
        onnx.save(onnx.load_from_string(affine()), str(self.path))
        network = GpuNetwork(name="affine", source="affine", ranges=RANGES, decides=True)
        monkeypatch.setattr(gpu_networks, "GPU_NETWORKS", {"affine": network})
        monkeypatch.setattr(gpu_open, "GPU_NETWORKS", {"affine": network})
        monkeypatch.setenv("KEYFACE_ENGINE_DIR", str(folder / "engines"))
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)  # type: ignore[arg-type]
        monkeypatch.setattr("keyface.engines.device_memory.open_device", lambda: self.card)
        monkeypatch.setattr(
            gpu_open.open_tensorrt, "__kwdefaults__", {"cache": None, "opener": lambda: self.card}
        )
        monkeypatch.setattr(engines_command, "_sources", lambda args: {"affine": self.path})
        monkeypatch.setattr("keyface.engines.store.ModelStore.path", lambda store, name: self.path)
        monkeypatch.setattr(
            engines_command, "_installed_versions", lambda: {"tensorrt": self.trt.__version__}
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["engines", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_build_list_verify_warm_and_clean(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, built = _json(capsys, "build")
    assert code == 0 and built["architectures"] == ["sm89"] and built["library"] == "tensorrt 11.4.0"
    assert [(e["model"], e["precision"], e["is_new"]) for e in built["engines"]] == [
        ("affine", "f16", True), ("affine", "f32", True),
    ]  # fmt: skip
    assert not any(e["is_new"] for e in _json(capsys, "build")[1]["engines"]) and place.trt.n_builds == 2
    assert all(e["is_new"] for e in _json(capsys, "build", "--force")[1]["engines"])
    assert [e["state"] for e in _json(capsys, "list")[1]] == ["ok", "ok"]
    assert _json(capsys, "verify")[0] == 0
    code, warm = _json(capsys, "warm")
    assert code == 0 and all(row["run_ms"] > 0 and row["notes"] == [] for row in warm)
    assert _json(capsys, "clean")[1] == {"removed": [], "left_overs": 0}
    assert len(_json(capsys, "clean", "--all")[1]["removed"]) == 2
    assert _json(capsys, "list")[1] == []


def test_text_for_people(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "build"]) == 0
    shown = capsys.readouterr()
    assert "building affine f16" in shown.err
    assert "2 engines built, 0 in order already, 0 failed" in shown.out
    assert main(["engines", "warm"]) == 0
    assert "opened in" in capsys.readouterr().out
    assert main(["engines", "list"]) == 0
    assert "tensorrt 11.4.0" in capsys.readouterr().out


def test_a_new_library_makes_engines_stale_and_building_repairs(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    _json(capsys, "build")
    place.trt.__version__ = "11.5.0"
    code, entries = _json(capsys, "verify")
    assert code == 5 and {e["state"] for e in entries} == {"stale"}
    with pytest.raises(EngineError, match=r"is stale: the library's version was 11\.4\.0, is 11\.5\.0"):
        gpu_open.open_tensorrt(place.path, "affine", "f16", "tensorrt")
    assert all(e["is_new"] for e in _json(capsys, "build")[1]["engines"])
    assert len(_json(capsys, "clean")[1]["removed"]) == 2  # the old ones
    assert _json(capsys, "verify")[0] == 0


def test_an_engine_for_another_card_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    _json(capsys, "build")
    other = NumpyDevice(compute_capability=(8, 6))
    with pytest.raises(EngineError, match="is foreign: it is for sm89, this is sm86"):
        gpu_open.open_tensorrt(place.path, "affine", "f16", "tensorrt", opener=lambda: other)


def test_what_was_built_computes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    _json(capsys, "build")
    given = image(3)
    for precision, tolerance in (("f32", 1e-6), ("f16", 2e-3)):
        with gpu_open.open_tensorrt(place.path, "affine", precision, "tensorrt") as engine:  # type: ignore[arg-type]
            engine.warm_up()
            np.testing.assert_allclose(engine.run({"image": given})["result"], 2 * given + 1, rtol=tolerance)
    assert place.card.n_open == 0


def test_a_network_that_fails_does_not_stop_the_others(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.trt.fails_with = ["no tactic found"]
    code, built = _json(capsys, "build")
    assert code == 5 and "no tactic found" in built["engines"][0]["problem"]
    assert built["engines"][1]["problem"] == "" and built["engines"][1]["is_new"]


def test_without_a_card_the_way_out_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> Any:
        raise DeviceError("there is no NVIDIA driver here.")

    monkeypatch.setattr("keyface.engines.device_memory.open_device", none)
    assert main(["engines", "build"]) == 5
    assert "build for others with --sm 75,80,86,89,120" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "hat"], "no network is called 'hat'. Legal: affine"),
        (["build", "--sm", "ada"], "Want numbers with commas"),
    ],
)
def test_bad_options_are_told(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["engines", *arguments]) == 2
    assert message in capsys.readouterr().err


# -- TensorRT-RTX itself


@pytest.fixture(scope="module")
def rtx() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13")
    return load_flavour("tensorrt_rtx")


def test_rtx_builds_the_whole_chain_ahead_of_time(rtx: Any, models: Any, tmp_path: Path) -> None:
    """Every network, in half and in float32 where that decides, for five kinds of cards; without a card."""
    sources = models.ensure([network.source for network in GPU_NETWORKS.values()])
    requests = gpu_open.requests_for(sources)
    assert {r.network.name for r in requests} == set(GPU_NETWORKS) and len(requests) == 15
    unsupported = {}
    for request in requests:
        graph = graph_for(request.network, request.path, request.precision)
        unsupported[request.network.name] = unsupported_operators(rtx, graph)
    assert {name: ops for name, ops in unsupported.items() if ops} == {}
    steps: list[tuple[str, int, int]] = []
    cache = EngineCache(tmp_path)
    results = gpu_open.build_engines(
        requests, rtx, CARDS, is_ahead=True, cache=cache,
        on_progress=lambda request: lambda *step: steps.append(step),
    )  # fmt: skip
    assert [result.problem for result in results] == [""] * 15
    assert all(done <= total for _, done, total in steps) and steps
    for entry in cache.entries():
        assert entry.key.architectures == CARDS and entry.n_bytes > 1e6
        assert cache.judge(entry, None).state == "ok"


def test_rtx_refuses_cards_that_it_has_no_code_for(rtx: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "build", "--sm", "89,90"]) == 5
    assert "cannot build ahead of time for sm90. It builds for sm75" in capsys.readouterr().err


def test_rtx_names_what_it_cannot_parse(rtx: Any) -> None:
    model = onnx.load_from_string(affine())
    model.graph.node[0].op_type = "MelWeightMatrix"
    del model.graph.node[0].input[:]
    model.graph.node[0].input.extend(["gain"] * 5)
    content = model.SerializeToString()
    assert unsupported_operators(rtx, content) == ("MelWeightMatrix",)
    with pytest.raises(EngineError, match="MelWeightMatrix"):
        build_plan(rtx, content, name="odd", ranges=RANGES, architectures=("sm89",))
