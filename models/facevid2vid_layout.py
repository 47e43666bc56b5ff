"""Reads and writes checkpoints in the public FaceVid2Vid layout (`.pth.tar`, config vox-256 or vox-256-spade).

A dictionary of state dictionaries: `generator` (appearance, dense motion, decoder), `kp_detector` (canonical
keypoints) and `he_estimator` (pose and expression); optimisers, judges and counters beside them are not read. Only
plain tensors are loaded: a file that would run code is refused before it can.

Accepted: names with `module.` in front, the extra buffers of synchronised batch norm, a missing
`num_batches_tracked`, half precision, and spectral norm, which is multiplied out. All else has to fit by name and
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from keyface.configs.errors import ModelStoreError
from keyface.models.facevid2vid import FaceVid2Vid
from keyface.models.facevid2vid_config import VOX_256, FaceVid2VidConfig

Sections = Mapping[str, Mapping[str, Tensor]]

_SECTIONS = {"appearance": "generator", "motion": "generator", "decoder": "generator",
             "keypoints": "kp_detector", "pose": "he_estimator"}  # fmt: skip
_PLAIN_DECODER = {"third", "fourth", "resblocks_2d", "up_blocks", "final"}
_SYNC_BUFFERS = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")
_WAY_OUT = "Take a checkpoint of the layout that docs/reenactor.md describes."
N_NAMED = 6  # so many misfits are named, the others counted


def load_facevid2vid(path: Path, config: FaceVid2VidConfig | None = None) -> FaceVid2Vid:
    """The network of a public checkpoint, on the CPU, in evaluation mode.

    Args:
        path: what `torch.save` wrote.
        config: sizes that the checkpoint must have. None: the public ones, where the decoder and whether the detector
            shrinks its picture are read off the names. With `upscale` 2, a checkpoint without the additional step of
            the decoder is accepted, and the step then only enlarges.

    Raises:
        ModelStoreError: the file cannot be read, holds more than tensors, or does not fit; names what does not.
    """
    sections = {name: _cleaned(tensors) for name, tensors in _read(path).items()}
    return _network(config or config_of(sections), sections, path.name)


def for_inference(network: FaceVid2Vid) -> FaceVid2Vid:
    """The same function without spectral norm, which is multiplied into the weights; a new network, on the CPU."""
    sections = {
        section: {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        for section, tensors in as_checkpoint(network).items()
    }
    return _network(replace(network.config, is_spectral=False), sections, "in memory")


def _network(config: FaceVid2VidConfig, sections: Sections, name: str) -> FaceVid2Vid:
    if not config.is_spectral:
        sections = {section: _without_spectral_norm(tensors) for section, tensors in sections.items()}
    network = FaceVid2Vid(config)
    fitted, wrong = _fitted(network, sections)
    if wrong:
        more = f", and {len(wrong) - N_NAMED} more" if len(wrong) > N_NAMED else ""
        problem = f"checkpoint {name} does not fit: {', '.join(wrong[:N_NAMED])}{more}."
        raise ModelStoreError(problem, _WAY_OUT)
    network.load_state_dict(fitted, strict=False)  # what may be missing was decided above
    network.eval()
    return network


def as_checkpoint(network: FaceVid2Vid) -> dict[str, dict[str, Tensor]]:
    """The network's tensors in the public layout, ready for `torch.save`."""
    sections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in network.state_dict().items():
        section, public = _public_name(name)
        sections.setdefault(section, {})[public] = tensor
    return sections


