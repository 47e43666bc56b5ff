"""LPIPS with AlexNet (Zhang et al. 2018) as a loss: frozen, and differentiable in both pictures.

    d(a, b) = sum over layers l of the mean over places of  w_l . (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2

The same numbers as the store's ONNX network `lpips`, from whose file the weights are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper
from torch import Tensor, nn

from keyface.configs.errors import ModelStoreError

N_LAYERS = 5
_POOLED_FIRST = (1, 2)
_STRIDES_PADS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_SMALL = 1e-10


class Lpips(nn.Module):
    """The distance between pictures (N, 3, H, W) in [-1, 1], H and W 64 or more."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """weights: `shift`, `scale` (1, 3, 1, 1); `conv{i}.weight`, `conv{i}.bias`, `head{i}.weight`, i = 0..4."""
        super().__init__()
        for name, values in weights.items():
            self.register_buffer(name.replace(".", "_"), values)

    @classmethod
    def load(cls, path: Path) -> Lpips:
        """From the store's `lpips` file. Raises ModelStoreError when it is not that."""
        try:
            held = {t.name: t for t in onnx.load(str(path)).graph.initializer}
            names = ["shift", "scale"]
            for i in range(N_LAYERS):
                names += [f"conv{i}.weight", f"conv{i}.bias", f"head{i}.weight"]
            weights = {name: torch.from_numpy(numpy_helper.to_array(held[name]).copy()) for name in names}
        except (OSError, KeyError, ValueError, DecodeError) as error:
            raise ModelStoreError(f"{path} is not the network 'lpips'.", "Pull it again.") from error
        return cls(weights)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) distances, 0 for equal pictures."""
        return self.distance(self.features(a), self.features(b))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """What the five convolutions give after their ReLU, (N, 64 | 192 | 384 | 256 | 256, h, w)."""
        top = (image - self._held("shift")) / self._held("scale")
        found = []
        for i, (stride, pad) in enumerate(_STRIDES_PADS):
            if i in _POOLED_FIRST:
                top = F.max_pool2d(top, 3, 2)
            top = F.conv2d(
                top, self._held(f"conv{i}_weight"), self._held(f"conv{i}_bias"), stride=stride, padding=pad
            )
            top = F.relu(top)
            found.append(top)
        return tuple(found)

    def distance(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        """(N,) from the `features` of two batches; so those of a fixed picture need to be made only once."""
        total: Any = 0.0
        for i, (of_a, of_b) in enumerate(zip(a, b, strict=True)):
            square = (_unit(of_a.float()) - _unit(of_b.float())).square()
            total = total + (square * self._held(f"head{i}_weight").float()).sum(1).mean((1, 2))
        distances: Tensor = total
        return distances

    def _held(self, name: str) -> Tensor:
        return self.get_buffer(name)


def _unit(feature: Tensor) -> Tensor:
    # The small number lies under the root: where all channels are 0 the root alone has no gradient.
    size = (feature.square().sum(1, keepdim=True) + _SMALL**2).sqrt()
    return feature / (size + _SMALL)
