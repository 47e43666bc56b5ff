"""R(T(x, k)) itself, differentiable: a person of W+ with the photo's motion, rendered, pasted over it and recognised.

Forward, a pasted face is what the product's own paster makes of the rendering, to the pixel. Backward, the
gradient is that of `SoftPaste` at the same place (a straight-through estimate), since masks, hair and 8-bit pictures
have none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keyface.models.motion import MotionMap
from keyface.models.paste import PhotoCrops, SoftPaste
from keyface.models.projector import Latents, w_plus_of

# Number of a photo and a rendering, uint8 (256, 256, 3) -> where it goes (112, 112, 2), see `SoftPaste`, and the
# finished crop, uint8 (112, 112, 3); None where the face cannot be pasted.
Place = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray] | None]
Embed = Callable[[Tensor], Tensor]  # RGB levels (N, 3, 112, 112) -> (N, R * 128), each 128 of norm 1


def load_motion_map(path: str) -> MotionMap:
    """The trained motion map, frozen, in float32."""
    model = MotionMap()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    model.requires_grad_(False)
    model.eval()
    return model


class PastedLoop(nn.Module):
    """Styles (N, 3, 512) and numbers of photos (N,) -> unit embeddings (N, R, 128) of the pasted faces.

    Args:
        generator: W+ (N, 23, 512) -> (N, 3, 256, 256), about [-1, 1].
        guess: (A + 1, 54), see `models.rendered_people.Guess`: what G(w) shows by itself.
        photos: of M photos; controls: (M, 54) that people take on over each.
    """

    slope: Tensor
    controls: Tensor

    def __init__(
        self,
        generator: Callable[[Tensor], Tensor],
        embed: Embed,
        motion: MotionMap,
        latents: Latents,
        *,
        guess: np.ndarray,
        photos: PhotoCrops,
        controls: np.ndarray,
        place: Place,
        is_bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.motion, self.latents, self.paste = motion, latents, SoftPaste()
        self._generator, self._embed, self._place, self._photos = generator, embed, place, photos
        self.register_buffer("slope", torch.from_numpy(np.array(guess, np.float32)))
        self.register_buffer("controls", torch.from_numpy(np.array(controls, np.float32)))
        self.is_bfloat16 = is_bfloat16

    def forward(self, styles: Tensor, photo: Tensor) -> Tensor:
        """A face that cannot be pasted stays the photo's, without a gradient: as unlike the wanted as can be."""
        pasted = self._pasted(self._rendered(styles, photo), photo)
        return torch.as_tensor(self._embed(pasted)).reshape(len(styles), -1, 128)

    def _rendered(self, styles: Tensor, photo: Tensor) -> Tensor:
        w = styles[:, 0]
        x = (w - self.latents.w_mean) @ self.latents.axes.T / self.latents.deviations
        own = torch.cat([x, torch.ones(len(x), 1)], 1) @ self.slope
        change = self.motion(w, self.controls[photo], own)
        w_plus = w_plus_of(styles)
        w_plus = torch.cat([w_plus[:, : change.shape[1]] + change, w_plus[:, change.shape[1] :]], 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bfloat16):
            return self._generator(w_plus).float()

    def _pasted(self, image: Tensor, photo: Tensor) -> Tensor:
        with torch.no_grad():
            levels = (image.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        placed = [
            self._place(int(number), np.ascontiguousarray(crop))
            for number, crop in zip(photo, levels.numpy(), strict=True)
        ]
        at = np.stack([np.zeros((112, 112, 2), np.float32) if p is None else p[0] for p in placed])
        photos = self._photos[photo]
        soft = self.paste(image, torch.from_numpy(at), photos)
        exact = photos.base.clone()
        for row, p in zip(exact, placed, strict=True):
            if p is not None:
                row.copy_(torch.from_numpy(p[1].astype(np.float32)).permute(2, 0, 1))
        is_pasted = torch.tensor([p is not None for p in placed])[:, None, None, None]
        return torch.where(is_pasted, soft + (exact - soft).detach(), exact)