def _public_name(name: str) -> tuple[str, str]:
    """Section and name in the layout of one of our tensors."""
    network, rest = name.split(".", 1)
    if network == "motion":
        rest = f"dense_motion_network.{rest}"
    elif network == "decoder" and rest.split(".")[0] not in _PLAIN_DECODER:
        rest = f"decoder.{rest}"
    return _SECTIONS[network], rest


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelStoreError(f"checkpoint {path.name} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged or hostile file can raise anything
        problem = f"checkpoint {path.name} is damaged or holds more than plain tensors, and is not loaded."
        raise ModelStoreError(problem, _WAY_OUT) from error
    names = sorted(set(_SECTIONS.values()))
    if not isinstance(found, dict) or "generator" not in found:
        raise ModelStoreError(f"checkpoint {path.name} holds no dictionary of {', '.join(names)}.", _WAY_OUT)
    sections = {name: found[name] for name in names if name in found}
    for name, tensors in sections.items():
        is_plain = isinstance(tensors, dict) and all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
        )
        if not is_plain:
            raise ModelStoreError(f"'{name}' of checkpoint {path.name} is no table of tensors.", _WAY_OUT)
    return sections


def _cleaned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without `module.` in front, and without what synchronised batch norm keeps for itself."""
    return {
        name.removeprefix("module."): tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SYNC_BUFFERS)
    }


def config_of(sections: Sections) -> FaceVid2VidConfig:
    """The public sizes; decoder and detector as the names say."""
    is_spade = any(name.startswith("decoder.") for name in sections["generator"])
    shrinks = "down.weight" in sections.get("kp_detector", {})
    return replace(VOX_256, decoder="spade" if is_spade else "plain", detector_shrink=4 if shrinks else 1)


def _without_spectral_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """weight = weight_orig / sigma, sigma = u^T W v with the vectors kept from training."""
    done = dict(tensors)
    for name in tensors:
        stem = name.removesuffix("_orig")
        vectors = (f"{stem}_u", f"{stem}_v")
        if stem == name or any(vector not in tensors for vector in vectors):
            continue
        weight, u, v = done.pop(name).float(), *(done.pop(vector).float() for vector in vectors)
        flat = weight.flatten(1) if weight.ndim > 1 else weight
        if u.shape != flat.shape[:1] or v.shape != flat.shape[1:] or flat.ndim != 2:
            raise ModelStoreError(f"the spectral norm of '{stem}' does not fit its weight.", _WAY_OUT)
        done[stem] = weight / (u @ flat @ v)
    return done


def _fitted(network: FaceVid2Vid, sections: Sections) -> tuple[dict[str, Tensor], list[str]]:
    """Our names to the file's tensors, and a sentence for each that does not fit."""
    needed = {_SECTIONS[name] for name, _ in network.named_children()}
    wrong = [f"'{section}' is missing" for section in sorted(needed - sections.keys())]
    left = {section: set(sections[section]) for section in sorted(needed & sections.keys())}
    is_optional = _optional_names(network.config, left.get("generator", set()))
    fitted: dict[str, Tensor] = {}
    for name, want in network.state_dict().items():
        section, public = _public_name(name)
        if section not in left:
            continue
        left[section].discard(public)
        got = sections[section].get(public)
        if got is None:
            wrong += [] if is_optional(public) else [f"{section}.{public} is missing"]
        elif misfit := _misfit(got, want):
            wrong.append(f"{section}.{public} is {misfit}")
        else:
            fitted[name] = got.to(want.dtype)
    wrong += [f"{section}.{name} is unknown" for section, names in left.items() for name in sorted(names)]
    return fitted, wrong


def _optional_names(config: FaceVid2VidConfig, generator: set[str]) -> Callable[[str], bool]:
    """Which names a file may lack: counters of norms, and the additional step of `upscale` 2 as a whole."""
    step = f"decoder.up_{config.n_down}." if config.decoder == "spade" else f"up_blocks.{config.n_down}."
    may_lack_step = config.upscale == 2 and not any(name.startswith(step) for name in generator)

    def is_optional(name: str) -> bool:
        return name.endswith("num_batches_tracked") or (may_lack_step and name.startswith(step))

    return is_optional


def _misfit(got: Tensor, want: Tensor) -> str:
    if got.shape != want.shape:
        return f"{tuple(got.shape)}, want {tuple(want.shape)}"
    if got.is_floating_point() != want.is_floating_point():
        return f"{got.dtype}, want {want.dtype}"
    return "" if torch.isfinite(got).all() else "not finite"
