"""The kernels of frames on a card of numpy arrays: the very same source, compiled by g++ and run on the CPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from keyface.engines import kernel_compile
from keyface.engines.card_frame import CardFrame
from keyface.engines.device_memory import Sizes
from keyface.engines.device_memory_numpy import HostKernel, NumpyDevice

SHIM = Path(__file__).with_name("cuda_on_cpu.cpp")
KERNELS = Path(kernel_compile.__file__).with_name(kernel_compile.FRAME_KERNELS)
NAMES = ("clear_sum", "fill_canvas", "read_canvas", "crop_faces", "bend_crop", "paste_face")


@functools.cache
def compiled() -> bytes:
    """A library of the kernels for this processor."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (Debian: apt install g++)")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        subprocess.run(
            ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
             f'-DKERNELS="{KERNELS}"', "-o", str(made), str(SHIM)],
            check=True, timeout=120,
        )  # fmt: skip
        return made.read_bytes()


@functools.cache
def open_module(image: bytes) -> Mapping[str, HostKernel]:
    """The kernels of such a library."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(image)
        file.flush()
        library = ctypes.CDLL(file.name)
    kernels = {}
    for name in NAMES:
        sizes = (ctypes.c_int * 8)()
        n = getattr(library, f"sizes_{name}")(sizes)
        kernels[name] = HostKernel(tuple(sizes[:n]), _runner(getattr(library, f"run_{name}"), sizes[:n]))
    return kernels


def _runner(function: Any, sizes: list[int]) -> Callable[[Sizes, Sizes, Sequence[np.generic]], None]:
    def run(grid: Sizes, block: Sizes, arguments: Sequence[np.generic]) -> None:
        values = [np.asarray(argument) for argument in arguments]
        assert [value.nbytes for value in values] == sizes, "arguments do not fit the kernel"
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        function((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), addresses)

    return run


def kernel_card(**options: Any) -> NumpyDevice:
    """A card that runs the kernels."""
    compiled()
    return NumpyDevice(open_module=open_module, **options)


def card_frame(card: NumpyDevice) -> CardFrame:
    return CardFrame(opener=lambda: card, compiler=lambda architecture: compiled())


def made_on(card: NumpyDevice, fill: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """What `fill` puts into an input of this shape; fails when it writes beyond it."""
    n_bytes = 4 * int(np.prod(shape))
    with card.active():
        stream, address = card.stream(), card.allocate(n_bytes + 64)
        card.view(address, n_bytes + 64)[:] = 0xC3
        fill(card, {"input": address}, stream)
        card.synchronise(stream)
        whole = card.view(address, n_bytes + 64).copy()
        card.free(address)
        card.free_stream(stream)
    assert (whole[n_bytes:] == 0xC3).all(), "written beyond the input"
    return whole[:n_bytes].view(np.float32).reshape(shape)
