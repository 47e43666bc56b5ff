"""How far a training run has come."""

from __future__ import annotations

from pathlib import Path

import torch


def steps_done(out: Path) -> int:
    """Steps behind the checkpoint that belongs to the weights `out` (.safetensors); 0 without one."""
    checkpoint = out.with_suffix(".ckpt")
    return int(torch.load(checkpoint, weights_only=True)["step"]) if checkpoint.exists() else 0
