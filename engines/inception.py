"""Builds the ONNX form of the Inception-v3 network of the Frechet inception distance, without PyTorch.

The file is a TorchScript archive of the TensorFlow network of 2015-12-05 (Szegedy et al. 2016; Heusel et al.
2017). Its float32 storages are numbered in the order in which the network's layers are defined, four a layer
(weight, beta, mean, variance), so that nothing needs to be unpickled: shapes come from the definition below.

Input `image` (N, 3, 299, 299) RGB, (x - 128) / 128. Outputs `features` (N, 2048), the average over all places
before the classifier, and `features_192` (N, 192), the average over all places after the second max pooling.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import ModelStoreError

_EPSILON = 1e-3
_FOLDER = "out_jit_module/data"
_N_LAYERS = 94
_Size = int | tuple[int, int]


def build_inception(inputs: Mapping[str, Path], output: Path) -> None:
    """Builder for the model store: `inputs` holds the archive, `output` receives the ONNX file.

    Raises:
        ModelStoreError: the archive does not hold the expected network.
    """
    import onnx

    (source,) = inputs.values()
    try:
        with zipfile.ZipFile(source) as archive:
            storages = [archive.read(f"{_FOLDER}/{i}") for i in range(4 * _N_LAYERS)]
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise _unusable(str(error)) from error
    network = _Network([np.frombuffer(raw, "<f4") for raw in storages])
    network.build()
    onnx.save_model(network.model(), str(output))


def _unusable(why: str) -> ModelStoreError:
    return ModelStoreError(f"inception: the archive cannot be used: {why}.", "Pull the models again.")


class _Network:
    """Collects ONNX nodes; every normalisation is folded into the convolution before it."""

    def __init__(self, storages: list[npt.NDArray[np.float32]]) -> None:
        self._storages = iter(storages)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def build(self) -> None:
        """Adds the whole network, layers in the order of their storages."""
        top = self._conv("image", (3, 32), 3, stride=2)
        top = self._conv(top, (32, 32), 3)
        top = self._conv(top, (32, 64), 3, pad=1)
        top = self._max_pool(top)
        top = self._conv(top, (64, 80), 1)
        top = self._conv(top, (80, 192), 3)
        top = self._max_pool(top)
        self._average(top, "features_192")
        channels = 192
        for pooled in (32, 64, 64):
            top, channels = self._block_a(top, channels, pooled), 224 + pooled
        top, channels = self._block_b(top, channels), 768
        for narrow in (128, 160, 160, 192):
            top = self._block_c(top, narrow)
        top = self._block_d(top)
        top = self._block_e(top, 1280, uses_max=False)
        top = self._block_e(top, 2048, uses_max=True)
        self._average(top, "features")

    def model(self) -> Any:
        """The ONNX model, checked."""
        import onnx
        from onnx import TensorProto, helper

        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 299, 299])
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in (("features", 2048), ("features_192", 192))
        ]
        graph = helper.make_graph(self._nodes, "inception", [image], outputs, self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def _block_a(self, top: str, n: int, pooled: int) -> str:
        one = self._conv(top, (n, 64), 1)
        five = self._conv(self._conv(top, (n, 48), 1), (48, 64), 5, pad=2)
        three = self._conv(self._conv(top, (n, 64), 1), (64, 96), 3, pad=1)
        three = self._conv(three, (96, 96), 3, pad=1)
        return self._concat(one, five, three, self._conv(self._average_pool(top), (n, pooled), 1))

    def _block_b(self, top: str, n: int) -> str:
        one = self._conv(top, (n, 384), 3, stride=2)
        two = self._conv(self._conv(top, (n, 64), 1), (64, 96), 3, pad=1)
        two = self._conv(two, (96, 96), 3, stride=2)
        return self._concat(one, two, self._max_pool(top))

    def _block_c(self, top: str, narrow: int) -> str:
        row, column = (1, 7), (7, 1)
        one = self._conv(top, (768, 192), 1)
        two = self._conv(top, (768, narrow), 1)
        two = self._conv(self._conv(two, (narrow, narrow), row), (narrow, 192), column)
        three = self._conv(top, (768, narrow), 1)
        for size in (column, row, column):
            three = self._conv(three, (narrow, narrow), size)
        three = self._conv(three, (narrow, 192), row)
        return self._concat(one, two, three, self._conv(self._average_pool(top), (768, 192), 1))

    def _block_d(self, top: str) -> str:
        one = self._conv(self._conv(top, (768, 192), 1), (192, 320), 3, stride=2)
        two = self._conv(top, (768, 192), 1)
        two = self._conv(self._conv(two, (192, 192), (1, 7)), (192, 192), (7, 1))
        two = self._conv(two, (192, 192), 3, stride=2)
        return self._concat(one, two, self._max_pool(top))

    def _block_e(self, top: str, n: int, *, uses_max: bool) -> str:
        one = self._conv(top, (n, 320), 1)
        two = self._conv(top, (n, 384), 1)
        two_row, two_column = self._conv(two, (384, 384), (1, 3)), self._conv(two, (384, 384), (3, 1))
        three = self._conv(self._conv(top, (n, 448), 1), (448, 384), 3, pad=1)
        three_row, three_column = self._conv(three, (384, 384), (1, 3)), self._conv(three, (384, 384), (3, 1))
        pooled = self._max_pool(top, stride=1, pad=1) if uses_max else self._average_pool(top)
        last = self._conv(pooled, (n, 192), 1)
        return self._concat(one, two_row, two_column, three_row, three_column, last)

    def _conv(
        self, top: str, channels: tuple[int, int], size: _Size, *, stride: int = 1, pad: int | None = None
    ) -> str:
        """Convolution, normalisation and ReLU. A size of two numbers is padded to keep the picture's size."""
        height, width = (size, size) if isinstance(size, int) else size
        n_in, n_out = channels
        weight = self._take(n_out * n_in * height * width).reshape(n_out, n_in, height, width)
        beta, mean, variance = (self._take(n_out) for _ in range(3))
        scale = 1.0 / np.sqrt(variance + _EPSILON)
        names = [self._weight(weight * scale[:, None, None, None]), self._weight(beta - mean * scale)]
        margin = [height // 2, width // 2] if isinstance(size, tuple) else [pad or 0] * 2
        out = self._add(
            "Conv", [top, *names], kernel_shape=[height, width], strides=[stride] * 2, pads=margin * 2
        )
        return self._add("Relu", [out])

    def _max_pool(self, top: str, *, stride: int = 2, pad: int = 0) -> str:
        return self._add("MaxPool", [top], kernel_shape=[3, 3], strides=[stride] * 2, pads=[pad] * 4)

    def _average_pool(self, top: str) -> str:
        return self._add(
            "AveragePool", [top], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4, count_include_pad=0
        )

    def _concat(self, *tops: str) -> str:
        return self._add("Concat", list(tops), axis=1)

    def _average(self, top: str, name: str) -> None:
        self._add("Flatten", [self._add("GlobalAveragePool", [top])], name=name, axis=1)

    def _take(self, count: int) -> npt.NDArray[np.float64]:
        values = next(self._storages, None)
        if values is None or values.size != count:
            got = "nothing" if values is None else f"{values.size} values"
            raise _unusable(f"a storage has {got}, want {count}")
        return values.astype(np.float64)

    def _weight(self, values: npt.NDArray[np.float64]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def _add(self, kind: str, inputs: list[str], *, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = name or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output
