"""LPIPS: read from its published file without unpickling it, and the same numbers with and without PyTorch."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from keyface.configs.errors import ModelStoreError
from keyface.engines.lpips import build_lpips, read_weights
from keyface.engines.open import open_engine

F32 = npt.NDArray[np.float32]
CHANNELS = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))


def arrays(rng: np.random.Generator) -> dict[str, Any]:
    """The tree of arrays that the published file holds, with other values."""
    tree: dict[str, Any] = {"AlexNet_0": {}}
    for i, (n_in, n_out, size) in enumerate(CHANNELS):
        kernel = rng.normal(0, (2 / (n_in * size * size)) ** 0.5, (size, size, n_in, n_out))
        bias = rng.normal(0, 0.1, n_out)
        tree["AlexNet_0"][f"Conv_{i}"] = {
            "kernel": kernel.astype(np.float32),
            "bias": bias.astype(np.float32),
        }
        head = rng.uniform(0, 1, (1, 1, n_out, 1)).astype(np.float32)
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": head}}
    return tree


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the published layout."""
    path = tmp_path_factory.mktemp("lpips") / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(arrays(np.random.default_rng(0)), protocol=3))
    return path


@pytest.fixture(scope="module")
def built(published: Path) -> Path:
    path = published.with_name("lpips.onnx")
    build_lpips({"lpips_checkpoint": published}, path)
    return path


def pictures(seed: int, size_hw: tuple[int, int] = (96, 80)) -> F32:
    return np.random.default_rng(seed).uniform(-1, 1, (3, 3, *size_hw)).astype(np.float32)


def distances(path: Path, a: F32, b: F32) -> F32:
    with open_engine(path, name="lpips", threads=1) as engine:
        found: F32 = engine.run({"image_a": a, "image_b": b})["distance"]
    return found


