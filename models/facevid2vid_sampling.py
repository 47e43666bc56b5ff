"""Trilinear sampling of a volume by flat lookups: what a 5-D grid_sample does, for engines that have none."""

from __future__ import annotations

import torch
from torch import Tensor


def sizes(x: Tensor) -> list[int]:
    """All sizes but the batch's, as plain numbers, so that an exported graph holds them as constants."""
    return [int(size) for size in x.shape[1:]]


def sample_volume(volume: Tensor, grid: Tensor) -> Tensor:
    """Values of a volume at given places.

    Equals `F.grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=False)`: -1 and 1 are the
    outer faces of the border cells, and outside is 0. Only element-wise operators and lookups of whole rows are used.

    Args:
        volume: (N, C, D, H, W) float.
        grid: (N, D', H', W', 3), x along W, y along H, z along D. A place that is not a number gives NaN.

    Returns:
        (N, C, D', H', W').
    """
    channels, depth, height, width = sizes(volume)
    rows = volume.permute(0, 2, 3, 4, 1).reshape(-1, channels)  # (N D H W, C): one cell is one row
    out_depth, out_height, out_width = sizes(grid)[:3]
    places = grid.reshape(-1, out_depth * out_height * out_width, 3)
    taps_x, taps_y, taps_z = (
        _taps(places[..., axis], size) for axis, size in enumerate((width, height, depth))
    )
    first = torch.arange(volume.shape[0], device=volume.device)[:, None] * (depth * height * width)
    total = None
    for z, weight_z in taps_z:
        for y, weight_y in taps_y:
            row, weight_zy = first + (z * height + y) * width, weight_z * weight_y
            for x, weight_x in taps_x:
                found = rows.index_select(0, (row + x).reshape(-1))
                term = found * (weight_zy * weight_x).reshape(-1, 1)
                total = term if total is None else total + term
    assert total is not None
    return total.reshape(-1, out_depth, out_height, out_width, channels).permute(0, 4, 1, 2, 3)


def _taps(place: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two cells around each place along one axis, each with its weight; both (N, P)."""
    position = ((place + 1) * size - 1) / 2
    low = position.floor()
    share = position - low
    return [_tap(low, 1 - share, size), _tap(low + 1, share, size)]


def _tap(cell: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    is_inside = (cell >= 0) & (cell <= size - 1)
    # A cell outside, or none at all (NaN), must not be looked up: cell 0 is, with weight 0 or NaN.
    index = torch.where(is_inside, cell, 0.0).to(torch.int64)
    return index, weight * is_inside.to(weight.dtype)
