"""How good the warping reenactor is on generated people it was not trained on: figures, and a grid of pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from keyface.models.warp_batches import Batch, Batcher, Drive, resized
from keyface.models.warp_judges import Judges
from keyface.models.warp_mobile import WarpMobile
from keyface.models.warp_pairs import SIDE_PX, Pairs

Render = Callable[[Batch], Tensor]  # pictures like the batch's targets

N_ROWS, N_SHOWN = 8, 4
POSE_SCALE_DEG = 30.0
# columns of the controls (54,), as `pipeline.face.BLENDSHAPE_NAMES` numbers them
_READ = {"jaw_open": (27,), "blink": (11, 12), "smile": (46, 47), "pout": (40,), "brow": (5,)}


@dataclass(frozen=True)
class Validation:
    """figures by name; rows of pictures uint8 (256, 256, 3): the source, then for each view the true frame, the
    picture by its true points, and by points predicted from controls alone."""

    figures: dict[str, float]
    rows: list[list[npt.NDArray[np.uint8]]]


def validate(
    model: WarpMobile, held: Pairs, drive: Drive, judges: Judges, *, device: str = "cpu"
) -> Validation:
    """All views of people held out by the mobile network; see `validate_pictures`."""

    def render(b: Batch) -> Tensor:
        sources = b.image, b.source, b.second, b.second_points
        return torch.as_tensor(model(*sources, b.driving, b.controls))

    was_training = model.training
    model.eval()
    found: Validation = validate_pictures(render, Batcher(held, drive, device=device), judges)
    model.train(was_training)
    return found


@torch.no_grad()
def validate_pictures(render: Render, batcher: Batcher, judges: Judges) -> Validation:
    """All views of people held out but the last, which is the second source, each from the person's first view.

    Figures: `lpips_points` by the true frame's points, `lpips` by predicted ones as at run time, `lpips_still` of the
    source unmoved; errors of yaw and pitch in degrees and correlations of what the product's own networks read off
    the pictures with what was wanted; `identity`, cosine to the source, beside `identity_true` of the true frames.

    Args:
        render: the network in evaluation mode.
        batcher: of the people held out.
    """
    held = batcher.pairs
    rows: list[list[npt.NDArray[np.uint8]]] = []
    found: dict[str, list[Tensor]] = {}
    for person in range(len(held)):
        made = _one(render, batcher, judges, person)
        if len(rows) < N_ROWS:
            rows.append(_row(made))
        for name in ("lpips_points", "lpips", "lpips_still", "identity", "identity_true", "read", "wanted"):
            found.setdefault(name, []).append(made[name].cpu())
    joined = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return Validation(_figures(joined), rows)


def _one(render: Render, batcher: Batcher, judges: Judges, person: int) -> dict[str, Tensor]:
    views = range(1, batcher.pairs.images.shape[1] - 1)
    true, told = (
        batcher.batch([(person, 0)], [(person, view, is_predicted) for view in views])
        for is_predicted in (False, True)
    )
    by_points, by_controls = render(true), render(told)
    source, target = resized(true.image, true.target.shape[-1]), true.target
    seen, first, there = (judges.measure(resized(image, SIDE_PX)) for image in (by_controls, source, target))
    return {
        "source": source, "target": target, "by_points": by_points, "by_controls": by_controls,
        "lpips_points": judges.lpips(by_points, target), "lpips": judges.lpips(by_controls, target),
        "lpips_still": judges.lpips(source.expand_as(target), target),
        "identity": _cosine(seen, first), "identity_true": _cosine(there, first),
        "read": torch.cat([seen.pose / POSE_SCALE_DEG, seen.blendshapes], 1), "wanted": true.controls[:, :54],
    }  # fmt: skip


def _cosine(a: Any, b: Any) -> Tensor:
    """(N,) mean over the recognisers, each of which gives 128 numbers of norm 1."""
    n_recognisers = a.embedding.shape[1] // 128
    return torch.as_tensor((a.embedding * b.embedding).sum(1) / n_recognisers)


def _figures(found: dict[str, npt.NDArray[np.float32]]) -> dict[str, float]:
    read, wanted = found["read"], found["wanted"]
    figures = {name: float(found[name].mean()) for name in found if name not in ("read", "wanted")}
    for column, name in enumerate(("yaw_error", "pitch_error")):
        figures[name] = float(POSE_SCALE_DEG * np.abs(read[:, column] - wanted[:, column]).mean())
    for name, columns in _READ.items():
        a, b = (values[:, list(columns)].mean(1) for values in (wanted, read))
        if min(a.std(), b.std()) > 1e-4:
            figures[name] = float(np.corrcoef(a, b)[0, 1])
    return figures


def _row(made: dict[str, Tensor]) -> list[npt.NDArray[np.uint8]]:
    source, *columns = (
        _pixels(made[name][:N_SHOWN]) for name in ("source", "target", "by_points", "by_controls")
    )
    return [source[0], *(picture for view in zip(*columns, strict=True) for picture in view)]


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    scaled = (resized(image, SIDE_PX).clamp(-1, 1) + 1) * 127.5
    return np.asarray(scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy(), np.uint8)


def write_grid(path: Path, found: Validation) -> None:
    """One row a person, at half size."""
    grid = np.concatenate([np.concatenate(row, 1) for row in found.rows])
    small = cv2.resize(grid, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), small[..., ::-1])


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """The losses of a training, in the form that `models.loss_plot` reads."""
    names = dict.fromkeys(name for row in history for name in row)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["phase", *names], restval="")
        table.writeheader()
        table.writerows({"phase": "warp", **row} for row in history)
