"""Writes the face generator anew as ONNX: W+ in, RGB out, at 256 px (our head) or 1024 px (the original's).

Opset 17, dynamic batch, only plain 4-D operators (MatMul, Mul, Conv, Slice, DepthToSpace, ...), so that every
back-end takes it. Styles are affine in W+: s_i = A_i w_i + b_i, index 0 the first convolution, then
(up, conv1, conv2) for each block, 22 the RGB layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from keyface.engines.generator_ir import N_BLOCKS, N_STYLES

F32 = npt.NDArray[np.float32]
HEAD_BLOCK = 5  # our 256 px head replaces this block (and the ones after it)
HEAD_STYLES = 3 * HEAD_BLOCK + 3  # styles that the 256 px network reads


class _Graph:
    """Collects nodes and initialisers; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inits: dict[str, F32 | npt.NDArray[np.int64]] = {}

    def const(self, name: str, value: Any, dtype: type = np.float32) -> str:
        self.inits[name] = np.ascontiguousarray(value, dtype=dtype)
        return name

    def op(self, kind: str, inputs: Sequence[str], *, out: str | None = None, **attrs: Any) -> str:
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def style(self, stem: str, index: int, weights: Mapping[str, F32], gain: float = 1.0) -> str:
        """(N, C, 1, 1) style from row `index` of W+; the layer's fixed scale is folded in."""
        scale = float(weights.get(f"{stem}.scale", np.ones(1, np.float32))[0]) * gain
        w = self.const(f"{stem}.mod_w", weights[f"{stem}.mod_w"].T * scale)
        b = self.const(f"{stem}.mod_b", weights[f"{stem}.mod_b"] * scale)
        index_name = self.const(f"style_index_{index}", index, np.int64)
        row = self.op("Gather", ["w_plus", index_name], axis=1)
        flat = self.op("Add", [self.op("MatMul", [row, w]), b])
        return self.op("Reshape", [flat, self.const("as_nc11", [0, -1, 1, 1], np.int64)])

    def inverse_haar(self, x: str, channels: int) -> str:
        """(N, C, r, r) in bands (LL | B0 | B1 | B2) -> (N, C/4, 2r, 2r); the factor 1/2 is the caller's."""
        q = channels // 4
        bands = []
        for k in range(4):
            ends = [self.const(f"at_{n}", [n], np.int64) for n in (k * q, (k + 1) * q)]
            bands.append(self.op("Slice", [x, *ends, self.const("axis_c", [1], np.int64)]))
        low_plus, low_minus = self.op("Add", bands[:2]), self.op("Sub", bands[:2])
        high_plus, high_minus = self.op("Add", bands[2:]), self.op("Sub", bands[2:])
        quads = [self.op("Add", [low_plus, high_plus]), self.op("Sub", [low_plus, high_plus])]
        quads += [self.op("Add", [low_minus, high_minus]), self.op("Sub", [low_minus, high_minus])]
        return self.op("DepthToSpace", [self.op("Concat", quads, axis=1)], blocksize=2, mode="DCR")

    def noise_and_activation(self, x: str, stem: str, weights: Mapping[str, F32]) -> str:
        noise = self.const(
            f"{stem}.noise", weights[f"{stem}.noise"].reshape(1, 1, *weights[f"{stem}.noise"].shape[-2:])
        )
        return self.op("LeakyRelu", [self.op("Add", [x, noise])], alpha=0.2)

    def separable(self, x: str, stem: str, index: int, weights: Mapping[str, F32]) -> str:
        """Style, depthwise 3x3, pointwise 1x1 (+ bias), noise, leaky ReLU."""
        x = self.op("Mul", [x, self.style(stem, index, weights)])
        dw, pw = weights[f"{stem}.dw"], weights[f"{stem}.pw"]
        x = self.op("Conv", [x, self.const(f"{stem}.dw", dw)], group=dw.shape[0], pads=[1, 1, 1, 1])
        x = self.op(
            "Conv", [x, self.const(f"{stem}.pw", pw), self.const(f"{stem}.bias", weights[f"{stem}.bias"])]
        )
        return self.noise_and_activation(x, stem, weights)

    def upsample(self, x: str, stem: str, index: int, weights: Mapping[str, F32]) -> str:
        channels = weights[f"{stem}.mod_b"].shape[0]
        return self.inverse_haar(self.op("Mul", [x, self.style(stem, index, weights, 0.5)]), channels)


