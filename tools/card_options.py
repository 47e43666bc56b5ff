"""What the commands can ask of a graphics card: `--encoder` and `--frames-on-card`."""

from __future__ import annotations

import argparse


def add_encoder_option(group: argparse._ArgumentGroup) -> None:
    """Adds the option."""
    group.add_argument(
        "--encoder", choices=("software", "nvenc"), default="software",
        help="nvenc: encode on a graphics card that has an encoder; its quality is about that of x264 at the "
        "same number, and it has not been measured yet (default: software)",
    )  # fmt: skip


def add_frames_option(group: argparse._ArgumentGroup) -> None:
    """Adds the option."""
    group.add_argument(
        "--frames-on-card", action=argparse.BooleanOptionalAction, default=False,
        help="with TensorRT: resize frames and cut faces out for the networks on the card, each frame uploaded once, "
        "and blend virtual faces into their part of the frame there; off, since it has not been run on a card yet",
    )  # fmt: skip
