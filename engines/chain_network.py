"""Opens the chain's networks by name: on the back-end asked for, or on the best that works, and says which."""

from __future__ import annotations

import logging
from dataclasses import replace

from keyface.configs.errors import EngineError, ModelStoreError
from keyface.configs.schema import BackendName, EngineOptions, Precision
from keyface.engines.engine import Engine
from keyface.engines.gpu_networks import GPU_NETWORKS
from keyface.engines.open import BACKENDS, open_engine
from keyface.engines.soft_landing import SoftLanding
from keyface.engines.store import ModelStore

log = logging.getLogger(__name__)

_told: set[str] = set()


def open_chain_network(
    store: ModelStore, name: str, *, backend: BackendName = "auto", options: EngineOptions | None = None
) -> Engine:
    """Opens a network on the calling thread.

    A back-end asked for by name is used or an error is raised. With "auto" the options' order is tried;
    back-ends for graphics cards that cannot be used there are passed over, each with a warning that says why.
    A network on a card goes on on the CPU when the card is lost (see `SoftLanding`).

    Args:
        name: as the chain calls it, see `GPU_NETWORKS`.

    Raises:
        EngineError: the back-end asked for cannot be used, or none can.
        ModelStoreError: the file is missing.
    """
    options = options or EngineOptions()
    on_cpu = _without_gpu(options)
    path = store.path(name)
    if backend != "auto" and BACKENDS[backend].is_gpu:
        return _open_on_card(store, name, backend, options)
    if backend == "auto":
        for wished in options.backends.get(name, ()):
            if wished not in BACKENDS or not BACKENDS[wished].is_gpu:
                break  # the CPU's turn
            try:
                return _open_on_card(store, name, wished, options)  # type: ignore[arg-type]
            except (EngineError, ModelStoreError) as error:
                _tell_once(f"{wished} is passed over: {error}")
    # LiteRT alone reads .tflite: a name chooses among those that read ONNX.
    chosen: BackendName = backend if path.suffix == ".onnx" else "auto"
    return open_engine(path, name=name, backend=chosen, options=on_cpu)


def _tell_once(message: str) -> None:
    """Most reasons hold for every network: each is told for the first."""
    if message not in _told:
        _told.add(message)
        log.warning("%s", message)


def uses_card(backend: BackendName, options: EngineOptions) -> bool:
    """Whether a chain with these may run on a graphics card."""
    if backend != "auto":
        return BACKENDS[backend].is_gpu
    return any(b in BACKENDS and BACKENDS[b].is_gpu for order in options.backends.values() for b in order)


def _open_on_card(store: ModelStore, name: str, backend: BackendName, options: EngineOptions) -> Engine:
    found = BACKENDS[backend]
    network = GPU_NETWORKS.get(name)
    path = store.path(network.source if network is not None else name)
    engine = open_engine(path, name=name, backend=backend, precision=_precision(name, backend, options))
    cpu_options = _without_gpu(options)
    log.info("%s runs on %s", name, found.name)
    return SoftLanding(
        engine,
        lambda: open_engine(store.path(name), name=name, options=cpu_options),
        on_loss=options.on_device_loss,
    )


def _precision(name: str, backend: BackendName, options: EngineOptions) -> Precision:
    """Half where the back-end can and the options allow less than float32, but not for what decides."""
    network = GPU_NETWORKS.get(name)
    is_exact = network is None or network.decides or network.needs_float32
    may_be_half = not is_exact and options.precision != "f32"
    return "f16" if may_be_half and "f16" in BACKENDS[backend].precisions else "f32"


def _without_gpu(options: EngineOptions) -> EngineOptions:
    """The options with back-ends for cards taken out of every order."""
    orders = {
        name: tuple(b for b in order if b not in BACKENDS or not BACKENDS[b].is_gpu)
        for name, order in options.backends.items()
    }
    return replace(options, backends={name: order for name, order in orders.items() if order})
