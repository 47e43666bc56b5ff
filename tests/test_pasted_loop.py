"""The projector's last steps: the differentiable paste, the loop, triplets of photos, and which weights are kept."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'keyface[train]'")

from keyface.configs.errors import UsageError  # noqa: E402
from keyface.configs.projector import LossWeights, ProjectorConfig, load_projector_config  # noqa: E402
from keyface.models.keep_best import KeepBest  # noqa: E402
from keyface.models.look_limits import LookLimits  # noqa: E402
from keyface.models.motion import MotionMap  # noqa: E402
from keyface.models.paste import SIDE, PhotoCrops, SoftPaste  # noqa: E402
from keyface.models.pasted_loop import PastedLoop  # noqa: E402
from keyface.models.projector import Latents, Metric, RotationProjector  # noqa: E402
from keyface.models.projector_data import Photos, PhotoTriplets  # noqa: E402
from keyface.models.projector_losses import projector_losses  # noqa: E402
from keyface.models.train_projector import (  # noqa: E402
    Phase,
    Training,
    load_projector,
    save_projector,
    virtual_faces,
)

N_PHOTOS = 6
CONFIG = ProjectorConfig(
    n_code=16, hidden=(32,), weights=LossWeights(anonymity=1.0, contrast=1.0), fine_steps=40, fine_batch=2
)


def photo_crops(n: int, *, seed: int = 0, spread: float = 90.0) -> PhotoCrops:
    """Smooth pictures with a round mask; nothing counts as hair."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 7, 7, generator=rng) * spread + 125 - spread / 2
    base = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    uv = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None].repeat(n, 1, 1, 1) * 1.3
    disc = (uv.norm(dim=1, keepdim=True) < 1).float()
    nothing = torch.zeros(n, 1, SIDE, SIDE)
    return PhotoCrops(base, disc, disc, disc, uv, nothing, nothing, nothing)


def straight() -> torch.Tensor:
    """`at` of a crop that fills the photo's."""
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]


def test_a_soft_paste_leaves_the_surroundings_and_takes_on_the_photos_light() -> None:
    photos = photo_crops(1)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rough = torch.nn.functional.interpolate(noise, size=(256, 256), mode="bilinear") * 0.1
    dim, bright = (SoftPaste()(rough + level, straight(), photos) for level in (-0.3, 0.1))
    outside = photos.mask.expand(-1, 3, -1, -1) == 0
    assert torch.equal(dim[outside], photos.base[outside])
    inside = photos.mask.expand(-1, 3, -1, -1) == 1
    assert (dim - bright)[inside].abs().mean() < 6  # levels; 51 apart before
    assert abs(float((dim - photos.base)[inside].mean())) < 6
    assert (dim - photos.base)[inside].abs().mean() > 3  # and yet it is another face


def test_a_soft_paste_has_a_gradient_inside_the_mask_only() -> None:
    image = torch.zeros(1, 3, 256, 256, requires_grad=True)
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    pasted = SoftPaste()(image + 0.05 * noise, straight(), photo_crops(1))
    pasted.square().sum().backward()
    assert image.grad is not None and torch.isfinite(image.grad).all()
    assert float(image.grad[..., 100:156, 100:156].abs().sum()) > 0
    assert float(image.grad[..., :8, :8].abs().sum()) == 0


def latents() -> Latents:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((512, 128)))[0].T
    nobody = (np.zeros((0, 512)), np.zeros((0, 512)), np.zeros(0))
    return Latents(np.zeros(512), axes, np.ones(128), nobody)


def projector(config: ProjectorConfig = CONFIG) -> RotationProjector:
    torch.manual_seed(0)
    metric = Metric(np.eye(128, dtype=np.float32)[: config.n_code], np.zeros(128, np.float32))
    model = RotationProjector(config, metric, 128, LookLimits.none(128))
    torch.nn.init.normal_(model.network.linear.bias, std=0.7)  # everybody alike, whatever the key
    return model


