"""The warping reenactor for a CPU: source features once per person, then motion, warp and decode per frame.

FaceVid2Vid (Wang et al., 2021) with MediaPipe's 478 landmarks as keypoints. Three graphs, so that what is done once
is done once, and so that coordinates stay in float32 where the decoder runs in bfloat16:

    WarpSource: image, points -> features (64 px), details (128 px)         the appearance feature extractor
    WarpMotion: source, second and driving points, controls -> sampling grids, rasters  the dense motion
    WarpDecode: image, second, features, details, grids, rasters, controls -> picture   warp, occlusion, decoder

Dense motion: each place takes the shift of the landmarks about it, by inverse distance, plus a learned rest. The
same weights spread a learned vector of each landmark over the picture (the rasters), which tell the decoder where
lips, teeth, lids and irises are to be. Occlusion: the decoder weighs the warped source against what it paints, and
lays over both what the second source picture shows and the first does not (`models.warp_second`).
Only 2-D operators of opset 17; points and grids are in [-1, 1] across the crop, align_corners=False.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from keyface.models.warp_second import (
    FACE_ROWS,
    TEETH_ROWS,
    cut,
    feather,
    lip_opening,
    put,
    skull_transform,
    teeth_grid,
)

N_POINTS, N_CONTROLS = 478, 54
# landmarks whose surroundings are rastered finely: lips inside and out, lids, irises
FINE_POINTS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, *range(468, 478),
)  # fmt: skip

# landmarks that carry the motion of the whole picture: outline, features, the rigid core, some of the cheeks
COARSE_POINTS = (
    0, 1, 4, 5, 6, 7, 8, 9, 10, 13, 14, 17, 18, 21, 33, 36, 37, 39, 40, 46, 50, 52, 53, 54, 55, 58, 61, 63,
    65, 66, 67, 70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 117, 118, 119, 121, 123,
    127, 129, 132, 133, 136, 142, 143, 144, 145, 146, 147, 148, 149, 150, 151, 152, 153, 154, 155, 157, 158,
    159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 187, 191, 192, 195, 197, 198, 199, 200, 205,
    216, 234, 246, 249, 251, 263, 266, 267, 269, 270, 276, 280, 282, 283, 284, 285, 288, 291, 293, 295, 296,
    297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 346, 347, 348, 350, 352,
    356, 358, 361, 362, 365, 371, 372, 373, 374, 375, 376, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387,
    388, 389, 390, 397, 398, 400, 402, 405, 409, 411, 415, 416, 420, 425, 436, 454, 466, 468, 469, 470, 471,
    472, 473, 474, 475, 476, 477,
)  # fmt: skip
# upper and lower lid, outer and inner corner, of the eyes to which landmarks 468 to 472 and 473 to 477 belong
LIDS = ((159, 145, 33, 133), (386, 374, 263, 362))


@dataclass(frozen=True)
class WarpSizes:
    """Channels: features at 64 px, details at 128 px, coarse and fine raster, and inside the decoder."""

    features: int = 48
    details: int = 16
    coarse: int = 16
    fine: int = 8
    middle: int = 64
    deep: int = 96
    shallow: int = 32


@dataclass(frozen=True)
class Motion:
    """What WarpMotion gives: grids (N, r, r, 2) for r = 64, 128, 256, rasters (N, E, 64, 64), (N, G, 128, 128); and
    grids (N, h, w, 2) of the windows into which the second picture is laid, with the opening between the lips
    (N, 1, h, w)."""

    grid_64: Tensor
    grid_128: Tensor
    grid_256: Tensor
    raster_64: Tensor
    raster_128: Tensor
    grid_face: Tensor
    grid_teeth: Tensor
    opening: Tensor


def warp(x: Tensor, grid: Tensor) -> Tensor:
    """(N, C, h, w) sampled at grid (N, r, s, 2) -> (N, C, r, s)."""
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution and leaky ReLU."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), nn.LeakyReLU(0.2))


class WarpSource(nn.Module):
    """image (N, 3, 256, 256), points (N, 478, 3) -> features (N, C, 64, 64), details (N, D, 128, 128)."""

    def __init__(self, sizes: WarpSizes) -> None:
        super().__init__()
        self.spread = Spread(64, COARSE_POINTS, sizes.coarse)
        self.down1 = conv(3, 24, 2)  # 128
        self.down2 = conv(24, 48, 2)  # 64
        self.body = nn.Sequential(conv(48 + sizes.coarse, 64), conv(64, 64))
        self.deep = nn.Sequential(conv(64, 96, 2), conv(96, 96), nn.Conv2d(96, 64 * 4, 1), nn.PixelShuffle(2))
        self.features = nn.Sequential(conv(128, 64), nn.Conv2d(64, sizes.features, 3, 1, 1))
        self.details = nn.Conv2d(24, sizes.details, 3, 1, 1)

    def forward(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.down1(image)
        raster = self.spread((points,), points)[1]
        x = self.body(torch.cat([self.down2(fine), raster], 1))
        return self.features(torch.cat([x, self.deep(x)], 1)), self.details(fine)


class Spread(nn.Module):
    """Shifts and learned vectors of landmarks, spread over r x r places by inverse distance.

        weight_k(p) = 1 / (|p - d_k|^2 + e^2)^2

    Returns the shift to each source in turn (N, 2 S, r, r), the raster (N, n, r, r) and how near landmarks are
    (N, 1, r, r).
    """

    places: Tensor
    places_4: Tensor
    index: Tensor

    def __init__(self, side: int, points: tuple[int, ...], n: int, width: float = 0.03) -> None:
        super().__init__()
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.side, self.width = side, width
        places = torch.stack([x, y], 2).reshape(1, -1, 2)
        self.register_buffer("places", places, persistent=False)
        norm = (places * places).sum(2, keepdim=True) + width**2
        self.register_buffer(
            "places_4", torch.cat([places, norm, torch.ones_like(norm)], 2), persistent=False
        )
        self.register_buffer("index", torch.tensor(tuple(points)), persistent=False)
        self.vectors = nn.Parameter(0.5 * torch.randn(len(self.index), n))

    def forward(
        self, sources: tuple[Tensor, ...], driving: Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """share (N, 478): how much each landmark counts, [0, 1]; None: all alike."""
        d = driving[:, self.index, :2]
        shifts = [source[:, self.index, :2] - d for source in sources]
        # |p - d|^2 + e^2 as one product (x, y, x^2 + y^2 + e^2, 1) . (-2 x, -2 y, 1, x^2 + y^2); few passes over
        # (N, r*r, K) are what makes this fast
        norm = (d * d).sum(2, keepdim=True)
        square = self.places_4 @ torch.cat([-2 * d, torch.ones_like(norm), norm], 2).transpose(1, 2)
        square = square.clamp_min(self.width**2)
        weight = 1 / (square * square)
        values = torch.cat([*shifts, self.vectors.expand(d.shape[0], -1, -1), torch.ones_like(norm)], 2)
        if share is not None:
            values = values * share[:, self.index, None]
        n_shifts = 2 * len(shifts)
        n = self.vectors.shape[1] + n_shifts + 1
        summed = (weight @ values).transpose(1, 2).reshape(d.shape[0], n, self.side, self.side)
        total = summed[:, -1:]
        spread = summed[:, :-1] / total
        # 1 at a landmark, a half at about twice the width from one that stands alone
        near = total * (2 * self.width) ** 4
        return spread[:, :n_shifts], spread[:, n_shifts:], near / (near + 1)


def iris_share(driving: Tensor) -> Tensor:
    """(N, 478): 1, but for the irises of an eye that closes: behind a lid they must not hold the picture's iris."""
    share = driving.new_ones(driving.shape[0], N_POINTS - 10)
    shares = [share]
    for upper, lower, outer, inner in LIDS:
        gap = (driving[:, upper, :2] - driving[:, lower, :2]).square().sum(1).sqrt()
        width = (driving[:, outer, :2] - driving[:, inner, :2]).square().sum(1).sqrt() + 1e-3
        openness = ((gap / width - 0.10) / 0.10).clamp(0, 1)
        shares.append(openness[:, None].expand(-1, 5))
    return torch.cat(shares, 1)


