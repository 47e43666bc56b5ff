"""Training of the full warping reenactor: it learns in both keypoint modes, goes on where it was, and refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from property_cases import examples  # noqa: E402
from warp_full_cases import CONFIG, MESH, PlainJudges, drawn_pairs, own_points, training  # noqa: E402

from keyface.configs.errors import EngineError, UsageError  # noqa: E402
from keyface.configs.schema import load_options  # noqa: E402
from keyface.models.facevid2vid_geometry import rotation_matrix  # noqa: E402
from keyface.models.facevid2vid_pass import MESH_POINTS, network_degrees, run_pass  # noqa: E402
from keyface.models.train_warp_full import (  # noqa: E402
    FullTraining,
    FullWarpConfig,
    batcher_of,
    keypoint_losses,
    render_of,
    train_full,
)
from keyface.models.warp_batches import Batch, Drawer  # noqa: E402
from keyface.models.warp_losses import RandomWarp  # noqa: E402
from keyface.pipeline.faces.geometry import rotation_from_ypr  # noqa: E402

OWN_CONFIG = Path(__file__).parent.parent / "configs/warp/full.toml"
LEARNED_ONLY = {"equivariance", "prior", "pose", "expression"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that sums are made in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(config: FullWarpConfig, **sizes: int) -> Batch:
    pairs = drawn_pairs(**sizes)
    return Drawer(batcher_of(pairs, own_points(pairs), config), config).draw(np.random.default_rng(0))


def train(config: FullWarpConfig, out: Path) -> Any:
    pairs = drawn_pairs()
    return train_full(pairs, own_points(pairs), PlainJudges(), out, config)  # type: ignore[arg-type]


def told(made: FullTraining, b: Batch) -> dict[str, float]:
    """The weighted losses of a batch."""
    return {name: term.item() for name, term in made.terms(b).items()}


# ---------------------------------------------------------------- learning
@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, MESH], ids=["learned", "mesh"])
def test_a_tiny_network_learns(config: FullWarpConfig, tmp_path: Path) -> None:
    """The picture's errors nearly halve in 40 steps; learned keypoints turn towards the measured pose and spread."""
    b = batch(config)
    made, network = train(config, tmp_path / "warp")
    assert made.step == config.steps and not network.training and not network.config.is_spectral
    first, last = (told(t, b) for t in (training(tmp_path / "untrained", config), made))
    assert "adversarial" in last and "adversarial" not in first  # the second half has it
    assert last["pixel"] < 0.6 * first["pixel"] and last["perceptual"] < 0.65 * first["perceptual"]
    assert (first.keys() >= LEARNED_ONLY) == config.network.learns_keypoints
    if config.network.learns_keypoints:
        assert last["pose"] < 0.8 * first["pose"] and last["prior"] < 0.5 * first["prior"]
    with torch.no_grad():
        picture = render_of(network, "cpu")(b)
    assert picture.shape == b.target.shape
    error, of_grey = (picture - b.target).abs().mean().item(), b.target.abs().mean().item()
    assert error < 0.8 * of_grey  # ... and so has what is kept
    assert [row["step"] for row in made.history] == [25.0, 40.0]


# ---------------------------------------------------------------- going on
def weights(network: torch.nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, MESH], ids=["learned", "mesh"])
def test_interrupted_and_gone_on_with_equals_uninterrupted(config: FullWarpConfig, tmp_path: Path) -> None:
    """The same weights, curves and figures, to the last bit."""
    config = replace(config, steps=7, adversarial_from=0.25)
    whole, network = train(config, tmp_path / "whole")
    pairs = drawn_pairs()
    drawer = Drawer(batcher_of(pairs, own_points(pairs), config), config)
    first = training(tmp_path / "parts", config)
    for _ in range(4):
        first.train_step(drawer.draw(np.random.default_rng([config.seed, first.step])))
    first.save()
    first.train_step(drawer.draw(np.random.default_rng(99)))  # what comes after the checkpoint is lost
    again, network_again = train(config, tmp_path / "parts")
    assert again.step == whole.step == 7
    assert again.history == whole.history and again.means == whole.means
    for a, b in ((again.model, whole.model), (again.critic, whole.critic), (network_again, network)):
        assert all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.slow
