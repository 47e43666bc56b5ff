"""ONNX Runtime on the CPU: the default back-end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from keyface.configs.errors import EngineError
from keyface.engines.engine import Array, CheckedEngine, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_ERRORS_ONLY = 3


class OrtEngine(CheckedEngine):
    """Runs an ONNX file with ONNX Runtime's CPU provider, float32 throughout.

    Args:
        source: path of the file, or its bytes.
        name: for messages; None takes the file's stem.
        threads: within one operator; None leaves it to ONNX Runtime (all cores).
        allow_spinning: idle threads burn a core while they wait. Good for one network alone, bad when
            several stages share few cores, so the default is off.
        any_thread: see keyface.engines.engine.

    Raises:
        EngineError: the file cannot be opened as an ONNX model.
    """

    backend = "onnxruntime"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    def __init__(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        threads: int | None = None,
        allow_spinning: bool = False,
        any_thread: bool = False,
    ) -> None:
        model = source if isinstance(source, bytes) else str(source)
        name = name or ("network" if isinstance(source, bytes) else Path(source).stem)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
        try:
            self._session = ort.InferenceSession(model, options, providers=list(self.providers))
        except Exception as error:  # its errors have no common base
            raise EngineError(
                f"{name} cannot be opened by ONNX Runtime: {str(error).strip()[:300]}",
                "Check the file with 'keyface models verify'.",
            ) from error
        inputs = tuple(_spec(node) for node in self._session.get_inputs())
        outputs = tuple(_spec(node) for node in self._session.get_outputs())
        # Exporters often freeze the batch of the output although the input's is open.
        if inputs and all(spec.shape and spec.shape[0] is None for spec in inputs):
            outputs = tuple(
                TensorSpec(o.name, o.dtype, (None, *o.shape[1:])) if o.shape else o for o in outputs
            )
        super().__init__(name=name, inputs=inputs, outputs=outputs, any_thread=any_thread)
        self._output_names = list(self.outputs)

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        # No output buffers are bound, so ONNX Runtime allocates new arrays on each call.
        return dict(zip(self._output_names, self._session.run(self._output_names, feed), strict=True))

    def _release(self) -> None:
        del self._session


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise EngineError(f"tensor {node.name!r}: got {node.type}, want one of {', '.join(_DTYPES)}.")
    shape = tuple(n if isinstance(n, int) and n > 0 else None for n in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)
