"""Runs a .tflite graph as a differentiable PyTorch module, for use as a frozen teacher in training.

Covers the operators of MediaPipe's face mesh and blendshape networks; any other raises. Tensors keep
TFLite's NHWC meaning; convolutions see them as channels-last views, without a copy. The batch size may
differ from the file's (which is 1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

_DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64}


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _same_pad(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding of an NCHW tensor: the odd pixel goes to the bottom and right."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class TfliteModule(nn.Module):
    """A frozen .tflite graph.

    `forward(x)` takes the single input, float32 with the file's shape but any batch, and returns the list
    of outputs in the file's order.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
        self.graph = model.subgraphs[0]
        self.codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
        self.names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.constant_of: dict[int, str] = {}
        for i, tensor in enumerate(self.graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0:
                continue
            array = np.frombuffer(bytes(data), _DTYPES[tensor.type]).reshape(tensor.shape)
            self._add_constant(i, array)
        self._fold_dequantize()

    def _add_constant(self, index: int, array: np.ndarray[Any, Any]) -> None:
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        constant = torch.from_numpy(array.copy())
        if constant.is_floating_point():
            self.register_buffer(f"c{index}", constant)
        else:  # shapes and axes: read by the host, so they stay there when the module moves to a card
            setattr(self, f"c{index}", constant)
        self.constant_of[index] = f"c{index}"

    def _fold_dequantize(self) -> None:
        for op in self.graph.operators:
            if self.names[self.codes[op.opcodeIndex]] == "DEQUANTIZE" and op.inputs[0] in self.constant_of:
                self.constant_of[op.outputs[0]] = self.constant_of[op.inputs[0]]

    def forward(self, x: Tensor) -> list[Tensor]:
        values: dict[int, Tensor] = {self.graph.inputs[0]: x}

        def get(i: int) -> Tensor:
            found = values[i] if i in values else getattr(self, self.constant_of[i])
            assert isinstance(found, Tensor)
            return found

        for op in self.graph.operators:
            kind = self.names[self.codes[op.opcodeIndex]]
            if kind == "DEQUANTIZE" and op.outputs[0] in self.constant_of:
                continue
            if kind not in _OPS:
                raise ValueError(f"tflite operator {kind} is not supported, legal ones: {sorted(_OPS)}")
            args = [get(i) for i in op.inputs if i >= 0]
            values[op.outputs[0]] = _OPS[kind](args, op.builtinOptions, x.shape[0])
        return [values[i] for i in self.graph.outputs]


def _activate(x: Tensor, code: int) -> Tensor:
    if code == 0:
        return x
    if code == 1:
        return F.relu(x)
    if code == 3:
        return F.relu6(x)
    raise ValueError(f"tflite fused activation {code} is not supported")


def _conv(args: list[Tensor], o: Any, n: int) -> Tensor:
    x, w = _nchw(args[0]), args[1].permute(0, 3, 1, 2)
    stride = (o.strideH, o.strideW)
    if o.padding == 0:
        x = _same_pad(x, (w.shape[2], w.shape[3]), stride)
    return _nhwc(
        _activate(F.conv2d(x, w, args[2] if len(args) > 2 else None, stride), o.fusedActivationFunction)
    )


def _depthwise(args: list[Tensor], o: Any, n: int) -> Tensor:
    x, w = _nchw(args[0]), args[1].permute(3, 0, 1, 2)
    stride = (o.strideH, o.strideW)
    if o.padding == 0:
        x = _same_pad(x, (w.shape[2], w.shape[3]), stride)
    y = F.conv2d(x, w, args[2], stride, groups=x.shape[1])
    return _nhwc(_activate(y, o.fusedActivationFunction))


def _prelu(args: list[Tensor], o: Any, n: int) -> Tensor:
    return torch.where(args[0] >= 0, args[0], args[0] * args[1])


def _max_pool(args: list[Tensor], o: Any, n: int) -> Tensor:
    kernel, stride = (o.filterHeight, o.filterWidth), (o.strideH, o.strideW)
    x = _nchw(args[0])
    if o.padding == 0:
        x = _same_pad(x, kernel, stride, float("-inf"))
    return _nhwc(F.max_pool2d(x, kernel, stride))


def _pad(args: list[Tensor], o: Any, n: int) -> Tensor:
    pads = [int(v) for before, after in reversed(args[1].tolist()) for v in (before, after)]
    return F.pad(args[0], pads)


def _reshape(args: list[Tensor], o: Any, n: int) -> Tensor:
    shape = [int(v) for v in (args[1].tolist() if len(args) > 1 else o.newShape)]
    if args[0].shape[0] == n and n > 1 and (not shape or shape[0] != n):
        return args[0].reshape(n, *([-1] if len(shape) < 2 else shape[1:]))
    return args[0].reshape(shape)


def _strided_slice(args: list[Tensor], o: Any, n: int) -> Tensor:
    begin, end, step = (a.tolist() for a in args[1:4])
    x, index = args[0], []
    for d in range(x.ndim):
        b = None if o.beginMask >> d & 1 or d == 0 else begin[d]
        e = None if o.endMask >> d & 1 or d == 0 else end[d]
        index.append(slice(b, e, step[d]))
    x = x[tuple(index)]
    for d in reversed(range(x.ndim)):
        if o.shrinkAxisMask >> d & 1:
            x = x.squeeze(d)
    return x


def _reduce(fn: Callable[..., Tensor]) -> Callable[[list[Tensor], Any, int], Tensor]:
    def run(args: list[Tensor], o: Any, n: int) -> Tensor:
        return fn(args[0], dim=[int(v) for v in args[1].reshape(-1).tolist()], keepdim=o.keepDims)

    return run


def _binary(fn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Tensor], Any, int], Tensor]:
    def run(args: list[Tensor], o: Any, n: int) -> Tensor:
        return _activate(fn(args[0], args[1]), getattr(o, "fusedActivationFunction", 0) or 0)

    return run


_OPS: dict[str, Callable[[list[Tensor], Any, int], Tensor]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "PRELU": _prelu,
    "MAX_POOL_2D": _max_pool,
    "PAD": _pad,
    "RESHAPE": _reshape,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": lambda a, o, n: a[0].permute(*a[1].tolist()),
    "LOGISTIC": lambda a, o, n: torch.sigmoid(a[0]),
    "NEG": lambda a, o, n: -a[0],
    "RSQRT": lambda a, o, n: torch.rsqrt(a[0]),
    "SQRT": lambda a, o, n: torch.sqrt(a[0]),
    "CONCATENATION": lambda a, o, n: torch.cat([t.expand(n, *t.shape[1:]) for t in a], o.axis),
    "MEAN": _reduce(torch.mean),
    "SUM": _reduce(torch.sum),
    "ADD": _binary(torch.add),
    "SUB": _binary(torch.sub),
    "MUL": _binary(torch.mul),
    "DIV": _binary(torch.div),
    "SQUARED_DIFFERENCE": _binary(lambda x, y: (x - y) ** 2),
    "DEQUANTIZE": lambda a, o, n: a[0].float(),
}
