"""What tests of the full reenactor share: a small network, and the public layout's names and shapes written down a
second time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from keyface.models.facevid2vid import FaceVid2Vid
from keyface.models.facevid2vid_config import FaceVid2VidConfig

SMALL = FaceVid2VidConfig(
    side_px=32,
    n_keypoints=5,
    width=8,
    volume_channels=4,
    volume_depth=4,
    n_resblocks=2,
    spade_hidden=8,
    motion_width=4,
    motion_max_width=16,
    motion_n_blocks=2,
    motion_channels=3,
    detector_width=4,
    detector_max_width=16,
    detector_n_blocks=2,
    pose_stem=8,
    pose_width=16,
)
Shapes = dict[str, tuple[int, ...]]


def small_network(seed: int = 0, **changes: Any) -> FaceVid2Vid:
    """SMALL with `changes`, in evaluation mode, with norms that are not all alike."""
    torch.manual_seed(seed)
    network = FaceVid2Vid(replace(SMALL, **changes))
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 1.5)
    return network.eval()


def pictures(n: int = 2, side_px: int = 32, seed: int = 1) -> torch.Tensor:
    """(n, 3, side, side) of noise in [0, 1]."""
    return torch.rand((n, 3, side_px, side_px), generator=torch.Generator().manual_seed(seed))


def points(n: int = 2, k: int = 5, seed: int = 2) -> torch.Tensor:
    """(n, k, 3), most of them in the picture."""
    return torch.randn((n, k, 3), generator=torch.Generator().manual_seed(seed)) * 0.4


def conv(name: str, n_out: int, n_in: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in, *kernel), f"{name}.bias": (n_out,)}


def norm(name: str, n: int) -> Shapes:
    each = {f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**each, f"{name}.num_batches_tracked": ()}


def block(name: str, n_out: int, n_in: int, *kernel: int) -> Shapes:
    return {**conv(f"{name}.conv", n_out, n_in, *kernel), **norm(f"{name}.norm", n_out)}


def residual(name: str, n: int, *kernel: int) -> Shapes:
    parts = [
        conv(f"{name}.conv1", n, n, *kernel),
        conv(f"{name}.conv2", n, n, *kernel),
        norm(f"{name}.norm1", n),
    ]
    return merged(*parts, norm(f"{name}.norm2", n))


def merged(*tables: Shapes) -> Shapes:
    """One table of all; a name may come once only."""
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    return {name: shape for table in tables for name, shape in table.items()}


def public_layout(c: FaceVid2VidConfig) -> dict[str, Shapes]:
    """Names and shapes of the three state dictionaries as the public implementation makes them, by its own terms:
    block expansions, and maxima of features."""
    return {"generator": _generator(c), "kp_detector": _detector(c), "he_estimator": _estimator(c)}


def _generator(c: FaceVid2VidConfig) -> Shapes:
    most = c.volume_channels * c.volume_depth
    kernel = (3, 3) if c.decoder == "spade" else (7, 7)
    parts = [block("first", c.width, 3, *kernel)]
    out = c.width
    for i in range(c.n_down):
        before, out = min(most, c.width * 2**i), min(most, c.width * 2 ** (i + 1))
        parts.append(block(f"down_blocks.{i}", out, before, 3, 3))
    parts.append(conv("second", most, out, 1, 1))
    parts += [residual(f"resblocks_3d.3dr{i}", c.volume_channels, 3, 3, 3) for i in range(c.n_resblocks)]
    deep = c.width * 2**c.n_down
    parts += [block("third", deep, most, 3, 3), conv("fourth", deep, deep, 1, 1), _motion(c)]
    return merged(*parts, _spade(c, deep) if c.decoder == "spade" else _plain(c, deep))


def _plain(c: FaceVid2VidConfig, deep: int) -> Shapes:
    parts = [residual(f"resblocks_2d.2dr{i}", deep, 3, 3) for i in range(c.n_resblocks)]
    for i in range(c.n_down):
        parts.append(block(f"up_blocks.{i}", deep // 2 ** (i + 1), deep // 2**i, 3, 3))
    return merged(*parts, conv("final", 3, c.width, 7, 7))


def _spade(c: FaceVid2VidConfig, deep: int) -> Shapes:
    def spade(name: str, n: int) -> Shapes:
        parts = [conv(f"{name}.mlp_shared.0", c.spade_hidden, deep, 3, 3)]
        return merged(*parts, *(conv(f"{name}.mlp_{x}", n, c.spade_hidden, 3, 3) for x in ("gamma", "beta")))

    def spectral(name: str, n_out: int, n_in: int, k: int) -> Shapes:
        vectors = {f"{name}.weight_u": (n_out,), f"{name}.weight_v": (n_in * k * k,)}
        return {f"{name}.weight_orig": (n_out, n_in, k, k), **vectors}

    def one(name: str, n_in: int, n_out: int) -> Shapes:
        name, middle = f"decoder.{name}", min(n_in, n_out)
        parts = [spectral(f"{name}.conv_0", middle, n_in, 3), spectral(f"{name}.conv_1", n_out, middle, 3)]
        biases = {f"{name}.conv_0.bias": (middle,), f"{name}.conv_1.bias": (n_out,)}
        parts += [biases, spade(f"{name}.norm_0", n_in), spade(f"{name}.norm_1", middle)]
        if n_in != n_out:
            parts += [spectral(f"{name}.conv_s", n_out, n_in, 1), spade(f"{name}.norm_s", n_in)]
        return merged(*parts)

    parts = [conv("decoder.fc", 2 * deep, deep, 3, 3), conv("decoder.conv_img", 3, c.width, 3, 3)]
    parts += [one(f"G_middle_{i}", 2 * deep, 2 * deep) for i in range(6)]
    return merged(*parts, one("up_0", 2 * deep, deep), one("up_1", deep, c.width))


def _motion(c: FaceVid2VidConfig) -> Shapes:
    def features(i: int) -> int:
        return min(c.motion_max_width, c.motion_width * 2**i)

    n_in, n = (c.n_keypoints + 1) * (c.motion_channels + 1), c.motion_n_blocks
    parts = []
    for i in range(n):
        before = n_in if i == 0 else features(i)
        parts.append(block(f"hourglass.encoder.down_blocks.{i}", features(i + 1), before, 3, 3, 3))
    for place, i in enumerate(reversed(range(n))):
        before = (1 if i == n - 1 else 2) * features(i + 1)
        parts.append(block(f"hourglass.decoder.up_blocks.{place}", features(i), before, 3, 3, 3))
    out = c.motion_width + n_in
    parts += [block("hourglass.decoder", out, out, 3, 3, 3), conv("mask", c.n_keypoints + 1, out, 7, 7, 7)]
    parts += [
        conv("compress", c.motion_channels, c.volume_channels, 1, 1, 1),
        norm("norm", c.motion_channels),
    ]
    parts.append(conv("occlusion", 1, out * c.volume_depth, 7, 7))
    return {f"dense_motion_network.{name}": shape for name, shape in merged(*parts).items()}


def _detector(c: FaceVid2VidConfig) -> Shapes:
    def features(i: int) -> int:
        return min(c.detector_max_width, c.detector_width * 2**i)

    n = c.detector_n_blocks
    parts = []
    for i in range(n):
        before = 3 if i == 0 else features(i)
        parts.append(block(f"predictor.down_blocks.down{i}", features(i + 1), before, 3, 3))
        parts.append(block(f"predictor.up_blocks.up{i}", features(n - i - 1), features(n - i), 3, 3, 3))
    parts.append(conv("predictor.conv", features(n) * c.volume_depth, features(n), 1, 1))
    parts.append(conv("kp", c.n_keypoints, c.detector_width, 3, 3, 3))
    shrink: Shapes = {"down.weight": (3, 1, 13, 13)} if c.detector_shrink == 4 else {}
    return merged(*parts, shrink)


def _estimator(c: FaceVid2VidConfig) -> Shapes:
    def bottleneck(name: str, n: int, *, is_strided: bool = False) -> Shapes:
        inner = n // 4
        parts = [conv(f"{name}.conv1", inner, n, 1, 1), conv(f"{name}.conv2", inner, inner, 3, 3)]
        parts += [conv(f"{name}.conv3", n, inner, 1, 1), norm(f"{name}.norm1", inner)]
        parts += [norm(f"{name}.norm2", inner), norm(f"{name}.norm3", n)]
        if is_strided:
            parts += [conv(f"{name}.skip", n, n, 1, 1), norm(f"{name}.norm4", n)]
        return merged(*parts)

    parts = [conv("conv1", c.pose_stem, 3, 7, 7), norm("norm1", c.pose_stem)]
    before = c.pose_stem
    for i, n_blocks in enumerate((3, 3, 5, 2)):
        n = c.pose_width * 2**i
        parts += [conv(f"conv{i + 2}", n, before, 1, 1), norm(f"norm{i + 2}", n)]
        if i:
            parts.append(bottleneck(f"block{2 * i}", n, is_strided=True))
        parts += [bottleneck(f"block{2 * i + 1}.b{2 * i + 1}_{j}", n) for j in range(n_blocks)]
        before = n
    for name, n_out in (("roll", 66), ("pitch", 66), ("yaw", 66), ("t", 3), ("exp", 3 * c.n_keypoints)):
        parts.append(conv(f"fc_{name}", n_out, before))
    return merged(*parts)
