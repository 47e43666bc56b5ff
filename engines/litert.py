"""LiteRT (TensorFlow Lite) on the CPU, for .tflite files such as MediaPipe's networks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from keyface.configs.errors import EngineError
from keyface.engines.engine import Array, CheckedEngine, TensorSpec


class LiteRtEngine(CheckedEngine):
    """Runs a .tflite file with the XNNPACK delegate. Input shapes are those of the file, batch 1.

    Args:
        source: path of the file, or its bytes.
        name: for messages; None takes the file's stem.
        threads: None takes one, which is fastest for networks as small as these.
        any_thread: see keyface.engines.engine.

    Raises:
        EngineError: the file cannot be opened.
    """

    backend = "litert"

    def __init__(
        self,
        source: Path | str | bytes,
        *,
        name: str | None = None,
        threads: int | None = None,
        any_thread: bool = False,
    ) -> None:
        name = name or ("network" if isinstance(source, bytes) else Path(source).stem)
        try:
            # Bytes in both cases: the file is read once, and a path with odd characters cannot fail.
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            with _quiet():
                self._interpreter = Interpreter(model_content=content, num_threads=threads or 1)
                self._interpreter.allocate_tensors()
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"{name} cannot be opened by LiteRT: {str(error).strip()[:300]}",
                "Check the file with 'keyface models verify'.",
            ) from error
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        self._indices = {str(d["name"]): int(d["index"]) for d in (*inputs, *outputs)}
        super().__init__(
            name=name,
            inputs=tuple(_spec(detail) for detail in inputs),
            outputs=tuple(_spec(detail) for detail in outputs),
            any_thread=any_thread,
        )

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._indices[name], np.ascontiguousarray(array))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(self._indices[name]) for name in self.outputs}

    def _release(self) -> None:
        del self._interpreter


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps LiteRT's note about its delegate, which has no switch, off the user's terminal.

    Its logger is C code, so file descriptor 2 itself points elsewhere for these milliseconds. Errors
    arrive as exceptions all the same.
    """
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all: nothing to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _spec(detail: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(n) for n in detail["shape"])
    return TensorSpec(str(detail["name"]), np.dtype(detail["dtype"]).name, shape)
