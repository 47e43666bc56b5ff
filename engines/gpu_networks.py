"""The networks of the chain as a graphics card runs them: from which ONNX, in which sizes, what stays float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keyface.configs.errors import EngineError
from keyface.configs.schema import Precision
from keyface.engines.archive import sha256_of
from keyface.engines.engine_cache import EngineKey
from keyface.engines.tensorrt_build import ShapeRange
from keyface.engines.tensorrt_flavour import Flavour

MAX_FACES = 8  # of one batch
CONVERTER_VERSION = 1  # part of every engine's key: raise it when what `graph_for` gives changes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNetwork:
    """One network.

    Attributes:
        name: as the chain calls it.
        source: the manifest's entry with its ONNX.
        ranges: sizes of each input that is open.
        opens_batch: the file says a batch of 1, and takes any.
        keeps_start: what comes before the first layer stays in float32 (see `half_precision`).
        decides: what it says decides who somebody becomes, so it runs in float32 unless asked otherwise.
        needs_float32: it works with coordinates, which half precision cannot hold: never anything else.
    """

    name: str
    source: str
    ranges: Mapping[str, ShapeRange] = field(default_factory=dict)
    opens_batch: bool = False
    keeps_start: bool = False
    decides: bool = False
    needs_float32: bool = False


def _batch(*rest: int, most: int = MAX_FACES) -> ShapeRange:
    return ShapeRange((1, *rest), (1, *rest), (most, *rest))


GPU_NETWORKS: dict[str, GpuNetwork] = {
    network.name: network
    for network in (
        GpuNetwork(
            name="yunet_dynamic",
            source="yunet_dynamic",
            ranges={"input": ShapeRange((1, 3, 32, 32), (1, 3, 384, 640), (1, 3, 2048, 2048))},
        ),
        GpuNetwork(
            name="face_mesh", source="face_mesh_onnx", ranges={"input_12": _batch(256, 256, 3)}, decides=True
        ),
        GpuNetwork(name="face_blendshapes", source="face_blendshapes_onnx", keeps_start=True),
        GpuNetwork(
            name="sface_fast",
            source="sface_fast",
            ranges={"data": _batch(3, 112, 112)},
            opens_batch=True,
            decides=True,
        ),
        GpuNetwork(
            name="mobilefacenet",
            source="mobilefacenet",
            ranges={"image": _batch(3, 112, 112)},
            decides=True,
        ),
        GpuNetwork(name="mapping", source="mapping", ranges={"z": _batch(512)}, decides=True),
        GpuNetwork(name="synthesis_256", source="synthesis_256", ranges={"w_plus": _batch(23, 512)}),
        GpuNetwork(
            name="synthesis_1024", source="synthesis_1024", ranges={"w_plus": _batch(23, 512, most=4)}
        ),
        GpuNetwork(
            name="warp_source",
            source="warp_source",
            ranges={
                "image": _batch(3, 256, 256),
                "points": _batch(478, 3),
            },
            needs_float32=True,
        ),
        GpuNetwork(
            name="warp_motion",
            source="warp_motion",
            ranges={
                "source_points": _batch(478, 3),
                "second_points": _batch(478, 3),
                "driving_points": _batch(478, 3),
                "controls": _batch(108),
            },
            needs_float32=True,
        ),
        GpuNetwork(
            name="warp_decode",
            source="warp_decode",
            ranges={
                "image": _batch(3, 256, 256),
                "second": _batch(3, 256, 256),
                "features": _batch(48, 64, 64),
                "details": _batch(16, 128, 128),
                "grid_64": _batch(64, 64, 2),
                "grid_128": _batch(128, 128, 2),
                "grid_256": _batch(256, 256, 2),
                "raster_64": _batch(16, 64, 64),
                "raster_128": _batch(9, 128, 128),
                "grid_face": _batch(144, 144, 2),
                "grid_teeth": _batch(96, 144, 2),
                "opening": _batch(1, 96, 144),
                "controls": _batch(108),
            },
        ),
    )
}


def gpu_network(name: str) -> GpuNetwork:
    """By the chain's name. Raises EngineError with the known ones."""
    if name not in GPU_NETWORKS:
        raise EngineError(
            f"{name}: it is not known in which sizes a card should run it.",
            f"Known: {', '.join(GPU_NETWORKS)}.",
        )
    return GPU_NETWORKS[name]


def graph_for(network: GpuNetwork, path: Path, precision: Precision) -> bytes:
    """The ONNX to build from: batch opened, in the precision asked for. Raises EngineError."""
    import onnx

    from keyface.engines import half_precision, onnx_products

    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's own classes
        raise EngineError(f"{path} is not an ONNX file: {error}.", "Run 'keyface models pull'.") from error
    if network.opens_batch:
        model = half_precision.open_batch(model)
    if precision == "f16" and network.needs_float32:
        raise EngineError(f"{network.name}: half precision cannot hold its coordinates.", "Legal: f32.")
    if precision == "f16":
        kept = half_precision.nodes_before_first_layer(model) if network.keeps_start else ()
        model = half_precision.to_half(model, keep_float32=kept)
    elif precision == "f32":
        model = onnx_products.products_as_convolutions(model)
    else:
        raise EngineError(
            f"{network.name}: TensorRT engines are not built in {precision}.", "Legal: f16, f32."
        )
    return bytes(model.SerializeToString(deterministic=True))


def key_for(
    network: GpuNetwork, path: Path, precision: Precision, flavour: Flavour, architectures: tuple[str, ...]
) -> EngineKey:
    """What an engine of this network depends on."""
    return EngineKey(
        model=network.name,
        onnx_sha256=sha256_of(path),
        converter=CONVERTER_VERSION,
        flavour=flavour.name,
        flavour_version=flavour.version,
        architectures=architectures,
        precision=precision,
        shapes="; ".join(f"{name} {r.text()}" for name, r in sorted(network.ranges.items())),
    )
