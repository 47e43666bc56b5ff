"""An engine on a card that lands softly: when the card fails for good, the CPU takes over, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from keyface.configs.errors import DeviceLostError, DeviceMemoryError
from keyface.engines.engine import Array, Engine, ForwardingEngine, MadeInputs

log = logging.getLogger(__name__)

OnLoss = Literal["cpu", "stop"]


class SoftLanding(ForwardingEngine):
    """An `Engine` that is another one: the card's, until the card is lost or has no memory left for one item.

    Then, with `on_loss="cpu"`, the CPU's is opened on the same thread, the call that failed is run there, a
    warning says so, and `backend` and `notes` tell it from then on. With "stop" the failure is the caller's:
    the chain hides what it cannot replace, and ends when that goes on. Other failures always are.

    Args:
        engine: on the card.
        open_cpu: opens the same network on the CPU; called at most once, on the thread that runs.
        on_loss: see above.
    """

    def __init__(self, engine: Engine, open_cpu: Callable[[], Engine], *, on_loss: OnLoss = "cpu") -> None:
        super().__init__(engine)
        self._open_cpu, self._on_loss = open_cpu, on_loss
        self._has_landed = False
        self._own_notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What became of it so far, in order."""
        return [*getattr(self._engine, "notes", []), *self._own_notes]

    def warm_up(self) -> None:
        """As `Engine`."""
        try:
            self._engine.warm_up()
        except (DeviceLostError, DeviceMemoryError) as error:
            self._land(error)
            self._engine.warm_up()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `Engine`."""
        return self._landing(lambda engine: engine.run(inputs))

    def run_made(self, made: MadeInputs) -> dict[str, Array]:
        """As `Engine`. On the CPU the inputs are made in host memory."""
        return self._landing(lambda engine: engine.run_made(made))

    def _landing(self, work: Callable[[Engine], dict[str, Array]]) -> dict[str, Array]:
        try:
            return work(self._engine)
        except (DeviceLostError, DeviceMemoryError) as error:
            self._land(error)
            return work(self._engine)

    def _land(self, error: DeviceLostError | DeviceMemoryError) -> None:
        """Takes the CPU's engine in place of the card's; raises `error` where that is not wanted or not possible."""
        if self._on_loss == "stop" or self._has_landed:
            raise error
        self._has_landed = True
        failed = self._engine
        self._engine = self._open_cpu()
        self._own_notes.append(
            f"{failed.name}: {error.problem} It goes on on the CPU ({self._engine.backend}), more slowly."
        )
        log.warning("%s", self._own_notes[-1])
        failed.close()
