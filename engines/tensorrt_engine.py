"""One network on a card through TensorRT: own stream, named bindings, pinned buffers, CUDA graphs."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keyface.configs.errors import DeviceError, DeviceLostError, DeviceMemoryError, EngineError
from keyface.engines.device_memory import Bytes, Device
from keyface.engines.engine import Array, CheckedEngine, MadeInputs, TensorSpec
from keyface.engines.tensorrt_flavour import Flavour, Messages

log = logging.getLogger(__name__)

_MAX_BINDINGS = 4  # sets of buffers, one for each recent combination of input shapes
_RUNS_BEFORE_CAPTURE = 2  # the first run of a shape may allocate, which no capture may
_NO_MEMORY = re.compile(r"out of memory|outofmemory|memory allocation", re.IGNORECASE)
_LOST = re.compile(
    r"illegal (memory )?address|illegaladdress|unspecified launch failure|launchfailure|device.*(lost|unavailable)"
    r"|ecc|context is destroyed",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Buffer:
    """Card memory of one tensor, and the page-locked memory that its copies go through."""

    name: str
    address: int
    pinned: Bytes
    host: Array


@dataclass(slots=True)
class _Binding:
    """Buffers for one combination of input shapes."""

    shapes: dict[str, tuple[int, ...]]
    inputs: list[_Buffer] = field(default_factory=list)
    outputs: list[_Buffer] = field(default_factory=list)
    n_runs: int = 0
    graph: int | None = None


class TensorRtEngine(CheckedEngine):
    """Runs a serialised engine. Everything it owns lives on the thread that opens it.

    One upload and one download a tensor; copies and kernels are queued on a stream of its own, so engines on
    different threads overlap. Where TensorRT-RTX captures CUDA graphs itself it is told to; else the third
    run of the same shapes is captured, with the copies of its outputs, and replayed from then on, until the
    shapes change.

    A batch larger than memory takes is run in halves from then on, and `notes` says so.

    Args:
        plan: what `tensorrt_build.build_plan` made, by the same library version, for this card.
        flavour: the library.
        device: the card; closed with the engine.
        name: for messages.
        max_batch: largest batch that the engine was built for; None: whatever comes is passed on.
        uses_graphs: whether CUDA graphs are used where they can be.

    Raises:
        EngineError: the plan is refused; says why.
        DeviceError: memory, or the card, fails.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        flavour: Flavour,
        device: Device,
        name: str,
        max_batch: int | None = None,
        uses_graphs: bool = True,
    ) -> None:
        self.backend = flavour.name
        self.notes: list[str] = []
        self._trt, self._device = flavour.module, device
        self._messages = Messages(flavour.module)
        self._batch_limit = max_batch
        self._bindings: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], _Binding] = OrderedDict()
        self._bound: _Binding | None = None
        self._stream = 0
        self._captures = False
        self._context: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        try:
            with device.active():
                self._open(plan, flavour, name, uses_graphs)
                inputs, outputs = self._specs()
        except BaseException:
            self._context = self._engine = self._runtime = None
            device.close()
            raise
        super().__init__(name=name, inputs=inputs, outputs=outputs)

    def _open(self, plan: bytes, flavour: Flavour, name: str, uses_graphs: bool) -> None:
        self._runtime = self._trt.Runtime(self._messages.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._failure(f"{name}: {flavour.name} refuses the engine")
        captures_itself = uses_graphs and hasattr(self._trt, "CudaGraphStrategy")
        if captures_itself:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure(f"{name}: {flavour.name} cannot prepare the engine")
        self._captures = uses_graphs and not captures_itself and self._device.has_graphs
        self._stream = self._device.stream()

    def _failure(self, what: str) -> EngineError:
        """The error for a call of TensorRT that failed, from what it logged."""
        reason = self._messages.take()
        if _NO_MEMORY.search(reason):
            return DeviceMemoryError(f"{what}: {reason}.", "Close what else runs on the card.")
        if _LOST.search(reason):
            return DeviceLostError(f"{what}: {reason}.", "Start again; see the system log.")
        return EngineError(f"{what}: {reason}.", "Run 'keyface engines build --force'.")

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        engine, mode = self._engine, self._trt.TensorIOMode
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))).name
            shape = tuple(None if n < 0 else int(n) for n in engine.get_tensor_shape(name))
            chosen = inputs if engine.get_tensor_mode(name) == mode.INPUT else outputs
            chosen.append(TensorSpec(str(name), dtype, shape))
        return tuple(inputs), tuple(outputs)

    # -- running

    def _infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._device.active():
            n_items = self._batch_of(inputs)
            while True:
                limit = self._batch_limit
                try:
                    if n_items is None or limit is None or n_items <= limit:
                        return self._run(inputs)
                    return self._run_in_parts(inputs, n_items, limit)
                except DeviceMemoryError as error:
                    self._make_smaller(n_items, error)

    def _batch_of(self, inputs: Mapping[str, Array]) -> int | None:
        """The batch, where the network takes any; else None."""
        if not all(spec.shape and spec.shape[0] is None for spec in self.inputs.values()):
            return None
        return min(len(array) for array in inputs.values())

    def _run_in_parts(self, inputs: Mapping[str, Array], n_items: int, limit: int) -> dict[str, Array]:
        parts = [
            self._run({name: array[start : start + limit] for name, array in inputs.items()})
            for start in range(0, n_items, limit)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _make_smaller(self, n_items: int | None, error: DeviceMemoryError) -> None:
        """Halves the batch; raises `error` when it is one already."""
        self._drop_bindings()
        now = min(n_items or 1, self._batch_limit or n_items or 1)
        if now <= 1:
            raise error
        self._batch_limit = now // 2
        note = f"{self.name}: too little memory on the card, batches of {self._batch_limit} from now on"
        self.notes.append(note)
        log.warning("%s", note)

    def run_made(self, made: MadeInputs) -> dict[str, Array]:
        """As `Engine`: the inputs are made in the card's memory, and only outputs are copied."""
        self._check_thread()
        self._check_made(made)
        outputs = self._translated(lambda: self._infer_made(made))
        self._check_outputs(outputs)
        return outputs

    def _check_made(self, made: MadeInputs) -> None:
        for name, spec in self.inputs.items():
            if name not in made.shapes:
                raise EngineError(f"{self.name} inputs: {name!r} is not made.")
            if spec.dtype != "float32":
                raise EngineError(f"{self.name} input {name!r}: made as float32, want {spec.dtype}.")

    def _infer_made(self, made: MadeInputs) -> dict[str, Array]:
        with self._device.active():
            binding = self._bind(dict(made.shapes))
            made.on_card(self._device, {b.name: b.address for b in binding.inputs}, self._stream)
            return self._compute(binding)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._bind({name: array.shape for name, array in inputs.items()})
        for buffer in binding.inputs:
            np.copyto(buffer.host, inputs[buffer.name])
            self._device.copy_in(buffer.address, buffer.host, self._stream)
        return self._compute(binding)

    def _compute(self, binding: _Binding) -> dict[str, Array]:
        """Runs on what lies in the input buffers, or will by then."""
        if binding.graph is None and self._captures and binding.n_runs >= _RUNS_BEFORE_CAPTURE:
            self._capture(binding)
        if binding.graph is not None:
            self._device.launch(binding.graph, self._stream)
        else:
            self._enqueue(binding)
        self._device.synchronise(self._stream)
        binding.n_runs += 1
        # The pinned buffers are written again by the next run, hence the copies.
        return {buffer.name: np.array(buffer.host) for buffer in binding.outputs}

    def _enqueue(self, binding: _Binding) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._failure(f"{self.name} failed on {self.backend}")
        for buffer in binding.outputs:
            self._device.copy_out(buffer.host, buffer.address, self._stream)

    def _capture(self, binding: _Binding) -> None:
        """Captures what `_enqueue` queues; where that cannot be done it is noted, and never tried again."""
        device, problem = self._device, ""
        try:
            device.begin_capture(self._stream)
            try:
                self._enqueue(binding)
            except DeviceError:
                raise
            except EngineError as error:
                problem = error.problem
            graph = device.end_capture(self._stream)
            if problem:
                device.free_graph(graph)
            else:
                binding.graph = graph
        except (DeviceLostError, DeviceMemoryError):
            raise
        except DeviceError as error:
            problem = error.problem
        if problem:
            self._captures = False
            self.notes.append(f"{self.name}: runs without a CUDA graph: {problem}")
            log.warning("%s", self.notes[-1])

    # -- buffers

    def _bind(self, shapes: dict[str, tuple[int, ...]]) -> _Binding:
        """The buffers for these shapes, with the context set to them."""
        key = tuple(sorted(shapes.items()))
        binding = self._bindings.get(key)
        if binding is not None and binding is self._bound:
            return binding
        if self._bound is not None:
            # A graph is good only as long as the context keeps the shapes that it was captured with.
            self._drop_graph(self._bound)
            self._bound.n_runs = 0
        self._bound = None
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"{self.name} input {name!r}: {self.backend} refuses the shape {shape}")
        if binding is None:
            while len(self._bindings) >= _MAX_BINDINGS:
                self._free(self._bindings.popitem(last=False)[1])
            binding = self._allocate(shapes)
            self._bindings[key] = binding
        self._bindings.move_to_end(key)
        for buffer in (*binding.inputs, *binding.outputs):
            if not self._context.set_tensor_address(buffer.name, buffer.address):
                raise self._failure(f"{self.name}: {self.backend} refuses the buffer of {buffer.name!r}")
        self._bound = binding
        return binding

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> _Binding:
        binding = _Binding(shapes)
        try:
            for name, spec in self.inputs.items():
                binding.inputs.append(self._buffer(spec, shapes[name]))
            for name, spec in self.outputs.items():
                shape = tuple(int(n) for n in self._context.get_tensor_shape(name))
                binding.outputs.append(self._buffer(spec, shape))
        except BaseException:
            self._free(binding)
            raise
        return binding

    def _buffer(self, spec: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        dtype = np.dtype(spec.dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        address = self._device.allocate(n_bytes)
        try:
            pinned = self._device.pinned(n_bytes)
        except BaseException:
            self._device.free(address)
            raise
        return _Buffer(spec.name, address, pinned, pinned.view(dtype).reshape(shape))

    def _free(self, binding: _Binding) -> None:
        self._drop_graph(binding)
        for buffer in (*binding.inputs, *binding.outputs):
            self._device.free(buffer.address)
            self._device.free_pinned(buffer.pinned)

    def _drop_graph(self, binding: _Binding) -> None:
        if binding.graph is not None:
            graph, binding.graph = binding.graph, None
            self._device.free_graph(graph)

    def _drop_bindings(self) -> None:
        self._bound = None
        while self._bindings:
            self._free(self._bindings.popitem()[1])

    def _release(self) -> None:
        try:
            with self._device.active():
                self._drop_bindings()
                self._context = self._engine = self._runtime = None
                self._device.free_stream(self._stream)
        except DeviceError as error:  # a card that is lost takes its memory with it
            log.warning("%s could not be freed: %s", self.name, error)
        finally:
            self._device.close()
