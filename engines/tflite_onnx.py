"""Writes a .tflite graph anew as ONNX, for back-ends that read nothing else.

Covers the operators of MediaPipe's face mesh and blendshape networks; any other raises. Names, shapes and
order of inputs and outputs stay those of the file, so the result takes its place, but the batch is open
where the outputs have one.
Pictures keep TFLite's NHWC meaning at both ends; between convolutions they stay NCHW, and a transposition
is written only where a node needs the other order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from keyface.configs.errors import ModelStoreError

Layout = Literal["nhwc", "nchw"]
Array = npt.NDArray[Any]

_DTYPES: dict[int, type] = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64}
_OPSET = 17
_BINARY = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div"}
_UNARY = {"LOGISTIC": "Sigmoid", "NEG": "Neg", "SQRT": "Sqrt"}
_REDUCE = {"MEAN": "ReduceMean", "SUM": "ReduceSum"}


def build_from_tflite(inputs: Mapping[str, Path], output: Path) -> None:
    """A builder of the model store: one .tflite in, ONNX out. Raises ModelStoreError."""
    ((name, path),) = inputs.items()
    output.write_bytes(convert(path.read_bytes(), name).SerializeToString(deterministic=True))


def convert(content: bytes, name: str = "network") -> onnx.ModelProto:
    """The ONNX network of a .tflite file's bytes. Raises ModelStoreError for what it does not cover."""
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        return _Writer(model, name).write()
    except ModelStoreError:
        raise
    except Exception as error:  # flatbuffers has no errors of its own: any of Python's
        raise ModelStoreError(
            f"{name} is not a .tflite file that can be converted: {error}.",
            "Run 'keyface models pull --force'.",
        ) from error