def test_an_ended_schedule_is_not_trained_further(tmp_path: Path) -> None:
    config = replace(MESH, steps=2)
    made, _ = train(config, tmp_path / "warp")
    before = weights(made.model)
    again, _ = train(config, tmp_path / "warp")
    assert again.step == 2 and again.history == made.history
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again.model).items())


def test_time_ends_a_call(tmp_path: Path) -> None:
    made, network = train(replace(MESH, seconds=1e-9), tmp_path / "warp")
    assert made.step == 0 and made.checkpoint.is_file() and not network.training


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"nothing"), "cannot be read as the checkpoint"),
        (lambda path: torch.save({"step": 3}, path), "other critic_channels, critic_scales, network"),
        (lambda path: _without(path, "optimiser"), "the checkpoint of another network"),
    ],
    ids=["damaged", "foreign", "incomplete"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(spoil: Any, sentence: str, tmp_path: Path) -> None:
    made = training(tmp_path / "warp", MESH)
    made.save()
    spoil(made.checkpoint)
    with pytest.raises(UsageError, match=sentence):
        training(tmp_path / "warp", MESH)


def _without(path: Path, name: str) -> None:
    state = torch.load(path, weights_only=True)
    del state[name]
    torch.save(state, path)


def test_another_networks_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    training(tmp_path / "warp", MESH).save()
    with pytest.raises(UsageError, match=r"network\.n_keypoints"):
        training(tmp_path / "warp", replace(MESH, network=replace(MESH.network, n_keypoints=8)))


def test_a_save_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(tmp_path / "warp", MESH)
    made.save()
    kept = made.checkpoint.read_bytes()

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    made.step = 5
    with pytest.raises(OSError, match="no space"):
        made.save()
    assert made.checkpoint.read_bytes() == kept
    assert training(tmp_path / "warp", MESH).step == 0


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    made, b = training(tmp_path / "warp", MESH), batch(MESH)
    before = weights(made.model)
    b.target[0, 0, 0, 0] = float("nan")
    with pytest.raises(EngineError, match=r"The loss 'pixel' is not finite at step 1\."):
        made.train_step(b)
    parameters = {name for name, _ in made.model.named_parameters()}
    assert all(torch.equal(before[n], t) for n, t in weights(made.model).items() if n in parameters)


# ---------------------------------------------------------------- one pass
@given(st.floats(-60, 60), st.floats(-60, 60), st.floats(-60, 60))
@settings(max_examples=examples(60))
def test_measured_angles_turn_the_network_as_the_product_measures(
    yaw: float, pitch: float, roll: float
) -> None:
    """Y and z of the network point the other way than the product's."""
    pose = np.array([yaw, pitch, roll])
    flip = np.diag([1.0, -1.0, -1.0])
    ours = rotation_matrix(network_degrees(torch.from_numpy(pose)[None]))[0].numpy()
    np.testing.assert_allclose(ours, flip @ rotation_from_ypr(pose) @ flip, atol=1e-5)


def test_a_mesh_moves_the_picture_by_its_landmarks(tmp_path: Path) -> None:
    b, network = batch(MESH), training(tmp_path / "warp", MESH).model.eval()
    with torch.no_grad():
        made = run_pass(network, b)
    assert made.learned is None
    assert torch.equal(made.driving_points, b.driving[:, list(MESH_POINTS[:9])])
    assert torch.equal(made.source_points[2], made.source_points[3])  # one source, two drivers
    assert torch.equal(made.source_points[0], b.source[0, list(MESH_POINTS[:9])])


def test_landmarks_that_stand_for_keypoints_are_of_the_mesh() -> None:
    assert len(set(MESH_POINTS)) == len(MESH_POINTS) and 0 <= min(MESH_POINTS) <= max(MESH_POINTS) < 478


def test_a_head_is_turned_by_measured_angles_where_asked(tmp_path: Path) -> None:
    """Only there, and by nothing else of the driver's pose."""
    b, network = batch(CONFIG), training(tmp_path / "warp", CONFIG).model.eval()
    told = torch.tensor([True, False, False, True])
    b = replace(b, is_predicted=told)
    with torch.no_grad():
        seen, free = (
            run_pass(network, b, takes_measured_angles=flag).driving_points for flag in (False, True)
        )
    moved = (seen - free).abs().amax((1, 2)) > 1e-6
    assert moved.tolist() == told.tolist()


def test_each_keypoint_loss_answers_to_its_fault(tmp_path: Path) -> None:
    b, network = batch(CONFIG), training(tmp_path / "warp", CONFIG).model.eval()
    still = RandomWarp.draw(4, affine_deviation=0.0, bend_deviation=0.0)
    with torch.no_grad():
        made = run_pass(network, b, warp=still)
        found = keypoint_losses(made, b, still, CONFIG)
        assert found["equivariance"] < 1e-5 and found["prior"] > 0  # five points on one spot
        turned = replace(b, target_poses=b.target_poses + torch.tensor([10.0, 0.0, 0.0]))
        assert abs((keypoint_losses(made, turned, still, CONFIG)["pose"] - found["pose"]).item()) > 1
        assert made.learned is not None
        deltas = torch.cat([made.learned.source.deltas, made.learned.driver.deltas]).abs().mean()
        assert float(found["expression"]) == pytest.approx(0.5 * float(deltas))


@pytest.mark.parametrize("config", [CONFIG, MESH], ids=["learned", "mesh"])
def test_all_lies_on_the_device_asked_for(config: FullWarpConfig, tmp_path: Path) -> None:
    """PyTorch's `meta` device has shapes but no values, and refuses to be mixed with the CPU, as a card does."""
    config = replace(config, device="meta", adversarial_from=0.0)
    b, made = batch(config), training(tmp_path / "warp", config)
    terms = made.terms(b)
    assert {term.device.type for term in terms.values()} == {"meta"} and "matching" in terms
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in made.model.decoder.parameters())


