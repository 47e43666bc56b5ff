"""`Device` in host memory, for tests: the same contract, made to show mistakes and to fail when told to.

Work is only queued until `synchronise`, so what is read too early is stale; memory starts as noise; freed
memory is overwritten; a call without the context, or from a thread that did not push it, is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError
from keyface.engines.device_memory import Bytes, Device, DeviceInfo, Sizes

Work = Callable[[], None]
_ALIGNED = 256


@dataclass(frozen=True, slots=True)
class HostKernel:
    """A kernel as the host runs it.

    Attributes:
        argument_bytes: sizes of its arguments.
        run: with grid, block and arguments; addresses are those of `NumpyDevice.allocate`.
    """

    argument_bytes: tuple[int, ...]
    run: Callable[[Sizes, Sizes, Sequence[np.generic]], None]


class NumpyDevice(Device):
    """A card of numpy arrays.

    Args:
        memory_bytes: of the card; beyond it `allocate` fails as a card does.
        compute_capability: what it says it is.
        driver_cuda: what its driver says it is.
        open_module: gives the kernels of a compiled module, by name.

    Attributes:
        n_launches: graphs launched. n_kernels: kernels queued. n_copied: bytes copied in and out.
        copies: (direction, bytes) of each copy done, "in" or "out".
        kernels: those asked for, by number.
    """

    library = "numpy"
    has_graphs = True

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 30,
        compute_capability: tuple[int, int] = (8, 9),
        driver_cuda: int = 13_000,
        open_module: Callable[[bytes], Mapping[str, HostKernel]] | None = None,
    ) -> None:
        self.info = DeviceInfo("numpy stand-in", compute_capability, memory_bytes, driver_cuda)
        self.n_launches = self.n_kernels = self.n_copied = 0
        self.copies: list[tuple[str, int]] = []
        self.kernels: dict[int, HostKernel] = {}
        self._open_module = open_module
        self._modules: dict[int, Mapping[str, HostKernel]] = {}
        self._module_numbers: dict[bytes, int] = {}
        self._depth = threading.local()
        self._memory: dict[int, tuple[Bytes, Bytes]] = {}
        self._pinned: dict[int, Bytes] = {}
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._events: dict[int, float] = {}
        self._last = 0
        self._calls_to_loss: int | None = None

    # -- faults

    def lose(self, *, after_calls: int = 0) -> None:
        """The card goes away: after so many calls more, each call raises DeviceLostError."""
        self._calls_to_loss = after_calls

    @property
    def used_bytes(self) -> int:
        """Card memory that is allocated."""
        return sum(array.size for _, array in self._memory.values())

    @property
    def n_open(self) -> int:
        """Things not freed: memory, pinned memory, streams, graphs and events."""
        parts = (self._memory, self._pinned, self._streams, self._graphs, self._events)
        return sum(len(part) for part in parts)

    def enqueue(self, stream: int, work: Work) -> None:
        """Queues work as a kernel launch would; for stand-ins of libraries that compute on the card."""
        self._check()
        queue = self._captures.get(stream, self._streams[stream])
        queue.append(work)

    def _check(self) -> None:
        if getattr(self._depth, "n", 0) < 1:
            raise DeviceError("the card's context is not current on this thread.", "Use device.active().")
        self._check_loss()

    def _check_loss(self) -> None:
        if self._calls_to_loss is not None:
            if self._calls_to_loss <= 0:
                raise DeviceLostError("the card was lost: stand-in.", "Start again; see the system log.")
            self._calls_to_loss -= 1

    def _number(self) -> int:
        self._last += 1
        return self._last

    # -- context

    def push(self) -> None:
        """See `Device`."""
        self._check_loss()
        self._depth.n = getattr(self._depth, "n", 0) + 1

    def pop(self) -> None:
        """See `Device`."""
        if getattr(self._depth, "n", 0) < 1:
            raise DeviceError("pop without push.")
        self._depth.n -= 1

    def close(self) -> None:
        """See `Device`."""

    # -- memory

    def allocate(self, n_bytes: int) -> int:
        """See `Device`."""
        self._check()
        n_bytes = max(n_bytes, 1)
        if self.used_bytes + n_bytes > self.info.memory_bytes:
            raise DeviceMemoryError(
                f"the card has too little free memory ({n_bytes} bytes).", "Close what else runs on it."
            )
        whole = np.full(n_bytes + _ALIGNED, 0xA5, np.uint8)
        start = -whole.ctypes.data % _ALIGNED
        part = whole[start : start + n_bytes]
        self._memory[part.ctypes.data] = whole, part
        return int(part.ctypes.data)

    def free(self, address: int) -> None:
        """See `Device`."""
        self._check()
        whole, _ = self._memory.pop(address)
        whole[:] = 0x5A

    def view(self, address: int, n_bytes: int) -> Bytes:
        """The card's memory at an address, for stand-ins that compute; raises KeyError beyond its end."""
        for start, (_, part) in self._memory.items():
            if start <= address and address + n_bytes <= start + part.size:
                return part[address - start : address - start + n_bytes]
        raise KeyError(f"{address:#x}: no card memory of {n_bytes} bytes lies there")

    def pinned(self, n_bytes: int) -> Bytes:
        """See `Device`."""
        self._check()
        array = np.full(max(n_bytes, 1), 0xA5, np.uint8)
        self._pinned[array.ctypes.data] = array
        return array[:n_bytes]

    def free_pinned(self, array: Bytes) -> None:
        """See `Device`."""
        del self._pinned[array.ctypes.data]

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """See `Device`."""
        source = _bytes_of(array)
        target = self.view(address, source.size)
        self.enqueue(stream, lambda: self._copy(target, source, "in"))

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See `Device`."""
        target = _bytes_of(array)
        source = self.view(address, target.size)
        self.enqueue(stream, lambda: self._copy(target, source, "out"))

    def _copy(self, target: Bytes, source: Bytes, direction: str) -> None:
        target[:] = source
        self.copies.append((direction, target.size))
        self.n_copied += target.size

    def memory(self) -> tuple[int, int]:
        """See `Device`."""
        self._check()
        return self.info.memory_bytes - self.used_bytes, self.info.memory_bytes

    # -- streams and events

    def stream(self) -> int:
        """See `Device`."""
        self._check()
        number = self._number()
        self._streams[number] = []
        return number

    def free_stream(self, stream: int) -> None:
        """See `Device`."""
        self._check()
        del self._streams[stream]

    def synchronise(self, stream: int) -> None:
        """See `Device`."""
        self._check()
        if stream in self._captures:
            raise DeviceError("synchronise while capturing.")
        queue, self._streams[stream] = self._streams[stream], []
        for work in queue:
            work()

    def event(self) -> int:
        """See `Device`."""
        self._check()
        number = self._number()
        self._events[number] = 0.0
        return number

    def free_event(self, event: int) -> None:
        """See `Device`."""
        self._check()
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        """See `Device`."""
        self.enqueue(stream, lambda: self._events.__setitem__(event, time.perf_counter() * 1e3))

    def wait(self, event: int, stream: int) -> None:
        """See `Device`. What the event waits for has to run first, so all other streams do."""
        self._check()
        for other in self._streams:
            if other != stream and other not in self._captures:
                self.synchronise(other)

    def elapsed_ms(self, first: int, second: int) -> float:
        """See `Device`."""
        self._check()
        return self._events[second] - self._events[first]

    # -- kernels

    def load_module(self, image: bytes) -> int:
        """See `Device`. Raises DeviceError without `open_module`."""
        self._check()
        if self._open_module is None:
            raise DeviceError("this stand-in runs no kernels.")
        if image not in self._module_numbers:
            number = self._module_numbers[image] = self._number()
            self._modules[number] = self._open_module(image)
        return self._module_numbers[image]

    def kernel(self, module: int, name: str) -> int:
        """See `Device`."""
        self._check()
        if name not in self._modules[module]:
            raise DeviceError(f"there is no kernel {name!r} in this module.")
        number = self._number()
        self.kernels[number] = self._modules[module][name]
        return number

    def run_kernel(
        self, kernel: int, grid: Sizes, block: Sizes, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """See `Device`."""
        run, copied = self.kernels[kernel].run, [argument.copy() for argument in arguments]
        self.enqueue(stream, lambda: run(grid, block, copied))
        self.n_kernels += 1

    # -- graphs

    def begin_capture(self, stream: int) -> None:
        """See `Device`."""
        self._check()
        self._captures[stream] = []

    def end_capture(self, stream: int) -> int:
        """See `Device`."""
        self._check()
        number = self._number()
        self._graphs[number] = self._captures.pop(stream)
        return number

    def launch(self, graph: int, stream: int) -> None:
        """See `Device`."""
        for work in self._graphs[graph]:
            self.enqueue(stream, work)
        self.n_launches += 1

    def free_graph(self, graph: int) -> None:
        """See `Device`."""
        self._check()
        del self._graphs[graph]


def _bytes_of(array: npt.NDArray[Any]) -> Bytes:
    if not array.flags.c_contiguous:
        raise DeviceError("only contiguous arrays can be copied to and from the card.")
    return array.reshape(-1).view(np.uint8)
