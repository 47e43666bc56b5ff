"""Building blocks that the full reenactor's networks share; attribute names are those of the public layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.facevid2vid_sampling import sizes


def folded(volume: Tensor) -> Tensor:
    """(N, C, D, H, W) -> (N, C D, H, W)."""
    channels, depth, height, width = sizes(volume)
    return volume.reshape(-1, channels * depth, height, width)


def unfolded(x: Tensor, depth: int) -> Tensor:
    """(N, C D, H, W) -> (N, C, D, H, W)."""
    channels, height, width = sizes(x)
    return x.reshape(-1, channels // depth, depth, height, width)


class SameBlock(nn.Module):
    """(N, A, H, W) -> (N, B, H, W): convolution, norm, ReLU; `slope` above 0 makes it leaky."""

    def __init__(self, n_in: int, n_out: int, *, kernel: int = 3, slope: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(n_out)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)


class DownBlock(SameBlock):
    """(N, A, H, W) -> (N, B, H/2, W/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock(SameBlock):
    """(N, A, H, W) -> (N, B, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0))


class ResBlock(nn.Module):
    """Residual block with norms first; of pictures, or of volumes with `is_3d`. Shapes stay."""

    def __init__(self, channels: int, *, is_3d: bool = False) -> None:
        super().__init__()
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if is_3d else (nn.Conv2d, nn.BatchNorm2d)
        self.conv1, self.conv2 = (
            conv(channels, channels, 3, padding=1),
            conv(channels, channels, 3, padding=1),
        )
        self.norm1, self.norm2 = norm(channels), norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class VolumeBlock(nn.Module):
    """(N, A, D, H, W) -> (N, B, D, H, W): convolution, norm, ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(n_in, n_out, 3, padding=1)
        self.norm = nn.BatchNorm3d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class VolumeDownBlock(VolumeBlock):
    """(N, A, D, H, W) -> (N, B, D, H/2, W/2); depth stays."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return unfolded(F.avg_pool2d(folded(x), 2), sizes(x)[1])


class VolumeUpBlock(VolumeBlock):
    """(N, A, D, H, W) -> (N, B, D, 2H, 2W); depth stays."""

    def forward(self, x: Tensor) -> Tensor:
        larger = F.interpolate(folded(x), scale_factor=2.0)  # 4-D, which every engine has
        return super().forward(unfolded(larger, sizes(x)[1]))


def widths(first: int, n: int, largest: int) -> list[int]:
    """Channels after 0, 1, ... n steps that each double them, up to `largest`."""
    return [min(largest, first * 2**i) for i in range(n + 1)]


class Hourglass(nn.Module):
    """(N, A, D, H, W) -> (N, width + A, D, H, W) with skips at every size."""

    def __init__(self, n_in: int, width: int, n_blocks: int, max_width: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        w = widths(width, n_blocks, max_width)
        self.encoder.down_blocks = nn.ModuleList(
            VolumeDownBlock(n_in if i == 0 else w[i], w[i + 1]) for i in range(n_blocks)
        )
        self.decoder.up_blocks = nn.ModuleList(
            VolumeUpBlock(w[i + 1] * (1 if i == n_blocks - 1 else 2), w[i]) for i in reversed(range(n_blocks))
        )
        self.n_out = width + n_in
        self.decoder.conv = nn.Conv3d(self.n_out, self.n_out, 3, padding=1)
        self.decoder.norm = nn.BatchNorm3d(self.n_out)

    def forward(self, x: Tensor) -> Tensor:
        skips = [x]
        for block in self.encoder.down_blocks:
            skips.append(block(skips[-1]))
        y = skips.pop()
        for block in self.decoder.up_blocks:
            y = torch.cat([block(y), skips.pop()], 1)
        return F.relu(self.decoder.norm(self.decoder.conv(y)))


def volume_grid(dhw: tuple[int, int, int]) -> Tensor:
    """(D, H, W, 3): x, y, z of every cell, -1 and 1 at the centres of the border cells, as the layout was trained."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in dhw), indexing="ij")
    return torch.stack([x, y, z], -1)
