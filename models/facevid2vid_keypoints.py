"""L of FaceVid2Vid: canonical 3-D keypoints of a person, free of pose and expression; run once for each source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.facevid2vid_blocks import DownBlock, VolumeUpBlock, unfolded, volume_grid, widths
from keyface.models.facevid2vid_config import FaceVid2VidConfig


class CanonicalKeypoints(nn.Module):
    """RGB (N, 3, 256, 256) in [0, 1] -> (N, K, 3) x, y, z in [-1, 1]: the mean place of each keypoint's heat."""

    grid: Tensor

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__()
        c = config
        w = widths(c.detector_width, c.detector_n_blocks, c.detector_max_width)
        self.predictor = _Predictor(w, c.volume_depth)
        self.kp = nn.Conv3d(w[0], c.n_keypoints, 3, padding=1)
        side = c.side_px // c.detector_shrink
        self.register_buffer(
            "grid", volume_grid((c.volume_depth, side, side)).reshape(-1, 3), persistent=False
        )
        self.down = _Shrink(c.detector_shrink) if c.detector_shrink > 1 else None
        self.temperature, self.n_keypoints = c.temperature, c.n_keypoints

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.down is None else self.down(image)  # (N, 3, 64, 64)
        logits = self.kp(self.predictor(x)).reshape(
            -1, self.n_keypoints, len(self.grid)
        )  # (N, K, 16 * 64 * 64)
        return (logits / self.temperature).softmax(2) @ self.grid


class _Predictor(nn.Module):
    """(N, 3, H, W) -> (N, width, D, H, W): down as a picture, up as a volume."""

    def __init__(self, w: list[int], depth: int) -> None:
        super().__init__()
        n = len(w) - 1
        self.down_blocks, self.up_blocks = nn.Sequential(), nn.Sequential()
        for i in range(n):
            self.down_blocks.add_module(f"down{i}", DownBlock(3 if i == 0 else w[i], w[i + 1]))
        self.conv = nn.Conv2d(w[n], w[n] * depth, 1)
        for i in range(n):
            self.up_blocks.add_module(f"up{i}", VolumeUpBlock(w[n - i], w[n - i - 1]))
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.down_blocks(x))  # (N, 1024 * 16, 2, 2)
        volume: Tensor = self.up_blocks(unfolded(x, self.depth))  # (N, 32, 16, 64, 64)
        return volume


class _Shrink(nn.Module):
    """Blurs with a Gaussian of (factor - 1) / 2 pixels, then takes every factor-th pixel."""

    weight: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        deviation = (factor - 1) / 2
        reach = round(4 * deviation)
        line = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
        kernel = line[:, None] * line
        self.register_buffer("weight", (kernel / kernel.sum()).repeat(3, 1, 1, 1))  # (3, 1, 13, 13) for 4
        self.factor, self.reach = factor, reach

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(image, self.weight, stride=self.factor, padding=self.reach, groups=3)
