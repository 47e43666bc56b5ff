"""The generator read from its IR and written anew as ONNX: equal to the original, and strict about its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples
from safetensors.numpy import load_file
from training_cases import person, w_plus

from keyface.configs.errors import ModelStoreError
from keyface.engines import generator_ir, generator_onnx
from keyface.engines.open import open_engine
from keyface.engines.ort import OrtEngine

F32 = npt.NDArray[np.float32]


def ir_of(
    folder: Path, *, shape: str = "2, 3", offset: int = 0, size: int = 24, n_bytes: int = 24
) -> tuple[Path, Path]:
    """A network of one constant layer, 'some.weight'."""
    xml, blob = folder / "Net.xml", folder / "Net.bin"
    xml.write_text(
        '<net><layers><layer id="0" name="some.weight" type="Const">'
        f'<data element_type="f32" shape="{shape}" offset="{offset}" size="{size}"/></layer></layers></net>'
    )
    blob.write_bytes(np.arange(n_bytes // 4, dtype="<f4").tobytes())
    return xml, blob


def test_constants_are_read_as_they_lie_in_the_file(tmp_path: Path) -> None:
    ((name, array),) = generator_ir.read_constants(*ir_of(tmp_path, offset=4, n_bytes=28))
    assert name == "some.weight" and array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "facts", [{"n_bytes": 20}, {"n_bytes": 0}, {"offset": 8}, {"size": 20}, {"shape": "2, 4"}, {"shape": ""}]
)
def test_a_truncated_or_contradictory_file_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(
        ModelStoreError, match=r"Net\.bin: layer 'some\.weight' wants bytes .*models pull --force"
    ):
        generator_ir.read_constants(*ir_of(tmp_path, **facts))


def test_a_foreign_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match="not the expected generator, 'input' and"):
        generator_ir.synthesis_weights(*ir_of(tmp_path))
    with pytest.raises(ModelStoreError, match="not the expected mapping network, 0 of 8 layers"):
        generator_ir.mapping_layers(*ir_of(tmp_path))


@pytest.mark.parametrize("text", ["", "GIF89a", "<net><layers>"])
def test_what_is_no_xml_is_refused(tmp_path: Path, text: str) -> None:
    xml, blob = ir_of(tmp_path)
    xml.write_text(text)
    with pytest.raises(ModelStoreError, match=r"Net\.xml is no XML"):
        generator_ir.read_constants(xml, blob)


def numbered_weights(quarter: int) -> dict[str, F32]:
    """Weights whose values are their channel's number, with 4 * quarter channels before each transform."""
    n = 4 * quarter
    channel = np.arange(n, dtype=np.float32)
    out = {}
    for stem, kind in [("conv1", "weight"), *((f"b{b}.conv2", "pw") for b in range(6)), ("rgb", "weight")]:
        out[f"{stem}.{kind}"] = channel[:, None, None, None] * np.ones((1, 2, 1, 1), np.float32)
        out[f"{stem}.bias"] = channel.copy()
    for b in range(generator_ir.N_BLOCKS):
        out[f"b{b}.up.mod_w"] = channel[:, None] * np.ones((1, 5), np.float32)
        out[f"b{b}.up.mod_b"] = channel.copy()
    return out


@given(quarter=st.integers(1, 24))
def test_all_sides_of_a_transform_are_reordered_alike(quarter: int) -> None:
    """From (LL, then channel * 3 + band) to (LL | B0 | B1 | B2); producers and styles must agree."""
    want = [*range(quarter), *(quarter + 3 * c + band for band in range(3) for c in range(quarter))]
    before = numbered_weights(quarter)
    after = generator_ir._with_contiguous_bands(before)
    assert after.keys() == before.keys()
    for name, array in after.items():
        np.testing.assert_array_equal(array.reshape(len(array), -1)[:, 0], want, err_msg=name)
    assert before["conv1.bias"].tolist() == list(range(4 * quarter)), "the input is left alone"


def haar_of_original_order(x: F32) -> F32:
    """The inverse Haar transform (N, 4q, r, r) -> (N, q, 2r, 2r) of the original's channel order, times 2."""
    n, channels, r, _ = x.shape
    q = channels // 4
    low, bands = x[:, :q], x[:, q:].reshape(n, q, 3, r, r)
    rows, columns, both = bands[:, :, 0], bands[:, :, 1], bands[:, :, 2]
    out = np.zeros((n, q, 2 * r, 2 * r), np.float32)
    for i, j in np.ndindex(2, 2):
        si, sj = 1 - 2 * i, 1 - 2 * j
        out[:, :, i::2, j::2] = low + si * rows + sj * columns + si * sj * both
    return out


