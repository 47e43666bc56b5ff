"""The flag that says what shows the virtual faces, for every command that builds a chain."""

from __future__ import annotations

import argparse
from typing import get_args

from keyface.configs.schema import ReenactorChoice


def add_reenactor_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds --reenactor."""
    parser.add_argument(
        "--reenactor", choices=get_args(ReenactorChoice), default="auto",
        help="latent: the generator renders every frame; warp: it renders each virtual person once, and a smaller "
        "network moves that picture; auto: the one that measured better on this kind of device (default: auto)",
    )  # fmt: skip