class _Writer:
    """One conversion. `where` maps a tensor's number and layout to the ONNX name that holds it."""

    def __init__(self, model: Any, name: str) -> None:
        self.graph, self.name = model.subgraphs[0], name
        codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.kind_of = [names[code] for code in codes]
        self.constants: dict[int, Array] = {}
        self.where: dict[tuple[int, Layout], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.inits: dict[str, Array] = {}
        # The blendshapes come as (52,), without a batch: such a file takes one item at a time.
        self._is_batched = all(len(self._shape(int(i))) > 1 for i in self.graph.outputs)
        for i, tensor in enumerate(self.graph.tensors):
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                shape = () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
                self.constants[i] = np.frombuffer(bytes(data), _DTYPES[tensor.type]).reshape(shape)

    def write(self) -> onnx.ModelProto:
        for i in self.graph.inputs:
            self.where[int(i), "nhwc"] = self._tensor_name(i)
        for op in self.graph.operators:
            self._convert(op)
        outputs = [self._output(int(i)) for i in self.graph.outputs]
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [self._info(int(i)) for i in self.graph.inputs],
            outputs,
            [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in self.inits.items()],
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="keyface", ir_version=8
        )
        onnx.checker.check_model(made)
        return made

    # -- tensors

    def _tensor_name(self, i: int) -> str:
        return str(self.graph.tensors[int(i)].name.decode())

    def _shape(self, i: int) -> tuple[int, ...]:
        shape = self.graph.tensors[i].shape
        return () if shape is None else tuple(int(n) for n in shape)

    def _info(self, i: int) -> onnx.ValueInfoProto:
        shape = self._shape(i)
        dims: list[Any] = ["N", *shape[1:]] if self._is_batched else list(shape)
        return helper.make_tensor_value_info(self._tensor_name(i), TensorProto.FLOAT, dims)

    def _output(self, i: int) -> onnx.ValueInfoProto:
        self.nodes.append(helper.make_node("Identity", [self.get(i)], [self._tensor_name(i)]))
        return self._info(i)

    def const(self, value: Array, stem: str) -> str:
        name = f"{stem}_{len(self.inits)}"
        self.inits[name] = value
        return name

    def op(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def get(self, i: int, layout: Layout = "nhwc") -> str:
        """ONNX name of a tensor in a layout, transposed when it is held in the other."""
        if i in self.constants:
            return self.const(np.asarray(self.constants[i], np.float32), "weight")
        if (i, layout) not in self.where:
            other: Layout = "nhwc" if layout == "nchw" else "nchw"
            order = [0, 3, 1, 2] if layout == "nchw" else [0, 2, 3, 1]
            self.where[i, layout] = self.op("Transpose", [self.where[i, other]], perm=order)
        return self.where[i, layout]

    def held_nchw(self, *tensors: int) -> bool:
        return all((i, "nchw") in self.where for i in tensors if i not in self.constants)

    # -- operators

    def _convert(self, op: Any) -> None:
        kind, options = self.kind_of[op.opcodeIndex], op.builtinOptions
        args, out = [int(i) for i in op.inputs if i >= 0], int(op.outputs[0])
        if kind == "DEQUANTIZE" and args[0] in self.constants:
            self.constants[out] = self.constants[args[0]].astype(np.float32)
            return
        if kind in _UNARY:
            self.where[out, "nhwc"] = self.op(_UNARY[kind], [self.get(args[0])])
        elif kind in _REDUCE:
            self._reduce(kind, args, options, out)
        elif kind in _BINARY:
            self._binary(_BINARY[kind], args, options, out)
        elif kind in _OPERATORS:
            _OPERATORS[kind](self, args, options, out)
        else:
            legal = ", ".join(sorted({*_UNARY, *_REDUCE, *_BINARY, *_OPERATORS}))
            raise ModelStoreError(f"{self.name}: operator {kind} cannot be converted.", f"Legal: {legal}.")

    def activate(self, x: str, code: int) -> str:
        if code == 0:
            return x
        if code == 1:
            return self.op("Relu", [x])
        raise ModelStoreError(f"{self.name}: fused activation {code} cannot be converted.")

    def _binary(self, kind: str, args: list[int], options: Any, out: int) -> None:
        plain = len(self._shape(args[0])) == 4 and self._shape(args[0]) == self._shape(args[1])
        layout: Layout = "nchw" if plain and self.held_nchw(*args) else "nhwc"
        y = self.op(kind, [self.get(i, layout) for i in args])
        self.where[out, layout] = self.activate(y, getattr(options, "fusedActivationFunction", 0) or 0)

    def _reduce(self, kind: str, args: list[int], options: Any, out: int) -> None:
        rank = len(self._shape(args[0]))
        axes = [int(a) % rank for a in self.constants[args[1]].reshape(-1)]
        keep = int(bool(options.keepDims))
        if kind == "SUM":  # takes its axes as an input since opset 13, ReduceMean since 18
            axes_name = self.const(np.array(axes, np.int64), "axes")
            y = self.op("ReduceSum", [self.get(args[0]), axes_name], keepdims=keep)
        else:
            y = self.op("ReduceMean", [self.get(args[0])], axes=axes, keepdims=keep)
        self.where[out, "nhwc"] = y

    def conv(self, args: list[int], options: Any, out: int, *, depthwise: bool) -> None:
        weight = self.constants[args[1]].astype(np.float32)
        weight = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
        kernel, stride = weight.shape[2:], (int(options.strideH), int(options.strideW))
        inputs = [self.get(args[0], "nchw"), self.const(weight, "kernel")]
        if len(args) > 2:
            inputs.append(self.get(args[2]))
        y = self.op(
            "Conv", inputs,
            strides=stride, pads=self.pads(args[0], kernel, stride, options.padding),
            group=weight.shape[0] if depthwise else 1,
        )  # fmt: skip
        self.where[out, "nchw"] = self.activate(y, options.fusedActivationFunction)

    def pads(self, i: int, kernel: Sequence[int], stride: Sequence[int], padding: int) -> list[int]:
        """TensorFlow's SAME: the odd pixel goes to the bottom and right; 1 is VALID."""
        if padding != 0:
            return [0, 0, 0, 0]
        sizes = self._shape(i)[1:3]
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, kernel, stride, strict=True)]
        return [t // 2 for t in totals] + [t - t // 2 for t in totals]

    def prelu(self, args: list[int], options: Any, out: int) -> None:
        slope = self.constants[args[1]].astype(np.float32).transpose(2, 0, 1)  # (1, 1, C)
        self.where[out, "nchw"] = self.op("PRelu", [self.get(args[0], "nchw"), self.const(slope, "slope")])

    def max_pool(self, args: list[int], options: Any, out: int) -> None:
        kernel = (int(options.filterHeight), int(options.filterWidth))
        stride = (int(options.strideH), int(options.strideW))
        pads = self.pads(args[0], kernel, stride, options.padding)
        x = self.get(args[0], "nchw")
        self.where[out, "nchw"] = self.op("MaxPool", [x], kernel_shape=kernel, strides=stride, pads=pads)

    def pad(self, args: list[int], options: Any, out: int) -> None:
        amounts = self.constants[args[1]].astype(np.int64)  # (4, 2), NHWC
        by_nchw = amounts[[0, 3, 1, 2]].T.reshape(-1)
        self.where[out, "nchw"] = self.op("Pad", [self.get(args[0], "nchw"), self.const(by_nchw, "pads")])

    def concat(self, args: list[int], options: Any, out: int) -> None:
        batched = next(i for i in args if i not in self.constants)
        repeats = self._is_batched
        names = [self._as_many(i, batched) if i in self.constants and repeats else self.get(i) for i in args]
        self.where[out, "nhwc"] = self.op("Concat", names, axis=int(options.axis))

    def _as_many(self, constant: int, batched: int) -> str:
        """A constant row repeated for each item of the batch."""
        shape = self.op("Shape", [self.get(batched)], end=1)
        ones = self.const(np.ones(len(self._shape(constant)) - 1, np.int64), "ones")
        return self.op("Expand", [self.get(constant), self.op("Concat", [shape, ones], axis=0)])

    def reshape(self, args: list[int], options: Any, out: int) -> None:
        shape = list(self._shape(out))
        if len(shape) > 1:
            shape[0] = 0 if self._shape(args[0])[0] == 1 else shape[0]  # 0: as the input's, the open batch
        self.where[out, "nhwc"] = self.op(
            "Reshape", [self.get(args[0]), self.const(np.array(shape, np.int64), "shape")]
        )

    def strided_slice(self, args: list[int], options: Any, out: int) -> None:
        begin, end, step = (self.constants[i].astype(np.int64) for i in args[1:4])
        rank, last = len(begin), np.iinfo(np.int64).max
        taken = [axis for axis in range(1, rank) if not options.shrinkAxisMask >> axis & 1]
        taken += [axis for axis in range(1, rank) if options.shrinkAxisMask >> axis & 1]
        starts = [0 if options.beginMask >> a & 1 else int(begin[a]) for a in taken]
        ends = [last if options.endMask >> a & 1 else int(end[a]) for a in taken]
        parts = [np.array(v, np.int64) for v in (starts, ends, taken, [int(step[a]) for a in taken])]
        x = self.op("Slice", [self.get(args[0]), *(self.const(p, "slice") for p in parts)])
        gone = [axis for axis in range(rank) if options.shrinkAxisMask >> axis & 1]
        if gone:
            x = self.op("Squeeze", [x, self.const(np.array(gone, np.int64), "axes")])
        self.where[out, "nhwc"] = x

    def transpose(self, args: list[int], options: Any, out: int) -> None:
        order = [int(v) for v in self.constants[args[1]]]
        self.where[out, "nhwc"] = self.op("Transpose", [self.get(args[0])], perm=order)

    def rsqrt(self, args: list[int], options: Any, out: int) -> None:
        self.where[out, "nhwc"] = self.op("Reciprocal", [self.op("Sqrt", [self.get(args[0])])])

    def squared_difference(self, args: list[int], options: Any, out: int) -> None:
        difference = self.op("Sub", [self.get(i) for i in args])
        self.where[out, "nhwc"] = self.op("Mul", [difference, difference])


_OPERATORS: dict[str, Callable[[_Writer, list[int], Any, int], None]] = {
    "CONV_2D": lambda w, a, o, out: w.conv(a, o, out, depthwise=False),
    "DEPTHWISE_CONV_2D": lambda w, a, o, out: w.conv(a, o, out, depthwise=True),
    "PRELU": _Writer.prelu,
    "MAX_POOL_2D": _Writer.max_pool,
    "PAD": _Writer.pad,
    "CONCATENATION": _Writer.concat,
    "RESHAPE": _Writer.reshape,
    "STRIDED_SLICE": _Writer.strided_slice,
    "TRANSPOSE": _Writer.transpose,
    "RSQRT": _Writer.rsqrt,
    "SQUARED_DIFFERENCE": _Writer.squared_difference,
}
