"""Stand-ins for the modules of cuda-python and pycuda, on the numpy card."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError
from keyface.engines.device_memory_numpy import NumpyDevice


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803


def array_at(address: int, n_bytes: int) -> Any:
    """uint8 view of host memory."""
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), np.uint8)


class FakeCuda:
    """`cuda.bindings.driver`: the functions that `CudaDevice` calls, with their tuples and types.

    Args:
        card: what it runs on.
        init_status: what cuInit answers.
        n_cards: how many the driver sees.
    """

    CUdeviceptr = CUstream = CUevent = CUmodule = CUfunction = int

    class CUdevice_attribute(IntEnum):
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76

    class CUstreamCaptureMode(IntEnum):
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(
        self, card: NumpyDevice, *, init_status: Status = Status.CUDA_SUCCESS, n_cards: int = 1
    ) -> None:
        self.card, self.init_status, self.n_cards = card, init_status, n_cards
        self.n_contexts = self.n_modules = 0
        self._pinned: dict[int, Any] = {}

    def _try(self, work: Callable[[], Any]) -> tuple[Any, ...]:
        try:
            result = work()
        except DeviceMemoryError:
            return (Status.CUDA_ERROR_OUT_OF_MEMORY, None)
        except DeviceLostError:
            return (Status.CUDA_ERROR_LAUNCH_FAILED, None)
        except DeviceError:
            return (Status.CUDA_ERROR_INVALID_VALUE, None)
        return (Status.CUDA_SUCCESS,) if result is None else (Status.CUDA_SUCCESS, result)

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (self.init_status,)

    def cuGetErrorName(self, status: Status) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, status.name.encode()

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, self.n_cards

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, index

    def cuDeviceGetName(self, size: int, device: int) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, b"NVIDIA Stand-in\0\0\0"

    def cuDeviceTotalMem(self, device: int) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, self.card.info.memory_bytes

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, self.card.info.driver_cuda

    def cuDeviceGetAttribute(self, which: IntEnum, device: int) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, self.card.info.compute_capability[which - 75]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.n_contexts += 1
        return Status.CUDA_SUCCESS, "context"

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.n_contexts -= 1
        return (Status.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, context: str) -> tuple[Any, ...]:
        return self._try(self.card.push)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        self.card.pop()
        return Status.CUDA_SUCCESS, "context"

    def cuMemAlloc(self, n_bytes: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.allocate(n_bytes))

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.free(address))

    def cuMemHostAlloc(self, n_bytes: int, flags: int) -> tuple[Any, ...]:
        array = self.card.pinned(n_bytes)
        self._pinned[array.ctypes.data] = array
        return Status.CUDA_SUCCESS, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        self.card.free_pinned(self._pinned.pop(address))
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyHtoDAsync(self, target: int, source: int, n_bytes: int, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.copy_in(target, array_at(source, n_bytes), stream))

    def cuMemcpyDtoHAsync(self, target: int, source: int, n_bytes: int, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.copy_out(array_at(target, n_bytes), source, stream))

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return (Status.CUDA_SUCCESS, *self.card.memory())

    def cuStreamCreate(self, flags: int) -> tuple[Any, ...]:
        return self._try(self.card.stream)

    def cuStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.free_stream(stream))

    def cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.synchronise(stream))

    def cuEventCreate(self, flags: int) -> tuple[Any, ...]:
        return self._try(self.card.event)

    def cuEventDestroy(self, event: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.free_event(event))

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.record(event, stream))

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.wait(event, stream))

    def cuEventElapsedTime(self, first: int, second: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.elapsed_ms(first, second))

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        self.n_modules += 1
        return self._try(lambda: self.card.load_module(image))

    def cuModuleUnload(self, module: int) -> tuple[Any, ...]:
        self.n_modules -= 1
        return (Status.CUDA_SUCCESS,)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:
        return self._try(lambda: self.card.kernel(module, name.decode()))

    def cuLaunchKernel(
        self, kernel: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared_bytes: int, stream: int,
        addresses: int, extra: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        assert shared_bytes == extra == 0
        sizes = self.card.kernels[kernel].argument_bytes
        places = np.frombuffer((ctypes.c_uint64 * len(sizes)).from_address(addresses), np.uint64)
        # The driver copies arguments before it returns.
        values = [
            np.frombuffer(array_at(int(place), size).tobytes(), f"V{size}")[0]
            for place, size in zip(places, sizes, strict=True)
        ]
        return self._try(lambda: self.card.run_kernel(kernel, (gx, gy, gz), (bx, by, bz), values, stream))

    def cuStreamBeginCapture(self, stream: int, mode: IntEnum) -> tuple[Any, ...]:
        return self._try(lambda: self.card.begin_capture(stream))

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.end_capture(stream))

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return Status.CUDA_SUCCESS, graph

    def cuGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        return (Status.CUDA_SUCCESS,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.launch(graph, stream))

    def cuGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        return self._try(lambda: self.card.free_graph(graph))


class FakePycuda:
    """`pycuda.driver`: the objects that `PycudaDevice` uses; each frees what it holds when asked to."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LaunchError(Error):
        pass

    def __init__(self, card: NumpyDevice, *, n_cards: int = 1) -> None:
        self.card = card
        outer = self

        class Allocation:
            def __init__(self, n_bytes: int) -> None:
                self.address = outer.run(lambda: card.allocate(n_bytes))

            def __int__(self) -> int:
                return int(self.address)

            def free(self) -> None:
                outer.run(lambda: card.free(self.address))

        class Stream:
            def __init__(self) -> None:
                self.handle = outer.run(card.stream)

            def synchronize(self) -> None:
                outer.run(lambda: card.synchronise(self.handle))

            def wait_for_event(self, event: Any) -> None:
                outer.run(lambda: card.wait(event.handle, self.handle))

        class Event:
            def __init__(self) -> None:
                self.handle = outer.run(card.event)

            def record(self, stream: Stream) -> None:
                outer.run(lambda: card.record(self.handle, stream.handle))

            def time_till(self, other: Any) -> float:
                return float(outer.run(lambda: card.elapsed_ms(self.handle, other.handle)))

        class Context:
            @staticmethod
            def pop() -> None:
                card.pop()

            def push(self) -> None:
                outer.run(card.push)

            def detach(self) -> None:
                outer.n_contexts -= 1

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            @staticmethod
            def count() -> int:
                return n_cards

            def compute_capability(self) -> tuple[int, int]:
                return card.info.compute_capability

            def name(self) -> str:
                return "NVIDIA Stand-in"

            def total_memory(self) -> int:
                return card.info.memory_bytes

            def retain_primary_context(self) -> Context:
                outer.n_contexts += 1
                return Context()

        self.mem_alloc, self.Stream, self.Event = Allocation, Stream, Event
        self.Context, self.Device = Context, Device
        self.n_contexts = 0

    def run(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DeviceMemoryError as error:
            raise self.MemoryError(str(error)) from error
        except DeviceLostError as error:
            raise self.LaunchError(str(error)) from error
        except DeviceError as error:
            raise self.Error(str(error)) from error

    def init(self) -> None:
        """Nothing to start."""

    def get_driver_version(self) -> int:
        return self.card.info.driver_cuda

    def module_from_buffer(self, image: bytes) -> Any:
        outer, number = self, self.run(lambda: self.card.load_module(image))

        class Function:
            def __init__(self, name: str) -> None:
                self.kernel = outer.run(lambda: outer.card.kernel(number, name))

            def __call__(self, *arguments: Any, grid: Any, block: Any, stream: Any) -> None:
                assert all(isinstance(argument, (np.number, np.void)) for argument in arguments)
                outer.run(lambda: outer.card.run_kernel(self.kernel, grid, block, arguments, stream.handle))

        class Module:
            get_function = staticmethod(Function)

        return Module()

    def pagelocked_empty(self, n_bytes: int, dtype: Any) -> Any:
        return self.card.pinned(n_bytes)

    def memcpy_htod_async(self, target: int, source: Any, stream: Any) -> None:
        self.run(lambda: self.card.copy_in(target, source, stream.handle))

    def memcpy_dtoh_async(self, target: Any, source: int, stream: Any) -> None:
        self.run(lambda: self.card.copy_out(target, source, stream.handle))

    def mem_get_info(self) -> tuple[int, int]:
        return self.card.memory()
