"""Projectors: both forms, their losses, the surrogate, training that goes on, and the numpy form of the product."""

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
from keyface.models.look_limits import LookLimits, fit_look_limits  # noqa: E402
from keyface.models.loss_plot import plot_losses, read_losses  # noqa: E402
from keyface.models.population import Population  # noqa: E402
from keyface.models.projector import (  # noqa: E402
    Latents,
    Metric,
    RandomRotations,
    RotationProjector,
    folded,
    w_plus_of,
)
from keyface.models.projector_data import Photos, TripletSource, fit_metric, residuals  # noqa: E402
from keyface.models.projector_judge import equal_error, judge_projector  # noqa: E402
from keyface.models.projector_losses import (  # noqa: E402
    Virtual,
    contrast_loss,
    cosine_embedding_loss,
    projector_losses,
)
from keyface.models.surrogate import RenderedPeople, Seen, Surrogate, train_surrogate  # noqa: E402
from keyface.models.train_projector import (  # noqa: E402
    Phase,
    Training,
    make_projector,
    save_projector,
    virtual_faces,
)
from keyface.pipeline.people.projector import Projector  # noqa: E402

N_AXES = 128
SMALL = ProjectorConfig(
    n_code=16, hidden=(32,), batch=16, steps=6, weights=LossWeights(anonymity=1, contrast=1)
)
FORMS = {
    "ours": SMALL,
    "folded": replace(SMALL, fold=0.3),
    "w_plus": replace(SMALL, latent="w_plus"),
    "z": replace(SMALL, latent="z"),
    "papers": replace(SMALL, form="concatenation", key_bits=8),
    "papers_z": replace(SMALL, form="concatenation", latent="z", key_bits=128),
}


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def latents() -> Latents:
    axes = np.eye(N_AXES, 512, dtype=np.float32)
    guards = axes[:1], axes[:1], np.array([0.4], np.float32)
    layer = torch.eye(512), torch.zeros(512), torch.tensor(1.4)
    return Latents(np.zeros(512, np.float32), axes, np.ones(N_AXES, np.float32), guards, [layer] * 8)


def photos(n_people: int = 40, noise: float = 0.4) -> Photos:
    centres = unit(n_people, 1, 2, 128, seed=1)
    each = centres + noise / 128**0.5 * np.random.default_rng(2).standard_normal((n_people, 3, 2, 128))
    each = each / np.linalg.norm(each, axis=-1, keepdims=True)
    return Photos(each.reshape(-1, 2, 128).astype(np.float32), np.repeat(np.arange(n_people), 3))


def population() -> Population:
    w = np.random.default_rng(0).standard_normal((50, 512)).astype(np.float32)
    return Population(np.zeros(512, np.float32), np.eye(512, dtype=np.float32), np.ones(512, np.float32), w)


def recognise(styles: Any, photo: Any) -> Any:
    """A world in which the first 256 numbers of w are the two embeddings."""
    return torch.nn.functional.normalize(styles.mean(1)[:, :256].reshape(-1, 2, 128) + 0.01, dim=2)


def projector(config: ProjectorConfig, looks: LookLimits | None = None) -> Any:
    metric = fit_metric(photos(), config.n_code)
    return make_projector(config, latents(), metric, looks or LookLimits.none(N_AXES))


# Configurations.


@pytest.mark.parametrize("name", ["default", "ivfg", "kfaar"])
def test_carried_configurations_are_read(name: str) -> None:
    config = load_projector_config(name)
    assert config.form == ("rotation" if name == "default" else "concatenation")


def test_the_papers_weights_are_the_papers() -> None:
    ivfg, kfaar = (load_projector_config(name) for name in ("ivfg", "kfaar"))
    assert ivfg.weights == LossWeights(anonymity=0.1, latent=20.0) and ivfg.lr == 3e-4
    assert kfaar.weights == LossWeights(anonymity=0.4) and kfaar.lr == 1e-4
    assert ivfg.key_bits == kfaar.key_bits == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [("n_code = 1", "n_code"), ("form = 'xor'", "form"), ("form = 'concatenation'\nfold = 0.1", "fold")],
)
def test_bad_configurations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_projector_config(str(tmp_path / "a.toml"))
    with pytest.raises(UsageError, match="default"):
        load_projector_config("nothing")


