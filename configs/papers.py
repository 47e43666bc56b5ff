"""Figures of the papers that this work follows, from `papers.toml`, to stand beside measured ones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from keyface.configs.errors import UsageError

_KEYS = {"figure", "paper", "where", "value", "same"}


@dataclass(frozen=True, slots=True)
class PaperFigure:
    """One printed figure.

    Attributes:
        figure: the name of ours.
        paper: short name; where: table or section.
        same: how far the two are measured alike.
    """

    figure: str
    paper: str
    where: str
    value: float
    same: str


@dataclass(frozen=True, slots=True)
class Papers:
    """Titles by short name, and all figures in the order of the file."""

    titles: Mapping[str, str]
    figures: tuple[PaperFigure, ...]

    def beside(self, figure: str) -> tuple[PaperFigure, ...]:
        """What the papers have for one of our figures."""
        return tuple(row for row in self.figures if row.figure == figure)


def load_papers(path: Path | None = None) -> Papers:
    """Reads papers.toml, strictly; None: the one in the package. Raises UsageError."""
    path = path or Path(str(files("keyface.configs"))) / "papers.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the papers' figures {path} cannot be read: {error}.") from error
    figures = []
    for number, row in enumerate(table.get("row", [])):
        if set(row) != _KEYS or row["paper"] not in table.get("papers", {}):
            raise UsageError(
                f"{path.name}: row {number + 1} is not as wanted.", f"Keys: {', '.join(sorted(_KEYS))}."
            )
        figures.append(
            PaperFigure(row["figure"], row["paper"], row["where"], float(row["value"]), row["same"])
        )
    return Papers(dict(table.get("papers", {})), tuple(figures))
