"""MobileStyleGAN's synthesis network in PyTorch, for training heads, maps and projectors through it.

Weights come from the ONNX file that the model store derives (`synthesis_1024`), so that training and the
product share one reading of the original. W+ is (N, 23, 512): row 0 styles the first convolution, then
(up, conv1, conv2) for each of 7 blocks, row 22 RGB. arXiv:2104.04767, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

N_STYLES = 23
HEAD_BLOCK = 5


def onnx_initialisers(path: Path) -> dict[str, Tensor]:
    """All named weights of an ONNX file as float32 tensors."""
    model = onnx.load(str(path))
    return {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}


def inverse_haar(x: Tensor) -> Tensor:
    """(N, C, r, r) in bands (LL | B0 | B1 | B2), already halved -> (N, C/4, 2r, 2r)."""
    ll, b0, b1, b2 = x.chunk(4, 1)
    plus, minus, high, low = ll + b0, ll - b0, b1 + b2, b1 - b2
    quads = torch.stack([plus + high, plus - high, minus + low, minus - low], 2)  # (N, C/4, 4, r, r)
    n, c, _, h, w = quads.shape
    return F.pixel_shuffle(quads.reshape(n, c * 4, h, w), 2)


class Style(nn.Module):
    """(N, 512) -> (N, C, 1, 1), affine; the layer's fixed scale is folded in."""

    def __init__(self, weights: Mapping[str, Tensor], stem: str, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights[f"{stem}.mod_w"].T.contiguous() * gain)
        self.bias = nn.Parameter(weights[f"{stem}.mod_b"] * gain)

    def forward(self, w: Tensor) -> Tensor:
        return F.linear(w, self.weight, self.bias)[:, :, None, None]


class Separable(nn.Module):
    """Style, depthwise 3x3, pointwise 1x1, fixed noise, leaky ReLU."""

    def __init__(self, weights: Mapping[str, Tensor], stem: str) -> None:
        super().__init__()
        self.style = Style(weights, stem)
        self.dw = nn.Parameter(weights[f"{stem}.dw"].clone())
        self.pw = nn.Parameter(weights[f"{stem}.pw"].clone())
        self.bias = nn.Parameter(weights[f"{stem}.bias"].clone())
        self.noise = nn.Parameter(weights[f"{stem}.noise"].clone())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = F.conv2d(x * self.style(w), self.dw, padding=1, groups=self.dw.shape[0])
        return F.leaky_relu(F.conv2d(x, self.pw, self.bias) + self.noise, 0.2)


class Block(nn.Module):
    """Wavelet up-sampling and two separable convolutions: (N, C, r, r) -> (N, C', 2r, 2r)."""

    def __init__(self, weights: Mapping[str, Tensor], stem: str) -> None:
        super().__init__()
        self.up = Style(weights, f"{stem}.up")  # the ONNX file holds it halved for inverse_haar
        self.conv1 = Separable(weights, f"{stem}.conv1")
        self.conv2 = Separable(weights, f"{stem}.conv2")

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = inverse_haar(x * self.up(w[:, 0]))
        return self.conv2(self.conv1(x, w[:, 1]), w[:, 2])


class Head256(nn.Module):
    """Our 256 px head: features after block 4, (N, 256, 128, 128), -> RGB (N, 3, 256, 256).

    A narrow copy of block 5: wavelet up-sampling, one separable convolution (C channels), RGB 3x3.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.up = Style(weights, "head.up", 0.5)  # stored unhalved, as the generator's own blocks
        self.conv = Separable(weights, "head.conv")
        self.rgb_weight = nn.Parameter(weights["head.rgb.weight"].clone())
        self.rgb_bias = nn.Parameter(weights["head.rgb.bias"].clone())

    def forward(self, x: Tensor, w_plus: Tensor) -> Tensor:
        x = inverse_haar(x * self.up(w_plus[:, 1 + 3 * HEAD_BLOCK]))
        x = self.conv(x, w_plus[:, 2 + 3 * HEAD_BLOCK])
        return F.conv2d(x, self.rgb_weight, self.rgb_bias, padding=1)

    def tensors(self) -> dict[str, Tensor]:
        """Weights under the names that `engines.generator_onnx.synthesis_256` reads."""
        up, conv = self.up, self.conv
        found = {
            "head.up.mod_w": up.weight * 2,
            "head.up.mod_b": up.bias * 2,
            "head.conv.mod_w": conv.style.weight,
            "head.conv.mod_b": conv.style.bias,
            "head.conv.dw": conv.dw,
            "head.conv.pw": conv.pw,
            "head.conv.bias": conv.bias,
            "head.conv.noise": conv.noise,
            "head.rgb.weight": self.rgb_weight,
            "head.rgb.bias": self.rgb_bias,
        }
        return {k: v.detach().contiguous() for k, v in found.items()}


class Trunk(nn.Module):
    """Constant input to the features after `n_blocks` blocks; 5 blocks give (N, 256, 128, 128)."""

    def __init__(self, weights: Mapping[str, Tensor], n_blocks: int = HEAD_BLOCK) -> None:
        super().__init__()
        self.input = nn.Parameter(weights["input"].clone())
        self.style = Style(weights, "conv1")
        self.weight = nn.Parameter(weights["conv1.weight"].clone())
        self.bias = nn.Parameter(weights["conv1.bias"].clone())
        self.noise = nn.Parameter(weights["conv1.noise"].clone())
        self.blocks = nn.ModuleList(Block(weights, f"b{b}") for b in range(n_blocks))

    def forward(self, w_plus: Tensor) -> Tensor:
        x = self.input * self.style(w_plus[:, 0])
        x = F.leaky_relu(F.conv2d(x, self.weight, self.bias, padding=1) + self.noise, 0.2)
        for b, block in enumerate(self.blocks):
            x = block(x, w_plus[:, 1 + 3 * b : 4 + 3 * b])
        return x


class Generator256(nn.Module):
    """`w_plus` (N, 23, 512) -> image (N, 3, 256, 256), about [-1, 1]. Frozen unless told otherwise."""

    def __init__(self, trunk: Trunk, head: Head256) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    @classmethod
    def load(cls, synthesis_1024_onnx: Path, head_safetensors: Path) -> Generator256:
        head = {k: v.float() for k, v in load_file(str(head_safetensors)).items()}
        # the head's styles are stored as (C, 512), the ONNX initialisers as (512, C)
        head = {k: v.T.contiguous() if k.endswith("mod_w") else v for k, v in head.items()}
        model = cls(Trunk(onnx_initialisers(synthesis_1024_onnx)), Head256(head))
        model.requires_grad_(False)
        model.eval()
        return model

    def forward(self, w_plus: Tensor) -> Tensor:
        image = self.head(self.trunk(w_plus), w_plus)
        assert isinstance(image, Tensor)
        return image
