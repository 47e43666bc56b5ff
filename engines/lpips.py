"""Builds the ONNX form of LPIPS with AlexNet (Zhang et al. 2018), a distance between pictures as people see it.

The published file is a pickle of numpy arrays. Nothing is unpickled here: its op codes are only listed
(`pickletools`), the layers' names and raw float32 values read off them, and the shapes come from the network's
own definition, so that a foreign file can at worst be refused.

Inputs `image_a`, `image_b` (N, 3, H, W) RGB in [-1, 1], H and W 64 or more; output `distance` (N,), 0 for equal
pictures:

    d(a, b) = sum over layers l of the mean over places of  w_l . (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2

with f_l the five convolutions of AlexNet after their ReLU and w_l >= 0 learnt from people's judgements.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import ModelStoreError

F32 = npt.NDArray[np.float32]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_SMALL = 1e-10


@dataclass(frozen=True, slots=True)
class _Layer:
    n_in: int
    n_out: int
    size: int
    stride: int
    pad: int
    is_pooled_first: bool


_LAYERS = (
    _Layer(3, 64, 11, 4, 2, False),
    _Layer(64, 192, 5, 1, 2, True),
    _Layer(192, 384, 3, 1, 1, True),
    _Layer(384, 256, 3, 1, 1, False),
    _Layer(256, 256, 3, 1, 1, False),
)


def build_lpips(inputs: Mapping[str, Path], output: Path) -> None:
    """Builder for the model store: `inputs` holds the published file, `output` receives the ONNX file.

    Raises:
        ModelStoreError: the file does not hold the expected network.
    """
    import onnx

    (source,) = inputs.values()
    onnx.save_model(_model(read_weights(source.read_bytes())), str(output))


def read_weights(pickled: bytes) -> dict[str, F32]:
    """By name: `conv{i}.weight` (O, I, H, W), `conv{i}.bias` (O,), `head{i}.weight` (1, C, 1, 1), i = 0..4.

    Raises:
        ModelStoreError: not that file.
    """
    wanted: list[tuple[str, str, tuple[int, ...]]] = []
    for i, layer in enumerate(_LAYERS):
        # Kernels lie as height, width, in, out.
        kernel = (layer.size, layer.size, layer.n_in, layer.n_out)
        wanted += [(f"Conv_{i}", f"conv{i}.weight", kernel), (f"Conv_{i}", f"conv{i}.bias", (layer.n_out,))]
    for i, layer in enumerate(_LAYERS):
        wanted.append((f"NetLinLayer_{i}", f"head{i}.weight", (1, 1, layer.n_out, 1)))
    found = _payloads(pickled)
    if [(owner, len(raw)) for owner, raw in found] != [(o, 4 * int(np.prod(s))) for o, _, s in wanted]:
        raise _unusable("its layers are not those of AlexNet and its five heads")
    weights = {}
    for (_, raw), (_, name, shape) in zip(found, wanted, strict=True):
        values = np.frombuffer(raw, "<f4").reshape(shape)
        weights[name] = np.array(values.transpose(3, 2, 0, 1) if len(shape) == 4 else values, order="C")
        if not np.isfinite(weights[name]).all():
            raise _unusable(f"{name} holds values that are no numbers")
    return weights


def _payloads(pickled: bytes) -> list[tuple[str, bytes]]:
    """(layer, raw values) of every array, in the file's order."""
    found, owner = [], ""
    try:
        for op, value, _ in pickletools.genops(pickled):
            # A head is a layer that holds a Conv_0 of its own.
            layers = ("NetLinLayer_",) if owner.startswith("NetLin") else ("Conv_", "NetLinLayer_")
            if op.name == "BINUNICODE" and str(value).startswith(layers):
                owner = str(value)
            elif op.name == "BINBYTES" and isinstance(value, bytes):
                found.append((owner, value))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise _unusable("it is damaged") from error
    return found


def _unusable(why: str) -> ModelStoreError:
    return ModelStoreError(f"lpips: the file cannot be used: {why}.", "Pull the models again.")


def _model(weights: Mapping[str, F32]) -> Any:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {name: np.array(values, np.float32) for name, values in weights.items()}
    constants["shift"] = np.array(SHIFT, np.float32).reshape(1, 3, 1, 1)
    constants["scale"] = np.array(SCALE, np.float32).reshape(1, 3, 1, 1)
    constants["small"] = np.array(_SMALL, np.float32)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, "height", "width"])
        for name in ("image_a", "image_b")
    ]
    graph = helper.make_graph(
        _nodes(),
        "lpips",
        inputs,
        [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _nodes() -> list[Any]:
    """Both pictures go through AlexNet as one batch and are told apart at each head."""
    from onnx import helper

    nodes: list[Any] = []

    def add(kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, list(outputs), **attributes))
        return outputs[0]

    top = add("Concat", ["image_a", "image_b"], "both", axis=0)
    top = add("Div", [add("Sub", [top, "shift"], "shifted"), "scale"], "scaled")
    parts = []
    for i, layer in enumerate(_LAYERS):
        if layer.is_pooled_first:
            top = add("MaxPool", [top], f"pooled{i}", kernel_shape=[3, 3], strides=[2, 2])
        top = add(
            "Conv", [top, f"conv{i}.weight", f"conv{i}.bias"], f"conv{i}",
            kernel_shape=[layer.size] * 2, strides=[layer.stride] * 2, pads=[layer.pad] * 4,
        )  # fmt: skip
        top = add("Relu", [top], f"feature{i}")
        size = add("ReduceL2", [top], f"size{i}", axes=[1], keepdims=1)
        unit = add("Div", [top, add("Add", [size, "small"], f"size{i}.safe")], f"unit{i}")
        add("Split", [unit], f"a{i}", f"b{i}", axis=0)
        apart = add("Sub", [f"a{i}", f"b{i}"], f"apart{i}")
        head = add("Conv", [add("Mul", [apart, apart], f"square{i}"), f"head{i}.weight"], f"head{i}")
        parts.append(add("ReduceMean", [head], f"part{i}", axes=[1, 2, 3], keepdims=0))
    add("Sum", parts, "distance")
    return nodes
