"""R(G(w)) itself, differentiable: the person of W+ at rest, rendered and recognised. For the last steps of P."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keyface.models.face_measure import FaceMeasure
from keyface.models.generator import Generator256
from keyface.models.motion import MotionMap
from keyface.models.projector import Latents, w_plus_of


def load_motion_map(path: str) -> MotionMap:
    """The trained motion map, frozen, in float32."""
    model = MotionMap()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    model.requires_grad_(False)
    model.eval()
    return model


class GeneratorLoop(nn.Module):
    """Styles (N, 3, 512) -> unit embeddings (N, 2, 128) of the people at rest, looking ahead.

    Args:
        guess: (A + 1, 54), see `models.rendered_people.Guess`.
        at_rest: (54,) controls of a calm face from the front.
    """

    slope: Tensor
    at_rest: Tensor

    def __init__(
        self,
        generator: Generator256,
        measure: FaceMeasure,
        motion: MotionMap,
        latents: Latents,
        *,
        guess: np.ndarray,
        at_rest: np.ndarray,
        is_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.generator, self.measure, self.motion, self.latents = generator, measure, motion, latents
        self.register_buffer("slope", torch.from_numpy(np.array(guess, np.float32)))
        self.register_buffer("at_rest", torch.from_numpy(np.array(at_rest, np.float32)))
        self.is_bfloat16 = is_bfloat16

    def forward(self, styles: Tensor, photo: Tensor) -> Tensor:
        """`photo` is not looked at: nobody is pasted."""
        w = styles[:, 0]
        x = (w - self.latents.w_mean) @ self.latents.axes.T / self.latents.deviations
        own = torch.cat([x, torch.ones(len(x), 1)], 1) @ self.slope
        change = self.motion(w, self.at_rest.expand(len(w), -1), own)
        w_plus = w_plus_of(styles)
        w_plus = torch.cat([w_plus[:, : change.shape[1]] + change, w_plus[:, change.shape[1] :]], 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bfloat16):
            image = self.generator(w_plus)
        found = self.measure(image.float()).embedding
        return torch.as_tensor(found).reshape(len(w), -1, 128)
