"""Draws the batches that warping reenactors are trained on: sources, and the frames that drive them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from keyface.models.warp_pairs import SIDE_PX, Pairs
from keyface.models.warp_schedule import WarpSchedule

Drive = Callable[
    [int, int, int], np.ndarray
]  # person, source view, driving view -> predicted points (478, 3), unit


@dataclass(frozen=True, slots=True)
class Batch:
    """S sources and V driving frames of each; points in [-1, 1], pictures too.

    Attributes:
        image, source: (S, 3, H, W) of the sources, and their points (S, 478, 3).
        second, second_points: the sources' second pictures and their points, of the same shapes.
        has_second: (S,) 1, or 0 where a source is its own second picture.
        target, target_points: (S * V, 3, H', W') of the driving frames, and their points.
        driving: (S * V, 478, 3) the points that drive, true or predicted.
        controls: (S * V, 108) of the driving frame and of its source.
        image_poses, target_poses: (S, 3), (S * V, 3) yaw, pitch, roll as measured, degrees.
        is_predicted: (S * V,) bool, where `driving` is told from controls alone.
    """

    image: Tensor
    source: Tensor
    second: Tensor
    second_points: Tensor
    has_second: Tensor
    target: Tensor
    target_points: Tensor
    driving: Tensor
    controls: Tensor
    image_poses: Tensor
    target_poses: Tensor
    is_predicted: Tensor

    @property
    def n_each(self) -> int:
        """V: driving frames of each source."""
        return len(self.target) // len(self.image)


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes batches of the pictures that are asked for.

    Attributes:
        pairs: whose pictures; larger ones are averaged down by areas.
        drive: the keypoint model's prediction on them.
        source_px, target_px: sides of the pictures.
        device: as PyTorch calls it.
    """

    pairs: Pairs
    drive: Drive
    source_px: int = SIDE_PX
    target_px: int = SIDE_PX
    device: str = "cpu"

    def batch(
        self,
        sources: Sequence[tuple[int, int]],
        targets: Sequence[tuple[int, int, bool]],
        seconds: Sequence[tuple[int, int]] | None = None,
    ) -> Batch:
        """Sources (person, view); targets (person, view, whether points are predicted), V for each source in turn;
        the sources' second pictures (person, view), None: each person's last view."""
        p, each = self.pairs, len(targets) // len(sources)
        seconds = seconds or [(person, p.images.shape[1] - 1) for person, _ in sources]
        source_of = [sources[i // each] for i in range(len(targets))]
        true = np.stack([unit(p.points[person, view]) for person, view, _ in targets])
        driving = true.copy()
        for i, (person, view, is_predicted) in enumerate(targets):
            if is_predicted:
                driving[i] = self.drive(person, source_of[i][1], view)
        controls = np.stack(
            [
                np.concatenate([p.controls[person, view], p.controls[source_of[i]]])
                for i, (person, view, _) in enumerate(targets)
            ]
        )

        def on_device(values: Tensor | np.ndarray) -> Tensor:
            tensor = values if isinstance(values, Tensor) else torch.from_numpy(values).float()
            return tensor.to(self.device)

        return Batch(
            image=on_device(pictures(np.stack([p.images[s] for s in sources]), self.source_px)),
            source=on_device(np.stack([unit(p.points[s]) for s in sources])),
            second=on_device(pictures(np.stack([p.images[s] for s in seconds]), self.source_px)),
            second_points=on_device(np.stack([unit(p.points[s]) for s in seconds])),
            has_second=on_device(
                np.array([tuple(a) != tuple(b) for a, b in zip(sources, seconds, strict=True)])
            ),
            target=on_device(pictures(np.stack([p.images[t[:2]] for t in targets]), self.target_px)),
            target_points=on_device(true),
            driving=on_device(driving),
            controls=on_device(controls),
            image_poses=on_device(np.stack([p.poses[s] for s in sources])),
            target_poses=on_device(np.stack([p.poses[t[:2]] for t in targets])),
            is_predicted=on_device(torch.tensor([is_predicted for _, _, is_predicted in targets])),
        )


class Drawer:
    """Draws batches at random from a batcher's pairs."""

    def __init__(self, batcher: Batcher, schedule: WarpSchedule) -> None:
        self._batcher, self._c = batcher, schedule

    def draw(self, rng: np.random.Generator) -> Batch:
        """A batch, on the batcher's device."""
        c, (n_people, n_views) = self._c, self._batcher.pairs.images.shape[:2]
        people = rng.integers(n_people, size=c.people)
        # the last view is the second source: to show it would be to copy it
        n_shown = n_views - 1
        others = rng.random(c.people) < c.other_source
        views = np.where(others, rng.integers(n_shown, size=c.people), 0)
        rows = [self._row(int(p), int(s), n_shown, rng) for p, s in zip(people, views, strict=True)]
        sources = [(int(p), int(s)) for p, s in zip(people, views, strict=True)]
        is_alone = rng.random(c.people) < c.without_second
        seconds = [s if alone else (s[0], n_shown) for s, alone in zip(sources, is_alone, strict=True)]
        return self._batcher.batch(sources, [entry for row in rows for entry in row], seconds)

    def _row(
        self, person: int, source: int, n_shown: int, rng: np.random.Generator
    ) -> list[tuple[int, int, bool]]:
        views = rng.permutation(n_shown)
        views = views[views != source][: self._c.views]
        return [(person, int(view), bool(rng.random() < self._c.predicted)) for view in views]


def unit(points: np.ndarray) -> np.ndarray:
    """(478, 3) px of a 256 px crop -> [-1, 1]; as `pipeline.reenact.keypoints.unit_points`."""
    half = SIDE_PX / 2
    return np.asarray((points + np.array([0.5, 0.5, 0.0])) / half - np.array([1.0, 1.0, 0.0]), np.float32)


def pictures(images: np.ndarray, side_px: int = SIDE_PX) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, side_px, side_px), [-1, 1]."""
    return resized(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, side_px)


def resized(image: Tensor, side_px: int) -> Tensor:
    """Square pictures (N, 3, H, H) at another side: averaged by areas where they shrink."""
    if image.shape[-1] == side_px:
        return image
    if image.shape[-1] > side_px:
        return F.interpolate(image, (side_px, side_px), mode="area")
    return F.interpolate(image, (side_px, side_px), mode="bilinear", align_corners=False)