@pytest.mark.parametrize("config", [CONFIG, MESH], ids=["learned", "mesh"])
def test_half_the_precision_blurs_no_keypoint(config: FullWarpConfig, tmp_path: Path) -> None:
    """bfloat16 as on a card: the same keypoints, and nearly the same picture."""
    b, network = batch(config), training(tmp_path / "warp", config).model
    with torch.no_grad():
        exact = run_pass(copy.deepcopy(network), b)
        half = run_pass(network, b, autocast=torch.autocast("cpu", torch.bfloat16))
    assert torch.equal(half.driving_points, exact.driving_points) and half.image.dtype == torch.float32
    assert 0 < (half.image - exact.image).abs().mean().item() < 0.05


# ---------------------------------------------------------------- sizes
def test_pictures_of_512_px_come_from_the_double_step(tmp_path: Path) -> None:
    """Here 128 of 64: the source is shown at half the pairs' side, the picture compared at the whole."""
    config = replace(MESH, network=replace(MESH.network, upscale=2), n_scales=2)
    b = batch(config, side_px=128)
    assert b.image.shape == (2, 3, 64, 64) and b.target.shape == (4, 3, 128, 128)
    terms = training(tmp_path / "warp", config).terms(b)
    assert all(torch.isfinite(term) for term in terms.values())
    with pytest.raises(UsageError, match=r"64 px wide, and the network makes 128 px\. .*--side 128"):
        batch(config, side_px=64)


def test_the_carried_schedule_is_the_papers_network() -> None:
    config = load_options(FullWarpConfig, OWN_CONFIG)
    assert config.network == FullWarpConfig().network and config.network.is_spectral
    assert 0 < config.reading_from < config.adversarial_from < 1 and config.picture_px == 256
    named = OWN_CONFIG.read_text("utf-8")
    weights_named = [f for f in FullWarpConfig.__dataclass_fields__ if f.endswith("_weight")]
    assert len(weights_named) == 11 and all(f"\n{name} = " in named for name in weights_named)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"people": 0}, "people is 0, want 1 or more."),
        ({"predicted": 1.5}, "predicted is 1.5, want 0 to 1."),
        ({"lr": float("nan")}, "lr is nan, want more than 0."),
        ({"pose_weight": -1.0}, "pose_weight is -1, want 0 or more."),
        ({"prior_weight": float("inf")}, "prior_weight is inf, want 0 or more."),
        ({"seed": -1}, "seed is -1, want 0 or more."),
        ({"n_scales": 2}, "n_scales is 2: "),
        ({"critic_scales": 4}, "critic_scales is 4"),
        ({"network": replace(CONFIG.network, width=0)}, "network: width is 0, want more than 0."),
        ({"network": replace(CONFIG.network, side_px=32)}, "network: pictures of 32 px, want 64 or more."),
        ({"network": replace(MESH.network, n_keypoints=100)}, "n_keypoints is 100, want 1 to 48 of a mesh."),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, **changes)
    assert sentence in str(caught.value)
