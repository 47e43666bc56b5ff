"""The motion map: from wanted pose and expression to a displacement in the generator's W+ space.

    w_plus(c) = w + f(w, c) - f(w, c_0)

where c_0 are the controls measured on G(w) itself, so that wanting what is already there changes nothing, and
f(w, c) = B a(w, c): a linear term plus a small network give `N_BASIS` coefficients of learned W+ directions. It
starts from the minimum-norm linear directions and is then trained through the frozen generator and measuring
networks (`models.train_motion`). Controls c (54,): yaw / 30, pitch / 30 degrees, then the 52 blendshapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_CONTROLS = 54
N_BASIS = 96
N_LAYERS = 16  # W+ rows 0..15: up to the 128 px block
N_TRAITS = 32  # coordinates of w that the map may look at
HIDDEN = 256
POSE_SCALE_DEG = 30.0


class MotionMap(nn.Module):
    """f(w, c): (N, 512), (N, 54) -> (N, 16, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.w_mean = nn.Parameter(torch.zeros(512), requires_grad=False)
        self.traits = nn.Parameter(torch.zeros(N_TRAITS, 512), requires_grad=False)  # whitened principal axes
        self.centre = nn.Parameter(torch.zeros(N_CONTROLS), requires_grad=False)
        self.linear = nn.Linear(N_CONTROLS, N_BASIS, bias=False)
        self.fc1 = nn.Linear(N_CONTROLS + N_TRAITS, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, N_BASIS, bias=False)
        self.basis = nn.Parameter(torch.zeros(N_BASIS, N_LAYERS * 512))

    def initialise(
        self, w_mean: Tensor, traits: Tensor, centre: Tensor, directions: Tensor, layers: int = 10
    ) -> None:
        """Starts at the linear edit. directions (54, 512): change of w per unit of each control; they act on the
        first `layers` rows of W+."""
        with torch.no_grad():
            self.w_mean.copy_(w_mean)
            self.traits.copy_(traits)
            self.centre.copy_(centre)
            nn.init.normal_(self.basis, std=0.01)
            block = torch.zeros(N_CONTROLS, N_LAYERS, 512)
            block[:, :layers] = directions[:, None]
            self.basis[:N_CONTROLS] = block.reshape(N_CONTROLS, -1)
            self.linear.weight.zero_()
            self.linear.weight[:N_CONTROLS] = torch.eye(N_CONTROLS)
            self.out.weight.zero_()

    def coefficients(self, w: Tensor, c: Tensor) -> Tensor:
        """(N, 96)."""
        c = c - self.centre
        traits = F.linear(w - self.w_mean, self.traits)
        hidden = F.silu(self.fc2(F.silu(self.fc1(torch.cat([c, traits], 1)))))
        return self.linear(c) + self.out(hidden)

    def forward(self, w: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
        """Displacement (N, 16, 512) that takes G(w), measured to have the controls `own`, to `wanted`."""
        change = self.coefficients(w, wanted) - self.coefficients(w, own)
        return (change @ self.basis).reshape(-1, N_LAYERS, 512)


def displaced(w: Tensor, displacement: Tensor) -> Tensor:
    """w (N, 512) and (N, 16, 512) -> W+ (N, 23, 512)."""
    w_plus = w[:, None].expand(-1, 23, -1)
    return torch.cat([w_plus[:, :N_LAYERS] + displacement, w_plus[:, N_LAYERS:]], 1)