class WarpMotion(nn.Module):
    """source_points, second_points, driving_points (N, 478, 3), controls (N, 108) -> Motion."""

    places_64: Tensor
    places_128: Tensor

    def __init__(self, sizes: WarpSizes) -> None:
        super().__init__()
        self.coarse = Spread(64, COARSE_POINTS, sizes.coarse, 0.06)
        self.fine = Spread(128, FINE_POINTS, sizes.fine, 0.015)
        self.register_buffer("places_64", self.coarse.places.reshape(1, 64, 64, 2), persistent=False)
        self.register_buffer("places_128", self.fine.places.reshape(1, 128, 128, 2), persistent=False)
        self.down = conv(sizes.coarse + 3 + 3, 32, 2)
        self.controls = nn.Linear(2 * N_CONTROLS, 32)
        self.middle = nn.Sequential(conv(32, 32, 2), conv(32, 32))
        self.rest = nn.Conv2d(64, 2, 3, 1, 1)
        nn.init.normal_(self.rest.weight, std=1e-3)
        nn.init.zeros_(self.rest.bias)

    def forward(
        self, source_points: Tensor, second_points: Tensor, driving_points: Tensor, controls: Tensor
    ) -> Motion:
        share = iris_share(driving_points)
        sources = (source_points, second_points)
        shifts, raster, near = self.coarse(sources, driving_points, share)
        shift = shifts[:, :2]
        places = self.places_64.permute(0, 3, 1, 2).expand(shift.shape[0], -1, -1, -1)
        x = self.down(
            torch.cat([raster, 4 * shift, near, places, (4 * shift).square().sum(1, keepdim=True)], 1)
        )
        deep = self.middle(x + self.controls(controls)[:, :, None, None])
        rest = 0.15 * torch.tanh(self.rest(torch.cat([x, larger(deep)], 1)))  # 32 px
        shift_64 = shift + larger(rest)
        fine_shifts, fine_raster, fine_near = self.fine(sources, driving_points, share)
        coarse_128 = larger(torch.cat([shift_64, shifts[:, 2:]], 1))
        shifts_128 = coarse_128 + fine_near * (fine_shifts - coarse_128)
        shift_128, second_128 = shifts_128[:, :2], shifts_128[:, 2:]
        places_128 = self.places_128.permute(0, 3, 1, 2)
        grid_64 = self.places_64 + F.avg_pool2d(shift_128, 2).permute(0, 2, 3, 1)
        grid_128 = places_128 + shift_128
        grid_256 = larger(grid_128)
        grid_face = larger(cut(places_128 + second_128, FACE_ROWS, 2))
        places_256 = larger(places_128).permute(0, 2, 3, 1)
        grid_teeth = teeth_grid(places_256, skull_transform(second_points, driving_points))
        fine_raster = torch.cat([fine_raster * fine_near, fine_near], 1)
        return Motion(
            grid_64, grid_128.permute(0, 2, 3, 1), grid_256.permute(0, 2, 3, 1), raster, fine_raster,
            grid_face.permute(0, 2, 3, 1), grid_teeth, lip_opening(places_256, driving_points),
        )  # fmt: skip


