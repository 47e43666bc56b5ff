"""Small rewrites of published ONNX files that leave the weights as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from keyface.configs.errors import ModelStoreError

if TYPE_CHECKING:
    import onnx


def build_yunet_dynamic(inputs: Mapping[str, Path], output: Path) -> None:
    """Opens the declared image size of YuNet, (1, 3, 640, 640), to any multiples of 32.

    The network is fully convolutional and its reshapes are relative; only the declaration is fixed, and
    ONNX Runtime holds callers to it. Raises ModelStoreError when the file is not that network.
    """
    model = _load(inputs)
    if len(model.graph.input) != 1 or len(model.graph.input[0].type.tensor_type.shape.dim) != 4:
        raise ModelStoreError(
            "yunet: want one input of four dimensions.", "Run 'keyface models pull --force'."
        )
    size = model.graph.input[0].type.tensor_type.shape.dim
    size[2].dim_param, size[3].dim_param = "height", "width"
    for tensor in model.graph.output:
        tensor.type.tensor_type.shape.dim[1].dim_param = f"rows_{tensor.name}"
    del model.graph.value_info[:]  # inferred for 640 x 640
    output.write_bytes(_bytes(model))


def build_for_cpu(inputs: Mapping[str, Path], output: Path) -> None:
    """Writes an old convolutional network so that a CPU runs it faster; outputs change by rounding only.

    Two things: weights that exporters listed as graph inputs are taken from that list, since there they
    may be overridden and no runtime may fold batch normalisation into the convolutions; and
    PRelu(x) = a x + (1 - a) Relu(x) is written out, because ONNX Runtime has a slow kernel for PRelu (it
    took two thirds of the time of SFace) and fast ones for the parts.
    """
    model = _load(inputs)
    weights = {tensor.name for tensor in model.graph.initializer}
    true_inputs = [tensor for tensor in model.graph.input if tensor.name not in weights]
    if not true_inputs:
        raise ModelStoreError("no input is left after taking the weights out.", "Use the file as it is.")
    del model.graph.input[:]
    model.graph.input.extend(true_inputs)
    _write_out_prelu(model.graph)
    output.write_bytes(_bytes(model))


def _write_out_prelu(graph: onnx.GraphProto) -> None:
    from onnx import helper, numpy_helper

    slopes = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "PRelu" or node.input[1] not in slopes:
            nodes.append(node)
            continue
        x, slope, y = node.input[0], node.input[1], node.output[0]
        rest = (1.0 - numpy_helper.to_array(slopes[slope])).astype("float32")
        graph.initializer.append(numpy_helper.from_array(rest, f"{y}_rest"))
        nodes += [
            helper.make_node("Mul", [x, slope], [f"{y}_sloped"]),
            helper.make_node("Relu", [x], [f"{y}_positive"]),
            helper.make_node("Mul", [f"{y}_positive", f"{y}_rest"], [f"{y}_scaled"]),
            helper.make_node("Add", [f"{y}_sloped", f"{y}_scaled"], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _load(inputs: Mapping[str, Path]) -> onnx.ModelProto:
    import onnx

    ((name, path),) = inputs.items()
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf's own classes
        raise ModelStoreError(
            f"{name}: {path.name} is not an ONNX file: {error}.", "Run 'keyface models pull --force'."
        ) from error


def _bytes(model: onnx.ModelProto) -> bytes:
    # Deterministic, so that the same input gives the same hash with any protobuf of one major version.
    return bytes(model.SerializeToString(deterministic=True))
