"""Networks written in half precision, as ONNX from .tflite, and with products as convolutions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from keyface.configs.errors import EngineError, ModelStoreError
from keyface.engines import half_precision
from keyface.engines.gpu_networks import GPU_NETWORKS, gpu_network, graph_for
from keyface.engines.litert import LiteRtEngine
from keyface.engines.onnx_products import products_as_convolutions
from keyface.engines.ort import OrtEngine
from keyface.engines.tflite_onnx import convert
from keyface.pipeline.faces.canonical import CANONICAL_XYZ

F32 = npt.NDArray[np.float32]

# What half precision may change, on faces: of an image PSNR, of an embedding cosine, of points px of the crop's 256,
# of scores and blendshapes their value.
MIN_PSNR_DB, MIN_COSINE, MAX_POINT_PX, MAX_SCORE, MAX_BLENDSHAPE = 45.0, 0.995, 0.5, 0.01, 0.02


def _model(nodes: list[Any], weights: dict[str, Any], out_rank: int = 2, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *[None] * (out_rank - 1)])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _run(model: onnx.ModelProto, feeds: dict[str, F32]) -> dict[str, F32]:
    """Without optimisation, which would take roundings out again."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_weights_and_nodes_are_half_and_the_ends_are_not() -> None:
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    half = half_precision.to_half(model)
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT  # the one given is left alone
    assert half.graph.initializer[0].data_type == TensorProto.FLOAT16
    assert [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)] == [1, 1]
    assert Counter(node.op_type for node in half.graph.node) == {"Cast": 2, "MatMul": 1}
    onnx.checker.check_model(half)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(half, {"x": x})["y"], x @ weight, atol=5e-3)


def test_what_is_kept_computes_beyond_what_half_can_hold() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Div", ["square", "large"], ["near_one"]),
        helper.make_node("MatMul", ["near_one", "w"], ["y"]),
    ]
    model = _model(nodes, {"large": np.float32(1e6), "w": np.eye(4, dtype=np.float32)})
    kept = half_precision.nodes_before_first_layer(model)
    assert len(kept) == 2
    half = half_precision.to_half(model, keep_float32=kept)
    x = np.array([[1001.0, 2003.0, 3001.0, 10.0]], np.float32)  # squares beyond 65504
    np.testing.assert_allclose(_run(half, {"x": x})["y"], x * x / 1e6, rtol=1e-3)
    with pytest.raises(EngineError, match="weight 'large' has values beyond float16"):
        half_precision.to_half(model)


def test_a_branch_cannot_be_converted() -> None:
    inner = helper.make_graph([], "g", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(EngineError, match="branches cannot be written in half precision"):
        half_precision.to_half(_model([node], {"c": np.array(True)}))


def test_emulated_half_rounds_every_node() -> None:
    model = _model([helper.make_node("Add", ["x", "one"], ["y"])], {"one": np.float32(1)})
    got = _run(half_precision.emulate_half(model), {"x": np.full((1, 4), 1e-4, np.float32)})["y"]
    np.testing.assert_array_equal(got, np.full((1, 4), 1.0, np.float32))  # 1.0001 is 1 in half


def test_products_become_convolutions_and_compute_the_same() -> None:
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(size=(4, 6)).astype(np.float32),
        "v": rng.normal(size=(3, 6)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], transB=1),
    ]
    model = _model(nodes, weights)
    changed = products_as_convolutions(model)
    onnx.checker.check_model(changed)
    assert not {"Gemm", "MatMul"} & {node.op_type for node in changed.graph.node}
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(changed, {"x": x})["y"], _run(model, {"x": x})["y"], atol=1e-5)


def test_products_of_batches_become_sums_and_compute_the_same() -> None:
    """(N, 4, 1) by (N, 1, 4) and back: what a warp's spreading of landmarks is made of."""
    rng = np.random.default_rng(2)
    axes = {"last": np.array([2]), "rows": np.array([1])}
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("Unsqueeze", ["x", "rows"], ["row"]),
        helper.make_node("MatMul", ["column", "row"], ["square"]),
        helper.make_node("MatMul", ["square", "column"], ["y"]),
    ]
    model = _model(nodes, axes, out_rank=3)
    changed = products_as_convolutions(model)
    onnx.checker.check_model(changed)
    kinds = Counter(node.op_type for node in changed.graph.node)
    assert kinds["MatMul"] == 0 and kinds["ReduceSum"] == 2
    x = rng.normal(size=(3, 4)).astype(np.float32)
    want = _run(model, {"x": x})["y"]
    assert want.shape == (3, 4, 1)
    np.testing.assert_allclose(_run(changed, {"x": x})["y"], want, atol=1e-5)


