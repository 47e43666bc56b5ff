"""The networks that only judge: FaceNet from its TensorFlow graph, Inception from its TorchScript archive."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import ModelStoreError
from keyface.engines.engine import TensorSpec
from keyface.engines.facenet import build_facenet
from keyface.engines.fake import FakeEngine
from keyface.engines.inception import build_inception
from keyface.engines.open import open_engine
from keyface.engines.tensorflow_graph import read_graph
from keyface.pipeline.face import Detection
from keyface.pipeline.measure.photo_judges import FaceNetJudge, facenet_crop

POINTS = np.zeros((5, 2), np.float32)


# ---------------------------------------------------------------- protocol buffers, written by hand
def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def attribute(name: str, value: bytes) -> bytes:
    return field(5, field(1, name.encode()) + field(2, value))


def node(name: str, operation: str, inputs: tuple[str, ...] = (), *attributes: bytes) -> bytes:
    given = b"".join(field(3, i.encode()) for i in inputs)
    return field(1, field(1, name.encode()) + field(2, operation.encode()) + given + b"".join(attributes))


def constant(name: str, values: npt.NDArray[Any]) -> bytes:
    kind = {"float32": 1, "int32": 3}[str(values.dtype)]
    shape = b"".join(field(2, field(1, side)) for side in values.shape)
    tensor = field(1, kind) + field(2, shape) + field(4, values.tobytes())
    return node(name, "Const", (), attribute("value", field(8, tensor)))


def test_a_graph_is_read_as_it_was_written() -> None:
    values = np.arange(300, dtype=np.float32).reshape(3, 100)
    packed = b"".join(varint(v) for v in (1, 2, 300, 1))
    content = constant("w", values) + node(
        "layer", "Conv2D", ("x:0", "w"),
        attribute("strides", field(1, field(3, packed))), attribute("padding", field(2, b"SAME")),
        attribute("epsilon", varint(4 << 3 | 5) + struct.pack("<f", 0.25)),
    )  # fmt: skip
    weights, layer = read_graph(content)
    assert (weights.tensor() == values).all() and weights.operation == "Const"
    assert layer.inputs == ("x", "w") and layer.numbers("strides") == [1, 2, 300, 1]
    assert layer.text("padding") == "SAME" and layer.number("epsilon") == 0.25


def test_values_that_are_not_packed_are_read_too() -> None:
    shape = field(2, b"".join(field(2, field(1, side)) for side in (2, 3)))
    one = field(1, 1) + shape + field(5, struct.pack("<f", 1.5))
    (spread,) = read_graph(node("c", "Const", (), attribute("value", field(8, one))))
    assert spread.tensor().tolist() == [[1.5] * 3] * 2
    scalar = field(1, 3) + field(7, 7)
    (number,) = read_graph(node("c", "Const", (), attribute("value", field(8, scalar))))
    assert number.tensor().shape == () and number.tensor() == 7


@pytest.mark.parametrize("content", [b"\x0a\xff", b"no graph at all", b"", field(1, field(1, b"a"))])
def test_what_is_no_facenet_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pb").write_bytes(content)
    with pytest.raises(ModelStoreError, match=r"facenet: the graph cannot be used"):
        build_facenet({"a": tmp_path / "a.pb"}, tmp_path / "a.onnx")


def test_what_is_no_inception_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no archive")
    with pytest.raises(ModelStoreError, match="inception: the archive cannot be used"):
        build_inception({"a": tmp_path / "a.pt"}, tmp_path / "a.onnx")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for i in range(376):
            archive.writestr(f"out_jit_module/data/{i}", bytes(8))
    with pytest.raises(ModelStoreError, match="a storage has 2 values, want 864"):
        build_inception({"b": tmp_path / "b.pt"}, tmp_path / "b.onnx")


# ---------------------------------------------------------------- the networks themselves
@pytest.fixture(scope="module")
def judges(models: Any) -> Any:
    models.ensure(["facenet", "inception"])
    return models


def test_facenet_gives_what_another_reader_of_the_same_graph_gives(judges: Any) -> None:
    import cv2

    picture = np.random.RandomState(0).uniform(-1, 1, (1, 3, 160, 160)).astype(np.float32)
    with open_engine(judges.path("facenet"), name="facenet", threads=1) as engine:
        ours = engine.run({"input": picture})["embedding"].ravel()
    net = cv2.dnn.readNetFromTensorflow(str(judges.path("facenet_graph")))
    net.setInput(picture)
    assert ours / np.linalg.norm(ours) == pytest.approx(net.forward().ravel(), abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inception_gives_what_torch_gives(judges: Any) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    picture = np.random.RandomState(0).uniform(-1, 1, (2, 3, 299, 299)).astype(np.float32)
    with open_engine(judges.path("inception"), name="inception", threads=1) as engine:
        ours = engine.run({"image": picture})
    reference = torch.jit.load(str(judges.path("inception_archive")), map_location="cpu")
    with torch.no_grad():
        wanted = reference(torch.from_numpy(picture)).numpy()
    assert ours["features"] == pytest.approx(wanted, abs=1e-4)
    layers = list(reference.net.layers.children())[:7]  # up to the second max pooling
    with torch.no_grad():
        top = torch.from_numpy(picture)
        for layer in layers:
            top = layer(top)
    assert ours["features_192"] == pytest.approx(top.mean((2, 3)).numpy(), abs=1e-4)


# ---------------------------------------------------------------- FaceNet's cut
def test_facenets_cut_is_the_box_with_its_margin_made_square() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[60:140, 100:160] = 255  # 60 wide, 80 high
    crop = facenet_crop(image, np.array([100, 60, 160, 140], np.float32))
    inside = np.argwhere(crop[..., 0] > 127)
    edge = 160 * (1 - 1 / 1.3) / 2
    assert inside.min(0) == pytest.approx([edge, edge], abs=2)
    assert inside.max(0) == pytest.approx([160 - edge, 160 - edge], abs=2)
    assert facenet_crop(image, np.array([-900, -900, 1200, 1200], np.float32)).shape == (160, 160, 3)


def test_facenets_embedding_is_a_unit_vector_of_normalised_pixels() -> None:
    def mean_of(inputs: Any) -> Any:
        return {"e": np.concatenate([inputs["x"].mean((2, 3)), np.ones((1, 509), np.float32)], 1)}

    engine = FakeEngine(
        (TensorSpec("x", "float32", (1, 3, 160, 160)),), (TensorSpec("e", "float32", (1, 512)),), mean_of
    )
    image = np.full((64, 64, 3), (255, 127, 0), np.uint8)
    judge = FaceNetJudge("facenet", engine, (127.5,) * 3, (128.0,) * 3)
    found = judge.embed(image, Detection(np.array([24, 24, 40, 40], np.float32), POINTS, 1.0))
    wanted = np.array([127.5 / 128, -0.5 / 128, -127.5 / 128, 1])
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found[:4] / found[3] == pytest.approx(wanted, abs=1e-4)
