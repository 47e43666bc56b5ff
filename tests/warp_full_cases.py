"""What tests of the full reenactor's training share: drawn faces that turn, a tiny network, and a cheap judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facevid2vid_cases import SMALL
from paper_face import a_picture
from test_train_warp import mesh

from keyface.models.train_warp_full import FullTraining, FullWarpConfig
from keyface.models.warp_batches import unit
from keyface.models.warp_pairs import Pairs, View
from keyface.pipeline.faces.geometry import pose_from_mesh

TINY = replace(
    SMALL, side_px=64, is_spectral=True, width=4, spade_hidden=4, motion_channels=1, motion_max_width=8,
    detector_max_width=8, pose_stem=4, pose_width=8, n_resblocks=1,
)  # fmt: skip
CONFIG = FullWarpConfig(
    people=2, views=2, lr=4e-3, steps=40, decay=0.9, largest_gradient=10.0, n_scales=1, critic_scales=1,
    critic_channels=4, reading_weight=0.0, identity_weight=0.0, adversarial_from=0.5, predicted=0.5, network=TINY,
)  # fmt: skip
MESH = replace(CONFIG, network=replace(TINY, learns_keypoints=False, n_keypoints=9))
SKINS = ((230, 180, 150), (120, 80, 60), (180, 200, 120), (200, 120, 180))


def performed(number: int, views: int = 4, side_px: int = 256) -> list[View | None]:
    """Somebody drawn, who turns; the first view looks ahead."""
    rng = np.random.default_rng(number)
    found: list[View | None] = []
    width_rng_seed = int(rng.integers(1000))
    for view in range(views):
        points = mesh(np.random.default_rng(width_rng_seed), 0.0 if view == 0 else rng.uniform(-25, 25))
        scale = side_px / 256
        drawn = a_picture((side_px, side_px), points[:, :2] * scale, SKINS[number % len(SKINS)], view)
        pose = pose_from_mesh(points)
        controls = np.concatenate([pose[:2] / 30, rng.uniform(0, 0.4, 52)]).astype(np.float32)
        found.append(View(drawn, points, controls, pose))
    return found


def drawn_pairs(people: int = 4, views: int = 4, side_px: int = 256) -> Pairs:
    """As `load_pairs` gives them."""
    rows = [[view for view in performed(n, views, side_px) if view is not None] for n in range(people)]
    names = ("image_rgb", "points", "controls", "pose_ypr_deg")
    return Pairs(*(np.array([[getattr(v, name) for v in row] for row in rows]) for name in names))


class PlainJudges(torch.nn.Module):
    """Pixels in place of LPIPS, and nothing that reads a face."""

    measure: Any = None

    def lpips(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def own_points(pairs: Pairs) -> Any:
    return lambda person, source, driving: unit(pairs.points[person, driving])


def training(out: Path, config: FullWarpConfig) -> FullTraining:
    return FullTraining(PlainJudges(), out, config)  # type: ignore[arg-type]