def test_weights_that_are_held_in_half_become_convolutions_too() -> None:
    rng = np.random.default_rng(3)
    weights = {"half": rng.normal(size=(3, 4)).astype(np.float16), "b": rng.normal(size=3).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
    ]
    model = _model(nodes, weights)
    changed = products_as_convolutions(model)
    onnx.checker.check_model(changed)
    assert "Gemm" not in {node.op_type for node in changed.graph.node}
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(_run(changed, {"x": x})["y"], _run(model, {"x": x})["y"], atol=1e-5)


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"transA": 1}])
def test_odd_products_stay_as_they_are(attributes: dict[str, Any]) -> None:
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.zeros(4, np.float32)}
    model = _model([helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)], weights)
    assert [node.op_type for node in products_as_convolutions(model).graph.node] == ["Gemm"]


def test_unknown_networks_and_precisions_are_told(tmp_path: Any) -> None:
    with pytest.raises(EngineError, match=r"hat: it is not known in which sizes.*synthesis_256"):
        gpu_network("hat")
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\xff" * 9)
    with pytest.raises(EngineError, match="is not an ONNX file"):
        graph_for(gpu_network("mapping"), path, "f16")
    onnx.save(_model([helper.make_node("Identity", ["x"], ["y"])], {}), str(path))
    with pytest.raises(EngineError, match="not built in bf16"):
        graph_for(gpu_network("mapping"), path, "bf16")


# -- the product's networks


@pytest.mark.parametrize("content", [b"", b"this is no network" * 40])
def test_what_is_no_tflite_file_is_told(content: bytes) -> None:
    with pytest.raises(ModelStoreError, match=r"is not a \.tflite file"):
        convert(content, "hat")


@pytest.mark.parametrize("name", ["face_mesh", "face_blendshapes"])
def test_networks_of_mediapipe_compute_the_same_as_onnx(models: Any, name: str) -> None:
    """Points: 0.01 px of 256; the rest: 1e-4."""
    content = models.path(name).read_bytes()
    made = convert(content, name)
    assert convert(content, name).SerializeToString() == made.SerializeToString()
    rng = np.random.default_rng(4)
    with LiteRtEngine(content) as lite, OrtEngine(made.SerializeToString(), threads=1) as onnx_engine:
        (spec,) = lite.inputs.values()
        given = rng.uniform(0, 1 if name == "face_mesh" else 900, spec.shape).astype(np.float32)  # type: ignore[arg-type]
        want, got = lite.run({spec.name: given}), onnx_engine.run({spec.name: given})
        assert list(got) == list(want)
        for key in want:
            assert got[key].shape == want[key].shape
            tolerance = 1e-2 if key == "Identity" else 1e-4
            np.testing.assert_allclose(got[key], want[key], atol=tolerance)
        if name == "face_mesh":  # the batch is open, and its items do not touch each other
            pair = np.concatenate([given, 1 - given])
            np.testing.assert_allclose(
                onnx_engine.run({spec.name: pair})["Identity"][:1], got["Identity"], atol=1e-2
            )


def _faces(models: Any, n: int = 2) -> tuple[F32, F32]:
    """W+ (n, 23, 512) of generated people, and their pictures in [0, 255], (n, 3, 256, 256)."""
    z = np.random.default_rng(21).normal(size=(n, 512)).astype(np.float32)
    with (
        OrtEngine(models.path("mapping"), threads=1) as mapping,
        OrtEngine(models.path("synthesis_256"), threads=1) as synthesis,
    ):
        w = mapping.run({"z": z})["w"]
        w_plus = np.ascontiguousarray(np.repeat((w.mean(0) * 0.4 + w * 0.6)[:, None], 23, 1), np.float32)
        image = synthesis.run({"w_plus": w_plus})["image"]
    return w_plus, np.clip((image + 1) * 127.5, 0, 255).astype(np.float32)


