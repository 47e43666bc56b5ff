"""The engine: one network, opened on one back-end, with named and checked inputs and outputs.

Ownership and threads. Arrays given to `run` stay the caller's and are not kept; arrays returned are
fresh and belong to the caller. An engine is opened, run and closed on one owner thread, since a GPU
context lives on the thread that made it: running it elsewhere raises `EngineError` unless it was
opened with `any_thread=True` (CPU back-ends only, and still one call at a time).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import EngineError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name ("float32") and shape of a tensor; None in a shape means any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def check(self, array: Array, subject: str) -> None:
        """Raises EngineError unless the array has this dtype and fits this shape.

        `subject` begins the message, for example "detector input".
        """
        if not isinstance(array, np.ndarray):
            raise EngineError(f"{subject} {self.name!r}: got {type(array).__name__}, want a numpy array.")
        if array.dtype != np.dtype(self.dtype):
            raise EngineError(f"{subject} {self.name!r}: got {array.dtype}, want {self.dtype}.")
        if len(array.shape) != len(self.shape) or any(
            want is not None and got != want for got, want in zip(array.shape, self.shape, strict=True)
        ):
            raise EngineError(
                f"{subject} {self.name!r}: got {_shape_text(array.shape)}, want {_shape_text(self.shape)}."
            )

    def zeros(self, any_size: int = 1) -> Array:
        """An array of zeros that fits, with `any_size` where any size is allowed."""
        return np.zeros([any_size if n is None else n for n in self.shape], np.dtype(self.dtype))


@dataclass(frozen=True, slots=True)
class MadeInputs:
    """Inputs that are made where the network runs: on a card by kernels, or else in host memory.

    Attributes:
        shapes: of every input, float32.
        on_card: queues what fills the inputs. Gets the engine's `device_memory.Device`, the address of each
            input, and the stream on which the network will run. The frame's pixels it needs, it takes along.
        on_host: the same values as arrays.
    """

    shapes: Mapping[str, tuple[int, ...]]
    on_card: Callable[[Any, Mapping[str, int], int], None]
    on_host: Callable[[], Mapping[str, Array]]


class Engine(Protocol):
    """One opened network. See the head of this file for ownership and threads."""

    @property
    def name(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def warm_up(self) -> None:
        """Runs once on zeros, so that the first real frame does not pay for allocation.

        What comes out is thrown away unchecked: for some networks zeros are no sensible input.
        """

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the network.

        Args:
            inputs: one array per input spec, C-contiguous or not.

        Returns:
            One fresh array per output spec, owned by the caller.

        Raises:
            EngineError: a missing, unknown or ill-shaped input; an output of wrong shape or dtype, or
                that is not finite; a fault of the back-end; a call from another thread or after close.
        """
        ...

    def run_made(self, made: MadeInputs) -> dict[str, Array]:
        """As `run`, on inputs that an engine on a card makes there; all others run what `on_host` gives."""
        ...

    def close(self) -> None:
        """Frees the network. Closing twice is allowed."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class CheckedEngine(ABC):
    """What all back-ends share: checks of thread, inputs and outputs around one inner call.

    A back-end's constructor opens the network, then calls `super().__init__`; it implements `_infer`,
    which may assume checked inputs and must return fresh arrays, and `_release`.
    """

    backend = "none"

    def __init__(
        self,
        *,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        any_thread: bool = False,
    ) -> None:
        self.name = name
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}
        self._owner = None if any_thread else threading.get_ident()
        self._is_closed = False

    @abstractmethod
    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _release(self) -> None: ...

    def warm_up(self) -> None:
        self._check_thread()
        # 64 for open sizes: a multiple of every network's stride, and cheap; batches alone take 1.
        self._guarded({s.name: s.zeros(64) if _open_image(s) else s.zeros() for s in self.inputs.values()})

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._check_thread()
        self._check_inputs(inputs)
        outputs = self._guarded(inputs)
        self._check_outputs(outputs)
        return outputs

    def run_made(self, made: MadeInputs) -> dict[str, Array]:
        return self.run(made.on_host())

    def _guarded(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._translated(lambda: self._infer(inputs))

    def _translated(self, work: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        try:
            return work()
        except EngineError:
            raise
        except Exception as error:  # a runtime's own errors have no common base
            raise EngineError(f"{self.name} failed on {self.backend}: {_first_line(error)}.") from error

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_thread(self) -> None:
        if self._is_closed:
            raise EngineError(f"{self.name} is closed.")
        if self._owner is not None and self._owner != threading.get_ident():
            raise EngineError(
                f"{self.name} was opened on another thread than the one that runs it.",
                "Open it where it runs, or open it with any_thread=True.",
            )

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        if inputs.keys() != self.inputs.keys():
            got, want = ", ".join(sorted(inputs)) or "none", ", ".join(sorted(self.inputs))
            raise EngineError(f"{self.name} inputs: got {got}, want {want}.")
        for name, spec in self.inputs.items():
            spec.check(inputs[name], f"{self.name} input")

    def _check_outputs(self, outputs: Mapping[str, Array]) -> None:
        for name, spec in self.outputs.items():
            if name not in outputs:
                raise EngineError(f"{self.name} output {name!r}: {self.backend} did not return it.")
            array = outputs[name]
            spec.check(array, f"{self.name} output")
            n_bad = _count_not_finite(array)
            if n_bad:
                raise EngineError(f"{self.name} output {name!r}: {n_bad} of {array.size} values not finite.")


class ForwardingEngine:
    """An engine that asks another one for everything; for those that add something to one.

    Args:
        engine: asked; closed with this.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def backend(self) -> str:
        return self._engine.backend

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._engine.outputs

    def warm_up(self) -> None:
        self._engine.warm_up()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._engine.run(inputs)

    def run_made(self, made: MadeInputs) -> dict[str, Array]:
        return self._engine.run_made(made)

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run_on_one(
    engine: Engine,
    name: str,
    shape: tuple[int, ...],
    on_host: Callable[[], Array],
    on_card: Callable[[Any, Mapping[str, int], int], None] | None,
) -> dict[str, Array]:
    """Runs a network with one input, `name`, which `on_card` makes where there is such a thing, else `on_host`.

    `MadeInputs` explains both.
    """
    if on_card is None:
        return engine.run({name: on_host()})
    return engine.run_made(MadeInputs({name: shape}, on_card, lambda: {name: on_host()}))


def _count_not_finite(array: Array) -> int:
    if array.dtype.kind != "f":
        return 0
    # One sum answers for all values: NaN and infinity both survive it. Only an overflow of finite
    # values can raise a false alarm, which the exact count then clears.
    with np.errstate(all="ignore"):
        if np.isfinite(array.sum()):
            return 0
    return int(array.size - np.isfinite(array).sum())


def _open_image(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and None in spec.shape[1:]


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ",".join("any" if n is None else str(n) for n in shape) + ")"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text[:300].rstrip(".")
