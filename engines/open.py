"""Opens a network file on a back-end, by name or by the file's kind.

Each back-end is one row of `BACKENDS`: its name, the module it needs, the extra that installs it, and
a function that opens a file. GPU back-ends (TensorRT, a CUDA provider) register theirs with
`register_backend`; nothing else changes. A back-end that was asked for by name is used or an error is
raised: there is no silent fallback.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keyface.configs.errors import EngineError
from keyface.configs.schema import BackendName, EngineOptions, Precision
from keyface.engines.engine import Engine


def _always(precision: Precision) -> bool:
    del precision
    return True


def _no_reason() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a back-end gets: the file, a name for messages, threads (None: its own choice) and precision."""

    path: Path
    name: str
    threads: int | None
    precision: Precision
    allow_spinning: bool
    any_thread: bool


@dataclass(frozen=True, slots=True)
class Backend:
    """One back-end.

    Attributes:
        suffixes: file kinds that it reads.
        module: import that must be there.
        install: command that installs it.
        precisions: what it can compute in, given a processor that can.
        open: opens a file on the calling thread.
        computes_in: whether this machine's processor can, too; may import the module.
        why_not: why it cannot be used although the module is there; empty when it can. May import it.
        is_gpu: it runs on a graphics card.
    """

    name: str
    suffixes: tuple[str, ...]
    module: str
    install: str
    precisions: tuple[Precision, ...]
    open: Callable[[OpenRequest], Engine]
    computes_in: Callable[[Precision], bool] = _always
    why_not: Callable[[], str] = _no_reason
    is_gpu: bool = False

    @property
    def is_usable(self) -> bool:
        """True when it is installed and, as far as can be told without a card, can be used."""
        return self.is_installed and not self.why_not()

    @property
    def is_installed(self) -> bool:
        """True when the module can be found; it is not imported."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # a dotted name whose parent package is missing
            return False


def _open_onnxruntime(request: OpenRequest) -> Engine:
    from keyface.engines.ort import OrtEngine

    return OrtEngine(
        request.path,
        name=request.name,
        threads=request.threads,
        allow_spinning=request.allow_spinning,
        any_thread=request.any_thread,
    )


def _open_openvino(request: OpenRequest) -> Engine:
    from keyface.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(
        request.path,
        name=request.name,
        threads=request.threads,
        precision=request.precision,
        any_thread=request.any_thread,
    )


def _openvino_computes_in(precision: Precision) -> bool:
    from keyface.engines.openvino import computes_in

    return computes_in(precision)


def _open_litert(request: OpenRequest) -> Engine:
    from keyface.engines.litert import LiteRtEngine

    return LiteRtEngine(
        request.path, name=request.name, threads=request.threads, any_thread=request.any_thread
    )


BACKENDS: dict[str, Backend] = {}
_TENSORRT: dict[Literal["tensorrt", "tensorrt_rtx"], str] = {
    "tensorrt": "pip install tensorrt 'keyface[gpu]'",
    "tensorrt_rtx": "pip install 'keyface[gpu]'",
}


def register_backend(backend: Backend) -> None:
    """Adds a back-end. Raises EngineError when its name is taken."""
    if backend.name in BACKENDS:
        raise EngineError(f"the back-end {backend.name!r} is already registered.")
    BACKENDS[backend.name] = backend


register_backend(
    Backend("onnxruntime", (".onnx",), "onnxruntime", "pip install keyface", ("f32",), _open_onnxruntime)
)
register_backend(
    Backend("openvino", (".onnx",), "openvino", "pip install 'keyface[openvino]'", ("f32", "bf16"),
            _open_openvino, _openvino_computes_in)
)  # fmt: skip
register_backend(
    Backend("litert", (".tflite",), "ai_edge_litert", "pip install keyface", ("f32",), _open_litert)
)


def _open_tensorrt(flavour: Literal["tensorrt", "tensorrt_rtx"]) -> Callable[[OpenRequest], Engine]:
    def open_it(request: OpenRequest) -> Engine:
        from keyface.engines.gpu_open import open_tensorrt

        return open_tensorrt(request.path, request.name, request.precision, flavour)

    return open_it


def _open_onnxruntime_cuda(request: OpenRequest) -> Engine:
    from keyface.engines.ort_cuda import OrtCudaEngine

    return OrtCudaEngine(request.path, name=request.name)


def _why_not_onnxruntime_cuda() -> str:
    from keyface.engines.ort_cuda import why_not

    return why_not()


def _why_no_card() -> str:
    from keyface.engines.device_memory import device_libraries

    return "" if device_libraries() else "neither cuda-python nor pycuda is installed"


for _flavour, _install in _TENSORRT.items():
    register_backend(
        Backend(
            _flavour, (".onnx",), _flavour, _install, ("f32", "f16"), _open_tensorrt(_flavour),
            why_not=_why_no_card, is_gpu=True,
        )
    )  # fmt: skip
register_backend(
    Backend("onnxruntime_cuda", (".onnx",), "onnxruntime", "pip install onnxruntime-gpu", ("f32",),
            _open_onnxruntime_cuda, why_not=_why_not_onnxruntime_cuda, is_gpu=True)
)  # fmt: skip


def open_engine(
    path: Path | str,
    *,
    backend: BackendName = "auto",
    threads: int | None = None,
    precision: Precision | None = None,
    name: str | None = None,
    options: EngineOptions | None = None,
    any_thread: bool = False,
) -> Engine:
    """Opens a network on the calling thread, which then owns it.

    Args:
        path: .onnx or .tflite file.
        backend: a name, or "auto": the options' order of preference for this model (a recorded
            measurement), else the default of the file's kind. `engine.backend` says which it was.
        threads: None takes the options' count for this model.
        precision: None takes the options'; a back-end that cannot compute in it is an error.
        name: the model's name in the manifest, for messages and to look up preferences; None: the stem.
        options: None takes the defaults.
        any_thread: see keyface.engines.engine.

    Raises:
        EngineError: an unknown or missing back-end, a file it does not read, a file that is damaged.
    """
    path = Path(path)
    name = name or path.stem
    options = options or EngineOptions()
    chosen = _choose(path, name, backend, options)
    if precision is not None and precision not in chosen.precisions:
        legal = ", ".join(chosen.precisions)
        raise EngineError(f"back-end {chosen.name} cannot compute in {precision}.", f"Legal: {legal}.")
    if not path.is_file():
        raise EngineError(f"{name}: there is no file {path}.", "Run 'keyface models pull'.")
    return chosen.open(
        OpenRequest(
            path=path,
            name=name,
            threads=threads or options.threads_by_model.get(name, options.threads) or None,
            precision=precision or _preferred_precision(chosen, name, options),
            allow_spinning=options.allow_spinning,
            any_thread=any_thread,
        )
    )


def _preferred_precision(backend: Backend, name: str, options: EngineOptions) -> Precision:
    wished = options.precision
    is_wanted = name in options.reduced_precision and wished in backend.precisions
    return wished if is_wanted and backend.computes_in(wished) else "f32"


def _choose(path: Path, name: str, backend: str, options: EngineOptions) -> Backend:
    readers = [b for b in BACKENDS.values() if path.suffix in b.suffixes]
    if not readers:
        kinds = ", ".join(sorted({suffix for b in BACKENDS.values() for suffix in b.suffixes}))
        raise EngineError(f"{name}: no back-end reads {path.suffix or 'this'} files.", f"Legal: {kinds}.")
    if backend != "auto":
        return _named(backend, path, name)
    wished = options.backends.get(name, ())
    for candidate in wished:
        if candidate in BACKENDS and BACKENDS[candidate].is_usable:
            return _named(candidate, path, name)
    return _named(readers[0].name if not wished else wished[-1], path, name)


def _named(backend: str, path: Path, name: str) -> Backend:
    if backend not in BACKENDS:
        raise EngineError(f"unknown back-end {backend!r}.", f"Legal: auto, {', '.join(BACKENDS)}.")
    found = BACKENDS[backend]
    if path.suffix not in found.suffixes:
        legal = ", ".join(b.name for b in BACKENDS.values() if path.suffix in b.suffixes)
        raise EngineError(
            f"{name}: back-end {backend} does not read {path.suffix} files.", f"Legal: {legal}."
        )
    if not found.is_installed:
        raise EngineError(f"back-end {backend} is not installed.", f"Install it: {found.install}")
    if reason := found.why_not():
        raise EngineError(f"back-end {backend} cannot be used: {reason}.", f"Install it: {found.install}")
    return found
