"""What the trainings of both warping reenactors are told: how much, how long, how fast, and what weighs how much."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from keyface.configs.errors import UsageError

MAX_WARM_UP = 100  # steps
_COUNTS = ("people", "views", "steps", "save_every")
_SHARES = ("predicted", "other_source", "without_second", "reading_from", "adversarial_from", "decay")
_POSITIVE = ("lr", "critic_lr", "largest_gradient", "seconds")


@dataclass(frozen=True)
class WarpSchedule:
    """A schedule.

    Attributes:
        people, views: sources a step, and driving frames of each.
        steps: length of the schedule; seconds: time budget of this call.
        predicted: share of driving frames whose points the keypoint model predicts.
        other_source: share of sources that are not the person at rest.
        without_second: share of sources that are their own second picture, as where there is none.
        reading_from, adversarial_from: shares of the schedule at which these terms begin.
        decay: of the running average.
        largest_gradient: a longer one is shortened to this norm.
        save_every: steps between checkpoints.
        device: as PyTorch calls it.

    Raises:
        UsageError: a number that no schedule can have.
    """

    people: int = 2
    views: int = 2
    lr: float = 6e-4
    steps: int = 6000
    seconds: float = 3600.0
    seed: int = 0
    predicted: float = 0.3
    other_source: float = 0.25
    without_second: float = 0.1
    pixel_weight: float = 4.0
    perceptual_weight: float = 1.0
    close_weight: float = 1.5
    reading_weight: float = 0.8
    identity_weight: float = 0.6
    adversarial_weight: float = 0.05
    matching_weight: float = 0.5
    reading_from: float = 0.15
    adversarial_from: float = 0.5
    decay: float = 0.998
    critic_lr: float = 2e-4
    largest_gradient: float = 1.0
    save_every: int = 200
    device: str = "cpu"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _COUNTS and value < 1:
                raise UsageError(f"{field.name} is {value}, want 1 or more.")
            if field.name in _SHARES and not 0 <= value <= 1:
                raise UsageError(f"{field.name} is {value:g}, want 0 to 1.")
            if field.name in _POSITIVE and not value > 0:
                raise UsageError(f"{field.name} is {value:g}, want more than 0.")
            if field.name.endswith("_weight") and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{field.name} is {value:g}, want 0 or more.")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}, want 0 or more.")

    def share(self, step: int) -> float:
        """How much of the schedule is done at a step, [0, 1)."""
        return step / self.steps

    def rate(self, step: int) -> float:
        """The learning rate of a step: a short rise, then half a cosine down to a fiftieth."""
        fall = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * self.share(step)))
        warm_up = min(MAX_WARM_UP, max(1, self.steps // 10))
        return self.lr * min(1.0, (step + 1) / warm_up) * fall
