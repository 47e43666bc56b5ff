"""What `keyface evaluate` measures against: similarity thresholds and the figures to reach.

Both live in `evaluation.toml`. The thresholds are written there by `tools/fit_thresholds.py`, with
their provenance; no image and no embedding is stored.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from keyface.configs.errors import UsageError

Comparison = Literal["at_most", "at_least", "below", "equal"]


@dataclass(frozen=True, slots=True)
class RecogniserThresholds:
    """Cosine thresholds of one recogniser.

    Attributes:
        far_0_1_percent: cosine that 0.1 % of pairs of different people exceed.
        equal_error: cosine at which false accepts and false rejects are equally frequent.
        equal_error_rate: that frequency, [0, 1].
        true_accepts: share of pairs of one person above `far_0_1_percent`, [0, 1].
        is_used_in_training: something that the product carries was trained against it, so that it is no
            independent judge; always False for those that judge clips.
    """

    name: str
    far_0_1_percent: float
    equal_error: float
    equal_error_rate: float
    true_accepts: float
    is_used_in_training: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One figure to reach: `figure` compared to `value`, with a unit and a sentence for people."""

    figure: str
    comparison: Comparison
    value: float
    unit: str
    meaning: str

    def is_met(self, value: float) -> bool:
        """False for a value that is not finite."""
        if not math.isfinite(value):
            return False
        if self.comparison == "at_most":
            return value <= self.value
        if self.comparison == "at_least":
            return value >= self.value
        return value < self.value if self.comparison == "below" else value == self.value

    @property
    def wish(self) -> str:
        """Short text, such as `<= 3 degrees`."""
        sign = {"at_most": "<=", "at_least": ">=", "below": "<", "equal": "="}[self.comparison]
        return f"{sign} {self.value:g} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """Thresholds by recogniser and where they come from; targets by figure, for clips, photos and speed.

    `recognisers` judge clips, `image_recognisers` judge photos of people; `reenactor_targets` are those of the
    warping reenactor.
    """

    recognisers: Mapping[str, RecogniserThresholds]
    targets: Mapping[str, Target]
    provenance: Mapping[str, str | int]
    speed: Mapping[str, Target]
    image_recognisers: Mapping[str, RecogniserThresholds]
    image_targets: Mapping[str, Target]
    reenactor_targets: Mapping[str, Target]


def load_evaluation(path: Path | None = None) -> EvaluationConfig:
    """Reads evaluation.toml, strictly; None: the one in the package. Raises UsageError."""
    path = path or Path(str(files("keyface.configs"))) / "evaluation.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the evaluation settings {path} cannot be read: {error}.") from error
    kinds = ("targets", "speed", "image_targets", "reenactor_targets")
    _keys(table, {"provenance", "recognisers", "image_recognisers", *kinds}, path.name)
    recognisers = {name: _recogniser(name, row, path.name) for name, row in table["recognisers"].items()}
    image_recognisers = {
        name: _recogniser(name, row, path.name, with_training=True)
        for name, row in table["image_recognisers"].items()
    }
    targets, speed, image_targets, reenactor_targets = (
        {name: _target(name, row, path.name) for name, row in table[kind].items()} for kind in kinds
    )
    return EvaluationConfig(
        recognisers, targets, table["provenance"], speed, image_recognisers, image_targets, reenactor_targets
    )


def _recogniser(
    name: str, row: dict[str, Any], where: str, *, with_training: bool = False
) -> RecogniserThresholds:
    fields = ("far_0_1_percent", "equal_error", "equal_error_rate", "true_accepts")
    training = {"is_used_in_training"} if with_training else set()
    _keys(row, {*fields, *training}, f"{where}: recogniser {name!r}")
    rates = {key: float(row[key]) for key in fields}
    return RecogniserThresholds(
        name=name,
        far_0_1_percent=rates["far_0_1_percent"],
        equal_error=rates["equal_error"],
        equal_error_rate=rates["equal_error_rate"],
        true_accepts=rates["true_accepts"],
        is_used_in_training=bool(row.get("is_used_in_training", False)),
    )


def _target(name: str, row: dict[str, Any], where: str) -> Target:
    where = f"{where}: target {name!r}"
    _keys(row, {"comparison", "value", "unit", "meaning"}, where)
    if row["comparison"] not in get_args(Comparison):
        legal = ", ".join(get_args(Comparison))
        raise UsageError(f"{where}: comparison is {row['comparison']!r}.", f"Legal values: {legal}.")
    return Target(name, cast(Comparison, row["comparison"]), float(row["value"]), row["unit"], row["meaning"])


def _keys(row: Mapping[str, Any], wanted: set[str], where: str) -> None:
    if set(row) != wanted:
        odd = ", ".join(sorted(set(row) ^ wanted))
        raise UsageError(f"{where}: unknown or missing: {odd}.", f"Keys: {', '.join(sorted(wanted))}.")
