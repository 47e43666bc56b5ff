"""Times single networks on the back-ends that are installed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.configs.manifest import Manifest
from keyface.configs.schema import Precision
from keyface.engines.engine import Array, Engine
from keyface.engines.open import BACKENDS, open_engine

NETWORK_SUFFIXES = (".onnx", ".tflite")
_ANY_SIDE = 320  # px, where a network takes pictures of any size


@dataclass(frozen=True, slots=True)
class EngineTiming:
    """One network on one back-end: milliseconds of one run, and of opening it."""

    model: str
    backend: str
    precision: Precision
    threads: int
    runs: int
    open_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to the microsecond."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


def networks_of_the_chain(manifest: Manifest) -> tuple[str, ...]:
    """Default models that are run, without those that only serve to make a faster form of themselves."""
    names = [n for n in manifest.group("default") if Path(manifest[n].file).suffix in NETWORK_SUFFIXES]
    replaced = {
        parent for n in names for parent in manifest[n].requires if manifest[parent].card == manifest[n].card
    }
    return tuple(n for n in names if n not in replaced)


def time_models(
    files: Mapping[str, Path], *, threads: Sequence[int] = (1, 2), budget_s: float = 0.5
) -> Iterator[EngineTiming | tuple[str, str]]:
    """Times every file on every installed back-end that reads it, in each of its precisions.

    Args:
        files: manifest name -> path of an .onnx or .tflite file.
        threads: thread counts to try.
        budget_s: measuring time for each combination.
    Yields:
        A timing, or (what, why) for a combination that could not be run.
    """
    for name, path in files.items():
        for backend in BACKENDS.values():
            if path.suffix not in backend.suffixes or not backend.is_usable or backend.is_gpu:
                continue
            for precision in backend.precisions:
                for count in threads:
                    try:
                        yield _time_one(name, path, backend.name, precision, count, budget_s)
                    except EngineError as error:
                        yield f"{name} on {backend.name} in {precision}, threads {count}", str(error)


def _time_one(
    name: str, path: Path, backend: str, precision: Precision, threads: int, budget_s: float
) -> EngineTiming:
    began = time.perf_counter()
    # Back-ends are checked against their names when they are registered.
    with open_engine(path, backend=backend, threads=threads, precision=precision, name=name) as engine:  # type: ignore[arg-type]
        opened_ms = (time.perf_counter() - began) * 1e3
        durations_ms = time_engine(engine, budget_s=budget_s)
    p50, p95, p99 = (float(v) for v in np.percentile(durations_ms, (50, 95, 99)))
    return EngineTiming(name, backend, precision, threads, len(durations_ms), opened_ms, p50, p95, p99)


def time_engine(
    engine: Engine, *, budget_s: float = 0.5, min_runs: int = 5, max_runs: int = 300
) -> list[float]:
    """Milliseconds of single runs on random input, after two runs that do not count."""
    inputs = random_inputs(engine)
    for _ in range(2):
        engine.run(inputs)
    durations_ms: list[float] = []
    end = time.perf_counter() + budget_s
    while len(durations_ms) < min_runs or (time.perf_counter() < end and len(durations_ms) < max_runs):
        began = time.perf_counter()
        engine.run(inputs)
        durations_ms.append((time.perf_counter() - began) * 1e3)
    return durations_ms


def random_inputs(engine: Engine) -> dict[str, Array]:
    """Arrays that fit: the first free size is 1 (a batch of one), others are that of a small picture."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, spec in engine.inputs.items():
        shape = [n if n is not None else (1 if axis == 0 else _ANY_SIDE) for axis, n in enumerate(spec.shape)]
        arrays[name] = rng.random(shape).astype(np.dtype(spec.dtype))
    return arrays
