"""`Device` through pycuda."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError
from keyface.engines.device_memory import Bytes, Device, DeviceInfo, Sizes

_NO_CARD = "Run on the CPU: --backend onnxruntime"


def load_driver() -> Any:
    """pycuda's driver module. Raises DeviceError."""
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:  # also when libcuda is missing
        raise DeviceError(f"pycuda cannot be loaded: {error}.", _NO_CARD) from error


class PycudaDevice(Device):
    """A card through pycuda, which captures no CUDA graphs.

    Args:
        index: as the driver counts.
        driver: None takes `pycuda.driver`; tests give their own.

    Raises:
        DeviceError: no driver, or no such card.
    """

    library = "pycuda"
    has_graphs = False

    def __init__(self, index: int = 0, *, driver: Any = None) -> None:
        self._driver = driver or load_driver()
        with self._errors("init"):
            self._driver.init()
            count = int(self._driver.Device.count())
        if not 0 <= index < count:
            raise DeviceError(f"there is no card {index}: the driver sees {count}.", _NO_CARD)
        with self._errors("retain_primary_context"):
            card = self._driver.Device(index)
            major, minor = card.compute_capability()
            self.info = DeviceInfo(
                card.name(), (int(major), int(minor)), int(card.total_memory()),
                int(self._driver.get_driver_version()),
            )  # fmt: skip
            self._context: Any = card.retain_primary_context()
        # pycuda frees what nobody refers to, so everything handed out as a number is kept here.
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._pinned: dict[int, Bytes] = {}
        self._modules: list[Any] = []
        self._numbers: dict[bytes, int] = {}  # of modules
        self._kernels: list[Any] = []

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        driver = self._driver
        try:
            yield
        except driver.MemoryError as error:
            raise DeviceMemoryError(
                f"the card has too little free memory ({what}).", "Close what else runs on it."
            ) from error
        except driver.LaunchError as error:
            raise DeviceLostError(
                f"the card was lost: {error}.", "Start again; see the system log."
            ) from error
        except driver.Error as error:
            raise DeviceError(f"the NVIDIA driver refused {what}: {error}.", _NO_CARD) from error

    def push(self) -> None:
        """See `Device`."""
        with self._errors("push"):
            self._context.push()

    def pop(self) -> None:
        """See `Device`."""
        with self._errors("pop"):
            self._driver.Context.pop()

    def close(self) -> None:
        """See `Device`."""
        if self._context is not None:
            self._kernels.clear()
            self._modules.clear()
            self._numbers.clear()
            self._context.detach()
            self._context = None

    def allocate(self, n_bytes: int) -> int:
        """See `Device`."""
        with self._errors("mem_alloc"):
            memory = self._driver.mem_alloc(max(n_bytes, 1))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See `Device`."""
        with self._errors("free"):
            self._memory.pop(address).free()

    def pinned(self, n_bytes: int) -> Bytes:
        """See `Device`."""
        with self._errors("pagelocked_empty"):
            array: Bytes = self._driver.pagelocked_empty(max(n_bytes, 1), np.uint8)
        self._pinned[array.ctypes.data] = array
        return array[:n_bytes]

    def free_pinned(self, array: Bytes) -> None:
        """See `Device`."""
        del self._pinned[array.ctypes.data]

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """See `Device`."""
        with self._errors("memcpy_htod_async"):
            self._driver.memcpy_htod_async(address, array, self._streams[stream])

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See `Device`."""
        with self._errors("memcpy_dtoh_async"):
            self._driver.memcpy_dtoh_async(array, address, self._streams[stream])

    def memory(self) -> tuple[int, int]:
        """See `Device`."""
        with self._errors("mem_get_info"):
            free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def stream(self) -> int:
        """See `Device`."""
        with self._errors("Stream"):
            stream = self._driver.Stream()
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def free_stream(self, stream: int) -> None:
        """See `Device`."""
        del self._streams[stream]

    def synchronise(self, stream: int) -> None:
        """See `Device`."""
        with self._errors("synchronize"):
            self._streams[stream].synchronize()

    def event(self) -> int:
        """See `Device`."""
        with self._errors("Event"):
            event = self._driver.Event()
        self._events[int(event.handle)] = event
        return int(event.handle)

    def free_event(self, event: int) -> None:
        """See `Device`."""
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        """See `Device`."""
        with self._errors("record"):
            self._events[event].record(self._streams[stream])

    def wait(self, event: int, stream: int) -> None:
        """See `Device`."""
        with self._errors("wait_for_event"):
            self._streams[stream].wait_for_event(self._events[event])

    def elapsed_ms(self, first: int, second: int) -> float:
        """See `Device`."""
        with self._errors("time_till"):
            return float(self._events[first].time_till(self._events[second]))

    def load_module(self, image: bytes) -> int:
        """See `Device`."""
        if image not in self._numbers:
            with self._errors("module_from_buffer"):
                self._modules.append(self._driver.module_from_buffer(image))
            self._numbers[image] = len(self._modules) - 1
        return self._numbers[image]

    def kernel(self, module: int, name: str) -> int:
        """See `Device`."""
        with self._errors("get_function"):
            self._kernels.append(self._modules[module].get_function(name))
        return len(self._kernels) - 1

    def run_kernel(
        self, kernel: int, grid: Sizes, block: Sizes, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """See `Device`."""
        with self._errors("launch_kernel"):
            self._kernels[kernel](*arguments, grid=grid, block=block, stream=self._streams[stream])
