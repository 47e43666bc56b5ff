"""A stand-in for the TensorRT module on the numpy card: "builds" by keeping the ONNX, runs with ONNX Runtime.

Plans are a short head and the network's bytes. A plan of another version is refused, as the real ones are.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from keyface.engines.device_memory_numpy import NumpyDevice
from keyface.engines.ort import OrtEngine

_NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.INT64: np.int64}


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)


class FakeTensorRt:
    """The module.

    Args:
        card: whose memory and streams it computes in.
        version: what it says it is.
        ahead: SM numbers that it builds ahead of time, as TensorRT-RTX does; empty: it is TensorRT.
        unsupported: operators that its parser refuses.
    Attributes:
        fails_with: a message: executing fails and logs it, once for each in the list.
        n_builds: engines built. n_executed: kernels run on the card.
    """

    def __init__(
        self,
        card: NumpyDevice,
        *,
        version: str = "11.4.0",
        ahead: tuple[int, ...] = (),
        unsupported: tuple[str, ...] = (),
    ) -> None:
        self.card, self.__version__, self.unsupported = card, version, unsupported
        self.fails_with: list[str] = []
        self.n_builds = self.n_executed = 0
        self.max_batch_in_memory = 1 << 30
        fake = self

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

            def log(self, severity: int, message: str) -> None:
                """Overridden."""

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                head, _, content = plan.partition(b"\n")
                if head != fake.head():
                    self.logger.log(ILogger.ERROR, f"version mismatch: plan {head!r}")
                    return None
                return _Engine(fake, self.logger, content)

        self.ILogger, self.Runtime = ILogger, Runtime
        self.TensorIOMode = IntEnum("TensorIOMode", {"INPUT": 1, "OUTPUT": 2})
        self.Builder = lambda logger: _Builder(self, logger)
        self.OnnxParser = lambda network, logger: _Parser(self, network)
        if ahead:
            self.ComputeCapability = IntEnum(
                "ComputeCapability", {"CURRENT": 1, **{f"SM{n}": n for n in ahead}}
            )

    def head(self) -> bytes:
        return f"PLAN {self.__version__}".encode()

    def nptype(self, dtype: int) -> Any:
        return _NUMPY[dtype]


class _Builder:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> Any:
        return _Network()

    def create_builder_config(self) -> Any:
        return _Config()

    def create_optimization_profile(self) -> Any:
        return _Profile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.trt.n_builds += 1
        if self.trt.fails_with:
            self.logger.log(self.trt.ILogger.ERROR, self.trt.fails_with.pop(0))
            return None
        return self.trt.head() + b"\n" + network.content


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = (least, best, most)


class _Config:
    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.num_compute_capabilities = 1
        self.capabilities: dict[int, int] = {}

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_compute_capability(self, capability: int, index: int) -> None:
        assert index < self.num_compute_capabilities
        self.capabilities[index] = capability


class _Tensor:
    def __init__(self, value: Any) -> None:
        self.name, self.shape = value.name, _dims(value)


class _Network:
    content = b""
    model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, i: int) -> _Tensor:
        return _Tensor(self.model.graph.input[i])


class _ParserError:
    def __init__(self, node: Any) -> None:
        self.node = node

    def desc(self) -> str:
        return "no importer for this operator"

    def node_name(self) -> str:
        return str(self.node.name)

    def node_operator(self) -> str:
        return str(self.node.op_type)


class _Parser:
    def __init__(self, trt: FakeTensorRt, network: _Network) -> None:
        self.trt, self.network = trt, network
        self.errors: list[_ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, i: int) -> _ParserError:
        return self.errors[i]

    def supports_operator(self, kind: str) -> bool:
        return kind not in self.trt.unsupported

    def parse(self, content: bytes) -> bool:
        self.network.content, self.network.model = content, onnx.load_from_string(content)
        nodes = self.network.model.graph.node
        self.errors = [_ParserError(node) for node in nodes if not self.supports_operator(node.op_type)]
        return not self.errors


class _Engine:
    def __init__(self, trt: FakeTensorRt, logger: Any, content: bytes) -> None:
        self.trt, self.logger = trt, logger
        graph = onnx.load_from_string(content).graph
        self.values = {v.name: v for v in (*graph.input, *graph.output)}
        self.input_names = [v.name for v in graph.input]
        self.session = OrtEngine(content, name="stand-in", threads=1, any_thread=True)
        self.num_io_tensors = len(self.values)

    def get_tensor_name(self, i: int) -> str:
        return list(self.values)[i]

    def get_tensor_dtype(self, name: str) -> int:
        return int(self.values[name].type.tensor_type.elem_type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _dims(self.values[name])

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.trt.TensorIOMode
        return mode.INPUT if name in self.input_names else mode.OUTPUT

    def create_execution_context(self, config: Any = None) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        wanted = self.engine.get_tensor_shape(name)
        fits = len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted, strict=True))
        if fits:
            self.shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {
            n: np.zeros(s, self.trt.nptype(self.engine.get_tensor_dtype(n))) for n, s in self.shapes.items()
        }
        # The sizes come from a run on the side, unchecked: zeros may give what is not finite.
        return tuple(self.engine.session._infer(zeros)[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        trt, logger = self.trt, self.engine.logger
        if trt.fails_with:
            logger.log(trt.ILogger.ERROR, trt.fails_with.pop(0))
            return False
        if any(shape[0] > trt.max_batch_in_memory for shape in self.shapes.values()):
            logger.log(trt.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 42 bytes.)")
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        trt.card.enqueue(stream, lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.trt.n_executed += 1
        feeds = {}
        for name, shape in shapes.items():
            dtype = np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            feeds[name] = self.trt.card.view(addresses[name], n_bytes).view(dtype).reshape(shape)
        for name, array in self.engine.session._infer(feeds).items():
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.trt.card.view(addresses[name], data.size)[:] = data
