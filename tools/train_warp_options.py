"""The options of `keyface train pairs`, `keypoints` and `warp`: the warping reenactor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

PAIRS, KEYPOINTS, WARP = Path("runs/pairs"), Path("runs/keypoints.safetensors"), Path("runs/warp")
SIZES = ("mobile", "full")


def add_warp_steps(steps: Any) -> list[argparse.ArgumentParser]:
    """Adds the three steps to those of `keyface train`, and returns their parsers."""
    pairs = steps.add_parser("pairs", help="pictures of one person in many poses, for the warping reenactor")
    _add_pairs(pairs)
    keypoints = steps.add_parser("keypoints", help="the map from expressions to keypoints (needs PyTorch)")
    keypoints.add_argument(
        "--pairs", type=Path, default=PAIRS, metavar="DIR", help=f"of generated people (default: {PAIRS})"
    )
    keypoints.add_argument(
        "--out", type=Path, default=KEYPOINTS, metavar="FILE", help=f"default: {KEYPOINTS}"
    )
    keypoints.add_argument("--steps", type=int, metavar="N", help="in all (default: the trainer's)")
    keypoints.add_argument("--seed", type=int, default=0, help="default: 0")
    warp = steps.add_parser("warp", help="the warping reenactor's networks (needs PyTorch)")
    _add_warp(warp)
    return [pairs, keypoints, warp]


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=PAIRS, metavar="DIR", help=f"default: {PAIRS}")
    parser.add_argument("--people", type=int, default=600, metavar="N", help="default: 600")
    parser.add_argument("--views", type=int, default=12, metavar="N", help="of each (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--side", type=int, choices=(256, 512), default=256, metavar="PX",
        help="of the pictures, 256 or 512; 512 for the full network with upscale = 2 (default: 256)",
    )  # fmt: skip
    parser.add_argument(
        "--keyed", type=float, default=0.5, metavar="SHARE",
        help="of the people, drawn as a key and the projector make them (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=Path, default=Path("runs/samples"), metavar="DIR",
        help="keeps the statistics of the population (default: runs/samples)",
    )  # fmt: skip
    parser.add_argument(
        "--controls", type=Path, default=Path("runs/controls.npy"), metavar="NPY",
        help="default: runs/controls.npy",
    )  # fmt: skip
    parser.add_argument(
        "--clips", type=Path, nargs="+", default=[], metavar="DIR",
        help="in place of generated people, frames of the clips in these folders, each clip's first shot; they show "
        "whom the clips show",
    )  # fmt: skip


def _add_warp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs", type=Path, nargs="+", default=[PAIRS], metavar="DIR",
        help=f"the first one's first people are held out (default: {PAIRS})",
    )  # fmt: skip
    parser.add_argument(
        "--keypoints", type=Path, metavar="FILE",
        help="of yours (default: keyface's own); not read where the full network learns keypoints",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=WARP, metavar="DIR",
        help=f"networks, curves and validation grid; the checkpoint lies beside it (default: {WARP})",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=SIZES, default="mobile",
        help="mobile, for processors, or full: FaceVid2Vid, for graphics cards (default: mobile)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="TOML",
        help="schedule, weights of the losses and, of full, sizes of the network (default: the size's own, "
        "configs/warp)",
    )  # fmt: skip
    parser.add_argument("--held", type=int, default=12, metavar="N", help="people held out (default: 12)")
    parser.add_argument("--steps", type=int, metavar="N", help="in all (default: the configuration's)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="as --seconds, in minutes; the shorter holds"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: the configuration's")
    parser.add_argument(
        "--no-compile", action="store_true",
        help="mobile: float32 without a C++ compiler; slower. full is never compiled",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what PyTorch computes on (default: cpu)"
    )
