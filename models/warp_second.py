"""What the mobile warping reenactor takes from its second source picture: the same person laughing with closed eyes.

At rest nobody shows teeth or closed lids, so no warp of a picture at rest can. The second picture is laid over the
first in two ways, wherever the decoder says so:

    face    moved by all landmarks, as the first picture is: closed lids, the lips' insides
    teeth   moved as the skull moves: upper teeth neither stretch nor shrink as the mouth opens

Only the middle of the crop, where eyes and mouth are, is looked at; coordinates are in [-1, 1] across the crop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 256
# rows and columns of a 256 px crop: eyes and mouth, and the mouth; multiples of 4
FACE_ROWS, TEETH_ROWS, COLUMNS = (72, 216), (120, 216), (56, 200)
FEATHER_PX = 12
INNER_LIPS = (78, 308, 13, 14)  # landmarks: right and left corner, top, bottom
# landmarks of the skull about as far forward as the teeth: corners of the eyes, bridge and wings of the nose, cheeks
SKULL_POINTS = (33, 133, 263, 362, 168, 6, 98, 327, 2, 50, 280, 117, 346, 101, 330)


def skull_transform(source: Tensor, driving: Tensor) -> Tensor:
    """(N, 2, 3): the affine map of the plane that takes driving points to the source's, by least squares.

    Args:
        source, driving: (N, 478, 2 or more).
    """
    s, d = source[:, SKULL_POINTS, :2], driving[:, SKULL_POINTS, :2]
    s_mean, d_mean = s.mean(1, keepdim=True), d.mean(1, keepdim=True)
    s, d = s - s_mean, d - d_mean
    xx, xy, yy = (d[..., i] * d[..., j] for i, j in ((0, 0), (0, 1), (1, 1)))
    xx, xy, yy = (product.sum(1)[:, None] + e for product, e in ((xx, 1e-6), (xy, 0.0), (yy, 1e-6)))
    sx, sy = ((s * d[..., i : i + 1]).sum(1) for i in (0, 1))  # (N, 2) each
    # the 2 x 2 inverse written out, since not every engine inverts matrices
    determinant = xx * yy - xy * xy
    along_x, along_y = (sx * yy - sy * xy) / determinant, (sy * xx - sx * xy) / determinant
    linear = torch.stack([along_x, along_y], 2)  # (N, 2, 2)
    shift = s_mean[:, 0] - (linear @ d_mean.transpose(1, 2))[..., 0]
    return torch.cat([linear, shift[..., None]], 2)


def teeth_grid(places: Tensor, transform: Tensor) -> Tensor:
    """(N, h, w, 2) where the teeth's window samples the second picture.

    Args:
        places: (1, 256, 256, 2) centres of the crop's pixels.
        transform: (N, 2, 3) of `skull_transform`.
    """
    window = cut(places.permute(0, 3, 1, 2), TEETH_ROWS).permute(0, 2, 3, 1)
    height, width = window.shape[1:3]
    moved = window.reshape(1, -1, 2) @ transform[:, :, :2].transpose(1, 2) + transform[:, None, :, 2]
    return moved.reshape(-1, height, width, 2)


def lip_opening(places: Tensor, driving: Tensor) -> Tensor:
    """(N, 1, h, w), [0, 1]: what lies between the inner lips, in the teeth's window; 0 where they are closed.

    There the second picture's teeth lie unless the decoder objects: left to itself it goes on to paint, as it learnt
    before it had them. Where there is no second picture it is to be 0.

    Args:
        places: (1, 256, 256, 2) centres of the crop's pixels; driving: (N, 478, 2 or more).
    """
    right, left, top, bottom = (driving[:, index, None, None, :2] for index in INNER_LIPS)
    along = (left - right) / 2
    width = (along * along).sum(-1).sqrt().clamp_min(1e-3)
    along = along / width[..., None]
    apart = bottom - top
    height = ((apart[..., 1] * along[..., 0] - apart[..., 0] * along[..., 1]) / 2).clamp_min(2e-3)
    window = cut(places.permute(0, 3, 1, 2), TEETH_ROWS).permute(0, 2, 3, 1)
    off = window - (right + left + top + bottom) / 4
    x = (off * along).sum(-1) / width
    y = (off[..., 1] * along[..., 0] - off[..., 0] * along[..., 1]) / height
    is_open = torch.sigmoid((height / width - 0.06) * 80)
    return (torch.sigmoid(6 * (1 - x * x - y * y)) * is_open)[:, None]


def cut(x: Tensor, rows: tuple[int, int], scale: int = 1) -> Tensor:
    """The window's part of (N, C, 256 / scale, 256 / scale)."""
    left, right = COLUMNS
    return x[:, :, rows[0] // scale : rows[1] // scale, left // scale : right // scale]


def put(x: Tensor, rows: tuple[int, int], scale: int = 1) -> Tensor:
    """(N, C, 256 / scale, 256 / scale): a window's part, and 0 about it."""
    left, right = COLUMNS
    about = (left, SIDE - right, rows[0], SIDE - rows[1])
    return F.pad(x, [edge // scale for edge in about])


def feather(rows: tuple[int, int]) -> Tensor:
    """(1, 1, h, w), [0, 1]: falls to 0 at the window's edges, so that none is seen."""

    def ramp(n: int) -> Tensor:
        from_edge = torch.minimum(torch.arange(n), torch.arange(n - 1, -1, -1)) + 0.5
        return (from_edge / FEATHER_PX).clamp(0, 1)

    height, width = rows[1] - rows[0], COLUMNS[1] - COLUMNS[0]
    return (ramp(height)[:, None] * ramp(width))[None, None]