def larger(x: Tensor) -> Tensor:
    """Twice the side."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Adapted(nn.Module):
    """Residual pair of convolutions whose middle is scaled and shifted by a condition (N, n)."""

    def __init__(self, n: int, n_condition: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(n, n, 3, 1, 1), nn.Conv2d(n, n, 3, 1, 1)
        self.adapt = nn.Linear(n_condition, 2 * n)
        nn.init.zeros_(self.adapt.bias)
        nn.init.normal_(self.second.weight, std=1e-2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.adapt(condition)[:, :, None, None].chunk(2, 1)
        hidden = F.leaky_relu(self.first(x) * (1 + scale) + shift, 0.2)
        return x + self.second(hidden)


class WarpDecode(nn.Module):
    """image, second (N, 3, 256, 256), features, details, a Motion, controls (N, 108) -> picture (N, 3, 256, 256)."""

    face_feather: Tensor
    teeth_feather: Tensor

    def __init__(self, sizes: WarpSizes) -> None:
        super().__init__()
        z = sizes
        self.condition = nn.Sequential(nn.Linear(2 * N_CONTROLS, 64), nn.LeakyReLU(0.2))
        self.enter = conv(z.features + z.coarse, z.middle)
        self.down = conv(z.middle, z.deep, 2)  # 32
        self.deep = nn.ModuleList([Adapted(z.deep, 64), Adapted(z.deep, 64)])
        self.up = nn.Sequential(nn.Conv2d(z.deep, z.middle * 4, 1), nn.PixelShuffle(2))  # 64
        self.middle = nn.ModuleList([Adapted(z.middle, 64), Adapted(z.middle, 64)])
        self.up_128 = nn.Sequential(nn.Conv2d(z.middle, z.shallow * 4, 1), nn.PixelShuffle(2))
        self.shallow = nn.Sequential(
            conv(z.shallow + z.details + z.fine + 1 + 6, z.shallow), conv(z.shallow, z.shallow)
        )
        self.paint = nn.Sequential(nn.Conv2d(z.shallow, 4 * 6, 3, 1, 1), nn.PixelShuffle(2))  # 256
        self.register_buffer("face_feather", feather(FACE_ROWS), persistent=False)
        self.register_buffer("teeth_feather", feather(TEETH_ROWS), persistent=False)
        # At first the warped source is the picture; what is painted over it is added, so that it learns from the
        # first step on, even where nothing of the source is to be replaced yet.
        nn.init.zeros_(self.paint[0].weight)
        nn.init.zeros_(self.paint[0].bias)

    def forward(
        self, image: Tensor, second: Tensor, features: Tensor, details: Tensor, m: Motion, controls: Tensor
    ) -> Tensor:
        condition = self.condition(controls)
        x = self.enter(torch.cat([warp(features, m.grid_64), m.raster_64], 1))
        deep = self.down(x)
        for block in self.deep:
            deep = block(deep, condition)
        x = x + self.up(deep)
        for block in self.middle:
            x = block(x, condition)
        face, teeth = warp(second, m.grid_face), warp(second, m.grid_teeth)
        layers = (face, FACE_ROWS), (teeth, TEETH_ROWS)
        seen = [put(F.avg_pool2d(layer, 2), rows, 2) for layer, rows in layers]
        fine = torch.cat([self.up_128(x), warp(details, m.grid_128), m.raster_128, *seen], 1)
        conv_24, shuffle = self.paint
        painted = conv_24(self.shallow(fine))  # (N, 24, 128, 128), four places of a channel in turn
        keep = torch.sigmoid(painted[:, 12:16] + 3.0)  # occlusion, [0, 1]: share of the warped source
        first = shuffle(keep) * warp(image, m.grid_256) + shuffle(painted[:, :12])
        over = shuffle(painted[:, 16:]) - 2.0  # logits of the shares of the second picture's two layers
        below = cut(first, FACE_ROWS)
        share = torch.sigmoid(cut(over[:, :1], FACE_ROWS)) * self.face_feather
        laid = below + share * (face - below)
        upper, lower = laid[:, :, : TEETH_ROWS[0] - FACE_ROWS[0]], laid[:, :, TEETH_ROWS[0] - FACE_ROWS[0] :]
        share = torch.sigmoid(cut(over[:, 1:], TEETH_ROWS) + 5.0 * m.opening) * self.teeth_feather
        laid = torch.cat([upper, lower + share * (teeth - lower)], 2)
        return first + put(laid - below, FACE_ROWS)


class WarpMobile(nn.Module):
    """The three parts together, as they are trained."""

    def __init__(self, sizes: WarpSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes or WarpSizes()
        self.source = WarpSource(self.sizes)
        self.motion = WarpMotion(self.sizes)
        self.decode = WarpDecode(self.sizes)

    def forward(
        self,
        image: Tensor,
        source: Tensor,
        second: Tensor,
        second_points: Tensor,
        driving: Tensor,
        controls: Tensor,
    ) -> Tensor:
        """Source pictures and second ones (S, 3, 256, 256), their points (S, 478, 3); driving points (S * V, 478, 3)
        and controls (S * V, 108), V for each source in turn -> pictures (S * V, 3, 256, 256)."""
        features, details = self.source(image, source)
        n = len(driving) // len(image)
        image, second, features, details, source, second_points = (
            t.repeat_interleave(n, 0) for t in (image, second, features, details, source, second_points)
        )
        motion = self.motion(source, second_points, driving, controls)
        picture = self.decode(image, second, features, details, motion, controls)
        assert isinstance(picture, Tensor)
        return picture
