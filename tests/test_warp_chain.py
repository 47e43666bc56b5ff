"""The warping reenactor in the real chain, with networks of the right form that were never trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_warp import SHAPES
from real_chain import FAST, acted_frames, play
from safetensors.numpy import save_file

from keyface.configs.schema import load_preset
from keyface.engines.open import open_engine
from keyface.pipeline.people.key import Key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NETWORKS = ("warp_source", "warp_motion", "warp_decode")
WARP = replace(FAST, reenactor="warp")


class Store:
    """The model store with other files under some names."""

    def __init__(self, models: Any, files: dict[str, Path]) -> None:
        self._models, self._files = models, files

    def path(self, name: str) -> Path:
        return self._files[name] if name in self._files else Path(self._models.path(name))


@pytest.fixture(scope="module")
def untrained(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Networks whose weights were never trained: they show the source picture, moved by its landmarks, dimmed and
    with a pattern over it."""
    torch = pytest.importorskip("torch", reason="untrained networks are written by torch: pip install torch")
    from keyface.models.warp_export import export_warp
    from keyface.models.warp_mobile import WarpMobile

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("warp")
    files = export_warp(WarpMobile(), folder)
    files["keypoints"] = folder / "keypoints.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, str(files["keypoints"]))
    return Store(models, files)


def test_untrained_networks_show_a_virtual_face_or_a_mosaic(models: Any, untrained: Store) -> None:
    frames = acted_frames(models, 38, n_frames=6, size_px=256)
    with Key(bytes(range(32))) as key:
        out = play(untrained, frames, key, WARP)
    assert len(out.safe) == 6
    for raw, safe, crops in zip(frames, out.safe, out.crops, strict=True):
        assert len(safe.replaced) + len(safe.redactions) == 1
        assert safe.replaced == tuple(crops)
        assert np.abs(safe.image_rgb[90:190, 90:170].astype(int) - raw.image_rgb[90:190, 90:170]).mean() > 5


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_do_not_depend_on_the_number_of_threads(untrained: Store, name: str) -> None:
    random = np.random.RandomState(7)
    answers = []
    for threads in (1, 2):
        with open_engine(untrained.path(name), name=name, threads=threads) as engine:
            if not answers:
                feed = {
                    spec.name: random.uniform(-1, 1, [1, *spec.shape[1:]]).astype(np.float32)  # type: ignore[list-item]
                    for spec in engine.inputs.values()
                }
            answers.append(engine.run(feed))
    for key, array in answers[0].items():
        scale = max(float(np.abs(array).max()), 1e-6)
        np.testing.assert_allclose(answers[1][key], array, rtol=0, atol=1e-5 * scale)


def test_less_precision_in_the_decoder_keeps_the_picture(untrained: Store) -> None:
    """As the default preset runs it, where OpenVINO and the processor can: sampling grids stay in float32."""
    openvino = pytest.importorskip("keyface.engines.openvino")
    if not openvino.computes_in("bf16"):
        pytest.skip("this processor does not compute in bf16")
    assert load_preset("default").engines.precision == "bf16"
    path, random = untrained.path("warp_decode"), np.random.RandomState(1)
    with (
        open_engine(path, name="warp_decode", backend="onnxruntime", threads=1) as exact,
        open_engine(path, name="warp_decode", backend="openvino", precision="bf16", threads=1) as fast,
    ):
        feed = {}
        for spec in exact.inputs.values():
            shape = [1, *spec.shape[1:]]
            if spec.name.startswith("grid"):
                y_axis, x_axis = ((np.arange(side) + 0.5) / side * 2 - 1 for side in map(int, shape[1:3]))
                grid = np.stack(np.meshgrid(x_axis, y_axis), 2)[None] * 0.93 + 0.021
                feed[spec.name] = grid.astype(np.float32)
            else:
                feed[spec.name] = random.uniform(-1, 1, shape).astype(np.float32)
        y, x = np.mgrid[:256, :256]
        feed["image"][:] = np.sin(x / 1.7) * np.cos(y / 2.1)  # fine lines, which half a pixel would move
        want, got = exact.run(feed)["picture"], fast.run(feed)["picture"]
    mse = float(np.mean((got - want) ** 2))
    assert 10 * np.log10(4.0 / mse) > 40.0, "pictures span 2"
