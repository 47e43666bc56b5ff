"""Checkpoints of the public layout: read as they were made, and refused by name where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")

from facevid2vid_cases import SMALL, pictures, points, public_layout, small_network  # noqa: E402

from keyface.configs.errors import ModelStoreError  # noqa: E402
from keyface.models.facevid2vid import FaceVid2Vid  # noqa: E402
from keyface.models.facevid2vid_config import VOX_256, FaceVid2VidConfig  # noqa: E402
from keyface.models.facevid2vid_layout import (  # noqa: E402
    as_checkpoint,
    config_of,
    for_inference,
    load_facevid2vid,
)

Checkpoint = dict[str, Any]
DECODERS = ("spade", "plain")


def checkpoint(config: FaceVid2VidConfig = SMALL, seed: int = 0) -> Checkpoint:
    """Random tensors of the layout, made from its names and shapes alone."""
    rng = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        values = torch.randn(shape, generator=rng) * 0.1
        if name.endswith(("weight_u", "weight_v")):
            return values / values.norm()
        return values.abs() + 0.5 if name.endswith("running_var") else values

    layout = public_layout(config)
    return {
        section: {name: tensor(name, shape) for name, shape in table.items()}
        for section, table in layout.items()
    }


def saved(found: Any, folder: Path) -> Path:
    path = folder / "vox.pth.tar"
    torch.save(found, path)
    return path


def outputs(network: FaceVid2Vid) -> list[torch.Tensor]:
    with torch.no_grad():
        features, canonical = network.source(pictures())
        motion = network.motion_of(pictures(seed=6))
        image = network.render(features, canonical, canonical + points() * 0.5)
    return [features, canonical, motion.degrees, motion.shift, motion.deltas, image]


def assert_same(first: FaceVid2Vid, second: FaceVid2Vid, tolerance: float = 1e-5) -> None:
    for a, b in zip(outputs(first), outputs(second), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("sizes", [SMALL, VOX_256], ids=["small", "public"])
def test_names_and_shapes_are_the_public_ones(sizes: FaceVid2VidConfig, decoder: str) -> None:
    config = replace(sizes, decoder=decoder, is_spectral=True)
    with torch.device("meta"):
        made = as_checkpoint(FaceVid2Vid(config))
    shapes = {section: {name: tuple(t.shape) for name, t in table.items()} for section, table in made.items()}
    assert shapes == public_layout(config)


def test_a_few_shapes_of_the_public_checkpoint() -> None:
    """As its configuration gives them: 16384 = 1024 * 16 channels, 112 = 32 + 16 * (4 + 1)."""
    layout = public_layout(VOX_256)
    assert layout["kp_detector"]["predictor.conv.weight"] == (16384, 1024, 1, 1)
    assert layout["generator"]["dense_motion_network.mask.weight"] == (16, 112, 7, 7, 7)
    assert layout["generator"]["dense_motion_network.occlusion.weight"] == (1, 1792, 7, 7)
    assert layout["generator"]["decoder.up_1.conv_s.weight_orig"] == (64, 256, 1, 1)
    assert layout["he_estimator"]["fc_exp.weight"] == (45, 2048)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("upscale", [1, 2])
def test_what_is_loaded_does_what_was_saved(tmp_path: Path, decoder: str, upscale: int) -> None:
    network = small_network(decoder=decoder, upscale=upscale)
    loaded = load_facevid2vid(saved(as_checkpoint(network), tmp_path), network.config)
    assert not loaded.training
    assert_same(network, loaded, 0)


def test_spectral_norm_is_multiplied_out(tmp_path: Path) -> None:
    """Trained with it, run without: the same pictures."""
    network = small_network(is_spectral=True)
    network.train()(pictures(), pictures(seed=5))  # moves the vectors away from where they started
    network.eval()
    names = as_checkpoint(network)["generator"].keys()
    assert "decoder.up_0.conv_s.weight_orig" in names
    assert_same(network, load_facevid2vid(saved(as_checkpoint(network), tmp_path), SMALL))
    assert_same(network, for_inference(network))
    again = load_facevid2vid(saved(as_checkpoint(network), tmp_path), network.config)
    assert_same(network, again, 0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_checkpoint_made_from_names_and_shapes_alone(tmp_path: Path, decoder: str) -> None:
    config = replace(SMALL, decoder=decoder)
    network = load_facevid2vid(saved(checkpoint(config), tmp_path), config)
    assert all(found.isfinite().all() for found in outputs(network))
    got = network.state_dict()["pose.block7.b7_1.conv2.weight"]
    assert torch.equal(got, checkpoint(config)["he_estimator"]["block7.b7_1.conv2.weight"])


def test_what_public_files_vary_in_is_accepted(tmp_path: Path) -> None:
    """`module.` in front, buffers of synchronised norms, no counters, half precision, other things beside it."""
    plain = checkpoint()
    varied: Checkpoint = {
        "epoch": 185,
        "discriminator": {"discs.1.conv.bias": torch.zeros(3)},
        "optimizer_generator": {
            "state": {0: {"step": 5}},
            "param_groups": [{"lr": 2e-4, "betas": (0.5, 0.9)}],
        },
    }
    for section, table in plain.items():
        kept = {name: value for name, value in table.items() if not name.endswith("num_batches_tracked")}
        varied[section] = {f"module.{name}": value.half() for name, value in kept.items()}
        means = [name for name in kept if name.endswith("running_mean")]
        for name in means:
            stem = f"module.{name.removesuffix('running_mean')}"
            varied[section][f"{stem}_tmp_running_mean"] = kept[name]
            varied[section][f"{stem}_tmp_running_var"] = kept[name]
            varied[section][f"{stem}_running_iter"] = torch.ones(1)
    rounded = {
        section: {n: v.half().float() if v.is_floating_point() else v for n, v in table.items()}
        for section, table in plain.items()
    }
    want = load_facevid2vid(saved(rounded, tmp_path), SMALL)
    assert_same(want, load_facevid2vid(saved(varied, tmp_path), SMALL), 1e-4)


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    """Before 1.6 it wrote no zip archive."""
    path = tmp_path / "old.pth.tar"
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    assert_same(load_facevid2vid(path, SMALL), load_facevid2vid(saved(checkpoint(), tmp_path), SMALL), 0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_smaller_checkpoint_starts_a_larger_decoder(tmp_path: Path, decoder: str) -> None:
    path = saved(checkpoint(replace(SMALL, decoder=decoder)), tmp_path)
    network = load_facevid2vid(path, replace(SMALL, decoder=decoder, upscale=2))
    assert outputs(network)[-1].shape == (2, 3, 64, 64)


def test_a_mesh_driven_network_needs_the_generator_alone(tmp_path: Path) -> None:
    alone = {"generator": checkpoint()["generator"]}
    network = load_facevid2vid(saved(alone, tmp_path), replace(SMALL, learns_keypoints=False))
    with torch.no_grad():
        image = network.render(network.appearance(pictures()), points(), points())
    assert image.isfinite().all()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shrink", [1, 4])
def test_decoder_and_detector_are_read_off_the_names(decoder: str, shrink: int) -> None:
    layout = public_layout(replace(VOX_256, decoder=decoder, detector_shrink=shrink))
    names = {section: dict.fromkeys(table, torch.zeros(0)) for section, table in layout.items()}
    assert config_of(names) == replace(VOX_256, decoder=decoder, detector_shrink=shrink)


def broken(change: str) -> Checkpoint:
    found = checkpoint()
    generator = found["generator"]
    if change == "shape":
        generator["second.weight"] = generator["second.weight"][:, :-1]
    elif change == "missing":
        del found["kp_detector"]["kp.bias"]
    elif change == "unknown":
        found["kp_detector"]["jacobian.weight"] = torch.zeros(9)
    elif change == "not finite":
        found["he_estimator"]["fc_t.bias"][1] = float("nan")
    elif change == "integers":
        generator["fourth.bias"] = torch.zeros(32, dtype=torch.int64)
    elif change == "section":
        del found["he_estimator"]
    elif change == "spectral":
        generator["decoder.up_0.conv_0.weight_u"] = torch.ones(3)
    elif change == "zero":
        generator["decoder.up_0.conv_0.weight_orig"].zero_()
    elif change == "no table":
        found["kp_detector"] = [torch.zeros(1)]
    elif change == "no tensor":
        generator["first.conv.bias"] = "text"
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("shape", r"generator\.second\.weight is \(16, 15, 1, 1\), want \(16, 16, 1, 1\)"),
        ("missing", r"kp_detector\.kp\.bias is missing"),
        ("unknown", r"kp_detector\.jacobian\.weight is unknown"),
        ("not finite", r"he_estimator\.fc_t\.bias is not finite"),
        ("integers", r"generator\.fourth\.bias is torch\.int64, want torch\.float32"),
        ("section", r"'he_estimator' is missing\."),
        ("spectral", r"spectral norm of 'decoder\.up_0\.conv_0\.weight' does not fit"),
        ("zero", r"generator\.decoder\.up_0\.conv_0\.weight is not finite"),
        ("no table", r"'kp_detector' of checkpoint vox\.pth\.tar is no table of tensors"),
        ("no tensor", r"'generator' of checkpoint vox\.pth\.tar is no table of tensors"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(ModelStoreError, match=words) as error:
        load_facevid2vid(saved(broken(change), tmp_path), SMALL)
    assert "docs/reenactor.md" in error.value.way_out


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match=r"is missing, .*, and \d+ more\.") as error:
        load_facevid2vid(saved({**checkpoint(), "kp_detector": {}}, tmp_path), SMALL)
    assert len(error.value.problem) < 600


class Hostile:
    """Would make a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_objects_are_refused_and_never_run(tmp_path: Path, is_zip: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "bad.pth.tar"
    torch.save({**checkpoint(), "epoch": Hostile(marker)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelStoreError, match=r"bad\.pth\.tar is damaged or holds more than plain tensors"):
        load_facevid2vid(path, SMALL)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 no archive"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pth.tar"
    path.write_bytes(content)
    with pytest.raises(ModelStoreError, match=r"bad\.pth\.tar is damaged"):
        load_facevid2vid(path, SMALL)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelStoreError, match=r"vox\.pth\.tar is damaged"):
        load_facevid2vid(path, SMALL)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match=r"checkpoint none\.pth\.tar cannot be read: No such file"):
        load_facevid2vid(tmp_path / "none.pth.tar", SMALL)


@pytest.mark.parametrize("found", [torch.zeros(3), [1, 2], {"state_dict": {}}])
def test_files_of_another_kind_are_refused(tmp_path: Path, found: Any) -> None:
    with pytest.raises(ModelStoreError, match="no dictionary of generator, he_estimator, kp_detector"):
        load_facevid2vid(saved(found, tmp_path), SMALL)
