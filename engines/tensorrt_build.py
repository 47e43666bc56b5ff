"""Builds a TensorRT engine from an ONNX network, for the card that is there or, with TensorRT-RTX, ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keyface.configs.errors import EngineError
from keyface.engines.tensorrt_flavour import Flavour, Messages

Progress = Callable[[str, int, int], None]
"""Takes what is being done, steps done, steps in all."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Sizes that one input may take: smallest, the one to be fastest at, largest."""

    least: Shape
    best: Shape
    most: Shape

    def __post_init__(self) -> None:
        same = len(self.least) == len(self.best) == len(self.most)
        if not same or any(
            not 0 < a <= b <= c for a, b, c in zip(self.least, self.best, self.most, strict=True)
        ):
            raise EngineError(f"shapes {self.least}, {self.best}, {self.most}: want least <= best <= most.")

    def text(self) -> str:
        """One line, for keys and messages: equal ranges give equal text."""
        return "..".join("x".join(map(str, shape)) for shape in (self.least, self.best, self.most))


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A serialised engine and how many layers it was built from."""

    content: bytes
    layers: int


def build_plan(
    flavour: Flavour,
    onnx_bytes: bytes,
    *,
    name: str,
    ranges: Mapping[str, ShapeRange],
    architectures: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> BuiltPlan:
    """Parses and builds. The precision is what the graph says.

    Args:
        name: for messages.
        ranges: for each input with open sizes.
        architectures: what to build for, ahead of time; empty: the card that is there.

    Raises:
        EngineError: operators that are not supported (each is named), sizes or architectures that the
            library cannot do, no card.
    """
    trt, messages = flavour.module, Messages(flavour.module)
    builder = trt.Builder(messages.logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(onnx_bytes):
        raise EngineError(f"{name}: {flavour.name} cannot read this network: {_parse_errors(parser)}.")
    config = builder.create_builder_config()
    _add_profile(builder, network, config, name, ranges)
    _set_architectures(flavour, config, architectures)
    if progress is not None and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{name}: {flavour.name} could not build the engine: {messages.take()}.")
    return BuiltPlan(bytes(plan), int(network.num_layers))


def unsupported_operators(flavour: Flavour, onnx_bytes: bytes) -> tuple[str, ...]:
    """Operator types of a network that the library has no code for, sorted; empty: all are supported."""
    import onnx

    trt, messages = flavour.module, Messages(flavour.module)
    network = trt.Builder(messages.logger).create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, messages.logger)
    kinds = {node.op_type for node in onnx.load_from_string(onnx_bytes).graph.node}
    return tuple(sorted(kind for kind in kinds if not parser.supports_operator(kind)))


def _network_flags(trt: Any) -> int:
    """Strongly typed: the only kind from 11 on, and asked for before, so that both compute the same."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def _parse_errors(parser: Any) -> str:
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        found.append(f"{node}{error.desc()}".strip().rstrip("."))
    return "; ".join(found)[:600] or "no reason given"


def _add_profile(
    builder: Any, network: Any, config: Any, name: str, ranges: Mapping[str, ShapeRange]
) -> None:
    profile, is_open = builder.create_optimization_profile(), False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 not in tuple(tensor.shape):
            continue
        is_open = True
        if tensor.name not in ranges:
            raise EngineError(f"{name}: input {tensor.name!r} has open sizes, and no range is known for it.")
        wanted = ranges[tensor.name]
        profile.set_shape(tensor.name, wanted.least, wanted.best, wanted.most)
    if is_open and config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{name}: the sizes {', '.join(r.text() for r in ranges.values())} are refused.")


def _set_architectures(flavour: Flavour, config: Any, architectures: tuple[str, ...]) -> None:
    if not architectures:
        return
    flavour.check_ahead(architectures)
    config.num_compute_capabilities = len(architectures)
    for i, name in enumerate(architectures):
        config.set_compute_capability(getattr(flavour.module.ComputeCapability, name.upper()), i)


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress monitor; phases nest, and the outermost one is told."""

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.phases[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.phases:
                steps = self.phases.pop(phase_name)
                progress(phase_name, steps, steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.phases:
                progress(phase_name, step, self.phases[phase_name])
            return True

    return _Monitor()
