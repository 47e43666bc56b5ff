"""Opens and builds networks on a graphics card; everything here is imported only when one is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyface.configs.errors import EngineError
from keyface.configs.schema import Precision
from keyface.engines.device_memory import Device, open_device
from keyface.engines.engine_cache import EngineCache
from keyface.engines.gpu_networks import GPU_NETWORKS, GpuNetwork, gpu_network, graph_for, key_for
from keyface.engines.tensorrt_build import Progress, build_plan
from keyface.engines.tensorrt_engine import TensorRtEngine
from keyface.engines.tensorrt_flavour import Flavour, FlavourName, load_flavour

log = logging.getLogger(__name__)

OpenDevice = Callable[[], Device]


def open_tensorrt(
    path: Path,
    name: str,
    precision: Precision,
    flavour_name: FlavourName,
    *,
    cache: EngineCache | None = None,
    opener: OpenDevice = open_device,
) -> TensorRtEngine:
    """The cached engine of a network, on the first card. Nothing is built here.

    Args:
        path: the float32 ONNX file that the engine must have been built from.
        name: as in `GPU_NETWORKS`.

    Raises:
        EngineError: no library, no card, or no engine that can be used; says which, and what to do.
    """
    network = gpu_network(name)
    flavour = load_flavour(flavour_name)
    device = opener()
    try:
        flavour.check_card(device.info)
        key = key_for(network, path, precision, flavour, (device.info.architecture,))
        plan = (cache or EngineCache()).find(key).read_bytes()
    except BaseException:
        device.close()
        raise
    most = max((r.most[0] for r in network.ranges.values()), default=None)
    return TensorRtEngine(plan, flavour=flavour, device=device, name=name, max_batch=most)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One engine to build: a network, its ONNX file, and the precision."""

    network: GpuNetwork
    path: Path
    precision: Precision


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What became of a request: where it lies, whether it was built now, or why it was not."""

    model: str
    precision: Precision
    path: Path | None
    is_new: bool
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model, "precision": self.precision, "file": self.path.name if self.path else None,
            "bytes": self.path.stat().st_size if self.path else 0, "is_new": self.is_new,
            "problem": self.problem,
        }  # fmt: skip


def requests_for(
    paths: Mapping[str, Path], precisions: Iterable[Precision] | None = None, *, names: Iterable[str] = ()
) -> list[BuildRequest]:
    """What to build.

    Args:
        paths: manifest entry -> verified ONNX file, of each network's `source`.
        precisions: None: half for every network, and float32 too for those that decide who somebody becomes. What
            needs float32 gets it whatever is asked.
        names: networks; none: all of the chain.
    """
    requests = []
    for name in names or GPU_NETWORKS:
        network = gpu_network(name)
        wanted = precisions or (("f16", "f32") if network.decides else ("f16",))
        if network.needs_float32:
            wanted = ("f32",)
        requests += [BuildRequest(network, paths[network.source], precision) for precision in wanted]
    return requests


def build_engines(
    requests: Iterable[BuildRequest],
    flavour: Flavour,
    architectures: tuple[str, ...],
    *,
    is_ahead: bool,
    cache: EngineCache | None = None,
    force: bool = False,
    on_progress: Callable[[BuildRequest], Progress] | None = None,
) -> list[BuildResult]:
    """Builds what is missing; one that fails does not stop the others.

    Args:
        architectures: what for; with `is_ahead` they are built without a card, else they name the card.
        force: build what is in order, too.
        on_progress: gives the progress callback of each request.
    """
    cache = cache or EngineCache()
    results = []
    for request in requests:
        key = key_for(request.network, request.path, request.precision, flavour, architectures)

        def build(request: BuildRequest = request) -> bytes:
            graph = graph_for(request.network, request.path, request.precision)
            return build_plan(
                flavour,
                graph,
                name=request.network.name,
                ranges=request.network.ranges,
                architectures=architectures if is_ahead else (),
                progress=on_progress(request) if on_progress else None,
            ).content

        try:
            path, is_new = cache.ensure(key, build, force=force)
            results.append(BuildResult(request.network.name, request.precision, path, is_new))
        except EngineError as error:
            results.append(BuildResult(request.network.name, request.precision, None, False, str(error)))
    return results
