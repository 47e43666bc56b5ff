"""Runs a chain on the calling thread, one item at a time: for photos, where threads gain nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from keyface.configs.errors import KeyfaceError, StageError
from keyface.pipeline.runner import OnFault, describe
from keyface.pipeline.stage import StagePlan
from keyface.pipeline.stage_times import DurationLog, StageTimes


class InlineChain:
    """The stages of `plans`, opened once and used for any number of items that have nothing to do with
    each other. Failures are treated as the runner does: rescued or raised.

    A context manager; opens, runs and closes all stages on the thread that enters it.
    """

    def __init__(self, plans: Sequence[StagePlan], *, on_fault: OnFault = "redact") -> None:
        self._plans = tuple(plans)
        self._on_fault = on_fault
        self._durations = {plan.name: DurationLog() for plan in plans}
        self._stack = ExitStack()
        self.faults: dict[str, str] = {}  # of the last item: stage -> message

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for plan in self._plans:
                stack.callback(plan.stage.close)
                plan.stage.open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def process(self, item: Any) -> Any:
        """The last stage's output for `item`. Raises as the stages do, other errors as StageError."""
        self.faults = {}
        for plan in self._plans:
            began_s = time.monotonic()
            item = self._pass(plan, item)
            self._durations[plan.name].add(time.monotonic() - began_s)
        return item

    def times(self) -> dict[str, StageTimes]:
        """Durations of all items so far, by stage."""
        return {name: durations.times() for name, durations in self._durations.items()}

    def _pass(self, plan: StagePlan, item: Any) -> Any:
        try:
            if plan.is_buffered:
                outputs: list[Any] = [*plan.stage.process(item)]
                outputs.extend(plan.stage.flush())  # type: ignore[union-attr]
                return outputs[0]
            output = plan.stage.process(item)
            if plan.check is not None:
                plan.check(item, output)
            return output
        except Exception as error:
            if plan.rescue is not None and self._on_fault == "redact":
                self.faults[plan.name] = describe(error)
                return plan.rescue(item, error)
            if isinstance(error, KeyfaceError):
                raise
            raise StageError(f"stage '{plan.name}' failed: {describe(error)}.") from error
