"""`--encoder`, of all commands that write videos."""

from __future__ import annotations

import argparse


def add_encoder_option(group: argparse._ArgumentGroup) -> None:
    """Adds the option."""
    group.add_argument(
        "--encoder", choices=("software", "nvenc"), default="software",
        help="nvenc: encode on a graphics card that has an encoder; its quality is about that of x264 at the "
        "same number, and it has not been measured yet (default: software)",
    )  # fmt: skip
