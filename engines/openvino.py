"""OpenVINO on the CPU: optional, reads the same ONNX files as the default back-end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openvino as ov

from keyface.configs.errors import EngineError
from keyface.configs.schema import Precision
from keyface.engines.engine import Array, CheckedEngine, TensorSpec


def computes_in(precision: Precision) -> bool:
    """Whether this processor computes in `precision` itself; bf16 needs AVX-512 BF16, AMX or the like."""
    if precision == "f32":
        return True
    return precision.upper() in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(CheckedEngine):
    """Runs an ONNX file with OpenVINO's CPU plug-in.

    Args:
        source: path of the file, or its bytes.
        name: for messages; None takes the file's stem.
        threads: inference threads; None leaves it to OpenVINO (all cores).
        precision: "f32" agrees with ONNX Runtime to rounding. "bf16" is faster on a CPU with AVX-512
            BF16 or AMX and only approximate: never use it where the output must be the same everywhere.
        any_thread: see keyface.engines.engine.

    Raises:
        EngineError: the file cannot be read or compiled, or the processor lacks the precision.
    """

    backend = "openvino"

    def __init__(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        threads: int | None = None,
        precision: Precision = "f32",
        any_thread: bool = False,
    ) -> None:
        name = name or ("network" if isinstance(source, bytes) else Path(source).stem)
        if not computes_in(precision):
            raise EngineError(f"{name}: this processor does not compute in {precision}.", "Use f32.")
        config: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            core = ov.Core()
            model = core.read_model(source if isinstance(source, bytes) else str(source))
            self._request = core.compile_model(model, "CPU", config).create_infer_request()
        except Exception as error:  # RuntimeError and its own classes
            raise EngineError(
                f"{name} cannot be opened by OpenVINO: {str(error).strip()[:300]}",
                "Check the file with 'keyface models verify', or use the backend onnxruntime.",
            ) from error
        super().__init__(
            name=name,
            inputs=tuple(_spec(port) for port in model.inputs),
            outputs=tuple(_spec(port) for port in model.outputs),
            any_thread=any_thread,
        )

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self._request.infer(feed, share_inputs=True)
        # The request reuses its output buffers on the next call, hence the copies.
        return {name: np.array(self._request.get_tensor(name).data) for name in self.outputs}

    def _release(self) -> None:
        del self._request


def _spec(port: ov.Output) -> TensorSpec:
    dtype = np.dtype(port.get_element_type().to_dtype()).name
    shape = tuple(dim.get_length() if dim.is_static else None for dim in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), dtype, shape)
