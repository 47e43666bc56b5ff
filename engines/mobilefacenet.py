"""Builds the ONNX form of MobileFaceNet from its published checkpoint, without PyTorch.

The checkpoint is PyTorch's legacy format: four pickles (magic number, version, system facts, state
dict), a fifth with the order of the storages, then for each storage an int64 count and raw float32.
Nothing is unpickled here: the op codes are only listed (`pickletools`), names and storage keys read
off them, and the shapes come from the network's own definition, so that a foreign file can at worst
be refused.

Network (MobileFaceNet, Chen et al. 2018, table 1, in the variant of the file's authors): conv 3x3/2,
depthwise separable conv, 15 inverted residuals, conv 1x1, global depthwise conv 7x7, linear 1x1, and
batch normalisation after each. Input (N, 3, 112, 112) RGB, ImageNet mean and deviation; output
(N, 128), not normalised.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import ModelStoreError

F32 = npt.NDArray[np.float32]

# expansion, channels, repeats, stride of the first
_BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
_BN_EPS = 1e-5


def build_mobilefacenet(inputs: Mapping[str, Path], output: Path) -> None:
    """Builder for the model store: `inputs` holds one checkpoint, `output` receives the ONNX file.

    Raises:
        ModelStoreError: the checkpoint does not hold the expected network.
    """
    import onnx

    (source,) = inputs.values()
    graph = _Graph(read_state(source.read_bytes()))
    graph.network()
    onnx.save_model(graph.model(), str(output))


def read_state(checkpoint: bytes) -> dict[str, F32]:
    """Flat float32 arrays by parameter name, from a legacy PyTorch checkpoint."""
    stream = io.BytesIO(checkpoint)
    try:
        for _ in range(3):
            _strings(stream)
        names_and_keys = _strings(stream)
        order = [text for text in _strings(stream) if text.isdigit()]
    except (ValueError, IndexError) as error:
        raise _unusable("it is no legacy PyTorch checkpoint") from error
    name_of: dict[str, str] = {}
    name = ""
    for text in names_and_keys:  # a parameter's name comes just before the key of its storage
        if text.isdigit():
            name_of[text] = name
        elif "." in text:
            name = text
    if sorted(name_of) != sorted(order):
        raise _unusable(f"{len(name_of)} parameters and {len(order)} storages do not match")
    state: dict[str, F32] = {}
    for key in order:
        name = name_of[key]
        (count,) = np.frombuffer(stream.read(8), "<i8")
        is_counter = name.endswith("num_batches_tracked")
        raw = stream.read(int(count) * (8 if is_counter else 4))
        if not is_counter:
            state[name] = np.frombuffer(raw, "<f4")
    return state


def _strings(stream: io.BytesIO) -> list[str]:
    """All unicode constants of the next pickle, in order; nothing is executed."""
    return [str(text) for op, text, _ in pickletools.genops(stream) if op.name == "BINUNICODE"]


def _unusable(why: str) -> ModelStoreError:
    return ModelStoreError(f"mobilefacenet: the checkpoint cannot be used: {why}.", "Pull the models again.")


class _Graph:
    """Collects ONNX nodes; every batch normalisation is folded into the convolution before it."""

    def __init__(self, state: Mapping[str, F32]) -> None:
        self._state = state
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._top = "image"

    def network(self) -> None:
        """Adds the whole network."""
        self._conv("conv1.0", "conv1.1", (64, 3, 3, 3), stride=2, activation="relu6")
        self._conv("dw_conv.depthwise", "dw_conv.bn1", (64, 1, 3, 3), activation="relu")
        self._conv("dw_conv.pointwise", "dw_conv.bn2", (64, 64, 1, 1), activation="relu")
        channels, index = 64, 0
        for expansion, wide, repeats, first_stride in _BLOCKS:
            for repeat in range(repeats):
                self._residual(index, channels, wide, expansion, first_stride if repeat == 0 else 1)
                channels, index = wide, index + 1
        self._conv("conv2.0", "conv2.1", (512, 128, 1, 1), activation="relu6")
        self._conv("gdconv.depthwise", "gdconv.bn", (512, 1, 7, 7), pad=0)
        self._conv("conv3", "bn", (128, 512, 1, 1))
        self._node("Flatten", [self._top], "embedding", axis=1)

    def model(self) -> Any:
        """The ONNX model, checked."""
        import onnx
        from onnx import TensorProto, helper

        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 112, 112])
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 128])
        graph = helper.make_graph(self._nodes, "mobilefacenet", [image], [embedding], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _residual(self, index: int, channels: int, wide: int, expansion: int, stride: int) -> None:
        start, hidden, at = self._top, channels * expansion, f"features.{index}.conv"
        self._conv(f"{at}.0.0", f"{at}.0.1", (hidden, channels, 1, 1), activation="relu6")
        self._conv(f"{at}.1.0", f"{at}.1.1", (hidden, 1, 3, 3), stride=stride, activation="relu6")
        self._conv(f"{at}.2", f"{at}.3", (wide, hidden, 1, 1))
        if stride == 1 and channels == wide:
            self._node("Add", [start, self._top], f"{at}.sum")

    def _conv(
        self,
        conv: str,
        norm: str,
        shape: tuple[int, int, int, int],
        *,
        stride: int = 1,
        pad: int | None = None,
        activation: str = "",
    ) -> None:
        weight = self._take(f"{conv}.weight", int(np.prod(shape))).reshape(shape)
        gain, shift, mean, variance = (
            self._take(f"{norm}.{part}", shape[0])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(variance + _BN_EPS)
        bias = self._take(f"{conv}.bias", shape[0]) if f"{conv}.bias" in self._state else np.zeros(shape[0])
        self._constant(f"{conv}.w", weight * scale[:, None, None, None])
        self._constant(f"{conv}.b", shift + (bias - mean) * scale)
        margin = shape[2] // 2 if pad is None else pad
        group = shape[0] if shape[1] == 1 else 1
        self._node(
            "Conv", [self._top, f"{conv}.w", f"{conv}.b"], f"{conv}.y",
            kernel_shape=shape[2:], strides=[stride] * 2, pads=[margin] * 4, group=group,
        )  # fmt: skip
        if activation:
            self._node("Relu", [self._top], f"{conv}.relu")
        if activation == "relu6":
            if not any(w.name == "six" for w in self._weights):
                self._constant("six", np.array(6.0))
            self._node("Min", [self._top, "six"], f"{conv}.relu6")

    def _take(self, name: str, count: int) -> npt.NDArray[np.float64]:
        values = self._state.get(name)
        if values is None or values.size != count:
            got = "nothing" if values is None else f"{values.size} values"
            raise _unusable(f"'{name}' has {got}, want {count}")
        return values.astype(np.float64)

    def _constant(self, name: str, values: npt.NDArray[np.float64]) -> None:
        from onnx import numpy_helper

        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        self._top = output
