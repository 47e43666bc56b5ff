"""Runs the chain's ONNX graphs in PyTorch, on any device and in half precision; for measuring speed on cards.

Unlike `onnx_torch` it covers every network of the chain, several outputs, and is free of Python that
depends on values, so that `torch.compile` and CUDA graphs can take it. The batch may differ from the file's
where the graph allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Attributes = dict[str, Any]


class OnnxGraph(nn.Module):
    """`forward(x)` takes the graph's one input and returns its outputs, in order.

    Args:
        path: the ONNX file.
    Attributes:
        input_name, output_names: as in the file.
        input_shape: None where a size is open.

    Raises:
        ValueError: an operator that is not covered; names the legal ones.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        self._fixed: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        (source,) = [value for value in graph.input if value.name not in self._fixed]
        self.input_name, self.output_names = source.name, [value.name for value in graph.output]
        self.input_shape = tuple(d.dim_value or None for d in source.type.tensor_type.shape.dim)
        self._steps: list[tuple[Callable[..., Tensor], list[str], str]] = []
        for node in graph.node:
            self._add(node)
        used = {name for _, names, _ in self._steps for name in names}
        self._buffers_of: dict[str, str] = {}
        for name in sorted(used & self._fixed.keys()):
            key = f"c{len(self._buffers_of)}"
            self.register_buffer(key, torch.from_numpy(np.array(self._fixed[name])))
            self._buffers_of[name] = key

    def _add(self, node: Any) -> None:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        names = [name for name in node.input if name]
        if node.op_type == "Cast" and names[0] in self._fixed and options["to"] == TensorProto.FLOAT:
            self._fixed[node.output[0]] = self._fixed[names[0]].astype(np.float32)  # weights kept in half
            return
        if node.op_type not in _OPS:
            raise ValueError(f"onnx operator {node.op_type} is not covered, legal ones: {sorted(_OPS)}")
        n_given = _N_TENSORS.get(node.op_type, len(names))
        fixed = [self._fixed.get(name) for name in node.input[n_given:]]
        self._steps.append((_OPS[node.op_type](options, fixed), names[:n_given], node.output[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {self.input_name: x}
        for run, names, out in self._steps:
            values[out] = run(
                *[values[n] if n in values else getattr(self, self._buffers_of[n]) for n in names]
            )
        return tuple(values[name] for name in self.output_names)


# How many leading inputs are tensors of the computation; what follows must be fixed, and is read once.
_N_TENSORS = {
    "Reshape": 1, "Slice": 1, "Pad": 1, "ReduceSum": 1, "Squeeze": 1, "Resize": 1, "Gather": 1, "Dropout": 1,
}  # fmt: skip
_OpMaker = Callable[[Attributes, list[Any]], Callable[..., Tensor]]


def _ints(value: Any) -> list[int]:
    return [int(v) for v in np.asarray(value).reshape(-1)]


def _conv(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    pads, stride = o.get("pads", [0, 0, 0, 0]), list(o.get("strides", [1, 1]))
    groups, dilation = o.get("group", 1), list(o.get("dilations", [1, 1]))
    if pads[:2] == pads[2:]:
        return lambda x, w, b=None: F.conv2d(x, w, b, stride, list(pads[:2]), dilation, groups)
    sides = [pads[1], pads[3], pads[0], pads[2]]
    return lambda x, w, b=None: F.conv2d(F.pad(x, sides), w, b, stride, 0, dilation, groups)


def _max_pool(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    kernel, stride = list(o["kernel_shape"]), list(o.get("strides", [1, 1]))
    pads = o.get("pads", [0, 0, 0, 0])
    sides = [pads[1], pads[3], pads[0], pads[2]]
    if not any(sides):
        return lambda x: F.max_pool2d(x, kernel, stride)
    return lambda x: F.max_pool2d(F.pad(x, sides, value=float("-inf")), kernel, stride)


def _reshape(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    shape = _ints(fixed[0])
    return lambda x: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])


def _slice(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    starts, ends, axes = (_ints(f) for f in fixed[:3])
    steps = _ints(fixed[3]) if len(fixed) > 3 else [1] * len(starts)

    def run(x: Tensor) -> Tensor:
        index = [slice(None)] * x.ndim
        for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
            index[a] = slice(start, min(end, 1 << 30), step)
        return x[tuple(index)]

    return run


def _pad(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    amounts = _ints(fixed[0])
    rank = len(amounts) // 2
    sides = [amounts[i + offset] for i in reversed(range(rank)) for offset in (0, rank)]
    return lambda x: F.pad(x, sides)


def _resize(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    scales = [float(v) for v in np.asarray(fixed[1]).reshape(-1)]
    mode = o.get("mode", b"nearest").decode()
    if mode != "nearest" or scales[:2] != [1.0, 1.0]:
        raise ValueError(f"onnx Resize: {mode} by {scales} is not covered, want nearest in two dimensions")
    return lambda x: F.interpolate(x, scale_factor=scales[2:], mode="nearest")


def _gather(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    index, axis = np.asarray(fixed[0]), o.get("axis", 0)
    if index.size != 1:
        raise ValueError(f"onnx Gather: {index.size} indices are not covered, want one")
    at, keeps = int(index.reshape(-1)[0]), index.ndim > 0
    return lambda x: x.narrow(axis, at, 1) if keeps else x.select(axis, at)


def _reduce(method: str) -> _OpMaker:
    def make(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
        axes, keep = _ints(o["axes"] if "axes" in o else fixed[0]), bool(o.get("keepdims", 1))
        return lambda x: getattr(x, method)(dim=axes, keepdim=keep)

    return make


def _gemm(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    transposed, alpha = bool(o.get("transB", 0)), float(o.get("alpha", 1.0))

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = x @ (w.T if transposed else w) * alpha
        return y if b is None else y + b

    return run


def _batch_norm(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    epsilon = float(o.get("epsilon", 1e-5))
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def _depth_to_space(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    size, mode = int(o["blocksize"]), o.get("mode", b"DCR").decode()

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            return F.pixel_shuffle(x, size)
        return F.pixel_shuffle(
            x.reshape(n, size * size, c // (size * size), h, w).transpose(1, 2).reshape(n, c, h, w), size
        )

    return run


def _squeeze(o: Attributes, fixed: list[Any]) -> Callable[..., Tensor]:
    axes = sorted(_ints(fixed[0]), reverse=True)

    def run(x: Tensor) -> Tensor:
        for axis in axes:
            x = x.squeeze(axis)
        return x

    return run


def _plain(function: Callable[..., Tensor]) -> _OpMaker:
    return lambda o, fixed: function


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


_OPS: dict[str, _OpMaker] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Reshape": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Gather": _gather,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "DepthToSpace": _depth_to_space,
    "Squeeze": _squeeze,
    "PRelu": _plain(_prelu),
    "Relu": _plain(F.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "Neg": _plain(torch.neg),
    "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal),
    "Identity": _plain(lambda x: x),
    "Dropout": _plain(lambda x: x),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "MatMul": _plain(torch.matmul),
    "Flatten": lambda o, fixed: lambda x: x.flatten(o.get("axis", 1)),
    "Transpose": lambda o, fixed: lambda x: x.permute(list(o["perm"])),
    "LeakyRelu": lambda o, fixed: lambda x: F.leaky_relu(x, float(o.get("alpha", 0.01))),
    "Concat": lambda o, fixed: lambda *xs: torch.cat(xs, int(o["axis"])),
}