def reference(tree: dict[str, Any], a: F32, b: F32) -> F32:
    """The distance as the authors' package computes it, from the tree itself."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    F = torch.nn.functional
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    top = (torch.from_numpy(np.concatenate([a, b])) - shift[:, None, None]) / scale[:, None, None]
    total = torch.zeros(len(a))
    for i, (stride, pad) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        layer = tree["AlexNet_0"][f"Conv_{i}"]
        if i in (1, 2):
            top = F.max_pool2d(top, 3, 2)
        kernel = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)
        top = F.relu(F.conv2d(top, kernel, torch.from_numpy(layer["bias"]), stride=stride, padding=pad))
        unit = top / (top.square().sum(1, keepdim=True).sqrt() + 1e-10)
        square = (unit[: len(a)] - unit[len(a) :]).square()
        head = torch.from_numpy(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(1, -1, 1, 1)
        total = total + F.conv2d(square, head).mean((1, 2, 3))
    values: F32 = total.numpy()
    return values


def test_kernels_and_heads_come_out_as_they_went_in(published: Path) -> None:
    weights = read_weights(published.read_bytes())
    tree = arrays(np.random.default_rng(0))
    assert len(weights) == 15
    assert (weights["conv1.weight"] == tree["AlexNet_0"]["Conv_1"]["kernel"].transpose(3, 2, 0, 1)).all()
    assert (weights["conv4.bias"] == tree["AlexNet_0"]["Conv_4"]["bias"]).all()
    assert (weights["head3.weight"].ravel() == tree["NetLinLayer_3"]["Conv_0"]["kernel"].ravel()).all()


class _Dangerous:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (_Dangerous, "ran", True)


def test_a_foreign_file_is_refused_and_never_run(tmp_path: Path) -> None:
    fewer = arrays(np.random.default_rng(0))
    fewer["NetLinLayer_4"]["Conv_0"]["kernel"] = np.ones((1, 1, 255, 1), np.float32)
    broken = arrays(np.random.default_rng(0))
    broken["AlexNet_0"]["Conv_0"]["bias"][3] = np.nan
    for content in (
        b"no pickle", b"", pickle.dumps(_Dangerous()), pickle.dumps({}), pickle.dumps(fewer, protocol=3),
        pickle.dumps(broken, protocol=3), pickle.dumps(fewer, protocol=3)[:5000],
    ):  # fmt: skip
        (tmp_path / "a.ckpt").write_bytes(content)
        with pytest.raises(ModelStoreError, match="lpips: the file cannot be used"):
            build_lpips({"a": tmp_path / "a.ckpt"}, tmp_path / "a.onnx")
    assert not _Dangerous.ran


def test_the_distance_is_nought_of_itself_symmetric_and_of_any_size(built: Path) -> None:
    for size_hw in ((64, 64), (96, 80)):
        a, b = pictures(1, size_hw), pictures(2, size_hw)
        assert distances(built, a, a) == pytest.approx(np.zeros(3), abs=1e-6)
        there = distances(built, a, b)
        assert there.shape == (3,) and (there > 0.01).all()
        assert distances(built, b, a) == pytest.approx(there, rel=1e-5)


def test_the_distance_is_what_the_authors_package_computes(built: Path) -> None:
    a, b = pictures(1), pictures(2)
    wanted = reference(arrays(np.random.default_rng(0)), a, b)
    assert distances(built, a, b) == pytest.approx(wanted, rel=1e-4)


def test_the_loss_equals_the_network_and_lets_gradients_through(built: Path) -> None:
    torch = pytest.importorskip("torch", reason="the loss needs torch")
    from keyface.models.lpips import Lpips

    loss = Lpips.load(built)
    a, b = torch.from_numpy(pictures(1)).requires_grad_(), torch.from_numpy(pictures(2))
    there = loss(a, b)
    assert there.detach().numpy() == pytest.approx(distances(built, pictures(1), pictures(2)), rel=1e-4)
    there.sum().backward()
    assert torch.isfinite(a.grad).all() and float(a.grad.abs().max()) > 0
    assert [f.shape[1] for f in loss.features(b)] == [64, 192, 384, 256, 256]
    assert list(loss.parameters()) == []


def test_where_nothing_is_seen_the_gradient_is_finite(built: Path) -> None:
    torch = pytest.importorskip("torch", reason="the loss needs torch")
    from keyface.models.lpips import Lpips

    loss = Lpips.load(built)
    for i in range(5):  # a ReLU that lets nothing through anywhere
        loss.get_buffer(f"conv{i}_bias").fill_(-1e3)
    a = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance = loss(a, torch.ones(1, 3, 64, 64))
    distance.sum().backward()
    assert float(distance.detach()) == 0 and torch.isfinite(a.grad).all()


def test_what_is_no_lpips_network_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the loss needs torch")
    from keyface.models.lpips import Lpips

    (tmp_path / "a.onnx").write_bytes(b"\xff no network")
    for path in (tmp_path / "a.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(ModelStoreError, match="is not the network 'lpips'"):
            Lpips.load(path)


def test_the_published_network_judges_as_published(models: Any) -> None:
    """Noise upon a smooth picture is far, a slight change of light is near; both as the reference computes."""
    models.ensure(["lpips"])
    path = models.path("lpips")
    y, x = np.mgrid[0:256, 0:256].astype(np.float32) / 256
    smooth = np.stack([np.sin(7 * x + 2 * y), np.sin(5 * y), np.sin(6 * (x - y))])[None] * 0.7
    smooth = smooth.astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.5, smooth.shape).astype(np.float32)
    near, far = np.clip(smooth + 0.03, -1, 1), np.clip(smooth + noise, -1, 1)
    assert distances(path, smooth, near)[0] < 0.05 < 0.5 < distances(path, smooth, far)[0]
    tree = _tree(read_weights(models.path("lpips_checkpoint").read_bytes()))
    assert distances(path, smooth, far) == pytest.approx(reference(tree, smooth, far), rel=1e-4)


def _tree(weights: dict[str, F32]) -> dict[str, Any]:
    tree: dict[str, Any] = {"AlexNet_0": {}}
    for i in range(5):
        kernel = np.ascontiguousarray(weights[f"conv{i}.weight"].transpose(2, 3, 1, 0))
        tree["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": weights[f"conv{i}.bias"]}
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": weights[f"head{i}.weight"]}}
    return tree
