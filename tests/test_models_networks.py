"""The PyTorch forms of the frozen networks equal what the product runs, and let gradients through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper, save_model
from training_cases import generated_face, w_plus

from keyface.engines.open import open_engine

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")
F32 = npt.NDArray[np.float32]


def crops(models: Any) -> F32:
    """(3, 256, 256, 3): a generated face, noise, grey."""
    noise = np.random.default_rng(0).random((256, 256, 3))
    face = generated_face(models)[20:, 10:246] / 255.0
    padded = np.pad(face, ((0, 20), (10, 10), (0, 0)), mode="edge")
    return np.stack([padded, noise, np.full((256, 256, 3), 0.5)]).astype(np.float32)


def by_litert(models: Any, name: str, inputs: F32) -> list[list[F32]]:
    """Outputs of each row of the inputs, in the file's order."""
    with open_engine(models.path(name), name=name, threads=1) as engine:
        key = next(iter(engine.inputs))
        return [list(engine.run({key: x[None]}).values()) for x in inputs]


@pytest.mark.parametrize("n", [1, 3])
def test_mesh_network_equals_litert(models: Any, n: int) -> None:
    """Points within 0.02 px of the crop, logits within 0.01, for any batch."""
    from keyface.models.tflite import TfliteModule

    x = crops(models)[:n]
    with torch.no_grad():
        got = TfliteModule(models.path("face_mesh"))(torch.from_numpy(x))
    for i, want in enumerate(by_litert(models, "face_mesh", x)):
        for ours, theirs, tolerance in zip(got, want, (0.02, 0.01, 0.01), strict=True):
            np.testing.assert_allclose(ours.reshape(n, -1)[i].numpy(), theirs.ravel(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [1, 4])
def test_blendshape_network_equals_litert(models: Any, n: int) -> None:
    """Coefficients in [0, 1] within 1e-3."""
    from keyface.models.tflite import TfliteModule

    points = np.random.default_rng(1).uniform(20, 230, (n, 146, 2)).astype(np.float32)
    with torch.no_grad():
        (got,) = TfliteModule(models.path("face_blendshapes"))(torch.from_numpy(points))
    want = np.stack([row[0].ravel() for row in by_litert(models, "face_blendshapes", points)])
    np.testing.assert_allclose(got.reshape(n, 52).numpy(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["sface", "mobilefacenet"])
def test_recognisers_equal_onnx_runtime(models: Any, name: str) -> None:
    """Cosine of the embeddings above 0.99999, for a batch of three."""
    from keyface.models.onnx_torch import OnnxModule

    path = models.ensure([name])[name]
    images = (crops(models)[:, 72:184, 72:184].transpose(0, 3, 1, 2) * 255).astype(np.float32)
    if name == "mobilefacenet":
        images = (images - 118) / 57
    with open_engine(path, name=name, backend="onnxruntime", threads=1) as engine:
        key = next(iter(engine.inputs))
        want = np.concatenate([next(iter(engine.run({key: x[None]}).values())) for x in images])
    with torch.no_grad():
        got = OnnxModule(path)(torch.from_numpy(images)).numpy()
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert got.shape == (3, 128) and cosine.min() > 0.99999
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * float(np.abs(want).max()))


def save_graph(path: Path, nodes: list[Any]) -> Path:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 4, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "small", infos[:1], infos[1:])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    from keyface.models.onnx_torch import OnnxModule

    path = save_graph(tmp_path / "a.onnx", [helper.make_node("Softplus", ["x"], ["y"])])
    with pytest.raises(ValueError, match=r"operator Softplus is not supported, legal ones: .*'Conv'"):
        OnnxModule(path)
    relu = OnnxModule(save_graph(tmp_path / "b.onnx", [helper.make_node("Relu", ["x"], ["y"])]))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(relu(x), x.clamp(min=0))


def test_the_generator_equals_onnx_runtime(models: Any) -> None:
    """256 px pictures in [-1, 1] within 1e-4, for a batch of two."""
    from keyface.models.generator import Generator256

    styles = w_plus(models, n=2)
    with open_engine(models.path("synthesis_256"), backend="onnxruntime", threads=1) as engine:
        want = engine.run({"w_plus": styles})["image"]
    generator = Generator256.load(models.path("synthesis_1024"), models.path("head256"))
    assert not any(p.requires_grad for p in generator.parameters())
    with torch.no_grad():
        got = generator(torch.from_numpy(styles)).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_the_two_forms_of_the_haar_transform_agree() -> None:
    from keyface.engines.generator_onnx import _finish, _Graph
    from keyface.engines.ort import OrtEngine
    from keyface.models.generator import inverse_haar

    x = np.random.default_rng(4).standard_normal((2, 12, 5, 5)).astype(np.float32)
    graph = _Graph()
    model = _finish(graph, "x", ["N", 12, 5, 5], graph.inverse_haar("x", 12), "y", ["N", 3, 10, 10])
    with OrtEngine(model.SerializeToString(), threads=1) as engine:
        want = engine.run({"x": x})["y"]
    np.testing.assert_allclose(inverse_haar(torch.from_numpy(x)).numpy(), want, atol=1e-6)