def test_a_loss_can_be_left_out() -> None:
    config = SMALL.without(("diversity", "contrast"))
    assert config.weights == replace(SMALL.weights, diversity=0.0, contrast=0.0)


# Losses.


def test_the_cosine_embedding_loss() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert cosine_embedding_loss(a, b, is_same=True, margin=0.4).item() == pytest.approx((0 + 0.4 + 1) / 3)
    assert cosine_embedding_loss(a, b, is_same=False, margin=0.4).item() == pytest.approx((0.6 + 0.2 + 0) / 3)


def test_each_loss_compares_what_the_papers_say() -> None:
    """One triplet, each of whose faces is an axis of its own or shared as named."""
    e = torch.eye(128)[:, None]
    c = torch.full((4, 1, 3), 2.0)

    def losses(**same: int) -> dict[str, float]:
        parts = {"x1_k1": 0, "x1_k2": 1, "x2_k1": 2, "y_k1": 3, "original": 4} | same
        virtual = Virtual(*(e[i : i + 1] for i in parts.values()), c)
        weights = LossWeights(anonymity=1, synchronism=1, diversity=1, differentiation=1, latent=1)
        return {k: v.item() for k, v in projector_losses(virtual, replace(SMALL, weights=weights)).items()}

    apart = {"anonymity": 0, "synchronism": 1, "diversity": 0, "differentiation": 0, "latent": 4}
    assert losses() == apart
    assert losses(x1_k2=0) == apart | {"diversity": 1}
    assert losses(x2_k1=0) == apart | {"synchronism": 0}
    assert losses(y_k1=0) == apart | {"differentiation": 1}
    assert losses(original=0) == apart | {"anonymity": 1}


def test_contrast_is_that_of_a_softmax() -> None:
    e = torch.eye(8)[:, None]
    virtual = Virtual(e[:2], e[4:6], e[:2], e[2:4], e[6:8], torch.zeros(4, 2, 3))
    want = -np.log(np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 5))
    assert contrast_loss(virtual, 0.5).item() == pytest.approx(want, rel=1e-5)


# Forms.


