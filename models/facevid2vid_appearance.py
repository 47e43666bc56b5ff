"""F of FaceVid2Vid: what the source looks like, as a volume of features; run once for each virtual face."""

from __future__ import annotations

from torch import Tensor, nn

from keyface.models.facevid2vid_blocks import DownBlock, ResBlock, SameBlock, unfolded, widths
from keyface.models.facevid2vid_config import FaceVid2VidConfig


class AppearanceExtractor(nn.Module):
    """RGB (N, 3, 256, 256) in [0, 1] -> features (N, 32, 16, 64, 64)."""

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__()
        c = config
        w = widths(c.width, c.n_down, c.flat_channels)
        self.first = SameBlock(3, c.width, kernel=3 if c.decoder == "spade" else 7)
        self.down_blocks = nn.ModuleList(DownBlock(w[i], w[i + 1]) for i in range(c.n_down))
        self.second = nn.Conv2d(w[-1], c.flat_channels, 1)
        self.resblocks_3d = nn.Sequential()
        for i in range(c.n_resblocks):
            self.resblocks_3d.add_module(f"3dr{i}", ResBlock(c.volume_channels, is_3d=True))
        self.depth = c.volume_depth

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)  # (N, 64, 256, 256)
        for block in self.down_blocks:
            x = block(x)  # (N, 128, 128, 128), (N, 256, 64, 64)
        x = self.second(x)  # (N, 512, 64, 64)
        features: Tensor = self.resblocks_3d(unfolded(x, self.depth))  # (N, 32, 16, 64, 64)
        return features
