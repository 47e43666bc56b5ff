"""Differentiable pose, blendshapes and identity of generated faces: the frozen judges M and R of training.

The mesh and blendshape networks are MediaPipe's, run by `models.tflite`; pose follows MediaPipe's face
geometry as `pipeline.faces.geometry` does; identity is SFace's and MobileFaceNet's cosine. Images are
(N, 3, 256, 256) in [-1, 1], FFHQ-aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.onnx_torch import OnnxModule
from keyface.models.tflite import TfliteModule

# Landmarks that MediaPipe's blendshape network reads (face_blendshapes_graph.cc, kLandmarksSubsetIdxs).
BLENDSHAPE_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78,
    80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152,
    153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246,
    249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312,
    314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381,
    382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
    473, 474, 475, 476, 477,
)  # fmt: skip
MEAN_ROI = (127.0, 151.0, 243.0)  # centre x, y and side of the mesh's square on an FFHQ-aligned 256 px image
ARCFACE_5 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
EYES = ((33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380))


@dataclass(frozen=True)
class Measured:
    """points (N, 478, 3) px of the 256 px image; blendshapes (N, 52); pose (N, 2) yaw, pitch, degrees;
    presence (N,) [0, 1]; embedding (N, 256), SFace and MobileFaceNet side by side, each of norm 1, or None."""

    points: Tensor
    blendshapes: Tensor
    pose: Tensor
    presence: Tensor
    embedding: Tensor | None


class FaceMeasure(nn.Module):
    """Frozen measuring networks; gradients flow to the image."""

    def __init__(
        self, mesh: Path, blendshapes: Path, recognisers: dict[str, Path], canonical: np.ndarray
    ) -> None:
        """canonical: (K, 5) landmark index, weight, x, y, z: `pipeline.faces.geometry`'s rigid core."""
        super().__init__()
        self.mesh, self.shapes = TfliteModule(mesh), TfliteModule(blendshapes)
        self.recognisers = nn.ModuleDict({k: OnnxModule(p) for k, p in recognisers.items()})
        weight = torch.from_numpy(canonical[:, 1] / canonical[:, 1].sum()).float()
        xyz = torch.from_numpy(canonical[:, 2:5]).float()
        self.register_buffer("rigid_index", torch.from_numpy(canonical[:, 0].astype(np.int64)))
        self.register_buffer("rigid_weight", weight)
        self.register_buffer("rigid_xyz", xyz - weight @ xyz)
        self.register_buffer("subset", torch.tensor(BLENDSHAPE_POINTS))
        self.register_buffer("arcface", torch.tensor(ARCFACE_5))
        self.requires_grad_(False).eval()

    def look(self, image: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 478, 3) px and presence (N,), from the square roi (N, 3): centre x, y, side px."""
        scale = roi[:, 2] / 256
        theta = torch.zeros(len(roi), 2, 3, dtype=image.dtype, device=image.device)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, 0, 2], theta[:, 1, 2] = roi[:, 0] / 128 - 1, roi[:, 1] / 128 - 1
        grid = F.affine_grid(theta, [len(roi), 3, 256, 256], align_corners=False)
        crop = F.grid_sample(image * 0.5 + 0.5, grid, padding_mode="border", align_corners=False)
        raw, presence, *_ = self.mesh(crop.permute(0, 2, 3, 1))
        local = raw.reshape(-1, 478, 3).float() / 256
        shift = torch.cat([roi[:, :2] - roi[:, 2:] / 2, roi.new_zeros(len(roi), 1)], 1)
        return local * roi[:, 2, None, None] + shift[:, None], torch.sigmoid(presence.reshape(-1).float())

    def forward(self, image: Tensor, *, with_identity: bool = True) -> Measured:
        image = image.clamp(-1, 1)
        with torch.no_grad():
            first, _ = self.look(image, image.new_tensor([MEAN_ROI]).expand(len(image), 3))
            low, high = first[..., :2].amin(1), first[..., :2].amax(1)
            roi = torch.cat([(low + high) / 2, ((high - low).amax(1) * 1.5)[:, None]], 1)
        points, presence = self.look(image, roi)
        shapes = self.shapes(points[:, self.subset, :2])[0].reshape(-1, 52)
        embedding = self.identity(image, points) if with_identity else None
        return Measured(points, shapes, self.pose(points), presence, embedding)

    def identity(self, image: Tensor, points: Tensor) -> Tensor:
        """(N, 256): ArcFace 112 px crops by a similarity fit of five mesh points (the fit takes no gradient)."""
        p = points.detach()
        five = torch.stack(
            [p[:, EYES[0], :2].mean(1), p[:, EYES[1], :2].mean(1), p[:, 4, :2], p[:, 61, :2], p[:, 291, :2]],
            1,
        )
        crop_from_112 = _similarity(self.arcface.expand(len(p), 5, 2), five)
        to_unit = p.new_tensor([[1 / 128, 0, -1.0], [0, 1 / 128, -1.0], [0, 0, 1]])
        from_unit = p.new_tensor([[56.0, 0, 56], [0, 56, 56], [0, 0, 1]])
        theta = (to_unit @ crop_from_112 @ from_unit)[:, :2]
        crop = F.grid_sample(
            image, F.affine_grid(theta, [len(p), 3, 112, 112], align_corners=False), align_corners=False
        )
        return self.embed(crop * 127.5 + 127.5)

    def embed(self, rgb: Tensor) -> Tensor:
        """(N, 256) of ArcFace crops (N, 3, 112, 112), RGB levels."""
        found = []
        if "sface" in self.recognisers:
            found.append(F.normalize(self.recognisers["sface"](rgb), dim=1))
        if "mobilefacenet" in self.recognisers:
            mean, std = rgb.new_tensor([0.485, 0.456, 0.406]), rgb.new_tensor([0.229, 0.224, 0.225])
            norm = (rgb / 255 - mean[:, None, None]) / std[:, None, None]
            found.append(F.normalize(self.recognisers["mobilefacenet"](norm), dim=1))
        return torch.cat(found, 1)

    def pose(self, points: Tensor) -> Tensor:
        """(N, 2) yaw, pitch in degrees, as `pipeline.faces.geometry.pose_from_mesh`."""
        with torch.no_grad():
            low, high = points[:, :468, :2].amin(1), points[:, :468, :2].amax(1)
            extent = (high - low).amax(1)
            side = extent * 1.15 * 1.8
            centre = (low + high) / 2 - torch.stack([torch.zeros_like(extent), 0.07 * extent], 1)
        per_px = (2 * np.tan(np.radians(31.5)) / side)[:, None]
        p = points[:, self.rigid_index]
        x, y, z = (
            (p[..., 0] - centre[:, :1]) * per_px,
            (centre[:, 1:] - p[..., 1]) * per_px,
            p[..., 2] * per_px,
        )
        offset = points[:, :468, 2].mean(1, keepdim=True) * per_px
        _, scale = self._procrustes(torch.stack([x, y, -z], 2))
        rotation = torch.eye(3, device=p.device).expand(len(p), 3, 3)
        for _ in range(2):
            depth = (z - offset + 1) / scale.detach()[:, None]
            rotation, again = self._procrustes(torch.stack([x * depth, y * depth, -depth], 2))
            scale = scale.detach() * again.detach()
        cos_yaw = torch.hypot(rotation[:, 0, 0], rotation[:, 1, 0])
        yaw = torch.atan2(-rotation[:, 2, 0], cos_yaw)
        return torch.rad2deg(torch.stack([yaw, torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2])], 1))

    def _procrustes(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.rigid_weight[None, :, None]
        centred = targets - (weight * targets).sum(1, keepdim=True)
        u, _, vt = torch.linalg.svd((centred * weight).transpose(1, 2) @ self.rigid_xyz)
        sign = u.new_ones(len(u), 3)
        sign[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
        rotation = (u * sign[:, None]) @ vt
        fitted = self.rigid_xyz @ rotation.transpose(1, 2)
        spread = (weight[0] * self.rigid_xyz**2).sum()
        return rotation, (weight * fitted * centred).sum((1, 2)) / spread


def _similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity (N, 3, 3) from (N, K, 2) to (N, K, 2) points."""
    ms, mt = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    s, t = source - ms, target - mt
    norm = (s**2).sum((1, 2))
    a = (s * t).sum((1, 2)) / norm
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / norm
    out = s.new_zeros(len(s), 3, 3)
    out[:, 0, 0], out[:, 0, 1], out[:, 1, 0], out[:, 1, 1], out[:, 2, 2] = a, -b, b, a, 1
    out[:, :2, 2] = mt[:, 0] - (out[:, :2, :2] @ ms.transpose(1, 2))[..., 0]
    return out
