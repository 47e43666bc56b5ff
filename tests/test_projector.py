"""The trained projector at run time: what the carried file gives, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.people.projector import LIMIT, Projector
from keyface.pipeline.people.virtual import secret_rotation

SHIPPED = Path(__file__).resolve().parent.parent / "models/weights/projector.safetensors"
# These pin today's people: another file makes another person from the same key, and owes users a new version of
# ROTATION_PURPOSE and a line in the changelog.
GOLDEN_COORDINATES = (-0.6607063, 0.0425714, -1.5184044, 1.4685083, 1.5496418, 1.6601372)


@pytest.fixture(scope="module")
def projector() -> Projector:
    return Projector.load(SHIPPED)


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.RandomState(seed).standard_normal((n, 128))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_the_carried_projector_gives_the_golden_person(projector: Projector) -> None:
    embedding = np.cos(np.arange(128) ** 1.5).astype(np.float32)
    code = projector.code(
        projector.unit(embedding), secret_rotation(bytes(range(32)), 0, projector.n_code), None
    )
    np.testing.assert_allclose(projector.coordinates(code)[:6], GOLDEN_COORDINATES, rtol=0, atol=1e-5)


def test_the_carried_projector_is_small_and_plausible(projector: Projector) -> None:
    assert SHIPPED.stat().st_size < 16 * 1024 * 1024
    assert projector.n_code == 64 and projector.n_axes == 128 and projector.fold == 0.0
    radius = float(load_file(str(SHIPPED))["radius"][0])
    for seed in range(20):
        code = np.random.RandomState(seed).standard_normal(64)
        coordinates = projector.coordinates(code * 8 / np.linalg.norm(code))
        assert np.abs(coordinates).max() <= LIMIT
        assert 0.5 < np.sqrt((coordinates**2).mean()) <= radius + 1e-9 < 1.0


def test_the_metric_keeps_what_tells_people_apart(projector: Projector) -> None:
    """Strangers are near no angle in particular once the mean is off and the metric on."""
    units = np.stack([projector.unit(e) for e in embeddings(200)])
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1.0, rtol=1e-12)
    between = (units @ units.T)[np.triu_indices(200, 1)]
    assert between.std() < 0.2


def test_a_fold_needs_and_uses_a_second_matrix(projector: Projector) -> None:
    tensors = load_file(str(SHIPPED)) | {"fold": np.array([0.3], np.float16)}
    bent, unit = Projector(tensors), projector.unit(embeddings(1)[0])
    first, second = (secret_rotation(bytes(32), number, 64) for number in (0, 1))
    straight, folded = projector.code(unit, first, None), bent.code(unit, first, second)
    assert np.linalg.norm(folded) == pytest.approx(8.0)
    assert abs(straight @ folded) / 64 < 0.5


@pytest.mark.parametrize(
    "name", ["metric", "mean", "fold", "radius", "network.linear.weight", "network.hidden.1.weight"]
)
@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_file_with_other_contents_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    tensors = load_file(str(SHIPPED))
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = np.ascontiguousarray(np.concatenate([tensors[name]] * 2, -1))
    save_file(tensors, str(tmp_path / "projector.safetensors"))
    with pytest.raises(ModelStoreError, match=r"projector\.safetensors: .* want .*Install keyface again"):
        Projector.load(tmp_path / "projector.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "projector.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(ModelStoreError, match="Install keyface again"):
        Projector.load(tmp_path / "projector.safetensors")
