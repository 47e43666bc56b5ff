"""Draws the losses of a training (.csv) as curves into a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, MARGIN = 960, 540, 60
COLOURS_BGR = ((180, 119, 31), (14, 127, 255), (44, 160, 44), (40, 39, 214), (189, 103, 148), (75, 86, 140))


def read_losses(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Curves (N, 2) of running step and value, by loss; phases one after the other."""
    curves: dict[str, list[tuple[float, float]]] = {}
    offset, last, phase = 0.0, 0.0, ""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["phase"] != phase:
                phase, offset = row["phase"], last
            last = offset + float(row["step"])
            for name, value in row.items():
                if name not in {"phase", "step"} and value:
                    curves.setdefault(name, []).append((last, float(value)))
    return {name: np.array(points) for name, points in curves.items()}


def plot_losses(table: Path, out: Path) -> None:
    """Writes the picture; one curve for each loss, times its weight, with its last value."""
    curves = read_losses(table)
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    if curves:
        last = max(float(c[-1, 0]) for c in curves.values())
        high = max(float(c[:, 1].max()) for c in curves.values()) or 1.0
        for i, (name, points) in enumerate(curves.items()):
            x = MARGIN + points[:, 0] / max(last, 1.0) * (WIDTH - 2 * MARGIN)
            y = HEIGHT - MARGIN - points[:, 1] / high * (HEIGHT - 2 * MARGIN)
            colour = COLOURS_BGR[i % len(COLOURS_BGR)]
            cv2.polylines(
                canvas, [np.stack([x, y], 1).round().astype(np.int32)], False, colour, 2, cv2.LINE_AA
            )
            _write(canvas, f"{name} {points[-1, 1]:.3f}", (WIDTH - 260, 24 + 22 * i), colour)
        _write(canvas, f"step {last:.0f}", (WIDTH - 150, HEIGHT - 20), (0, 0, 0))
        _write(canvas, f"{high:.2f}", (8, MARGIN), (0, 0, 0))
    cv2.rectangle(canvas, (MARGIN, MARGIN), (WIDTH - MARGIN, HEIGHT - MARGIN), (0, 0, 0), 1)
    if not cv2.imwrite(str(out), canvas):
        raise OSError(f"{out} cannot be written")


def _write(
    canvas: npt.NDArray[np.uint8], text: str, at: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
