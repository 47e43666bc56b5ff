"""What the runner asks of a stage, and how one stage is placed in a chain.

A stage owns no thread and no queue. `open`, `process`, `flush` and `close` are called on one and the
same thread, so that engines (a CUDA context, say) are opened, run and closed where they live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from keyface.pipeline.channel import WhenFull

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Stage(Protocol[In_contra, Out_co]):
    """One step of the chain: one item in, one item out."""

    def open(self) -> None:
        """Gets what the stage needs (engines). Called once, before the first `process`."""
        ...

    def process(self, item: In_contra) -> Out_co:
        """Returns the result for `item`. May raise: the runner then redacts the frame or stops."""
        ...

    def close(self) -> None:
        """Releases what `open` got. Called once, also after a failure, also when `open` failed."""
        ...


class BufferedStage(Protocol[In_contra, Out_co]):
    """A step that holds items back: one output for each input, in order, but later."""

    def open(self) -> None: ...

    def process(self, item: In_contra) -> Sequence[Out_co]:
        """Takes `item` in and returns what is ready, oldest first, possibly nothing."""
        ...

    def flush(self) -> Sequence[Out_co]:
        """Returns all that is still held, when the source has ended."""
        ...

    def close(self) -> None: ...


class IdlingStage(Stage[In_contra, Out_co], Protocol):
    """A stage with something to do while no item comes, such as a sink that shows why."""

    def idle(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A stage and how the runner treats it.

    Attributes:
        name: for errors, statistics and the thread.
        stage: a `Stage`, or a `BufferedStage` when `is_buffered`.
        is_buffered: see above.
        rescue: `(item, exception) -> output` makes the safe output for an item on which the stage
            failed; None: a failure stops the run.
        check: `(item, output) -> None` raises when the output cannot be trusted; this counts as a
            failure of the stage. Not called for buffered stages.
        capacity: of the channel before the stage.
        when_full: of the channel before the stage.
        timeout_s: longest time for one `process`; None: the runner's.
        idle_every_s: when that long no item has come, the stage's `idle()` is called, and again after as
            long; None: never. What it raises ends the run.
    """

    name: str
    stage: Stage[Any, Any] | BufferedStage[Any, Any] | IdlingStage[Any, Any]
    is_buffered: bool = False
    rescue: Callable[[Any, Exception], Any] | None = None
    check: Callable[[Any, Any], None] | None = None
    capacity: int = 2
    when_full: WhenFull = "wait"
    timeout_s: float | None = None
    idle_every_s: float | None = None
