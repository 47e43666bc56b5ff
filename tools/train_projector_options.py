"""The options of `keyface train projector`."""

from __future__ import annotations

import argparse
from pathlib import Path

from keyface.configs.projector import LOSS_NAMES

WORK, OUT = Path("runs/projector"), Path("runs/projector.safetensors")


def add_projector_options(parser: argparse.ArgumentParser) -> None:
    """Adds them to the parser of the step."""
    parser.add_argument(
        "--config", default="default", metavar="NAME", help="or a .toml file (default: default)"
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders that hold a folder of photos for each person; needed until they are read",
    )  # fmt: skip
    parser.add_argument(
        "--work",
        type=Path,
        default=WORK,
        metavar="DIR",
        help=f"photos, renderings, surrogate (default: {WORK})",
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"default: {OUT}")
    parser.add_argument(
        "--renders", type=int, default=7000, metavar="N", help="people rendered (default: 7000)"
    )
    parser.add_argument(
        "--renders-again", type=int, default=4000, metavar="N",
        help="more of them, as a first projector makes them; 0: train once (default: 4000)",
    )  # fmt: skip
    parser.add_argument(
        "--surrogate-steps", type=int, default=3000, metavar="N", help="of the surrogate (default: 3000)"
    )
    parser.add_argument(
        "--start", type=Path, metavar="FILE",
        help="another projector's weights: only the configuration's steps with the generator in the loop follow",
    )  # fmt: skip
    parser.add_argument(
        "--loop-people", type=int, default=250, metavar="N",
        help="of the training part, whose photos are pasted over in the loop (default: 250)",
    )  # fmt: skip
    parser.add_argument(
        "--judge-people", type=int, default=30, metavar="N",
        help="of the validation part, on whom the best weights of the loop are chosen (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--judge-every", type=int, default=150, metavar="N", help="steps of the loop (default: 150)"
    )
    parser.add_argument(
        "--without", nargs="+", choices=LOSS_NAMES, default=[], metavar="LOSS",
        help=f"losses to leave out, for ablations: {', '.join(LOSS_NAMES)}",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="default: the configuration's")
    parser.add_argument(
        "--no-compile", action="store_true", help="float32 without a C++ compiler, also in the loop; slower"
    )