def test_random_rotations_are_orthogonal() -> None:
    keys = RandomRotations(3, 12, torch.Generator().manual_seed(0))
    product = keys.matrices @ keys.matrices.transpose(2, 3)
    torch.testing.assert_close(product, torch.eye(12).expand(3, 2, 12, 12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fold", [0.0, 0.3])
def test_a_fold_bends_cosines_as_it_says(fold: float) -> None:
    """Codes at cosine t come out at (1 - b) t + b t^3, on average over keys."""
    n, t = 64, 0.6
    x = torch.randn(4000, n, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4000, n, generator=torch.Generator().manual_seed(1))
    y = t * x + (1 - t * t) ** 0.5 * noise
    found = (folded(x, fold) * folded(y, fold)).mean().item()
    assert found == pytest.approx((1 - fold) * t + fold * t**3, abs=0.02)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_finite_people_within_guards_and_bounds(name: str) -> None:
    config = FORMS[name]
    made, world = projector(config), latents()
    keys = made.draw_keys(1, torch.Generator().manual_seed(0))
    coordinates = made(torch.from_numpy(unit(20, 128)), keys)
    assert coordinates.shape == (20, world.width(config)) and torch.isfinite(coordinates).all()
    styles = world.styles(coordinates, config)
    assert styles.shape == (20, 3, 512) and (styles[..., 0] <= 0.41).all()
    assert w_plus_of(styles).shape == (20, 23, 512)
    if config.latent != "z":
        assert coordinates.square().mean(1).sqrt().max() <= config.spread + 1e-5


@pytest.mark.parametrize("name", FORMS)
def test_another_key_gives_somebody_else(name: str) -> None:
    made = projector(FORMS[name])
    torch.nn.init.normal_(made.network.linear.weight) if isinstance(made, RotationProjector) else None
    generator, e = torch.Generator().manual_seed(1), torch.from_numpy(unit(4, 128))
    first, second = (made(e, made.draw_keys(1, generator)) for _ in range(2))
    assert (first - second).abs().mean() > 1e-3


def test_a_metric_finds_what_tells_people_apart() -> None:
    """People differ in 8 dimensions, photos of one person in 8 others, as much."""
    rng = np.random.default_rng(0)
    x = np.zeros((600, 1, 128), np.float32)
    person = np.repeat(np.arange(200), 3)
    x[:, 0, :8] = rng.standard_normal((200, 8))[person]
    x[:, 0, 8:16] = rng.standard_normal((600, 8))
    x[:, 0, 16:] = 0.01 * rng.standard_normal((600, 112))
    matrix = fit_metric(Photos(x, person), 8).matrix
    strength = np.square(matrix).sum(0)
    assert strength[:8].min() > 5 * strength[8:16].max()


def test_residuals_have_the_spread_of_one_photo() -> None:
    people = Photos(
        np.random.default_rng(0).standard_normal((4000, 1, 4)).astype(np.float32), np.arange(4000) // 2
    )
    assert residuals(people).std() == pytest.approx(1.0, abs=0.03)
    with pytest.raises(UsageError, match="two photos"):
        residuals(Photos(people.embeddings[:10], np.arange(10)))


def test_triplets_are_two_of_one_and_one_of_another() -> None:
    people = photos()
    source = TripletSource(people, np.zeros((0, 2, 128), np.float32))
    drawn = source.draw(200, np.random.default_rng(0))
    who = {e.tobytes(): int(p) for e, p in zip(people.embeddings[:, 0], people.person, strict=True)}
    x1, x2, y = ([who[e.tobytes()] for e in part] for part in (drawn.x1, drawn.x2, drawn.y))
    assert x1 == x2 and all(a != b for a, b in zip(x1, y, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(drawn.x1, drawn.x2, strict=True))
    np.testing.assert_array_equal(drawn.original[:, 0], drawn.x1)


def test_generated_people_get_the_noise_of_real_photos() -> None:
    source = TripletSource(photos(), unit(30, 2, 128, seed=9), share_generated=1.0)
    drawn = source.draw(100, np.random.default_rng(0))
    cosine = (drawn.x1 * drawn.x2).sum(1)
    assert 0.4 < cosine.mean() < 0.99 and (cosine < 0.9999).all()


def test_look_limits_keep_faces_from_the_dark() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((800, N_AXES)).astype(np.float32)
    looks = np.stack([140 + 20 * x[:, 3], 40 + 5 * x[:, 7]], 1) + rng.standard_normal((800, 2))
    limits = fit_look_limits(x, looks)
    bounds = projector(SMALL, limits).network.bounds
    kept = bounds(torch.from_numpy(10 * x)).numpy()
    assert (kept @ limits.normals.T <= limits.limits + 0.05).all()
    assert kept[:, 3].min() > -1.2 and np.abs(kept).max() <= 2.5


# Surrogate and training.


def rendered(n: int = 600) -> RenderedPeople:
    """A world in which embeddings are linear in w, and driver 1 adds something of his own."""
    rng = np.random.default_rng(3)
    w = np.repeat(rng.standard_normal((n, 1, 512)).astype(np.float32), 3, 1)
    driver = (np.arange(n) % 2).astype(np.int64)
    raw = (w[:, 0, :160] @ rng.standard_normal((160, 256)) / 12).reshape(n, 2, 128)
    raw = raw + 2.0 * driver[:, None, None] * unit(2, 128, seed=5)
    return RenderedPeople(w, (raw / np.linalg.norm(raw, axis=2, keepdims=True)).astype(np.float32), driver)


def test_a_surrogate_learns_who_a_face_is_and_over_whom(tmp_path: Path) -> None:
    model, quality = train_surrogate(rendered(1200), population(), steps=400)
    assert min(quality.cosine) > 0.8 and min(quality.pair_correlation) > 0.7
    model.save(tmp_path / "s.safetensors")
    again, people = Surrogate.load(tmp_path / "s.safetensors"), rendered(40)
    w, driver = torch.from_numpy(people.w), torch.from_numpy(people.driver)
    torch.testing.assert_close(again(w, driver), model(w, driver))
    seen = Seen(again)(w, torch.arange(40))
    assert seen.shape == (40, 4, 128)
    one_photo = Seen(again)(w, torch.zeros(40, dtype=torch.int64))
    torch.testing.assert_close(one_photo[:, 2:], again(w, torch.ones(40, dtype=torch.int64)))


@pytest.mark.parametrize("name", FORMS)
def test_training_lowers_the_losses_and_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    config = replace(FORMS[name], steps=40, lr=3e-3)
    source, world = TripletSource(photos(), unit(30, 2, 128, seed=9)), latents()
    made = projector(config)

    def total() -> float:
        drawn = source.draw(64, np.random.default_rng(5))
        with torch.no_grad():
            virtual = virtual_faces(made, world, drawn, recognise, torch.Generator().manual_seed(5))
            return float(sum(projector_losses(virtual, config).values()))

    before, out = total(), tmp_path / "p.safetensors"
    assert Training(made, world, source, out).run(Phase("a", 25, 16, 3e-3, recognise)) == 25
    weights = {k: v.clone() for k, v in made.state_dict().items()}
    made = projector(config)
    again = Training(made, world, source, out)
    assert again.steps_done("a") == 25
    assert all(torch.equal(v, weights[k]) for k, v in made.state_dict().items())
    assert again.run(Phase("a", 40, 16, 3e-3, recognise)) == 40
    assert total() < before
    with out.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["25"] and float(rows[0]["synchronism"]) > 0


def test_losses_are_drawn(tmp_path: Path) -> None:
    import cv2

    table = tmp_path / "p.csv"
    table.write_text("phase,step,anonymity,contrast\na,25,1.0,\na,50,0.5,2\nfine,10,0.4,1\n")
    curves = read_losses(table)
    np.testing.assert_array_equal(curves["anonymity"], [[25, 1.0], [50, 0.5], [60, 0.4]])
    np.testing.assert_array_equal(curves["contrast"], [[50, 2], [60, 1]])
    plot_losses(table, tmp_path / "p.png")
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.shape == (540, 960, 3) and (picture != 255).any(2).mean() > 0.005


@pytest.mark.parametrize("name", ["ours", "folded"])
def test_the_product_computes_what_was_trained(tmp_path: Path, name: str) -> None:
    """numpy against PyTorch, with all weights random and look limits in force; half precision of the file apart."""
    config = FORMS[name]
    x = np.random.default_rng(1).standard_normal((300, N_AXES)).astype(np.float32)
    made = projector(config, fit_look_limits(x, x[:, :2]))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.load_state_dict({k: v.half().float() for k, v in made.state_dict().items()})
    save_projector(made, tmp_path / "p.safetensors")
    product, keys = (
        Projector.load(tmp_path / "p.safetensors"),
        made.draw_keys(1, torch.Generator().manual_seed(2)),
    )
    first, second = keys.matrices[0].double().numpy()
    for e in unit(10, 128, seed=4):
        with torch.no_grad():
            want = made(torch.from_numpy(e)[None], keys)[0].numpy()
        code = product.code(product.unit(e), first, second if product.fold else None)
        assert np.linalg.norm(code) == pytest.approx(config.n_code**0.5)
        np.testing.assert_allclose(product.coordinates(code), want, atol=2e-3)


# Judging.


def test_equal_error_of_scores_with_a_known_overlap() -> None:
    same, different = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.0, -0.1, 0.3])
    eer, auc, threshold = equal_error(same, different)
    assert eer == pytest.approx(0.25) and auc == pytest.approx(15 / 16) and 0.2 < threshold <= 0.3


def test_a_projector_that_keeps_people_apart_is_judged_so() -> None:
    made = projector(replace(SMALL, n_code=64))
    with torch.no_grad():
        made.network.linear.weight.zero_()
        made.network.linear.weight[:64] = torch.eye(64)
        made.network.linear.weight[64:] = torch.eye(64)
    people = photos(noise=0.2)

    def see(styles: Any, photo: Any) -> Any:
        w = styles[:, 0]
        return torch.nn.functional.normalize(torch.stack([w[:, :128], w[:, :128]], 1), dim=2)

    judged = judge_projector(made, latents(), see, people)
    assert judged["people"] == 40 and judged["eer_b"] < 0.02 and judged["eer_a"] < 0.02
    assert (
        judged["diversity"] > 0.95
        and judged["anonymity"] > 0.95
        and judged["same"] > judged["different"] + 0.5
    )


def test_a_metric_is_of_use_without_a_start() -> None:
    made = RotationProjector(SMALL, Metric(np.eye(16, 128), np.zeros(128)), N_AXES, LookLimits.none(N_AXES))
    assert made.code(torch.from_numpy(unit(3, 128)), made.draw_keys(1, torch.Generator())).shape == (3, 16)
