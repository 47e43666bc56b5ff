"""Training of the head and of the motion map: losses, wanted motions, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples
from safetensors.numpy import load_file
from training_cases import w_plus

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")

N_HELD_OUT = 2


def measured_controls(n: int = 40, seed: int = 0) -> np.ndarray:
    """(n, 54) as measured on video: pose over 30 degrees, coefficients in [0, 1]."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 0.8, (n, 2)), rng.random((n, 52)) ** 3], 1).astype(np.float32)


@settings(max_examples=examples(40))
@given(n=st.integers(1, 30), seed=st.integers(0, 2**31), rows=st.integers(1, 50))
def test_wanted_motions_stay_in_range(n: int, seed: int, rows: int) -> None:
    from keyface.models.train_motion import BLINK, LOOK_DOWN, LOOK_IN, LOOK_OUT, LOOK_UP, WantedMotions

    measured = measured_controls(rows, seed)
    before = measured.copy()
    wanted = WantedMotions(measured, np.random.default_rng(seed)).draw(n).numpy()
    assert wanted.shape == (n, 54) and wanted.dtype == np.float32
    assert (np.abs(wanted[:, 0]) <= 38 / 30 + 1e-6).all() and (np.abs(wanted[:, 1]) <= 28 / 30 + 1e-6).all()
    assert wanted[:, 2:].min() >= 0 and wanted[:, 2:].max() <= 1
    np.testing.assert_array_equal(measured, before)
    again = WantedMotions(measured, np.random.default_rng(seed)).draw(n).numpy()
    np.testing.assert_array_equal(wanted, again)
    assert {*BLINK, *LOOK_DOWN, *LOOK_IN, *LOOK_OUT, *LOOK_UP} == set(range(9, 19))


@given(right=st.floats(-1, 1), up=st.floats(-1, 1))
def test_both_eyes_look_the_same_way(right: float, up: float) -> None:
    from keyface.models.train_motion import LOOK_DOWN, LOOK_IN, LOOK_OUT, LOOK_UP, WantedMotions

    shapes = np.full(52, 0.5, np.float32)
    WantedMotions._look(shapes, right, up)
    assert shapes[LOOK_OUT[0]] == shapes[LOOK_IN[1]] and shapes[LOOK_IN[0]] == shapes[LOOK_OUT[1]]
    assert min(shapes[LOOK_OUT[0]], shapes[LOOK_IN[0]]) == 0
    assert min(shapes[LOOK_UP[0]], shapes[LOOK_DOWN[0]]) == 0
    assert shapes[LOOK_UP[0]] - shapes[LOOK_DOWN[0]] == pytest.approx(up, abs=1e-6)


def small_map() -> Any:
    """A motion map with directions that differ, and a network that does something."""
    from keyface.models.motion import MotionMap

    torch.manual_seed(0)
    model = MotionMap()
    model.initialise(
        torch.randn(512), torch.randn(32, 512) / 20, torch.rand(54), torch.randn(54, 512), layers=10
    )
    torch.nn.init.normal_(model.out.weight, std=0.1)
    return model


def test_wanting_what_is_there_changes_nothing() -> None:
    from keyface.models.motion import displaced

    model, w = small_map(), torch.randn(3, 512)
    own, wanted = torch.rand(3, 54), torch.rand(3, 54)
    assert torch.equal(model(w, own, own), torch.zeros(3, 16, 512))
    there, back = model(w, wanted, own), model(w, own, wanted)
    torch.testing.assert_close(there, -back)
    moved = displaced(w, there)
    assert moved.shape == (3, 23, 512) and there.abs().max() > 0
    assert torch.equal(moved[:, 16:], w[:, None].expand(-1, 7, -1))
    torch.testing.assert_close(moved[:, :16], w[:, None] + there)


