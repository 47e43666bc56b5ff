"""What tests of training code share: pictures of generated people, and stand-ins for the generator."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def person(seed: int = 3, n: int = 1) -> F32:
    """z (n, 512) of people who do not exist."""
    return np.random.default_rng(seed).standard_normal((n, 512)).astype(np.float32)


def w_plus(models: Any, seed: int = 3, n: int = 1, psi: float = 0.7) -> F32:
    """W+ (n, 23, 512) of such people, near the mean face."""
    from keyface.engines.open import open_engine
    from keyface.pipeline.people.virtual import IdentityBasis

    mean = IdentityBasis.load(models.path("identity_basis")).w_mean
    with open_engine(models.path("mapping"), backend="onnxruntime", threads=1) as engine:
        w = mean + np.float32(psi) * (engine.run({"z": person(seed, n)})["w"] - mean)
    return np.repeat(w[:, None], 23, 1).astype(np.float32)


def generated_face(models: Any, seed: int = 3) -> U8:
    """uint8 (256, 256, 3), FFHQ-aligned."""
    from keyface.engines.open import open_engine

    with open_engine(
        models.path("synthesis_256"), backend="onnxruntime", precision="f32", threads=1
    ) as engine:
        image = engine.run({"w_plus": w_plus(models, seed)})["image"][0]
    return np.rint((image.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)


@cache
def _turn() -> F32:
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((512, 512)))
    return q.astype(np.float32)


def fake_mapping(z: F32) -> F32:
    """A stand-in for the mapping network: a fixed linear map with falling variances."""
    return np.asarray(
        (z * np.linspace(2, 0.1, 512, dtype=np.float32)) @ _turn() + np.float32(0.3), np.float32
    )


def fake_synthesis(w_plus: F32) -> F32:
    """A stand-in for the synthesis network: a smooth 1024 px picture that depends on W+."""
    level = np.tanh(w_plus.mean(2)[0, :3])
    ramp = np.linspace(-1, 1, 1024, dtype=np.float32)
    return (0.5 * level[:, None, None] + 0.5 * ramp[None, None, :] * np.ones((3, 1024, 1)))[None].astype(
        np.float32
    )