@settings(max_examples=examples(20))
@given(quarter=st.integers(1, 6), side=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_the_written_transform_inverts_haar(quarter: int, side: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 4 * quarter, side, side)).astype(np.float32)
    order = [*range(quarter), *(quarter + 3 * c + band for band in range(3) for c in range(quarter))]
    graph = generator_onnx._Graph()
    sink = graph.inverse_haar("x", 4 * quarter)
    model = generator_onnx._finish(
        graph, "x", ["N", 4 * quarter, side, side], sink, "y", ["N", quarter, 2 * side, 2 * side]
    )
    with OrtEngine(model.SerializeToString(), threads=1) as engine:
        got = engine.run({"x": np.ascontiguousarray(x[:, order])})["y"]
    np.testing.assert_allclose(got, haar_of_original_order(x), atol=1e-5)
    np.testing.assert_allclose(
        (got**2).sum(), 4 * (x**2).sum(), rtol=1e-4, err_msg="half of it is orthogonal"
    )


def test_mapping_of_a_small_network_is_what_the_formula_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((512, 512)).astype(np.float32) / 20,
        rng.standard_normal(512).astype(np.float32),
    )
    z = person(n=2) * 5
    x = (z / np.sqrt((z**2).mean(1, keepdims=True))) @ weight.T + bias
    want = 1.4 * np.where(x > 0, x, 0.2 * x)
    with OrtEngine(generator_onnx.mapping([(weight, bias, 1.4)]).SerializeToString(), threads=1) as engine:
        np.testing.assert_allclose(engine.run({"z": z})["w"], want, atol=1e-4)


def original(models: Any, name: str) -> Any:
    """The original IR, compiled in float32 by OpenVINO."""
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO to run the original")
    path = models.path(f"generator_ir_{name}_xml")
    core = openvino.Core()
    network = core.read_model(str(path), str(models.path(f"generator_ir_{name}_bin")))
    return core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})


def test_mapping_equals_the_original(models: Any) -> None:
    z = person()
    want = original(models, "mapping")([z])[0]
    with open_engine(models.path("mapping"), backend="onnxruntime", threads=1) as engine:
        np.testing.assert_allclose(engine.run({"z": z})["w"], want, atol=2e-4)


def test_the_1024_px_network_equals_the_original(models: Any) -> None:
    """Within 2e-4 of pictures in [-1, 1]: a fortieth of a grey level."""
    styles = w_plus(models)
    want = original(models, "synthesis")([styles[:, 0]])[0]
    with open_engine(models.path("synthesis_1024"), backend="onnxruntime", threads=1) as engine:
        got = engine.run({"w_plus": styles})["image"]
    assert got.shape == want.shape == (1, 3, 1024, 1024) and want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_batch_equals_its_parts_and_late_rows_are_not_read(models: Any) -> None:
    styles = w_plus(models, n=2)
    changed = styles.copy()
    changed[:, generator_onnx.HEAD_STYLES :] = 9.0
    with open_engine(models.path("synthesis_256"), backend="onnxruntime", threads=1) as engine:
        both = engine.run({"w_plus": styles})["image"]
        apart = [engine.run({"w_plus": s[None]})["image"][0] for s in styles]
        unread = engine.run({"w_plus": changed})["image"]
    np.testing.assert_allclose(both, np.stack(apart), atol=1e-4)
    np.testing.assert_array_equal(both, unread)
    assert np.abs(both[0] - both[1]).mean() > 0.05, "two people"


def test_the_256_px_network_is_the_1024_px_one_shrunk(models: Any) -> None:
    """Our head imitates the rest of the generator: more than 22 dB on a person that it has not seen."""
    cv2 = pytest.importorskip("cv2")
    styles = w_plus(models, seed=90_210)
    images = []
    for size in (256, 1024):
        with open_engine(models.path(f"synthesis_{size}"), backend="onnxruntime", threads=1) as engine:
            images.append(engine.run({"w_plus": styles})["image"][0].transpose(1, 2, 0).clip(-1, 1))
    target = cv2.resize(images[1], (256, 256), interpolation=cv2.INTER_AREA)
    psnr_db = 10 * np.log10(4 / ((images[0] - target) ** 2).mean())
    assert psnr_db > 22


def test_the_same_inputs_give_the_same_bytes(models: Any) -> None:
    head = {k: v.astype(np.float32) for k, v in load_file(str(models.path("head256"))).items()}
    files = [models.path(f"generator_ir_synthesis_{kind}") for kind in ("xml", "bin")]
    built = [
        generator_onnx.synthesis_256(generator_ir.synthesis_weights(*files), head).SerializeToString()
        for _ in range(2)
    ]
    assert built[0] == built[1]
    assert onnx.load_from_string(built[0]).opset_import[0].version == 17
