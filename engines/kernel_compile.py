"""Compiles the kernels that keyface carries for one kind of card: with NVRTC through cuda-python, else with nvcc."""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from keyface.configs.errors import DeviceError

FRAME_KERNELS = "frame_kernels.cu"
_INSTALL = "Install it: pip install nvidia-cuda-nvrtc (of the same CUDA version as cuda-bindings), or nvcc."
_TIMEOUT_S = 120


def kernel_source(name: str = FRAME_KERNELS) -> str:
    """CUDA C of a file of this package."""
    return files("keyface.engines").joinpath(name).read_text("utf-8")


@functools.cache
def frame_kernels(architecture: str) -> bytes:
    """`compile_kernels` of the kernels of frames, once in a process for each architecture."""
    return compile_kernels(architecture)


def compile_kernels(architecture: str, source: str | None = None) -> bytes:
    """Machine code (cubin) of a source.

    Args:
        architecture: for example "sm89".
        source: CUDA C; None: the kernels of frames.

    Raises:
        DeviceError: no compiler is installed, or it refuses; says what it says.
    """
    source = kernel_source() if source is None else source
    name = architecture.replace("sm", "sm_")
    try:
        return _by_nvrtc(name, source)
    except _Missing as missing:
        if shutil.which("nvcc") is None:
            raise DeviceError(
                f"the kernels for {architecture} cannot be compiled: {missing}.", _INSTALL
            ) from None
        return _by_nvcc(name, source)


class _Missing(Exception):
    """There is no NVRTC here, or only a part of it."""


def _by_nvrtc(name: str, source: str) -> bytes:
    nvrtc = _load_nvrtc()
    try:
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), FRAME_KERNELS.encode(), 0, [], [])
    except RuntimeError as error:  # also cuda-python's DynamicLibNotFoundError
        raise _Missing("cuda-python finds no NVRTC library") from error
    try:
        options = [f"--gpu-architecture={name}".encode()]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            raise _refusal(
                "NVRTC", name, log.rstrip(b"\0 ").decode(errors="replace") or f"status {int(status)}"
            )
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        code: bytes = b" " * size
        nvrtc.nvrtcGetCUBIN(program, code)
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _load_nvrtc() -> Any:
    for module in ("cuda.bindings.nvrtc", "cuda.nvrtc"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise _Missing("cuda-python is not installed")


def _by_nvcc(name: str, source: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="keyface-") as folder:
        written, made = Path(folder) / FRAME_KERNELS, Path(folder) / "kernels.cubin"
        written.write_text(source, "utf-8")
        command = ["nvcc", "-cubin", f"-arch={name}", "-o", str(made), str(written)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _refusal("nvcc", name, str(error)) from error
        if done.returncode != 0:
            raise _refusal("nvcc", name, done.stderr)
        return made.read_bytes()


def _refusal(compiler: str, name: str, said: str) -> DeviceError:
    text = " ".join(said.split())[:500].rstrip(".")
    return DeviceError(
        f"{compiler} could not compile the kernels for {name}: {text}.", "Install a newer CUDA."
    )
