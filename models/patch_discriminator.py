"""The judge of adversarial training: says for every patch of a picture, at several sizes, how real it looks."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MIN_SIDE_PX = 64


class PatchDiscriminator(nn.Module):
    """(N, 3, H, W) in [-1, 1], H and W at least 64 -> (logits per scale, features of all scales).

    Scale s sees the picture at H / 2^s, and has its own weights. Logits are (N, 1, about H / 2^(s + 3), ...), above 0
    for real; features come layer by layer, scale by scale. All weights are spectrally normalised, so that the hinge
    loss needs no other bound.

    Raises:
        ValueError: a picture smaller than 64 px, or not of three channels.
    """

    def __init__(self, *, n_scales: int = 2, n_channels: int = 32) -> None:
        """n_scales: 1 to 3; n_channels: of the first layer, each of the next two has twice as many."""
        super().__init__()
        if not 1 <= n_scales <= 3:
            raise ValueError(f"n_scales {n_scales}, want 1 to 3")
        self.scales = nn.ModuleList(_OneScale(n_channels) for _ in range(n_scales))

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if image.shape[1] != 3 or min(image.shape[2:]) < MIN_SIDE_PX:
            raise ValueError(
                f"picture {tuple(image.shape)}, want (N, 3, H, W) of at least {MIN_SIDE_PX} px a side"
            )
        logits, features = [], []
        for index, scale in enumerate(self.scales):
            if index:
                image = F.avg_pool2d(image, 2)
            found = scale(image)
            features += found[:-1]
            logits.append(found[-1])
        return logits, features


class _OneScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths)
        )
        self.judge = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of each layer, then the logits."""
        found = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            found.append(x)
        return [*found, self.judge(x)]
