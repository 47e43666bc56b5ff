"""The product's networks: parity between back-ends, and rewrites that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from keyface.configs.errors import EngineError, ModelStoreError
from keyface.engines.litert import LiteRtEngine
from keyface.engines.onnx_rewrite import build_for_cpu
from keyface.engines.open import BACKENDS, open_engine
from keyface.engines.ort import OrtEngine

F32 = npt.NDArray[np.float32]


def _feeds(name: str) -> dict[str, F32]:
    rng = np.random.default_rng(11)
    shapes = {"yunet_dynamic": ("input", (1, 3, 320, 256)), "sface_fast": ("data", (1, 3, 112, 112))}
    key, shape = shapes[name]
    return {key: rng.uniform(0, 255, shape).astype(np.float32)}


@pytest.mark.parametrize("name", ["yunet_dynamic", "sface_fast"])
def test_openvino_agrees_with_onnx_runtime(models: Any, name: str) -> None:
    """float32: 1e-4 of the largest value; bf16, meant for speed only: 8 % of it."""
    pytest.importorskip("openvino")
    feed = _feeds(name)
    with open_engine(models.path(name), backend="onnxruntime", threads=1) as engine:
        want = engine.run(feed)
    for precision, tolerance in (("f32", 1e-4), ("bf16", 8e-2)):
        if not BACKENDS["openvino"].computes_in(precision):  # type: ignore[arg-type]
            continue
        with open_engine(models.path(name), backend="openvino", threads=1, precision=precision) as engine:  # type: ignore[arg-type]
            got = engine.run(feed)
        for key, array in want.items():
            np.testing.assert_allclose(got[key], array, rtol=0, atol=tolerance * float(np.abs(array).max()))


def test_sface_written_for_the_cpu_equals_the_original(models: Any) -> None:
    feed = _feeds("sface_fast")
    results = []
    for name in ("sface", "sface_fast"):
        with open_engine(models.path(name), threads=1) as engine:
            results.append(engine.run(feed)["fc1"][0])
    np.testing.assert_allclose(results[1], results[0], atol=1e-4 * float(np.abs(results[0]).max()))


def test_yunet_with_open_size_equals_the_original(models: Any) -> None:
    image = np.random.default_rng(5).uniform(0, 255, (1, 3, 640, 640)).astype(np.float32)
    results = []
    for name in ("yunet", "yunet_dynamic"):
        with open_engine(models.path(name), threads=1) as engine:
            results.append(engine.run({"input": image}))
    for key, array in results[0].items():
        np.testing.assert_allclose(results[1][key], array, atol=1e-5)


def test_the_face_networks_of_mediapipe_run(models: Any) -> None:
    crop = np.full((1, 256, 256, 3), 0.5, np.float32)
    with open_engine(models.path("face_mesh"), name="face_mesh") as mesh:
        assert isinstance(mesh, LiteRtEngine)
        outputs = mesh.run({"input_12": crop})
        assert outputs["Identity"].shape == (1, 1, 1, 1434)
        with pytest.raises(EngineError, match=r"got \(1,128,128,3\), want \(1,256,256,3\)"):
            mesh.run({"input_12": crop[:, :128, :128]})
    points = np.random.default_rng(0).uniform(50, 200, (1, 146, 2)).astype(np.float32)
    with open_engine(models.path("face_blendshapes"), name="face_blendshapes") as blendshapes:
        blendshapes.warm_up()
        (scores,) = blendshapes.run({"serving_default_input_points:0": points}).values()
    assert scores.shape == (52,) and scores.min() >= 0 and scores.max() <= 1


def test_declared_inputs_and_outputs_are_those_of_the_files(models: Any) -> None:
    for name in models.resolve("default"):
        entry = models.manifest[name]
        if not entry.inputs:
            continue
        with open_engine(models.path(name), name=name, threads=1) as engine:
            for declared, real in ((entry.inputs, engine.inputs), (entry.outputs, engine.outputs)):
                assert {t.name: (t.dtype, t.shape) for t in declared} == {
                    t.name: (t.dtype, t.shape) for t in real.values()
                }, name


def test_the_rewrite_takes_weights_from_the_inputs_and_writes_out_prelu(tmp_path: Path) -> None:
    slope = np.array([0.25, -0.5, 1.5], np.float32).reshape(3, 1, 1)
    infos = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])]
    infos.append(helper.make_tensor_value_info("slope", TensorProto.FLOAT, [3, 1, 1]))
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["image", "slope"], ["result"])],
        "old",
        infos,
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(slope, "slope")],
    )
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(old))
    build_for_cpu({"old": old}, new)
    build_for_cpu({"old": old}, tmp_path / "again.onnx")
    assert new.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    image = np.random.default_rng(2).normal(size=(1, 3, 4, 4)).astype(np.float32)
    with OrtEngine(new) as engine:
        assert list(engine.inputs) == ["image"]
        got = engine.run({"image": image})["result"]
    np.testing.assert_allclose(got, np.where(image > 0, image, slope * image), atol=1e-6)


def test_the_rewrite_refuses_what_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelStoreError, match="is not an ONNX file"):
        build_for_cpu({"x": path}, tmp_path / "y.onnx")
