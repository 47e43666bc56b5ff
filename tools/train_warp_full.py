"""`keyface train warp --size full`: FaceVid2Vid, for graphics cards."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.tools import train_networks, train_warp

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.models.facevid2vid import FaceVid2Vid
    from keyface.models.train_warp_full import FullWarpConfig
    from keyface.models.warp_batches import Batch, Drive
    from keyface.models.warp_pairs import Pairs

MAX_DIFFERENCE = 5e-3  # of pictures in [-1, 1], between PyTorch and the exported networks


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, validates, exports and compares; writes all of it whether or not the schedule has ended."""
    import torch

    from keyface.models.facevid2vid_export import export_facevid2vid
    from keyface.models.facevid2vid_layout import as_checkpoint
    from keyface.models.train_warp_full import FullWarpConfig, batcher_of, render_of, train_full
    from keyface.models.warp_validation import validate_pictures

    config = train_warp.read_schedule(args, FullWarpConfig)
    pairs, held = train_warp.load_all_pairs(args.pairs, args.held)
    held_out = batcher_of(held, true_points(held), config)  # refuses pairs that are too small
    own = () if args.keypoints or config.network.learns_keypoints else ("keypoints",)
    store = train_networks.models(args, *train_warp.JUDGES, *own)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    drive, drive_held = (_drive(args, store, config, found) for found in (pairs, held))
    training, network = train_full(pairs, drive, train_warp.judges_of(store), args.out, config)
    exported = export_facevid2vid(network, args.out)
    torch.save(as_checkpoint(network), args.out / "facevid2vid.pth.tar")
    sample = replace(held_out, device="cpu").batch([(0, 0)], [(0, 1, False)])
    difference = compare(network, exported, sample, threads=args.threads)
    render = render_of(network.to(config.device), config.device)
    found = validate_pictures(render, replace(held_out, drive=drive_held), training.judges)
    result = train_warp.write_validation(training, found, args.out)
    return {"steps": training.step, "wanted": config.steps, "export_difference": difference, **result}


def true_points(pairs: Pairs) -> Drive:
    """Points of the driving frame itself: what drives where keypoints are learned is the picture."""
    from keyface.models.warp_batches import unit

    return lambda person, source, driving: unit(pairs.points[person, driving])


def _drive(args: argparse.Namespace, store: ModelStore, config: FullWarpConfig, pairs: Pairs) -> Drive:
    from keyface.pipeline.reenact.keypoints import KeypointModel

    if config.network.learns_keypoints:
        return true_points(pairs)
    return train_warp.drive_of(KeypointModel.load(args.keypoints or store.path("keypoints")), pairs)


def compare(network: FaceVid2Vid, exported: Mapping[str, Path], b: Batch, *, threads: int) -> float:
    """How far ONNX Runtime's picture by the exported networks is from PyTorch's at most, of a range of 2.

    Args:
        network: on the CPU, in evaluation mode.
        exported: "source" and "driving", as `export_facevid2vid` gives them.
        b: one source and one driver.

    Raises:
        EngineError: further than `MAX_DIFFERENCE`.
    """
    import torch

    from keyface.engines.open import open_engine
    from keyface.models.facevid2vid_pass import run_pass

    with torch.no_grad():
        wanted = run_pass(network, b)
    feeds = {"image": b.image, "source_points": wanted.source_points, "driving_points": wanted.driving_points}
    known = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in feeds.items()}
    for name in ("source", "driving"):
        with open_engine(exported[name], backend="onnxruntime", precision="f32", threads=threads) as engine:
            known |= engine.run({name: known[name] for name in engine.inputs})
    difference = float(np.abs(known["image"] - wanted.image.numpy()).max())
    if not difference <= MAX_DIFFERENCE:
        raise EngineError(
            f"The exported networks' picture is {difference:.3g} from PyTorch's, want {MAX_DIFFERENCE} or less.",
            "The checkpoint is kept; report this.",
        )
    return round(difference, 6)
