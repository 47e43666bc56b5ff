"""H and Delta of FaceVid2Vid: rotation, shift and expression of a head, from one picture."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.facevid2vid_config import FaceVid2VidConfig
from keyface.models.facevid2vid_geometry import N_BINS, HeadMotion, degrees_of_bins

# Residual blocks after each widening: names and number, as in the layout.
_STAGES = (("block1", "b1_", 3), ("block3", "b3_", 3), ("block5", "b5_", 5), ("block7", "b7_", 2))


class PoseExpression(nn.Module):
    """RGB (N, 3, 256, 256) in [0, 1] -> HeadMotion: yaw, pitch, roll from 66 bins each, shift, K deltas."""

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__()
        wide = [config.pose_width * 2**i for i in range(4)]  # 256, 512, 1024, 2048
        self.conv1, self.norm1 = (
            nn.Conv2d(3, config.pose_stem, 7, stride=2, padding=3),
            nn.BatchNorm2d(config.pose_stem),
        )
        for i, (n_in, n_out) in enumerate(pairwise([config.pose_stem, *wide])):
            self.add_module(f"conv{i + 2}", nn.Conv2d(n_in, n_out, 1))
            self.add_module(f"norm{i + 2}", nn.BatchNorm2d(n_out))
            if i:
                self.add_module(f"block{2 * i}", Bottleneck(n_out, stride=2))
            name, stem, n_blocks = _STAGES[i]
            stage = nn.Sequential()
            for j in range(n_blocks):
                stage.add_module(f"{stem}{j}", Bottleneck(n_out))
            self.add_module(name, stage)
        self.fc_roll, self.fc_pitch, self.fc_yaw = (nn.Linear(wide[-1], N_BINS) for _ in range(3))
        self.fc_t, self.fc_exp = nn.Linear(wide[-1], 3), nn.Linear(wide[-1], 3 * config.n_keypoints)
        self.n_keypoints = config.n_keypoints

    def features(self, image: Tensor) -> Tensor:
        """(N, 2048)."""
        x = F.relu(self.norm1(self.conv1(image)))  # (N, 64, 128, 128)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (N, 64, 64, 64)
        for i, (name, _, _) in enumerate(_STAGES):
            x = F.relu(self.get_submodule(f"norm{i + 2}")(self.get_submodule(f"conv{i + 2}")(x)))
            if i:
                x = self.get_submodule(f"block{2 * i}")(x)  # (N, 512, 32, 32), ... (N, 2048, 8, 8)
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))

    def forward(self, image: Tensor) -> HeadMotion:
        x = self.features(image)
        # In the layout the names of yaw and roll are swapped, and its weights were trained so.
        logits = torch.stack([self.fc_roll(x), self.fc_pitch(x), self.fc_yaw(x)], 1)  # (N, 3, 66)
        deltas = self.fc_exp(x).reshape(-1, self.n_keypoints, 3)
        return HeadMotion(degrees_of_bins(logits), self.fc_t(x), deltas)


class Bottleneck(nn.Module):
    """(N, C, H, W) -> (N, C, H / stride, W / stride), residual, a quarter of the channels inside."""

    def __init__(self, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, stride=stride), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels)
        self.skip = nn.Conv2d(channels, channels, 1, stride=stride) if stride > 1 else None
        self.norm4 = nn.BatchNorm2d(channels) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv3(F.relu(self.norm2(self.conv2(y)))))
        if self.skip is not None and self.norm4 is not None:
            x = self.norm4(self.skip(x))
        return F.relu(x + y)
