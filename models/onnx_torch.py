"""Runs a small feed-forward ONNX graph as a frozen, differentiable PyTorch module.

For recognisers that act as teachers in a loss. Covers the operators of SFace and MobileFaceNet; any other
raises. The batch size may differ from the file's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn


class OnnxModule(nn.Module):
    """`forward(x)` takes the graph's one input (N, ...) float32 and returns its first output."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        self.constant_of: dict[str, str] = {}
        for i, init in enumerate(graph.initializer):
            self.register_buffer(f"c{i}", torch.from_numpy(numpy_helper.to_array(init).copy()))
            self.constant_of[init.name] = f"c{i}"
        self.source = next(i.name for i in graph.input if i.name not in self.constant_of)
        self.sink = graph.output[0].name
        self.steps = []
        for node in graph.node:
            if node.op_type not in _OPS:
                raise ValueError(f"onnx operator {node.op_type} is not supported, legal ones: {sorted(_OPS)}")
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            self.steps.append((_OPS[node.op_type], list(node.input), node.output[0], attrs))

    def forward(self, x: Tensor) -> Tensor:
        values = {self.source: x}
        for run, names, out, attrs in self.steps:
            args = [values[n] if n in values else getattr(self, self.constant_of[n]) for n in names]
            values[out] = run(args, attrs)
        return values[self.sink]


def _conv(a: list[Tensor], o: dict[str, Any]) -> Tensor:
    pads = o.get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise ValueError(f"onnx Conv: asymmetric pads {pads} are not supported")
    bias = a[2] if len(a) > 2 else None
    return F.conv2d(
        a[0], a[1], bias, o.get("strides", [1, 1]), pads[:2], o.get("dilations", [1, 1]), o.get("group", 1)
    )


def _batch_norm(a: list[Tensor], o: dict[str, Any]) -> Tensor:
    return F.batch_norm(a[0], a[3], a[4], a[1], a[2], False, 0.0, o.get("epsilon", 1e-5))


def _prelu(a: list[Tensor], o: dict[str, Any]) -> Tensor:
    slope = a[1].reshape(1, -1, *[1] * (a[0].ndim - 2))
    return torch.where(a[0] >= 0, a[0], a[0] * slope)


def _gemm(a: list[Tensor], o: dict[str, Any]) -> Tensor:
    weight = a[1].T if o.get("transB", 0) else a[1]
    return a[0] @ weight * o.get("alpha", 1.0) + (a[2] if len(a) > 2 else 0)


_OPS: dict[str, Callable[[list[Tensor], dict[str, Any]], Tensor]] = {
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "PRelu": _prelu,
    "Relu": lambda a, o: F.relu(a[0]),
    "Gemm": _gemm,
    "Add": lambda a, o: a[0] + a[1],
    "Sub": lambda a, o: a[0] - a[1],
    "Mul": lambda a, o: a[0] * a[1],
    "Min": lambda a, o: torch.minimum(a[0], a[1]),
    "Max": lambda a, o: torch.maximum(a[0], a[1]),
    "Clip": lambda a, o: torch.clamp(a[0], a[1], a[2]),
    "Div": lambda a, o: a[0] / a[1],
    "Dropout": lambda a, o: a[0],
    "Identity": lambda a, o: a[0],
    "Flatten": lambda a, o: a[0].flatten(1),
    "Reshape": lambda a, o: a[0].flatten(1),
    "GlobalAveragePool": lambda a, o: a[0].mean((2, 3), keepdim=True),
}
