"""`Device` through cuda-python, the driver's own functions."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError
from keyface.engines.device_memory import Bytes, Device, DeviceInfo, Sizes

_NO_MEMORY = {"CUDA_ERROR_OUT_OF_MEMORY"}
_LOST = {
    "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_ASSERT", "CUDA_ERROR_SYSTEM_NOT_READY", "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED", "CUDA_ERROR_EXTERNAL_DEVICE", "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_UNKNOWN",
}  # fmt: skip
_TOO_OLD = {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"}
_UPDATE = "Update the NVIDIA driver, or run on the CPU: --backend onnxruntime"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_NO_CARD = "Run on the CPU: --backend onnxruntime"


def load_driver() -> Any:
    """The driver module of cuda-python, under its newer or older name. Raises DeviceError."""
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DeviceError("cuda-python is not installed.", "Install it: pip install cuda-python")


class CudaDevice(Device):
    """A card through cuda-python.

    Args:
        index: as the driver counts.
        driver: None takes cuda-python's module; tests give their own.

    Raises:
        DeviceError: no driver, one that is too old, or no such card.
    """

    library = "cuda-python"
    has_graphs = True

    def __init__(self, index: int = 0, *, driver: Any = None) -> None:
        self._driver = driver or load_driver()
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # also its DynamicLibNotFoundError: no libcuda at all
            raise DeviceError("there is no NVIDIA driver here.", _NO_CARD) from error
        (count,) = self._call("cuDeviceGetCount")
        if not 0 <= index < int(count):
            raise DeviceError(f"there is no card {index}: the driver sees {int(count)}.", _NO_CARD)
        (self._device,) = self._call("cuDeviceGet", index)
        self.info = self._describe()
        (self._context,) = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._is_closed = False
        self._pinned: dict[int, int] = {}
        self._graphs: dict[int, Any] = {}
        self._modules: dict[bytes, Any] = {}

    def _describe(self) -> DeviceInfo:
        attribute = self._driver.CUdevice_attribute
        major, minor = (
            int(self._call("cuDeviceGetAttribute", which, self._device)[0])
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        (name,) = self._call("cuDeviceGetName", 256, self._device)
        (memory,) = self._call("cuDeviceTotalMem", self._device)
        (version,) = self._call("cuDriverGetVersion")
        return DeviceInfo(name.split(b"\0")[0].decode(), (major, minor), int(memory), int(version))

    def _call(self, function: str, *args: Any) -> tuple[Any, ...]:
        """Calls the driver; the results after the status. Raises DeviceError and its kinds."""
        status, *results = getattr(self._driver, function)(*args)
        if int(status) == 0:
            return tuple(results)
        _, name = self._driver.cuGetErrorName(status)
        text = name.decode() if isinstance(name, bytes) else f"status {int(status)}"
        raise _error(text, function)

    # -- context

    def push(self) -> None:
        """See `Device`."""
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        """See `Device`."""
        self._call("cuCtxPopCurrent")

    def close(self) -> None:
        """See `Device`."""
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(DeviceError):  # a card that is lost takes its modules with it
                self._unload()
            self._call("cuDevicePrimaryCtxRelease", self._device)

    def _unload(self) -> None:
        if self._modules:
            with self.active():
                while self._modules:
                    self._call("cuModuleUnload", self._modules.popitem()[1])

    # -- memory

    def allocate(self, n_bytes: int) -> int:
        """See `Device`."""
        return int(self._call("cuMemAlloc", max(n_bytes, 1))[0])

    def free(self, address: int) -> None:
        """See `Device`."""
        self._call("cuMemFree", self._driver.CUdeviceptr(address))

    def pinned(self, n_bytes: int) -> Bytes:
        """See `Device`."""
        address = int(self._call("cuMemHostAlloc", max(n_bytes, 1), 0)[0])
        memory: Any = (ctypes.c_uint8 * max(n_bytes, 1)).from_address(address)
        array: Bytes = np.frombuffer(memory, np.uint8)
        self._pinned[array.ctypes.data] = address
        return array[:n_bytes]

    def free_pinned(self, array: Bytes) -> None:
        """See `Device`."""
        self._call("cuMemFreeHost", self._pinned.pop(array.ctypes.data))

    def copy_in(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """See `Device`."""
        target = self._driver.CUdeviceptr(address)
        self._call(
            "cuMemcpyHtoDAsync", target, array.ctypes.data, array.nbytes, self._driver.CUstream(stream)
        )

    def copy_out(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """See `Device`."""
        source = self._driver.CUdeviceptr(address)
        self._call(
            "cuMemcpyDtoHAsync", array.ctypes.data, source, array.nbytes, self._driver.CUstream(stream)
        )

    def memory(self) -> tuple[int, int]:
        """See `Device`."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    # -- streams and events

    def stream(self) -> int:
        """See `Device`."""
        return int(self._call("cuStreamCreate", _NON_BLOCKING)[0])

    def free_stream(self, stream: int) -> None:
        """See `Device`."""
        self._call("cuStreamDestroy", self._driver.CUstream(stream))

    def synchronise(self, stream: int) -> None:
        """See `Device`."""
        self._call("cuStreamSynchronize", self._driver.CUstream(stream))

    def event(self) -> int:
        """See `Device`."""
        return int(self._call("cuEventCreate", 0)[0])

    def free_event(self, event: int) -> None:
        """See `Device`."""
        self._call("cuEventDestroy", self._driver.CUevent(event))

    def record(self, event: int, stream: int) -> None:
        """See `Device`."""
        self._call("cuEventRecord", self._driver.CUevent(event), self._driver.CUstream(stream))

    def wait(self, event: int, stream: int) -> None:
        """See `Device`."""
        self._call("cuStreamWaitEvent", self._driver.CUstream(stream), self._driver.CUevent(event), 0)

    def elapsed_ms(self, first: int, second: int) -> float:
        """See `Device`."""
        events = self._driver.CUevent(first), self._driver.CUevent(second)
        return float(self._call("cuEventElapsedTime", *events)[0])

    # -- kernels

    def load_module(self, image: bytes) -> int:
        """See `Device`."""
        if image not in self._modules:
            (self._modules[image],) = self._call("cuModuleLoadData", image)
        return int(self._modules[image])

    def kernel(self, module: int, name: str) -> int:
        """See `Device`."""
        return int(self._call("cuModuleGetFunction", self._driver.CUmodule(module), name.encode())[0])

    def run_kernel(
        self, kernel: int, grid: Sizes, block: Sizes, arguments: Sequence[np.generic], stream: int
    ) -> None:
        """See `Device`."""
        values = [np.asarray(argument) for argument in arguments]
        addresses = np.array([value.ctypes.data for value in values], np.uint64)
        self._call(
            "cuLaunchKernel", self._driver.CUfunction(kernel), *grid, *block, 0, self._driver.CUstream(stream),
            addresses.ctypes.data, 0,
        )  # fmt: skip

    # -- graphs

    def begin_capture(self, stream: int) -> None:
        """See `Device`. Other threads may go on using the card: the capture is this thread's."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._driver.CUstream(stream), mode)

    def end_capture(self, stream: int) -> int:
        """See `Device`."""
        (graph,) = self._call("cuStreamEndCapture", self._driver.CUstream(stream))
        try:
            (launchable,) = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        self._graphs[int(launchable)] = launchable
        return int(launchable)

    def launch(self, graph: int, stream: int) -> None:
        """See `Device`."""
        self._call("cuGraphLaunch", self._graphs[graph], self._driver.CUstream(stream))

    def free_graph(self, graph: int) -> None:
        """See `Device`."""
        self._call("cuGraphExecDestroy", self._graphs.pop(graph))


def _error(name: str, function: str) -> DeviceError:
    if name in _NO_MEMORY:
        return DeviceMemoryError(
            f"the card has too little free memory ({function}).", "Close what else runs on it."
        )
    if name in _LOST:
        return DeviceLostError(f"the card was lost: {name} ({function}).", "Start again; see the system log.")
    if name in _TOO_OLD:
        return DeviceError(f"the NVIDIA driver does not fit its library: {name}.", _UPDATE)
    if name == "CUDA_ERROR_NO_DEVICE":
        return DeviceError("the NVIDIA driver sees no card.", _NO_CARD)
    return DeviceError(f"the NVIDIA driver refused {function}: {name}.", _UPDATE)
