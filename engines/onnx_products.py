"""Writes products of matrices as convolutions and sums: TensorRT-RTX has no float32 product for SM75."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def products_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every Gemm, and every MatMul of a matrix by fixed weights, is a 1x1 convolution, and every
    MatMul of two batches of matrices a sum of products.

    Outputs change by rounding only. Weights may be held in half precision and cast. Other products stay as they are.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = _weights(graph)
    inferred = onnx.shape_inference.infer_shapes(copy).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and all(ranks.get(name) == 3 for name in node.input):
            nodes += _as_sum(graph, node)
            continue
        kernel = _kernel(node, weights, ranks)
        if kernel is None:
            nodes.append(node)
            continue
        stem = node.output[0]
        added = [
            numpy_helper.from_array(np.ascontiguousarray(kernel[:, :, None, None]), f"{stem}_kernel"),
            numpy_helper.from_array(np.array([0, -1, 1, 1], np.int64), f"{stem}_as_picture"),
        ]
        graph.initializer.extend(added)
        inputs = [f"{stem}_picture", added[0].name, *node.input[2:3]]
        nodes += [
            helper.make_node("Reshape", [node.input[0], added[1].name], [f"{stem}_picture"]),
            helper.make_node("Conv", inputs, [f"{stem}_spots"], name=f"{stem}_conv"),
            helper.make_node("Flatten", [f"{stem}_spots"], [stem], axis=1),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return copy


def _weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Fixed tensors by name, those too that are cast to float32 before they are used."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in weights:
            to = next(a.i for a in node.attribute if a.name == "to")
            if to == TensorProto.FLOAT:
                weights[node.output[0]] = weights[node.input[0]].astype(np.float32)
    return weights


def _as_sum(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """(N, m, k) by (N, k, p) -> (N, m, p): the k products of each place, (N, m, k, p), added up."""
    stem = node.output[0]
    axes = {name: numpy_helper.from_array(np.array([axis]), f"{stem}_{name}")
            for name, axis in (("last", 3), ("rows", 1), ("inner", 2))}  # fmt: skip
    graph.initializer.extend(axes.values())
    left, right, products = f"{stem}_left", f"{stem}_right", f"{stem}_products"
    return [
        helper.make_node("Unsqueeze", [node.input[0], axes["last"].name], [left]),
        helper.make_node("Unsqueeze", [node.input[1], axes["rows"].name], [right]),
        helper.make_node("Mul", [left, right], [products]),
        helper.make_node("ReduceSum", [products, axes["inner"].name], [stem], name=f"{stem}_sum", keepdims=0),
    ]


def _kernel(node: onnx.NodeProto, weights: dict[str, np.ndarray], ranks: dict[str, int]) -> np.ndarray | None:
    """(outputs, inputs) of a product that can be written so; None: it cannot."""
    if node.op_type not in ("Gemm", "MatMul") or ranks.get(node.input[0]) != 2:
        return None
    matrix = weights.get(node.input[1])
    if matrix is None or matrix.ndim != 2:
        return None
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    is_plain = options.get("transA", 0) == 0 and options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    bias_fits = len(node.input) < 3 or getattr(weights.get(node.input[2]), "ndim", 0) == 1
    if not is_plain or not bias_fits:
        return None
    return matrix if options.get("transB", 0) else matrix.T
