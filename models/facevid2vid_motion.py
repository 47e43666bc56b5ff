"""M of FaceVid2Vid: from a few moved keypoints to a flow of the whole volume, and what of it nothing shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.facevid2vid_blocks import Hourglass, folded, volume_grid
from keyface.models.facevid2vid_config import FaceVid2VidConfig
from keyface.models.facevid2vid_sampling import sample_volume, sizes

HEAT_VARIANCE = 0.01


class DenseMotion(nn.Module):
    """Features (N, 32, 16, 64, 64), source and driving keypoints (N, K, 3) -> flow (N, 16, 64, 64, 3) in [-1, 1],
    where in the source each cell comes from, and visibility (N, 1, 64, 64) in [0, 1].

    The flow is a mixture of K + 1 shifts, p -> p - x_d,k + x_s,k and none, with weights that the hourglass decides
    at every cell from the features shifted by each, and from the keypoints' heat before and after.
    """

    grid: Tensor

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__()
        c = config
        self.compress = nn.Conv3d(c.volume_channels, c.motion_channels, 1)
        self.norm = nn.BatchNorm3d(c.motion_channels)
        self.n_in = (c.n_keypoints + 1) * (c.motion_channels + 1)
        self.hourglass = Hourglass(self.n_in, c.motion_width, c.motion_n_blocks, c.motion_max_width)
        self.mask = nn.Conv3d(self.hourglass.n_out, c.n_keypoints + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.n_out * c.volume_depth, 1, 7, padding=3)
        self.register_buffer("grid", volume_grid(c.volume_dhw), persistent=False)

    def forward(self, features: Tensor, source: Tensor, driving: Tensor) -> tuple[Tensor, Tensor]:
        small = F.relu(self.norm(self.compress(features)))  # (N, 4, 16, 64, 64)
        shifts = (source - driving)[:, :, None, None, None]  # (N, K, 1, 1, 1, 3)
        moving = self.grid + shifts  # (N, K, 16, 64, 64, 3)
        still = self.grid + torch.zeros_like(shifts[:, :1])
        grids = torch.cat([still, moving], 1)  # (N, K + 1, 16, 64, 64, 3)
        k, depth, height, width, _ = sizes(grids)
        moved = sample_volume(small, grids.reshape(-1, k * depth, height, width, 3))
        moved = moved.reshape(-1, sizes(small)[0], k, depth, height, width).transpose(1, 2)
        heat = self._heat(driving) - self._heat(source)  # (N, K, 16, 64, 64)
        heat = torch.cat([torch.zeros_like(heat[:, :1]), heat], 1)[:, :, None]
        seen = torch.cat([heat, moved], 2).reshape(-1, self.n_in, depth, height, width)  # (N, 80, 16, 64, 64)
        found = self.hourglass(seen)  # (N, 112, 16, 64, 64)
        weights = self.mask(found).softmax(1)[..., None]  # (N, K + 1, 16, 64, 64, 1)
        visibility = self.occlusion(folded(found)).sigmoid()
        return (grids * weights).sum(1), visibility

    def _heat(self, points: Tensor) -> Tensor:
        """exp(-|p - x_k|^2 / (2 * 0.01)) at every cell p: (N, K, 16, 64, 64)."""
        squared = (self.grid - points[:, :, None, None, None]).square().sum(-1)
        return torch.exp(-0.5 / HEAT_VARIANCE * squared)
