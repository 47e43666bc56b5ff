"""Engines of TensorRT for `bench_gpu`, built on the spot; and how fast the analysis is with pixels made on the card.

Rows "analysis" run detection and the mesh of N faces on a new 1080p frame each time, from host memory to host
memory: "-host" makes their inputs with OpenCV, "-card" with the kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keyface.configs.schema import Precision
from keyface.engines import device_memory, kernel_compile
from keyface.engines.card_frame import CardFrame
from keyface.engines.engine import MadeInputs
from keyface.engines.gpu_networks import GPU_NETWORKS, graph_for
from keyface.engines.tensorrt_build import build_plan
from keyface.engines.tensorrt_engine import TensorRtEngine
from keyface.engines.tensorrt_flavour import FLAVOURS, FlavourName, is_installed, load_flavour
from keyface.tools import bench_gpu_pixels as pixels


def built_engine(
    folder: Path, flavour_name: FlavourName, network: str, precision: Precision
) -> tuple[TensorRtEngine, float]:
    """An engine of `folder/NETWORK.onnx` for the first card, and the seconds that building it took."""
    known, device = GPU_NETWORKS[network], device_memory.open_device()
    try:
        flavour = load_flavour(flavour_name)
        flavour.check_card(device.info)
        graph = graph_for(known, folder / f"{network}.onnx", precision)
        began = time.perf_counter()
        plan = build_plan(flavour, graph, name=network, ranges=known.ranges).content
        build_s = time.perf_counter() - began
    except BaseException:
        device.close()
        raise
    return TensorRtEngine(plan, flavour=flavour, device=device, name=network), build_s


def analysis_rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], pixels.Row]]]:
    """Every row as its key and what measures it, for each library that is installed."""
    for flavour in FLAVOURS:
        if not is_installed(flavour):
            continue
        for n_faces in map(int, args.batches.split(",")):
            for path in ("host", "card"):
                key = f"analysis/{flavour}-{path}/f16/batch{n_faces}"
                yield key, lambda k=key, f=flavour, n=n_faces, p=path: _analysis(args, k, f, n, p)  # type: ignore[misc]


def _analysis(
    args: argparse.Namespace, key: str, flavour: FlavourName, n_faces: int, path: str
) -> pixels.Row:
    scene = pixels.Scene(n_faces)
    with ExitStack() as stack:
        shown = CardFrame(opener=device_memory.open_device, compiler=kernel_compile.frame_kernels)
        stack.callback(shown.close)
        shown.open()
        detector, mesh = (
            stack.enter_context(built_engine(args.onnx, flavour, name, precision)[0])  # type: ignore[arg-type]
            for name, precision in (("yunet_dynamic", "f16"), ("face_mesh", "f32"))
        )

        def run(image_rgb: pixels.U8) -> None:
            for engine, made in zip((detector, mesh), _inputs(scene, shown, image_rgb), strict=True):
                if path == "card":
                    engine.run_made(made)
                else:
                    engine.run(made.on_host())

        return pixels.row(key, pixels.times_of(run, scene.frames(), args.runs), None)


def _inputs(scene: pixels.Scene, shown: CardFrame, image_rgb: pixels.U8) -> tuple[MadeInputs, MadeInputs]:
    """Of the detector and of the mesh network."""
    width, height = pixels.CANVAS.canvas_wh
    size = pixels.MESH

    def canvas() -> dict[str, Any]:
        from keyface.pipeline.faces.detect import input_nchw

        return {"input": input_nchw(image_rgb, pixels.CANVAS)}

    def crops() -> dict[str, Any]:
        return {"input_12": pixels.mesh_crops(scene, image_rgb)}

    return (
        MadeInputs({"input": (1, 3, height, width)}, shown.canvas(image_rgb, pixels.CANVAS), canvas),
        MadeInputs(
            {"input_12": (scene.n_faces, size, size, 3)},
            shown.crops(image_rgb, scene.crops(image_rgb, size), size),
            crops,
        ),
    )
