"""Keeps the weights of a training that were best on people that it does not see.

With few renderings a step, weights wander about what they are led to; the mean of several along the way is nearer to
it than the last. So what is judged and kept is the mean of the last `MEAN_OF` weights judged.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MEAN_OF = 3


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

    def look(self, step: int) -> None:
        """Judges when it is time; the first look of a training is at step 0, whose weights stand alone."""
        if step % self._every:
            return
        kept = self._read() or {"score": -float("inf"), "step": -1, "model": {}, "last": []}
        now = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        kept["last"] = [*kept["last"], now][-MEAN_OF:] if step else []
        mean = _mean(kept["last"]) if step else now
        self._model.load_state_dict(mean)
        self._model.eval()
        figures = {"step": float(step), **self._judge()}
        self._model.train()
        self._model.load_state_dict(now)
        self._write_row(figures)
        if figures[self._score] > kept["score"]:
            kept |= {"score": figures[self._score], "step": step, "model": mean}
        partial = self._kept.with_suffix(".partial")
        torch.save(kept, partial)
        partial.replace(self._kept)

    def restore(self) -> int | None:
        """Puts the best weights back; returns their step, None when nothing was judged."""
        kept = self._read()
        if kept is None:
            return None
        self._model.load_state_dict(kept["model"])
        return int(kept["step"])

    def _write_row(self, figures: dict[str, float]) -> None:
        is_new = not self._table.exists()
        with self._table.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(figures))
            if is_new:
                writer.writeheader()
            writer.writerow(figures)

    def _read(self) -> dict[str, Any] | None:
        return torch.load(self._kept, weights_only=True) if self._kept.exists() else None


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
