"""Memory, streams, events and kernels of one graphics card, behind one small interface.

Three implementations: `device_memory_cuda` (cuda-python), `device_memory_pycuda` (pycuda), and
`device_memory_numpy`, which keeps the same contract in host memory and lets tests break it on purpose.

Addresses, streams, events, modules, kernels and graphs are plain integers, as the CUDA driver and TensorRT
take them. All calls but `push` and `pop` want the card's context current on the calling thread: work inside
`with device.active():`. Copies and launches return at once; what they write may be read after
`synchronise`, and what they read must not change before it.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError

DeviceLibrary = Literal["cuda-python", "pycuda"]
Bytes = npt.NDArray[np.uint8]
Sizes = tuple[int, int, int]

INSTALL = "Install one: pip install 'keyface[gpu]'"
MIN_CUDA = 12_000  # of the driver, as CUDA counts versions: 1000 major + 10 minor


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One card.

    Attributes:
        name: as its driver calls it.
        compute_capability: (major, minor).
        memory_bytes: in all.
        driver_cuda: newest CUDA version of the driver, 1000 major + 10 minor.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver_cuda: int

    @property
    def architecture(self) -> str:
        """For example "sm89"."""
        return "sm{}{}".format(*self.compute_capability)


class Device(ABC):
    """One card and its primary context, which every library in the process shares.

    Errors: `DeviceMemoryError` when memory runs out, `DeviceLostError` when the card went away or a kernel
    broke the context, `DeviceError` for anything else that the driver refuses.
    """

    library: str = "none"
    has_graphs: bool = False
    info: DeviceInfo

    # -- context

    @abstractmethod
    def push(self) -> None:
        """Makes the context current on this thread."""

    @abstractmethod
    def pop(self) -> None:
        """Restores what was current before `push`."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """`push`, and `pop` whatever happens."""
        self.push()
        try:
            yield
        finally:
            self.pop()

    @abstractmethod
    def close(self) -> None:
        """Gives the context back; twice is allowed."""

    # -- memory

    @abstractmethod
    def allocate(self, n_bytes: int) -> int:
        """Address of `n_bytes` of uninitialised card memory, aligned to 256."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def pinned(self, n_bytes: int) -> Bytes:
        """Page-locked host memory, uint8 (n_bytes,): copies from and to it overlap with computing."""

    @abstractmethod
    def free_pinned(self, array: Bytes) -> None:
        """Frees what `pinned` gave; no view of it may be used afterwards."""

    @abstractmethod
    def copy_in(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Queues a copy of a contiguous host array to the card."""

    @abstractmethod
    def copy_out(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Queues a copy from the card into a contiguous host array."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes free and in all, other processes on the card counted in."""

    # -- streams and events

    @abstractmethod
    def stream(self) -> int:
        """A new stream that does not wait for the default one."""

    @abstractmethod
    def free_stream(self, stream: int) -> None: ...

    @abstractmethod
    def synchronise(self, stream: int) -> None:
        """Waits until all that was queued is done."""

    @abstractmethod
    def event(self) -> int: ...

    @abstractmethod
    def free_event(self, event: int) -> None: ...

    @abstractmethod
    def record(self, event: int, stream: int) -> None:
        """The event happens when the stream comes to this place."""

    @abstractmethod
    def wait(self, event: int, stream: int) -> None:
        """What is queued on the stream from here on waits for the event."""

    @abstractmethod
    def elapsed_ms(self, first: int, second: int) -> float:
        """Milliseconds between two events that have happened."""

    # -- kernels

    @abstractmethod
    def load_module(self, image: bytes) -> int:
        """Loads compiled kernels; they stay until `close`. The same image again gives the same module."""

    @abstractmethod
    def kernel(self, module: int, name: str) -> int:
        """A kernel of a module."""

    @abstractmethod
    def run_kernel(
        self, kernel: int, grid: Sizes, block: Sizes, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """Queues a kernel.

        Args:
            kernel: of this very object.
            grid, block: blocks and threads, x, y and z.
            arguments: numpy scalars: uint64 for an address, a structured one for a structure by value. Structures
                come last, since pycuda lays them where they are, unaligned. They may change after the call.
        """

    # -- graphs; only where `has_graphs`

    def begin_capture(self, stream: int) -> None:
        """From here on the stream records instead of running."""
        raise DeviceError(f"{self.library} cannot capture CUDA graphs.", "Use cuda-python.")

    def end_capture(self, stream: int) -> int:
        """Ends recording; returns the graph, ready to be launched."""
        raise DeviceError(f"{self.library} cannot capture CUDA graphs.", "Use cuda-python.")

    def launch(self, graph: int, stream: int) -> None:
        """Queues all that was recorded, with the addresses of then."""
        raise DeviceError(f"{self.library} cannot launch CUDA graphs.", "Use cuda-python.")

    def free_graph(self, graph: int) -> None:
        """Frees what `end_capture` gave."""
        raise DeviceError(f"{self.library} has no CUDA graphs.", "Use cuda-python.")


def by_value(record: npt.NDArray[Any]) -> np.generic:
    """A structured array of no dimensions as an argument of `Device.run_kernel`: a copy of the structure."""
    value: np.generic = record.copy()[()]  # type: ignore[assignment]
    return value


def device_libraries() -> tuple[DeviceLibrary, ...]:
    """The libraries that are installed, best first; nothing is imported but their parent package."""
    found: list[DeviceLibrary] = []
    if _is_there("cuda.bindings.driver"):
        found.append("cuda-python")
    if _is_there("pycuda.driver"):
        found.append("pycuda")
    return tuple(found)


def open_device(index: int = 0, *, library: DeviceLibrary | None = None, min_cuda: int = MIN_CUDA) -> Device:
    """Opens a card; nothing is current on the calling thread before or after.

    Args:
        index: as the driver counts.
        library: None takes the first of `device_libraries`.
        min_cuda: oldest CUDA version that the driver must bring, 1000 major + 10 minor.

    Raises:
        DeviceError: no library, no driver, one that is too old, or no such card.
    """
    found = device_libraries()
    chosen = library or (found[0] if found else None)
    if chosen is None:
        raise DeviceError("neither cuda-python nor pycuda is installed.", INSTALL)
    if chosen not in found:
        raise DeviceError(f"{chosen} is not installed.", INSTALL)
    device: Device
    if chosen == "cuda-python":
        from keyface.engines.device_memory_cuda import CudaDevice

        device = CudaDevice(index)
    else:
        from keyface.engines.device_memory_pycuda import PycudaDevice

        device = PycudaDevice(index)
    try:
        check_driver(device.info, min_cuda)
    except DeviceError:
        device.close()
        raise
    return device


def check_driver(info: DeviceInfo, min_cuda: int) -> None:
    """Raises DeviceError when the driver is older than `min_cuda`."""
    if info.driver_cuda < min_cuda:
        raise DeviceError(
            f"the driver of {info.name} goes up to CUDA {version_text(info.driver_cuda)}, "
            f"want {version_text(min_cuda)} or newer.",
            "Update the NVIDIA driver, or run on the CPU: --backend onnxruntime",
        )


def version_text(cuda: int) -> str:
    """12040 -> "12.4"."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a parent that is missing, or a test's stand-in without a spec
        return False