def toy_loop(placed: list[int], *, refused: int = -1) -> PastedLoop:
    """A generator that paints W+ as a coarse picture, and a recogniser that reads coarse pictures."""
    rng = torch.Generator().manual_seed(1)
    to_image = torch.randn(512, 3 * 8 * 8, generator=rng) * (4 / 512**0.5)
    to_embedding = torch.randn(3 * 14 * 14, 256, generator=rng)

    def generate(w_plus: torch.Tensor) -> torch.Tensor:
        small = (w_plus.mean(1) @ to_image).reshape(-1, 3, 8, 8)
        return torch.nn.functional.interpolate(small, size=(256, 256), mode="bilinear")

    def embed(levels: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.avg_pool2d(levels / 64 - 2, 8).flatten(1) @ to_embedding
        return torch.nn.functional.normalize(x.reshape(-1, 2, 128), dim=2).flatten(1)

    photos = photo_crops(N_PHOTOS, spread=12.0)

    def place(number: int, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        placed.append(number)
        if number == refused:
            return None
        image = torch.from_numpy(crop.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        exact = SoftPaste()(image, straight(), photos[number : number + 1])[0].permute(1, 2, 0)
        return straight()[0].numpy(), exact.round().clamp(0, 255).numpy().astype(np.uint8)

    motion = MotionMap().requires_grad_(False)
    return PastedLoop(
        generate, embed, motion, latents(), guess=np.zeros((129, 54)), photos=photos,
        controls=np.zeros((N_PHOTOS, 54)), place=place,
    )  # fmt: skip


def test_the_loop_shows_what_the_paster_made_and_pastes_over_the_photo_asked_for() -> None:
    placed: list[int] = []
    loop = toy_loop(placed, refused=4)
    styles = torch.randn(3, 3, 512, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    found = loop(styles, torch.tensor([5, 4, 0]))
    assert placed == [5, 4, 0] and found.shape == (3, 2, 128)
    assert torch.allclose(found.norm(dim=2), torch.ones(3, 2), atol=1e-5)
    (found[:, 0] @ torch.ones(128)).sum().backward()
    assert styles.grad is not None
    lengths = styles.grad.flatten(1).norm(dim=1)
    assert lengths[0] > 0 and lengths[2] > 0 and lengths[1] == 0  # what cannot be pasted teaches nothing


def people() -> Photos:
    rng = np.random.default_rng(3)
    person = np.arange(N_PHOTOS) // 2
    rows = rng.standard_normal((3, 1, 128))[person] + 0.3 * rng.standard_normal((N_PHOTOS, 2, 128))
    return Photos(
        (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32), person.astype(np.int64)
    )


def test_triplets_of_photos_are_two_of_one_person_and_one_of_another() -> None:
    photos = people()
    triplets = PhotoTriplets(photos).draw(50, np.random.default_rng(0))
    x1, x2, y = triplets.photo
    assert (x1 != x2).all() and (photos.person[x1] == photos.person[x2]).all()
    assert (photos.person[x1] != photos.person[y]).all()
    assert np.array_equal(triplets.x2, photos.embeddings[x2, 0])
    assert np.array_equal(triplets.original, photos.embeddings[x1])
    with pytest.raises(UsageError, match="two photos"):
        PhotoTriplets(Photos(photos.embeddings, np.arange(N_PHOTOS)))


def loss_of(model: RotationProjector, loop: PastedLoop) -> float:
    """Mean of 16 triplets under given keys, the same at each call."""
    rng, keys, total = np.random.default_rng(5), torch.Generator().manual_seed(6), 0.0
    with torch.no_grad():
        for _ in range(16):
            triplets = PhotoTriplets(people()).draw(1, rng)
            found = projector_losses(virtual_faces(model, latents(), triplets, loop, keys), CONFIG)
            total += sum(float(loss) for loss in found.values()) / 16
    return total


def test_losses_fall_through_the_loop_and_go_on_where_they_were(tmp_path: Path) -> None:
    out, model, loop = tmp_path / "p.safetensors", projector(), toy_loop([])
    before = loss_of(model, loop)
    training = Training(model, latents(), PhotoTriplets(people()), out)
    seen: list[int] = []
    phase = Phase("fine", 60, 1, 1e-2, loop)
    assert training.run(replace(phase, steps=30), after=seen.append) == 30 and seen == list(range(1, 31))
    again = Training(projector(), latents(), PhotoTriplets(people()), out)
    assert again.steps_done("fine") == 30 and again.run(phase) == 60
    with out.with_suffix(".csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [25, 50]
    after = loss_of(again.projector, loop)
    assert after < 0.85 * before


def test_the_mean_weights_that_were_best_are_kept_and_put_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    best = KeepBest(
        model,
        tmp_path / "p.safetensors",
        lambda: {"score": -((model.weight.item() - 2) ** 2)},
        "score",
        every=5,
    )
    assert best.restore() is None
    for step in range(26):
        with torch.no_grad():
            model.weight.fill_(step / 5)
        best.look(step)
        assert model.weight.item() == pytest.approx(step / 5)  # the training goes on from its own weights
    assert best.restore() == 15 and model.weight.item() == pytest.approx((1 + 2 + 3) / 3)
    with (tmp_path / "p.judged.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(float(row["step"])) for row in rows] == [0, 5, 10, 15, 20, 25]
    assert [float(row["score"]) for row in rows] == pytest.approx([-4, -1, -0.25, 0, -1, -4], abs=1e-5)


def test_a_projector_is_read_back_with_another_radius_and_refused_in_another_size(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    first = projector()
    save_projector(first, out)
    wider = replace(CONFIG, spread=1.5)
    second = load_projector(wider, latents(), out)
    codes = torch.randn(4, 16) * 3
    assert torch.allclose(second.network.linear.weight, first.network.linear.weight, atol=1e-3)
    assert second.network(codes).square().mean(1).sqrt().max() > CONFIG.spread
    with pytest.raises(UsageError, match="no projector of the configuration"):
        load_projector(replace(CONFIG, n_code=8), latents(), out)


def test_the_configuration_of_the_loop_fits_the_carried_projector() -> None:
    from keyface.pipeline.people.projector import Projector

    path = Path(__file__).resolve().parent.parent / "models" / "weights" / "projector.safetensors"
    config = load_projector_config("loop")
    carried = load_projector(config, latents(), path)
    code = np.random.default_rng(0).standard_normal(config.n_code)
    found = carried.network(torch.from_numpy(code)[None].float())[0].detach().numpy()
    wanted = Projector.load(path).coordinates(code)
    assert np.corrcoef(found, wanted)[0, 1] > 0.999  # the radius is the configuration's


def test_a_soft_paste_is_like_the_products_own(models: Any) -> None:
    """Mean difference under the mask below 11 levels, where the photo differs by more than twice that."""
    from keyface.pipeline.assemble import open_portrait
    from keyface.tools.train_scenes import make_scene

    pictures = []
    for number in (3, 8):
        with open_portrait(models, number) as portrait:
            picture = portrait.render(np.array([6.0, 0, 0], np.float32), np.full(52, 0.05, np.float32))
            pictures.append(picture)
    assert pictures[0].shape == (256, 256, 3)
    from keyface.tools import train_networks

    with train_networks.landmarker(models) as landmarker:
        seen = [landmarker.detect(p, box_xyxy=np.array([56, 61, 200, 220], np.float32)) for p in pictures]
    assert seen[0] is not None and seen[1] is not None
    scene = make_scene(0, pictures[0], seen[0], np.zeros((2, 128), np.float32), np.zeros(52, np.float32))
    assert scene is not None
    placed = scene.place(pictures[1], seen[1])
    assert placed is not None
    at, exact = placed
    image = torch.from_numpy(pictures[1].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    soft = SoftPaste()(image, torch.from_numpy(at)[None], scene.crops)[0].permute(1, 2, 0).numpy()
    inside = scene.crops.mask[0, 0].numpy() > 0.9
    original = scene.seen_in(pictures[0]).astype(np.float32)
    own, kept = (np.abs(x - exact)[inside].mean() for x in (soft, original))
    assert own < 11 and kept > 2 * own
    outside = scene.crops.mask[0, 0].numpy() < 0.005
    assert np.abs(soft - exact)[outside].mean() < 1
