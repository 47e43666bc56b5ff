"""ONNX Runtime on a graphics card: where TensorRT is missing, or has no code for the card."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from keyface.configs.errors import DeviceError
from keyface.engines.ort import OrtEngine

PROVIDER = "CUDAExecutionProvider"
_INSTALL = "Install it: pip install onnxruntime-gpu (in place of onnxruntime)"


def why_not() -> str:
    """Why this ONNX Runtime cannot use a card; empty when it can try."""
    return "" if PROVIDER in ort.get_available_providers() else "this onnxruntime is built for the CPU only"


class OrtCudaEngine(OrtEngine):
    """An ONNX file on the first card, float32.

    ONNX Runtime goes to the CPU without a word when its CUDA provider cannot start; here that is an error.

    Raises:
        DeviceError: the card, its driver or a library is missing.
        EngineError: the file cannot be opened as an ONNX model.
    """

    backend = "onnxruntime_cuda"
    providers = (PROVIDER, "CPUExecutionProvider")

    def __init__(self, source: Path | str | bytes, *, name: str | None = None) -> None:
        reason = why_not()
        if reason:
            raise DeviceError(f"onnxruntime_cuda cannot be used: {reason}.", _INSTALL)
        super().__init__(source, name=name)
        if self._session.get_providers()[0] != PROVIDER:
            self._release()
            raise DeviceError(
                "ONNX Runtime could not start its CUDA provider (driver, CUDA or cuDNN missing or too old).",
                "See 'keyface doctor', or run on the CPU: --backend onnxruntime",
            )