def _trunk(g: _Graph, weights: Mapping[str, F32], n_blocks: int) -> str:
    """Constant input to the features after `n_blocks` blocks."""
    start = g.const("input", weights["input"][None])
    x = g.op("Mul", [start, g.style("conv1", 0, weights)])
    bias = g.const("conv1.bias", weights["conv1.bias"])
    x = g.op("Conv", [x, g.const("conv1.weight", weights["conv1.weight"]), bias], pads=[1, 1, 1, 1])
    x = g.noise_and_activation(x, "conv1", weights)
    for b in range(n_blocks):
        x = g.upsample(x, f"b{b}.up", 1 + 3 * b, weights)
        x = g.separable(x, f"b{b}.conv1", 2 + 3 * b, weights)
        x = g.separable(x, f"b{b}.conv2", 3 + 3 * b, weights)
    return x


def synthesis_1024(weights: Mapping[str, F32]) -> onnx.ModelProto:
    """The whole generator: `w_plus` float32 (N, 23, 512) -> `image` float32 (N, 3, 1024, 1024), about [-1, 1]."""
    g = _Graph()
    x = _trunk(g, weights, N_BLOCKS)
    x = g.op("Mul", [x, g.style("rgb", N_STYLES - 1, weights)])
    # the final inverse Haar's factor 1/2 sits in the last convolution
    w, b = g.const("rgb.weight", weights["rgb.weight"] * 0.5), g.const("rgb.bias", weights["rgb.bias"] * 0.5)
    x = g.inverse_haar(g.op("Conv", [x, w, b]), 12)
    return _model(g, x, 1024)


def synthesis_256(weights: Mapping[str, F32], head: Mapping[str, F32]) -> onnx.ModelProto:
    """The trunk up to block 4 and our trained head: `w_plus` (N, 23, 512) -> `image` (N, 3, 256, 256), about [-1, 1].

    Rows 18..22 of `w_plus` are not read. `head` is models/weights/head256.safetensors: `head.up.*`,
    `head.conv.*` (as a generator block's) and `head.rgb.{weight,bias}` (3, C, 3, 3).
    """
    g = _Graph()
    x = _trunk(g, weights, HEAD_BLOCK)
    x = g.upsample(x, "head.up", 1 + 3 * HEAD_BLOCK, head)
    x = g.separable(x, "head.conv", 2 + 3 * HEAD_BLOCK, head)
    rgb = [
        g.const("head.rgb.weight", head["head.rgb.weight"]),
        g.const("head.rgb.bias", head["head.rgb.bias"]),
    ]
    return _model(g, g.op("Conv", [x, *rgb], pads=[1, 1, 1, 1]), 256)


def mapping(layers: Sequence[tuple[F32, F32, float]]) -> onnx.ModelProto:
    """z float32 (N, 512) -> w float32 (N, 512): z / rms(z), then the fully connected layers."""
    g = _Graph()
    mean_square = g.op("ReduceMean", [g.op("Mul", ["z", "z"])], axes=[1], keepdims=1)
    rms = g.op("Sqrt", [g.op("Add", [mean_square, g.const("epsilon", 1e-8)])])
    x = g.op("Div", ["z", rms])
    for i, (weight, bias, gain) in enumerate(layers):
        w, b = g.const(f"fc{i}.weight", weight.T), g.const(f"fc{i}.bias", bias)
        x = g.op("LeakyRelu", [g.op("Add", [g.op("MatMul", [x, w]), b])], alpha=0.2)
        x = g.op("Mul", [x, g.const(f"fc{i}.gain", gain)])
    return _finish(g, "z", ["N", 512], x, "w", ["N", 512])


def _model(g: _Graph, x: str, size: int) -> onnx.ModelProto:
    return _finish(g, "w_plus", ["N", N_STYLES, 512], x, "image", ["N", 3, size, size])


def _finish(
    g: _Graph, source: str, in_shape: list[Any], x: str, sink: str, out_shape: list[Any]
) -> onnx.ModelProto:
    g.op("Identity", [x], out=sink)
    graph = helper.make_graph(
        g.nodes,
        "keyface_generator",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info(sink, TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(value, name) for name, value in g.inits.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="keyface")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
