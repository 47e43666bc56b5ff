"""Writes an ONNX network anew in half precision, with float32 inputs and outputs.

TensorRT from version 11 on computes in what the graph says and nothing else, so half precision has to be
in the graph. What would lose more than rounding stays in float32: see `keep_float32`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from keyface.configs.errors import EngineError

_LARGEST = 65504.0
_CONTRACTIONS = {"Conv", "MatMul", "Gemm"}


def to_half(model: onnx.ModelProto, *, keep_float32: Iterable[str] = ()) -> onnx.ModelProto:
    """A copy of the network in float16; inputs and outputs keep their float32.

    Args:
        model: float32 throughout, without branches or loops.
        keep_float32: names of nodes that go on in float32, see `nodes_before_first_layer`.

    Raises:
        EngineError: the graph cannot be converted.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy)
    return _HalfWriter(copy, set(keep_float32)).write()


class _HalfWriter:
    """One conversion: every float tensor is held as float32, float16 or both, cast where first asked for."""

    def __init__(self, model: onnx.ModelProto, kept: set[str]) -> None:
        self._model, self._kept = model, kept
        self._weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._floats = set(self._weights) | {
            value.name
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._names: dict[tuple[str, bool], str] = {}  # (tensor, is half) -> name in the new graph
        self._nodes: list[onnx.NodeProto] = []
        self._inits = [t for t in model.graph.initializer if t.name not in self._weights]

    def write(self) -> onnx.ModelProto:
        graph = self._model.graph
        for tensor in graph.input:
            self._names[tensor.name, False] = tensor.name
        outputs = {tensor.name for tensor in graph.output}
        for node in graph.node:
            self._convert(node, outputs)
        for name in outputs & self._floats:
            self._nodes.append(helper.make_node("Cast", [f"{name}__out"], [name], to=TensorProto.FLOAT))
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._inits)
        return self._model

    def _convert(self, node: onnx.NodeProto, outputs: set[str]) -> None:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise EngineError(f"{node.op_type} {node.name}: branches cannot be written in half precision.")
        is_half = node.name not in self._kept
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self._floats:
                always_float = node.op_type == "Resize" and i > 0  # regions and scales
                made.input[i] = self._get(name, is_half and not always_float)
        for i, name in enumerate(node.output):
            if name in self._floats:
                made.output[i] = f"{name}__out" if name in outputs else name
                self._names[name, is_half] = made.output[i]
        if is_half:
            _halve_attributes(made)
        self._nodes.append(made)

    def _get(self, name: str, is_half: bool) -> str:
        if (name, is_half) in self._names:
            return self._names[name, is_half]
        if name in self._weights:
            self._names[name, is_half] = self._weight(name, is_half)
        elif (name, not is_half) in self._names:
            to, suffix = (TensorProto.FLOAT16, "half") if is_half else (TensorProto.FLOAT, "float")
            cast = f"{name}__{suffix}"
            self._nodes.append(helper.make_node("Cast", [self._names[name, not is_half]], [cast], to=to))
            self._names[name, is_half] = cast
        else:
            raise EngineError(f"tensor {name!r} is used before it is made.")
        return self._names[name, is_half]

    def _weight(self, name: str, is_half: bool) -> str:
        value = self._weights[name]
        if is_half:
            if not (np.abs(value) <= _LARGEST).all():
                raise EngineError(f"weight {name!r} has values beyond float16 ({_LARGEST:g}).")
            # Rounding to zero only loses what float16 cannot tell from zero, and keeps signs.
            value = value.astype(np.float16)
        new = f"{name}__half" if is_half else name
        self._inits.append(numpy_helper.from_array(value, new))
        return new


def _halve_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))


def nodes_before_first_layer(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes before the first convolution or product: what normalises the input.

    Pixel coordinates beyond 2048 are whole even numbers in float16, so a network that takes them has to
    bring them near 1 in float32 first.
    """
    _name_nodes(model)
    names = []
    for node in model.graph.node:
        if node.op_type in _CONTRACTIONS:
            break
        names.append(str(node.name))
    return tuple(names)


def emulate_half(model: onnx.ModelProto, *, keep_float32: Iterable[str] = ()) -> onnx.ModelProto:
    """The network as a float16 device computes it, for runtimes without float16 arithmetic of their own.

    Weights and every node's outputs are rounded to float16; sums inside a node are float32, as on tensor
    cores. Run it without graph optimisation, or the roundings are taken out again.
    """
    kept = set(keep_float32)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy)
    floats = set()
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    inferred = onnx.shape_inference.infer_shapes(copy)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            floats.add(value.name)
    nodes: list[Any] = []
    for node in copy.graph.node:
        nodes.append(node)
        if node.name in kept:
            continue
        for i, name in enumerate(node.output):
            if name in floats:
                exact, half = f"{name}__exact", f"{name}__half"
                node.output[i] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return copy


def pack_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32 as before, with its weights rounded to float16: half the bytes to carry."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    casts = []
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            name, half = tensor.name, f"{tensor.name}__packed"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
            casts.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs take any batch where the file says 1.

    Only for networks whose nodes leave the batch alone. Nodes that name a batch of 1 (Reshape) are opened.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in (*copy.graph.input, *copy.graph.output):
        batch = tensor.type.tensor_type.shape.dim[0]
        if batch.dim_value == 1:
            batch.dim_param = "N"
    del copy.graph.value_info[:]
    return copy


def _name_nodes(model: onnx.ModelProto) -> None:
    for i, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
