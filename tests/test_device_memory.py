"""Memory, streams and events of a card: one contract, three implementations, and their failures."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakePycuda, Status, array_at

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError
from keyface.engines import device_memory
from keyface.engines.device_memory import Device, device_libraries, open_device, version_text
from keyface.engines.device_memory_cuda import CudaDevice
from keyface.engines.device_memory_numpy import HostKernel, NumpyDevice
from keyface.engines.device_memory_pycuda import PycudaDevice

Make = Callable[[NumpyDevice], Device]
MAKERS: dict[str, Make] = {
    "numpy": lambda card: card,
    "cuda-python": lambda card: CudaDevice(driver=FakeCuda(card)),
    "pycuda": lambda card: PycudaDevice(driver=FakePycuda(card)),
}


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def _on_real_card() -> str:
    if not device_libraries():
        return "neither cuda-python nor pycuda is installed"
    try:
        open_device().close()
    except DeviceError as error:
        return str(error)
    return ""


def _round_trip(device: Device) -> None:
    with device.active():
        stream, event = device.stream(), device.event()
        given, taken = device.pinned(4096), device.pinned(4096)
        given[:] = np.arange(4096) % 251
        taken[:] = 0
        address = device.allocate(4096)
        assert address % 256 == 0
        device.copy_in(address, given, stream)
        device.record(event, stream)
        device.copy_out(taken, address, stream)
        device.synchronise(stream)
        np.testing.assert_array_equal(taken, given)
        free, total = device.memory()
        assert 0 < free <= total
        device.free(address)
        for array in (given, taken):
            device.free_pinned(array)
        device.free_event(event)
        device.free_stream(stream)


def test_bytes_go_in_and_come_out(make: Make) -> None:
    card = NumpyDevice()
    device = make(card)
    _round_trip(device)
    device.close()
    assert card.used_bytes == 0
    if device.library != "pycuda":  # which frees the rest when nobody refers to it any more
        assert card.n_open == 0
    assert device.info.compute_capability == (8, 9) and device.info.architecture == "sm89"


@pytest.mark.skipif(bool(_on_real_card()), reason=f"no card here: {_on_real_card()}")
def test_bytes_go_in_and_come_out_of_a_real_card() -> None:
    for library in device_libraries():
        device = open_device(library=library)
        _round_trip(device)
        device.close()


def test_copies_wait_for_synchronise(make: Make) -> None:
    card = NumpyDevice()
    device = make(card)
    with device.active():
        stream, address = device.stream(), device.allocate(8)
        source, target = device.pinned(8), device.pinned(8)
        source[:], target[:] = 7, 1
        device.copy_in(address, source, stream)
        device.copy_out(target, address, stream)
        assert target.tolist() == [1] * 8
        device.synchronise(stream)
        assert target.tolist() == [7] * 8


def test_events_order_streams_and_tell_time(make: Make) -> None:
    device = make(NumpyDevice())
    with device.active():
        one, two = device.stream(), device.stream()
        first, second = device.event(), device.event()
        address, source, target = device.allocate(4), device.pinned(4), device.pinned(4)
        source[:] = 9
        device.record(first, one)
        device.copy_in(address, source, one)
        device.record(second, one)
        device.wait(second, two)
        device.copy_out(target, address, two)
        device.synchronise(two)
        assert target.tolist() == [9] * 4
        assert device.elapsed_ms(first, second) >= 0


def test_kernels_run_on_their_stream_with_the_arguments_of_the_call(make: Make) -> None:
    record = np.dtype([("first", "<i4"), ("factor", "<f4")])

    def run(grid: Any, block: Any, arguments: Any) -> None:
        address, given = (np.asarray(argument) for argument in arguments)
        assert (grid, block) == ((2, 1, 1), (4, 1, 1))
        fields = given.view(record)
        where = int(address.view(np.uint64)) + int(fields["first"])
        array_at(where, 1)[:] = round(float(fields["factor"]) * 10)

    kernels = {"mark": HostKernel((8, record.itemsize), run)}
    card = NumpyDevice(open_module=lambda image: kernels if image == b"code" else {})
    device = make(card)
    with device.active():
        stream, address, taken = device.stream(), device.allocate(4), device.pinned(4)
        kernel = device.kernel(device.load_module(b"code"), "mark")
        given = np.zeros((), record)
        given["first"], given["factor"] = 2, 0.7
        taken[:] = 0
        device.copy_in(address, taken, stream)
        device.run_kernel(kernel, (2, 1, 1), (4, 1, 1), (np.uint64(address), given[()]), stream)
        given["factor"] = 9.0  # too late
        device.copy_out(taken, address, stream)
        device.synchronise(stream)
        assert taken.tolist() == [0, 0, 7, 0] and card.n_kernels == 1
        assert device.load_module(b"code") == device.load_module(b"code")
        with pytest.raises(DeviceError):
            device.kernel(device.load_module(b"other"), "mark")
        device.free(address)
        device.free_pinned(taken)
        device.free_stream(stream)
    device.close()


def test_modules_are_unloaded_with_the_device() -> None:
    driver = FakeCuda(NumpyDevice(open_module=lambda image: {}))
    device = CudaDevice(driver=driver)
    with device.active():
        first = device.load_module(b"a")
        assert device.load_module(b"b") != first == device.load_module(b"a")
    assert driver.n_modules == 2
    device.close()
    assert (driver.n_modules, driver.n_contexts) == (0, 0)
    device = CudaDevice(driver=driver)
    with device.active():
        device.load_module(b"a")
    driver.card.lose()
    device.close()
    assert driver.n_contexts == 0


@pytest.mark.parametrize("name", ["numpy", "cuda-python"])
def test_a_graph_repeats_what_was_recorded(name: str) -> None:
    device = MAKERS[name](NumpyDevice())
    with device.active():
        stream, address = device.stream(), device.allocate(4)
        source, target = device.pinned(4), device.pinned(4)
        source[:], target[:] = 3, 0
        device.begin_capture(stream)
        device.copy_in(address, source, stream)
        device.copy_out(target, address, stream)
        graph = device.end_capture(stream)
        device.synchronise(stream)
        assert target.tolist() == [0] * 4  # recorded, not run
        for value in (4, 5):
            source[:] = value
            device.launch(graph, stream)
            device.synchronise(stream)
            assert target.tolist() == [value] * 4
        device.free_graph(graph)


def test_pycuda_says_that_it_has_no_graphs() -> None:
    device = MAKERS["pycuda"](NumpyDevice())
    assert not device.has_graphs
    with pytest.raises(DeviceError, match="pycuda cannot capture CUDA graphs"):
        device.begin_capture(1)
    with pytest.raises(DeviceError, match="pycuda cannot launch"):
        device.launch(1, 1)


def test_memory_that_runs_out_is_told_and_leaves_the_card_usable(make: Make) -> None:
    device = make(NumpyDevice(memory_bytes=1000))
    with device.active():
        address = device.allocate(900)
        with pytest.raises(DeviceMemoryError, match="too little free memory"):
            device.allocate(200)
        device.free(address)
        device.free(device.allocate(1000))


def test_a_card_that_is_lost_is_told(make: Make) -> None:
    card = NumpyDevice()
    device = make(card)
    with device.active():
        stream = device.stream()
        card.lose()
        with pytest.raises(DeviceLostError, match="the card was lost"):
            device.synchronise(stream)
        with pytest.raises(DeviceLostError):
            device.allocate(1)


def test_the_context_is_pushed_on_each_thread(make: Make) -> None:
    device = make(NumpyDevice())
    problems: list[Exception] = []

    def work() -> None:
        try:
            device.allocate(1)
        except DeviceError as error:
            problems.append(error)

    with device.active():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
    assert len(problems) == 1
    with pytest.raises(DeviceError):
        device.allocate(1)  # popped again


def test_the_context_is_popped_after_a_failure(make: Make) -> None:
    device = make(NumpyDevice())
    with pytest.raises(KeyError, match="inside"), device.active():
        raise KeyError("inside")
    with pytest.raises(DeviceError):
        device.memory()


def test_the_context_is_given_back_once() -> None:
    driver = FakeCuda(NumpyDevice())
    device = CudaDevice(driver=driver)
    assert driver.n_contexts == 1
    device.close()
    device.close()
    assert driver.n_contexts == 0
    pycuda = FakePycuda(NumpyDevice())
    other = PycudaDevice(driver=pycuda)
    other.close()
    other.close()
    assert pycuda.n_contexts == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.CUDA_ERROR_NO_DEVICE, "sees no card"),
        (Status.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "does not fit its library.*Update the NVIDIA driver"),
        (Status.CUDA_ERROR_INVALID_VALUE, "refused cuInit: CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_a_driver_that_cannot_start_is_told(status: Status, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        CudaDevice(driver=FakeCuda(NumpyDevice(), init_status=status))


def test_no_driver_at_all_is_told() -> None:
    class NoDriver:
        def cuInit(self, flags: int) -> Any:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

    with pytest.raises(DeviceError, match=r"no NVIDIA driver here.*--backend onnxruntime"):
        CudaDevice(driver=NoDriver())


@pytest.mark.parametrize("index", [-1, 2])
def test_a_card_that_is_not_there_is_told(index: int) -> None:
    with pytest.raises(DeviceError, match=f"there is no card {index}: the driver sees 2"):
        CudaDevice(index, driver=FakeCuda(NumpyDevice(), n_cards=2))
    with pytest.raises(DeviceError, match=f"there is no card {index}: the driver sees 2"):
        PycudaDevice(index, driver=FakePycuda(NumpyDevice(), n_cards=2))


def test_a_driver_that_is_too_old_is_refused_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeCuda(NumpyDevice(driver_cuda=12_040))
    monkeypatch.setattr(device_memory, "device_libraries", lambda: ("cuda-python",))
    monkeypatch.setattr("keyface.engines.device_memory_cuda.load_driver", lambda: driver)
    with pytest.raises(DeviceError, match=r"goes up to CUDA 12\.4, want 13\.0 or newer.*Update"):
        open_device(min_cuda=13_000)
    assert driver.n_contexts == 0
    open_device(min_cuda=12_000).close()


def test_no_library_and_the_wrong_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert device_libraries() == ()
    with pytest.raises(DeviceError, match=r"neither cuda-python nor pycuda.*keyface\[gpu\]"):
        open_device()
    with pytest.raises(DeviceError, match="pycuda is not installed"):
        open_device(library="pycuda")


def test_versions_are_written_as_people_do() -> None:
    assert [version_text(n) for n in (12_040, 13_000, 11_080)] == ["12.4", "13.0", "11.8"]


def test_the_functions_called_are_those_of_cuda_python() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    names = {name for name in dir(FakeCuda) if name.startswith(("cu", "CU"))}
    assert [name for name in sorted(names) if not hasattr(driver, name)] == []


def test_the_stand_in_shows_what_lies_outside_its_memory() -> None:
    card = NumpyDevice()
    with card.active():
        stream, address = card.stream(), card.allocate(16)
        with pytest.raises(KeyError, match="no card memory"):
            card.copy_in(address, np.zeros(17, np.uint8), stream)
        with pytest.raises(DeviceError, match="contiguous"):
            card.copy_in(address, np.zeros((4, 4), np.uint8)[:, ::2], stream)
