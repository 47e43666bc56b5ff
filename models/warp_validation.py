"""How good the warping reenactor is on generated people it was not trained on: figures, and a grid of pictures."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from keyface.models.train_warp import Drive, Judges, pictures, unit
from keyface.models.warp_mobile import WarpMobile
from keyface.models.warp_pairs import Pairs

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


@torch.no_grad()
def validate(
    model: WarpMobile, held: Pairs, drive: Drive, judges: Judges, *, device: str = "cpu"
) -> Validation:
    """All views of people held out, each from the person's first view.

    Figures: `lpips_points` by the true frame's points, `lpips` by predicted ones as at run time, `lpips_still` of the
    source unmoved; errors of yaw and pitch in degrees and correlations of what the product's own networks read off
    the pictures with what was wanted; `identity`, cosine to the source, beside `identity_true` of the true frames.
    """
    was_training = model.training
    model.eval()
    rows: list[list[npt.NDArray[np.uint8]]] = []
    found: dict[str, list[Tensor]] = {}
    for person in range(len(held)):
        made = _one(model, held, drive, judges, person, device)
        if len(rows) < N_ROWS:
            rows.append(_row(held, person, made))
        for name in ("lpips_points", "lpips", "lpips_still", "identity", "identity_true", "read", "wanted"):
            found.setdefault(name, []).append(made[name].cpu())
    model.train(was_training)
    joined = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return Validation(_figures(joined), rows)


def _one(
    model: WarpMobile, held: Pairs, drive: Drive, judges: Judges, person: int, device: str
) -> dict[str, Tensor]:
    views = range(1, held.images.shape[1])
    source = pictures(held.images[person, :1]).to(device)
    target = pictures(held.images[person, 1:]).to(device)
    own = torch.from_numpy(unit(held.points[person, 0]))[None].to(device)
    true = torch.from_numpy(np.stack([unit(held.points[person, v]) for v in views])).to(device)
    predicted = torch.from_numpy(np.stack([drive(person, 0, v) for v in views])).float().to(device)
    wanted = torch.from_numpy(held.controls[person, 1:]).float().to(device)
    at_rest = torch.from_numpy(held.controls[person, :1]).float().to(device)
    controls = torch.cat([wanted, at_rest.expand(len(wanted), -1)], 1)
    by_points, by_controls = (model(source, own, points, controls) for points in (true, predicted))
    seen, first, there = (judges.measure(image) for image in (by_controls, source, target))
    return {
        "by_points": by_points, "by_controls": by_controls,
        "lpips_points": judges.lpips(by_points, target), "lpips": judges.lpips(by_controls, target),
        "lpips_still": judges.lpips(source.expand_as(target), target),
        "identity": _cosine(seen, first), "identity_true": _cosine(there, first),
        "read": torch.cat([seen.pose / POSE_SCALE_DEG, seen.blendshapes], 1), "wanted": wanted,
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


def _row(held: Pairs, person: int, made: dict[str, Tensor]) -> list[npt.NDArray[np.uint8]]:
    row: list[npt.NDArray[np.uint8]] = [held.images[person, 0]]
    shown = {name: _pixels(made[name][:N_SHOWN]) for name in ("by_points", "by_controls")}
    for view in range(min(N_SHOWN, held.images.shape[1] - 1)):
        row += [held.images[person, view + 1], shown["by_points"][view], shown["by_controls"][view]]
    return row


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    scaled = (image.clamp(-1, 1) + 1) * 127.5
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
