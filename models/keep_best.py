"""Keeps the weights of a training that were best on people that it does not see."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class KeepBest:
    """Judges a model every so many steps: a row of figures (.judged.csv) and the best weights (.best) beside `out`.

    Args:
        judge: figures of the model as it is; `score` names what of them is to be high.
    """

    def __init__(
        self, model: nn.Module, out: Path, judge: Callable[[], dict[str, float]], score: str, *, every: int
    ) -> None:
        self._model, self._judge, self._score, self._every = model, judge, score, every
        self._table, self._kept = out.with_suffix(".judged.csv"), out.with_suffix(".best")

    def look(self, step: int, *, is_due: bool = False) -> None:
        """Judges when it is time, or when told to; the first look of a training is at step 0."""
        if not is_due and step % self._every:
            return
        self._model.eval()
        figures = {"step": float(step), **self._judge()}
        self._model.train()
        is_new = not self._table.exists()
        with self._table.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(figures))
            if is_new:
                writer.writeheader()
            writer.writerow(figures)
        kept = self._read()
        if kept is None or figures[self._score] > kept["score"]:
            partial = self._kept.with_suffix(".partial")
            state = {"score": figures[self._score], "step": step, "model": self._model.state_dict()}
            torch.save(state, partial)
            partial.replace(self._kept)

    def restore(self) -> int | None:
        """Puts the best weights back; returns their step, None when nothing was judged."""
        kept = self._read()
        if kept is None:
            return None
        self._model.load_state_dict(kept["model"])
        return int(kept["step"])

    def _read(self) -> dict[str, Any] | None:
        return torch.load(self._kept, weights_only=True) if self._kept.exists() else None