def _feeds(models: Any) -> dict[str, dict[str, F32]]:
    w_plus, pictures = _faces(models)
    crop = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) / np.float32(255)
    with LiteRtEngine(models.path("face_mesh")) as mesh:
        points = mesh.run({"input_12": crop[:1]})["Identity"].reshape(478, 3)[:146, :2]
    rng = np.random.default_rng(3)
    return _warp_feeds(models, pictures) | {
        "yunet_dynamic": {"input": np.ascontiguousarray(pictures[:1, ::-1])},
        "face_mesh": {"input_12": crop},
        "face_blendshapes": {"serving_default_input_points:0": (points[None] * 4 + 1500).astype(np.float32)},
        "sface_fast": {"data": np.ascontiguousarray(pictures[:, :, 70:182, 72:184])},
        "mobilefacenet": {"image": np.ascontiguousarray((pictures[:, :, 70:182, 72:184] - 120) / 57)},
        "mapping": {"z": rng.normal(size=(2, 512)).astype(np.float32)},
        "synthesis_256": {"w_plus": w_plus},
        "synthesis_1024": {"w_plus": w_plus[:1]},
    }


def _warp_feeds(models: Any, pictures: F32) -> dict[str, dict[str, F32]]:
    """Two people who nod and turn, from their own pictures; the landmarks are those of no face, laid on it."""
    canonical = np.vstack([CANONICAL_XYZ, np.repeat(CANONICAL_XYZ[[33, 263]], 5, 0)]) / 16
    points = np.repeat((canonical * [1, -1, -1])[None], 2, 0).astype(np.float32)
    image = (pictures / 127.5 - 1).astype(np.float32)
    controls = np.zeros((2, 108), np.float32)
    controls[:, :2] = 0.4, -0.2
    moved = points @ np.array([[0.97, 0, 0.24], [0, 1, 0], [-0.24, 0, 0.97]], np.float32)
    source = {"image": image, "points": points}
    sources = {"source_points": points, "second_points": points}
    motion = {**sources, "driving_points": moved, "controls": controls}
    with (
        OrtEngine(models.path("warp_source"), threads=1) as looks,
        OrtEngine(models.path("warp_motion"), threads=1) as moves,
    ):
        decode = {
            "image": image,
            "second": image[::-1].copy(),
            **looks.run(source),
            **moves.run(motion),
            "controls": controls,
        }
    return {"warp_source": source, "warp_motion": motion, "warp_decode": decode}


def test_half_precision_changes_little_on_faces(models: Any) -> None:
    """Every network of the chain on generated faces, rounded as a card in half precision rounds."""
    feeds = _feeds(models)
    assert set(feeds) == set(GPU_NETWORKS)
    models.ensure([network.source for network in GPU_NETWORKS.values()])
    for name, network in GPU_NETWORKS.items():
        model = onnx.load(str(models.path(network.source)))
        if network.opens_batch:
            model = half_precision.open_batch(model)
        kept = half_precision.nodes_before_first_layer(model) if network.keeps_start else ()
        want = _run(model, feeds[name])
        f32 = onnx.load_from_string(graph_for(network, models.path(network.source), "f32"))
        for key, array in _run(f32, feeds[name]).items():
            scale = float(np.abs(want[key]).max())
            np.testing.assert_allclose(array, want[key], atol=1e-4 * scale, err_msg=f"{name} {key}")
        if network.needs_float32:
            with pytest.raises(EngineError, match="cannot hold its coordinates"):
                graph_for(network, models.path(network.source), "f16")
            continue
        got = _run(half_precision.emulate_half(model, keep_float32=kept), feeds[name])
        for key in want:
            _compare(name, key, got[key], want[key])


def _compare(name: str, key: str, got: F32, want: F32) -> None:
    worst = float(np.abs(got - want).max())
    if name.startswith(("synthesis", "warp_decode")):
        mse = float(np.mean((got - want) ** 2))
        assert 10 * np.log10(4.0 / mse) >= MIN_PSNR_DB, name  # pictures span 2
    elif name in ("sface_fast", "mobilefacenet", "mapping"):
        cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
        assert cosine.min() >= MIN_COSINE, name
    elif name == "face_blendshapes":
        assert worst <= MAX_BLENDSHAPE
    elif key == "Identity":
        assert worst <= MAX_POINT_PX
    elif key.startswith(("cls", "obj")):
        assert worst <= MAX_SCORE, key
    else:  # offsets in strides, logits
        assert worst <= 0.1, (name, key)
