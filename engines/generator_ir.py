"""Reads MobileStyleGAN's OpenVINO IR (XML plus a flat .bin) with the standard library and numpy.

The IR comes from the verified wheel members named in the manifest. Only the constants are taken; the
graph itself is written anew by `engines.generator_onnx`, with a W+ input and other output heads.
MobileStyleGAN: Belousov 2021, arXiv:2104.04767 (wavelet-based generator distilled from StyleGAN2).
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import ModelStoreError

F32 = npt.NDArray[np.float32]
N_BLOCKS = 7
N_STYLES = 2 + 3 * N_BLOCKS  # first conv, (up, conv1, conv2) a block, RGB
N_MAPPING_LAYERS = 8
_WAY_OUT = "Pull the models again: keyface models pull --force."


def read_constants(xml_path: Path, bin_path: Path) -> list[tuple[str, F32]]:
    """All float32 constants in graph order as (layer name, array).

    Raises:
        ModelStoreError: the XML refers to bytes that the .bin does not have, or is no XML.
    """
    blob = bin_path.read_bytes()
    found: list[tuple[str, F32]] = []
    try:
        root = ET.parse(xml_path).getroot()
    except ET.ParseError as error:
        raise ModelStoreError(f"{xml_path.name} is no XML: {error}.", _WAY_OUT) from error
    for layer in root.iterfind("layers/layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None or data.get("element_type") != "f32":
            continue
        shape = tuple(int(n) for n in (data.get("shape") or "").replace(" ", "").split(",") if n)
        offset, size = int(data.get("offset", "0")), int(data.get("size", "0"))
        if size != 4 * math.prod(shape) or offset + size > len(blob):
            raise ModelStoreError(
                f"{bin_path.name}: layer {layer.get('name')!r} wants bytes {offset}..{offset + size} "
                f"for shape {shape}, the file has {len(blob)}.",
                _WAY_OUT,
            )
        array = np.frombuffer(blob, "<f4", size // 4, offset).reshape(shape).astype(np.float32)
        found.append((layer.get("name") or "", array))
    return found


def synthesis_weights(xml_path: Path, bin_path: Path) -> dict[str, F32]:
    """The synthesis network's weights under plain names.

    Channels that enter an inverse Haar transform are ordered (LL | B0 | B1 | B2), a quarter each.

    Returns:
        `input` (512,4,4); `conv1.{mod_w,mod_b,scale,weight,noise,bias}`;
        `b0`..`b6` `.up.{mod_w,mod_b}` and `.conv{1,2}.{mod_w,mod_b,scale,dw,pw,noise,bias}`;
        `rgb.{mod_w,mod_b,scale,weight,bias}`. Styles are `s = mod_w @ w + mod_b`, times `scale`.
    """
    out: dict[str, F32] = {}
    style = ""  # the modulation whose scale constant comes next
    conv = "conv1"
    for name, array in read_constants(xml_path, bin_path):
        plain = re.sub(r"^m\.(layers\.(\d)\.)?", lambda m: f"b{m[2]}." if m[1] else "", name)
        plain = plain.replace(".conv.", ".").replace("b6.to_img", "rgb")
        if plain.endswith("modulation.weight"):
            style = plain.removesuffix(".modulation.weight")
            out[f"{style}.mod_w"] = array
        elif plain.endswith("modulation.bias"):
            out[f"{style}.mod_b"] = array.reshape(-1)
        elif plain.startswith("Constant_") and style:
            out[f"{style}.scale"] = array.reshape(1)
        elif plain == "input.input":
            out["input"] = array[0]
        elif plain.endswith("weight_dw"):
            conv = plain.removesuffix(".weight_dw")
            out[f"{conv}.dw"] = array.reshape(array.shape[0], 1, 3, 3)
        elif plain.startswith("Mul_") and array.ndim == 4:
            out[f"{conv}.weight" if array.shape[2] == 3 else f"{conv}.pw"] = array
        elif array.ndim == 4 and array.shape[:2] == (1, 1) and array.shape[2] >= 4:
            out[f"{conv}.noise"] = array[0, 0]
        elif plain in {"rgb.weight", "rgb.bias"} or plain.endswith((".bias",)):
            out[plain] = array if plain == "rgb.weight" else array.reshape(-1)
    _check(out, xml_path)
    return _with_contiguous_bands(out)


def _with_contiguous_bands(weights: dict[str, F32]) -> dict[str, F32]:
    """Reorders channels ahead of each inverse Haar transform from (LL, then c*3+band) to (LL | B0 | B1 | B2),
    so that the transform needs four slices and no 5-D reshape."""

    def order(n: int) -> npt.NDArray[np.int64]:
        rest = np.arange(n // 4, n).reshape(n // 4, 3)
        return np.concatenate([np.arange(n // 4), rest.T.reshape(-1)])

    out = dict(weights)
    producers = [
        ("conv1", "weight"),
        *((f"b{b}.conv2", "pw") for b in range(N_BLOCKS - 1)),
        ("rgb", "weight"),
    ]
    for stem, kind in producers:
        perm = order(out[f"{stem}.{kind}"].shape[0])
        for key in (f"{stem}.{kind}", f"{stem}.bias"):
            out[key] = np.ascontiguousarray(out[key][perm])
    for b in range(N_BLOCKS):
        perm = order(out[f"b{b}.up.mod_b"].shape[0])
        for key in (f"b{b}.up.mod_w", f"b{b}.up.mod_b"):
            out[key] = np.ascontiguousarray(out[key][perm])
    return out


def _check(weights: Mapping[str, F32], xml_path: Path) -> None:
    wanted = ["input", *(f"conv1.{k}" for k in ("mod_w", "mod_b", "scale", "weight", "noise", "bias"))]
    wanted += [f"rgb.{k}" for k in ("mod_w", "mod_b", "scale", "weight", "bias")]
    for b in range(N_BLOCKS):
        wanted += [f"b{b}.up.mod_w", f"b{b}.up.mod_b"]
        for c in ("conv1", "conv2"):
            wanted += [f"b{b}.{c}.{k}" for k in ("mod_w", "mod_b", "scale", "dw", "pw", "noise", "bias")]
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise ModelStoreError(
            f"{xml_path.name}: not the expected generator, {missing[0]!r} and {len(missing) - 1} others are missing.",
            _WAY_OUT,
        )


def mapping_layers(xml_path: Path, bin_path: Path) -> list[tuple[F32, F32, float]]:
    """The mapping network's eight layers as (weight (out, in), bias (out,), gain):
    x -> gain * lrelu_0.2(W x + b), after z is normalised to unit mean square.

    Raises:
        ModelStoreError: the files hold another network.
    """
    consts = read_constants(xml_path, bin_path)
    layers: list[tuple[F32, F32, float]] = []
    for i, (_, array) in enumerate(consts):
        if array.ndim == 2 and array.shape == (512, 512):
            bias = consts[i + 1][1].reshape(512)
            gain = next((float(a.reshape(())) for _, a in consts[i + 3 :] if a.size == 1), float("nan"))
            layers.append((array, bias, gain))
    if len(layers) != N_MAPPING_LAYERS or not all(math.isfinite(gain) for _, _, gain in layers):
        raise ModelStoreError(
            f"{xml_path.name}: not the expected mapping network, {len(layers)} of {N_MAPPING_LAYERS} layers.",
            _WAY_OUT,
        )
    return layers
