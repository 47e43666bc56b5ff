"""An engine without a network, for tests and examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from keyface.engines.engine import Array, CheckedEngine, TensorSpec

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class FakeEngine(CheckedEngine):
    """Answers with what `function` returns; None answers zeros.

    All checks of a real engine apply, so a function that returns a wrong shape or NaN raises
    `EngineError` as a real network would. `n_runs` counts the calls.
    """

    backend = "fake"

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        function: Function | None = None,
        *,
        name: str = "fake",
        any_thread: bool = True,
    ) -> None:
        super().__init__(name=name, inputs=inputs, outputs=outputs, any_thread=any_thread)
        self._function = function
        self.n_runs = 0

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.n_runs += 1
        if self._function is None:
            return {spec.name: spec.zeros() for spec in self.outputs.values()}
        return {name: np.array(array) for name, array in self._function(inputs).items()}

    def _release(self) -> None:
        self._function = None
