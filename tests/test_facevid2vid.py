"""The full reenactor: sampling as torch's, motion as the paper's, and networks that hang together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_cases import examples

torch = pytest.importorskip("torch", reason="training code needs PyTorch: pip install 'keyface[train]'")

from facevid2vid_cases import SMALL, pictures, points, small_network  # noqa: E402

from keyface.models.facevid2vid import FaceVid2Vid  # noqa: E402
from keyface.models.facevid2vid_config import VOX_256, FaceVid2VidConfig  # noqa: E402
from keyface.models.facevid2vid_geometry import (  # noqa: E402
    HeadMotion,
    degrees_of_bins,
    moved_keypoints,
    rotation_matrix,
)
from keyface.models.facevid2vid_sampling import sample_volume  # noqa: E402

sizes = st.integers(1, 6)
angle = st.floats(-80, 80)


def by_torch(volume: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.grid_sample(volume, grid, align_corners=False)


@settings(max_examples=examples(60))
@given(
    st.integers(1, 3),
    sizes,
    sizes,
    sizes,
    sizes,
    sizes,
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 999),
)
def test_sampling_equals_grid_sample(
    n: int, c: int, d: int, h: int, w: int, out: int, reach: float, seed: int
) -> None:
    """To 1e-5, inside, across the border and far outside."""
    rng = torch.Generator().manual_seed(seed)
    volume = torch.randn((n, c, d, h, w), generator=rng)
    grid = torch.randn((n, out, 3, 2, 3), generator=rng) * reach
    torch.testing.assert_close(sample_volume(volume, grid), by_torch(volume, grid), rtol=0, atol=1e-5)


def test_sampling_equals_grid_sample_at_edges_and_centres() -> None:
    """Exactly on cells, on their borders, on the faces of the volume and just beyond."""
    volume = torch.randn((1, 2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    ticks = torch.linspace(-1.5, 1.5, 25)
    grid = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)[None]
    torch.testing.assert_close(sample_volume(volume, grid), by_torch(volume, grid), rtol=0, atol=1e-5)


def test_gradients_of_sampling_equal_those_of_grid_sample() -> None:
    rng = torch.Generator().manual_seed(3)
    volume = torch.randn((2, 3, 4, 5, 6), generator=rng, requires_grad=True)
    grid = (torch.randn((2, 2, 3, 4, 3), generator=rng) * 0.7).requires_grad_()
    ours = torch.autograd.grad(sample_volume(volume, grid).square().sum(), (volume, grid))
    theirs = torch.autograd.grad(by_torch(volume, grid).square().sum(), (volume, grid))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf])
def test_sampling_where_nothing_is_gives_no_number(place: float) -> None:
    """It neither stops nor reads beyond the volume, and what it gives cannot be taken for a picture."""
    grid = torch.zeros(1, 1, 1, 2, 3)
    grid[0, 0, 0, 1, 0] = place
    found = sample_volume(torch.ones(1, 1, 2, 2, 2), grid).flatten()
    assert found[0] == 1 and torch.isnan(found[1])


def motion(n: int = 2, k: int = 5, seed: int = 0) -> HeadMotion:
    rng = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=rng) for shape in ((n, 3), (n, 3), (n, k, 3))]
    return HeadMotion(draw[0] * 30, draw[1] * 0.2, draw[2] * 0.1)


@given(st.integers(0, 999))
@settings(max_examples=examples(30))
def test_motion_follows_the_equation(seed: int) -> None:
    """x_k = R x_c,k + t + delta_k, point by point."""
    canonical, m = points(seed=seed), motion(seed=seed)
    rotations = rotation_matrix(m.degrees)
    for n in range(2):
        for k in range(5):
            want = rotations[n] @ canonical[n, k] + m.shift[n] + m.deltas[n, k]
            torch.testing.assert_close(moved_keypoints(canonical, m)[n, k], want, rtol=0, atol=1e-5)


def test_no_motion_leaves_the_canonical_keypoints() -> None:
    still = HeadMotion(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 5, 3))
    torch.testing.assert_close(moved_keypoints(points(), still), points(), rtol=0, atol=1e-6)


def test_a_driver_who_moves_as_the_source_gives_the_sources_keypoints() -> None:
    """Whatever the driver's own shape: only pose and expression are taken."""
    canonical, m = points(), motion()
    driver = HeadMotion(m.degrees.clone(), m.shift.clone(), m.deltas.clone())
    assert torch.equal(moved_keypoints(canonical, driver), moved_keypoints(canonical, m))


@given(angle, angle, angle)
@settings(max_examples=examples(50))
def test_rotations_are_rotations(yaw: float, pitch: float, roll: float) -> None:
    """Of determinant 1, orthogonal, and R_x(pitch) R_y(yaw) R_z(roll)."""
    r = rotation_matrix(torch.tensor([[yaw, pitch, roll]], dtype=torch.float64))[0]
    torch.testing.assert_close(r @ r.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert torch.det(r) == pytest.approx(1)
    parts = rotation_matrix(
        torch.tensor([[0.0, pitch, 0.0], [yaw, 0.0, 0.0], [0.0, 0.0, roll]], dtype=torch.float64)
    )
    torch.testing.assert_close(parts[0] @ parts[1] @ parts[2], r, rtol=0, atol=1e-9)


@given(angle, angle, st.integers(0, 2))
@settings(max_examples=examples(50))
def test_turns_about_one_axis_add_up(first: float, second: float, axis: int) -> None:
    degrees = torch.zeros(3, 3, dtype=torch.float64)
    degrees[0, axis], degrees[1, axis], degrees[2, axis] = first, second, first + second
    a, b, both = rotation_matrix(degrees)
    torch.testing.assert_close(a @ b, both, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("degrees", "point", "want"),
    [
        ([90.0, 0, 0], [0.0, 0, 1], [1.0, 0, 0]),  # yaw: about the vertical
        ([0.0, 90, 0], [0.0, 1, 0], [0.0, 0, 1]),  # pitch: about the axis through the ears
        ([0.0, 0, 90], [1.0, 0, 0], [0.0, 1, 0]),  # roll: in the picture
    ],
)
def test_each_angle_turns_about_its_axis(degrees: list[float], point: list[float], want: list[float]) -> None:
    got = rotation_matrix(torch.tensor([degrees]))[0] @ torch.tensor(point)
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("chosen", "degrees"), [(0, -99.0), (33, 0.0), (65, 96.0)])
def test_sure_bins_give_their_angle(chosen: int, degrees: float) -> None:
    logits = torch.full((1, 66), -50.0)
    logits[0, chosen] = 50.0
    assert degrees_of_bins(logits).item() == pytest.approx(degrees, abs=1e-4)