def test_a_new_map_is_the_linear_edit() -> None:
    from keyface.models.motion import MotionMap

    directions = torch.randn(54, 512)
    model = MotionMap()
    model.initialise(torch.zeros(512), torch.randn(32, 512), torch.rand(54), directions, layers=10)
    own, wanted = torch.rand(2, 54), torch.rand(2, 54)
    change = model(torch.randn(2, 512), wanted, own)
    torch.testing.assert_close(change[:, 0], (wanted - own) @ directions, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(change[:, 9], change[:, 0])
    assert torch.equal(change[:, 10:], torch.zeros(2, 6, 512))


def test_linear_directions_move_what_they_name() -> None:
    """Where controls are linear in w, an edit by one unit changes its control by about one, others little."""
    from keyface.models.train_motion import linear_directions, trait_axes

    rng = np.random.default_rng(1)
    truth = np.linalg.qr(rng.standard_normal((512, 54)))[0].astype(np.float32)
    w = rng.standard_normal((4000, 512)).astype(np.float32)
    directions = linear_directions(w, w @ truth, ridge=0.01)
    assert directions.shape == (54, 512) and directions.dtype == np.float32
    np.testing.assert_allclose(directions @ truth, np.eye(54), atol=0.1)
    axes = trait_axes(w)
    np.testing.assert_allclose(((w - w.mean(0)) @ axes.T).std(0), 1.0, atol=0.05)


def measured(shapes: Any, pose: Any, embedding: Any) -> Any:
    from keyface.models.face_measure import Measured

    n = len(shapes)
    return Measured(torch.zeros(n, 478, 3), shapes, pose, torch.ones(n), embedding)


def test_each_term_of_the_motion_loss_answers_to_its_fault_alone() -> None:
    from keyface.models.train_motion import JAW_OPEN, MotionConfig, motion_loss

    wanted = torch.rand(4, 54)
    face = torch.nn.functional.normalize(torch.randn(2, 128), dim=1)
    perfect = (wanted[:, 2:].clone(), wanted[:, :2] * 30, face.repeat_interleave(2, 0))
    nothing, config = torch.zeros(4, 16, 512), MotionConfig()

    def terms(shapes: Any, pose: Any, embedding: Any, displacement: Any = nothing) -> dict[str, float]:
        found = motion_loss(measured(shapes, pose, embedding), wanted, face, displacement, config)
        return {name: float(value) for name, value in found.items()}

    assert terms(*perfect) == pytest.approx(
        dict.fromkeys(("shapes", "pose", "identity", "norm"), 0), abs=1e-5
    )
    opened = perfect[0].clone()
    opened[:, JAW_OPEN] += 0.3
    neutral = perfect[0].clone()
    neutral[:, 0] += 0.3
    stranger = torch.nn.functional.normalize(torch.randn(4, 128), dim=1)
    for name, found in {
        "shapes": terms(opened, *perfect[1:]),
        "pose": terms(perfect[0], perfect[1] + 5, perfect[2]),
        "identity": terms(*perfect[:2], stranger),
        "norm": terms(*perfect, nothing + 0.1),
    }.items():
        assert found[name] > 0.01
        assert all(value == pytest.approx(0, abs=1e-5) for other, value in found.items() if other != name)
    assert terms(neutral, *perfect[1:])["shapes"] == pytest.approx(0, abs=1e-5), "_neutral is no expression"


def test_the_head_loss_sees_lost_edges() -> None:
    from keyface.models.train_head import head_loss, psnr

    target = torch.zeros(1, 3, 256, 256)
    target[..., ::2] = 1.0
    assert head_loss(target, target) == 0 and psnr(target, target + 0.2) == pytest.approx(19.2, abs=1.0)
    blurred = torch.full_like(target, 0.5)
    assert head_loss(blurred, target) > 2 * head_loss(target + 0.5, target)


@pytest.fixture
def head_data(models: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """W+ and pictures (noise) of six samples, two of them held out."""
    from keyface.models import train_head

    monkeypatch.setattr(train_head, "N_HELD_OUT", N_HELD_OUT)
    styles = w_plus(models, n=2).repeat(3, 0)
    images = np.random.default_rng(0).integers(0, 255, (len(styles), 256, 256, 3), np.uint8)
    return styles, images


def test_the_head_trains_stops_and_goes_on(models: Any, head_data: Any, tmp_path: Path) -> None:
    """A later call resumes at the step of the one before; the file has the names, shapes and half precision of
    the one that the package carries."""
    from keyface.models.checkpoint import steps_done
    from keyface.models.train_head import HeadConfig, train_head

    out = tmp_path / "head.safetensors"
    assert steps_done(out) == 0
    for steps, want in ((1, 1), (2, 2), (2, 2)):
        config = HeadConfig(steps=steps, batch=1, is_compiled=False)
        quality = train_head(models.path("synthesis_1024"), *head_data, out, config)
        assert steps_done(out) == want and np.isfinite(quality)
    committed, trained = load_file(str(models.path("head256"))), load_file(str(out))
    assert {k: (v.shape, v.dtype) for k, v in trained.items()} == {
        k: (v.shape, v.dtype) for k, v in committed.items()
    }


def test_no_time_means_no_step_but_a_usable_file(models: Any, head_data: Any, tmp_path: Path) -> None:
    from keyface.models.generator import Generator256
    from keyface.models.train_head import HeadConfig, train_head

    out = tmp_path / "head.safetensors"
    config = HeadConfig(seconds=0, batch=1, is_compiled=False)
    train_head(models.path("synthesis_1024"), *head_data, out, config)
    with torch.no_grad():
        image = Generator256.load(models.path("synthesis_1024"), out)(torch.from_numpy(w_plus(models)))
    assert image.shape == (1, 3, 256, 256) and torch.isfinite(image).all()
