"""G of FaceVid2Vid: the warped volume becomes a picture, by SPADE blocks or by plain residual ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from keyface.models.facevid2vid_blocks import ResBlock, SameBlock, UpBlock, folded
from keyface.models.facevid2vid_config import FaceVid2VidConfig

N_MIDDLE = 6


class _Decoder(nn.Module):
    """What both share: the volume's depth is folded into channels, and what nothing shows is blanked."""

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__()
        self.third = SameBlock(config.flat_channels, config.deep_width, slope=0.01)
        self.fourth = nn.Conv2d(config.deep_width, config.deep_width, 1)

    def seen(self, warped: Tensor, visibility: Tensor) -> Tensor:
        """(N, 32, 16, 64, 64), (N, 1, 64, 64) -> (N, 256, 64, 64)."""
        flat: Tensor = self.fourth(self.third(folded(warped)))
        return flat * visibility


class PlainDecoder(_Decoder):
    """Warped features (N, 32, 16, 64, 64), visibility (N, 1, 64, 64) -> RGB (N, 3, 256, 256) in [0, 1]; 512 px if
    `upscale` is 2."""

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__(config)
        c = config
        self.resblocks_2d = nn.Sequential()
        for i in range(c.n_resblocks):
            self.resblocks_2d.add_module(f"2dr{i}", ResBlock(c.deep_width))
        w = [c.width * 2**i for i in reversed(range(c.n_down + 1))] + [c.width] * (c.upscale - 1)
        self.up_blocks = nn.ModuleList(UpBlock(w[i], w[i + 1]) for i in range(len(w) - 1))
        self.final = nn.Conv2d(c.width, 3, 7, padding=3)
        if c.upscale == 2:
            # Enlarges and changes nothing else, until it is trained.
            nn.init.dirac_(self.up_blocks[-1].conv.weight)
            nn.init.zeros_(self.up_blocks[-1].conv.bias)

    def forward(self, warped: Tensor, visibility: Tensor) -> Tensor:
        x = self.resblocks_2d(self.seen(warped, visibility))
        for block in self.up_blocks:
            x = block(x)  # (N, 128, 128, 128), (N, 64, 256, 256)
        return torch.sigmoid(self.final(x))


class SpadeDecoder(_Decoder):
    """As PlainDecoder; every block is modulated by the warped features, which keeps their places sharp."""

    def __init__(self, config: FaceVid2VidConfig) -> None:
        super().__init__(config)
        c, deep = config, config.deep_width
        self.fc = nn.Conv2d(deep, 2 * deep, 3, padding=1)
        for i in range(N_MIDDLE):
            self.add_module(f"G_middle_{i}", SpadeBlock(2 * deep, 2 * deep, c))
        w = [2 * deep] + [c.width * 2**i for i in reversed(range(1, c.n_down + 1))]
        w = [*w[: c.n_down], c.width]
        self.n_up = c.n_down + c.upscale - 1
        for i in range(c.n_down):
            self.add_module(f"up_{i}", SpadeBlock(w[i], w[i + 1], c))
        if c.upscale == 2:
            self.add_module(f"up_{c.n_down}", SpadeBlock(c.width, c.width, c, is_new=True))
        self.conv_img = nn.Conv2d(c.width, 3, 3, padding=1)

    def forward(self, warped: Tensor, visibility: Tensor) -> Tensor:
        guide = self.seen(warped, visibility)  # (N, 256, 64, 64)
        x = self.fc(guide)  # (N, 512, 64, 64)
        for i in range(N_MIDDLE):
            x = self.get_submodule(f"G_middle_{i}")(x, guide)
        for i in range(self.n_up):
            x, guide = F.interpolate(x, scale_factor=2.0), F.interpolate(guide, scale_factor=2.0)
            x = self.get_submodule(f"up_{i}")(x, guide)  # (N, 256, 128, 128), (N, 64, 256, 256)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))


class SpadeBlock(nn.Module):
    """Features (N, A, H, W) and a guide (N, 256, H, W) -> (N, B, H, W), residual.

    `is_new`: A is B, and the block changes nothing until it is trained. Its last convolution is then all zeros, which
    has no spectral norm, so that it is left without one.
    """

    def __init__(self, n_in: int, n_out: int, config: FaceVid2VidConfig, *, is_new: bool = False) -> None:
        super().__init__()
        middle, guide, hidden = min(n_in, n_out), config.deep_width, config.spade_hidden
        self.conv_0 = nn.Conv2d(n_in, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, n_out, 3, padding=1)
        self.norm_0, self.norm_1 = Spade(n_in, guide, hidden), Spade(middle, guide, hidden)
        self.conv_s = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else None
        self.norm_s = Spade(n_in, guide, hidden) if n_in != n_out else None
        if is_new:
            nn.init.zeros_(self.conv_1.weight)
            nn.init.zeros_(self.conv_1.bias)
        elif config.is_spectral:
            for convolution in (self.conv_0, self.conv_1, self.conv_s):
                if convolution is not None:
                    spectral_norm(convolution)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        y = self.conv_0(F.leaky_relu(self.norm_0(x, guide), 0.2))
        y = self.conv_1(F.leaky_relu(self.norm_1(y, guide), 0.2))
        if self.conv_s is not None and self.norm_s is not None:
            x = self.conv_s(self.norm_s(x, guide))
        return x + y


class Spade(nn.Module):
    """Features (N, C, H, W) without their mean and deviation, then scaled and shifted as the guide (N, 256, H, W)
    says at every pixel."""

    def __init__(self, channels: int, guide: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(guide, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        told = self.mlp_shared(guide)
        # F.instance_norm looks at sizes in a way that cannot be traced.
        even = torch.instance_norm(x, None, None, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled)
        return even * (1 + self.mlp_gamma(told)) + self.mlp_beta(told)