def test_undecided_bins_give_the_mean_angle() -> None:
    logits = torch.full((66,), -50.0)
    logits[33] = logits[34] = 5.0
    assert degrees_of_bins(logits).item() == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("decoder", ["spade", "plain"])
@pytest.mark.parametrize("upscale", [1, 2])
def test_all_networks_together(decoder: str, upscale: int) -> None:
    network = small_network(decoder=decoder, upscale=upscale)
    with torch.no_grad():
        features, canonical = network.source(pictures())
        found = network(pictures(), pictures(seed=5))
    assert features.shape == (2, 4, 4, 8, 8)
    assert canonical.shape == (2, 5, 3) and canonical.abs().max() <= 1
    assert found.image.shape == (2, 3, 32 * upscale, 32 * upscale)
    assert found.image.min() >= 0 and found.image.max() <= 1
    assert found.driving_points.shape == (2, 5, 3) and found.driver.degrees.shape == (2, 3)
    torch.testing.assert_close(found.driving_points, moved_keypoints(canonical, found.driver))


def test_the_flow_is_the_identity_where_nothing_moves() -> None:
    """Every shift is none then, so that any mixture of them leaves every cell where it is."""
    network = small_network()
    with torch.no_grad():
        features, _ = network.source(pictures())
        flow, visibility = network.motion(features, points(), points())
        moved, _ = network.motion(features, points(), points() + torch.tensor([0.3, 0.0, 0.0]))
    torch.testing.assert_close(flow, network.motion.grid.expand_as(flow), rtol=0, atol=1e-5)
    assert visibility.shape == (2, 1, 8, 8) and visibility.min() >= 0 and visibility.max() <= 1
    shift = (moved - flow)[..., 0]
    assert shift.max() <= 1e-5 and shift.min() >= -0.3 - 1e-5 and shift.mean() < -0.01
    assert (moved - flow)[..., 1:].abs().max() < 1e-5


@pytest.mark.parametrize("decoder", ["spade", "plain"])
def test_an_untrained_additional_step_only_enlarges(decoder: str) -> None:
    """The middle of each 2 x 2 block is what the smaller network gives, up to the last convolution's blur."""
    small = small_network(decoder=decoder)
    large = FaceVid2Vid(replace(SMALL, decoder=decoder, upscale=2)).eval()
    missing, unexpected = large.load_state_dict(small.state_dict(), strict=False)
    assert not unexpected and all(".up_2." in name or ".up_blocks.2." in name for name in missing)
    found: list[torch.Tensor] = []
    for network in (small, large):
        last = network.decoder.conv_img if decoder == "spade" else network.decoder.final
        last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        with torch.no_grad():
            network.render(network.source(pictures())[0], points(), points(seed=9))
    torch.testing.assert_close(found[1][..., ::2, ::2], found[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1][..., 1::2, 1::2], found[0], rtol=1e-4, atol=1e-4)


def test_keypoints_may_come_from_outside() -> None:
    network = small_network(learns_keypoints=False, n_keypoints=12)
    with torch.no_grad():
        features = network.appearance(pictures())
        image = network.render(features, points(k=12), points(k=12, seed=8))
    assert image.shape == (2, 3, 32, 32)
    for call in (network.source, network.motion_of):
        with pytest.raises(ValueError, match="keypoints from outside"):
            call(pictures())


def test_gradients_reach_every_network() -> None:
    network = small_network(is_spectral=True).train()
    found = network(pictures(), pictures(seed=5))
    (found.image.mean() + found.driving_points.square().mean()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    for part in (network.appearance, network.motion, network.decoder, network.keypoints, network.pose):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters()) > 0


@pytest.mark.parametrize("change", [{"upscale": 3}, {"decoder": "other"}, {"side_px": 40}, {"side_px": 4}])
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SMALL, **change)


@pytest.mark.slow
@pytest.mark.parametrize("config", [VOX_256, replace(VOX_256, decoder="plain", upscale=2)])
def test_full_size(config: FaceVid2VidConfig) -> None:
    """The public sizes, on the CPU: shapes as the comments say, and a finite picture."""
    torch.manual_seed(0)
    network = FaceVid2Vid(config).eval()
    with torch.no_grad():
        features, canonical = network.source(pictures(1, 256))
        driving = moved_keypoints(canonical, network.motion_of(pictures(1, 256, seed=4)))
        image = network.render(features, canonical, driving)
    assert features.shape == (1, 32, 16, 64, 64) and canonical.shape == (1, 15, 3)
    assert image.shape == (1, 3, 256 * config.upscale, 256 * config.upscale) and image.isfinite().all()
