"""Builds the ONNX form of FaceNet (Inception-ResNet-v1) from its frozen TensorFlow graph, without TensorFlow.

Network: Schroff et al. 2015 in the form of Sandberg, trained on CASIA-WebFace; batch normalisations are folded
into the convolutions in the file already. Input (N, 3, 160, 160) RGB, (x - 127.5) / 128; output (N, 512), not
normalised.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import ModelStoreError
from keyface.engines.tensorflow_graph import GraphNode, read_graph

_LAST = "InceptionResnetV1/Bottleneck/BatchNorm/cond/FusedBatchNorm_1"
_SIMPLE = {"Relu": "Relu", "Add": "Add", "Mul": "Mul"}


def build_facenet(inputs: Mapping[str, Path], output: Path) -> None:
    """Builder for the model store: `inputs` holds one frozen graph, `output` receives the ONNX file.

    Raises:
        ModelStoreError: the graph does not hold the expected network.
    """
    import onnx

    (source,) = inputs.values()
    try:
        nodes = {node.name: node for node in read_graph(source.read_bytes())}
        model = _Converter(nodes).model()
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise ModelStoreError(
            f"facenet: the graph cannot be used: {error!r}.", "Pull the models again."
        ) from error
    onnx.save_model(model, str(output))


class _Converter:
    """Makes one ONNX node of each layer; what TensorFlow keeps as NHWC becomes NCHW."""

    def __init__(self, nodes: Mapping[str, GraphNode]) -> None:
        self._nodes = nodes
        self._made: list[Any] = []
        self._weights: dict[str, Any] = {}

    def model(self) -> Any:
        """The ONNX model, checked."""
        import onnx
        from onnx import TensorProto, helper

        for node in self._in_order():
            self._convert(node)
        self._add("Identity", [_LAST], "embedding")
        image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 160, 160])
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 512])
        graph = helper.make_graph(self._made, "facenet", [image], [embedding], list(self._weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _in_order(self) -> list[GraphNode]:
        """The layers that lead to the last one, each behind its inputs."""
        done: dict[str, GraphNode] = {}
        waiting = [_LAST]
        while waiting:
            node = self._nodes[waiting[-1]]
            missing = [name for name in node.inputs if name not in done and self._is_layer(name)]
            if not missing:
                done[waiting.pop()] = node
            waiting += missing
        return list(done.values())

    def _is_layer(self, name: str) -> bool:
        return self._nodes[name].operation not in ("Const", "Placeholder")

    def _convert(self, node: GraphNode) -> None:
        first = node.inputs[0]
        match node.operation:
            case "Conv2D":
                kernel = self._nodes[node.inputs[1]].tensor().transpose(3, 2, 0, 1)
                weight = self._weight(f"{node.name}/w", kernel)
                self._add("Conv", [first, weight], node.name, **_window(node, kernel.shape[2:]))
            case "BiasAdd":
                bias = self._nodes[node.inputs[1]].tensor()
                self._add("Add", [first, self._weight(f"{node.name}/b", bias[:, None, None])], node.name)
            case "MaxPool" | "AvgPool":
                size = node.numbers("ksize")[1:3]
                kind = "MaxPool" if node.operation == "MaxPool" else "AveragePool"
                self._add(kind, [first], node.name, **_window(node, size))
            case "ConcatV2":
                self._add("Concat", list(node.inputs[:-1]), node.name, axis=1)
            case "Reshape":  # a vector per picture before, and a shape for the normalisation after it
                self._add("Flatten", [first], node.name, axis=1)
            case "MatMul":
                weight = self._weight(f"{node.name}/w", self._nodes[node.inputs[1]].tensor())
                self._add("MatMul", [first, weight], node.name)
            case "FusedBatchNorm":
                self._normalise(node)
            case simple if simple in _SIMPLE:
                self._add(_SIMPLE[simple], [self._value(name) for name in node.inputs], node.name)
            case other:
                raise ValueError(f"operation {other}")

    def _normalise(self, node: GraphNode) -> None:
        gain, shift, mean, variance = (
            self._nodes[name].tensor().astype(np.float64) for name in node.inputs[1:]
        )
        scale = gain / np.sqrt(variance + node.number("epsilon"))
        self._add("Mul", [node.inputs[0], self._weight(f"{node.name}/scale", scale)], f"{node.name}/scaled")
        shifted = self._weight(f"{node.name}/shift", shift - mean * scale)
        self._add("Add", [f"{node.name}/scaled", shifted], node.name)

    def _value(self, name: str) -> str:
        """A name that ONNX knows: constants become weights."""
        if self._nodes[name].operation == "Const":
            return self._weight(name, self._nodes[name].tensor())
        return name

    def _weight(self, name: str, values: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        contiguous = np.ascontiguousarray(values, np.float32).reshape(values.shape)
        self._weights[name] = numpy_helper.from_array(contiguous, name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self._made.append(helper.make_node(kind, inputs, [output], **attributes))


def _window(node: GraphNode, size: tuple[int, ...] | list[int]) -> dict[str, Any]:
    """Kernel, strides and padding. SAME is symmetric here: the graph uses it with stride 1 and odd kernels only."""
    strides = node.numbers("strides")[1:3]
    if node.text("padding") == "VALID":
        return {"kernel_shape": list(size), "strides": strides, "pads": [0, 0, 0, 0]}
    if strides != [1, 1] or not all(side % 2 for side in size):
        raise ValueError(f"{node.name}: SAME with strides {strides}")
    return {"kernel_shape": list(size), "strides": strides, "pads": [side // 2 for side in size] * 2}
