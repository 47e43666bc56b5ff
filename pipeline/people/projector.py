"""The trained projector at run time, in plain numpy: from an embedding and two secret rotations to w.

    u = normalise(L (e / |e| - m)),   v = sqrt(n) Q_1 u,   [v = sqrt(n) normalise(Q_2 s(v)) with a fold,]
    w = keep_out(w_mean + V diag(s) c(v)),   c(v) = A v + a + B MLP(v), bounded

L, m, A, B and the MLP are trained (`keyface train projector`, models/projector.py) and public; Q_1 and Q_2 are the
key's. Everything is computed in float64, so that machines agree to within the file's half precision.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import F32

F64 = npt.NDArray[np.float64]
N_EMBEDDING = 128
LOOK_ROUNDS = 3
LIMIT = 2.5  # deviations; as in models/projector.py


class Projector:
    """Read-only after loading, so any thread may use it.

    Args:
        tensors: `metric` (n, 128), `mean` (128,), `fold` (1,), `radius` (1,), and the network's `linear`,
            `hidden.0` and so on, and `out`.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """

    def __init__(self, tensors: dict[str, npt.NDArray[np.floating]]) -> None:
        t = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
        self.n_code = _want(t, "metric", (None, N_EMBEDDING)).shape[0]
        self._metric, self._mean = t["metric"], _want(t, "mean", (N_EMBEDDING,))
        self.fold = float(_want(t, "fold", (1,))[0])
        self._radius = float(_want(t, "radius", (1,))[0])
        self._linear = _layer(t, "network.linear", self.n_code)
        self.n_axes = len(self._linear[1])
        limits = t.get("network.bounds.limits", np.zeros(0))
        rows = (len(limits), self.n_axes)
        self._looks = [
            (normal, step, float(limit))
            for normal, step, limit in zip(
                _want(t, "network.bounds.normals", rows),
                _want(t, "network.bounds.steps", rows),
                limits,
                strict=True,
            )
        ]
        self._hidden: list[tuple[F64, F64]] = []
        width = self.n_code
        for number in range(len({name.split(".")[2] for name in t if name.startswith("network.hidden.")})):
            layer = _layer(t, f"network.hidden.{number}", width)
            self._hidden.append(layer)
            width = len(layer[1])
        self._out = _want(t, "network.out.weight", (self.n_axes, width)) if self._hidden else None

    @classmethod
    def load(cls, path: Path) -> Projector:
        """Reads models/weights/projector.safetensors. Raises ModelStoreError for other contents."""
        try:
            return cls(load_file(str(path)))
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelStoreError(f"{path.name}: {error}.", "Install keyface again.") from error

    def unit(self, embedding: F32) -> F64:
        """u (n,) of norm 1, for an embedding (128,).

        Raises:
            ValueError: the embedding is of another shape, not finite, zero, or equals the mean.
        """
        given = np.asarray(embedding, np.float64)
        length = float(np.linalg.norm(given))
        if given.shape != (N_EMBEDDING,) or not np.isfinite(length) or length < 1e-12:
            raise ValueError(f"identity: embedding of shape {given.shape} and norm {length} cannot be keyed")
        measured = self._metric @ (given / length - self._mean)
        norm = float(np.linalg.norm(measured))
        if norm < 1e-6:
            raise ValueError("identity: an embedding that equals the mean cannot be keyed")
        return np.asarray(measured / norm)

    def code(self, unit: F64, first: F64, second: F64 | None) -> F64:
        """v (n,) of norm sqrt(n), for u and the secret matrices (n, n); the second is for a projector with a fold."""
        v = first @ unit * self.n_code**0.5
        if self.fold and second is not None:
            bent = (1 - self.fold) ** 0.5 * v + (self.fold / 6) ** 0.5 * (v**3 - 3 * v)
            v = second @ bent
            v = v * self.n_code**0.5 / np.linalg.norm(v)
        return np.asarray(v)

    def coordinates(self, code: F64) -> F64:
        """c (A,) along the axes of w, in deviations of the population: each within 2.5,
        neither dark, bright nor hazy beyond the limits, and their root mean square within the trained radius."""
        x = np.asarray(code, np.float64)
        found = self._linear[0] @ x + self._linear[1]
        for weight, bias in self._hidden:
            x = weight @ x + bias
            x = x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
        if self._out is not None:
            found = found + self._out @ x
        found = LIMIT * np.tanh(found / LIMIT)
        for _ in range(LOOK_ROUNDS):
            for normal, step, limit in self._looks:
                found = found - max(0.0, float(normal @ found - limit)) * step
        rms = float(np.sqrt((found**2).mean()))
        return np.asarray(found * min(1.0, self._radius / max(rms, 1e-12)))


def _want(t: dict[str, F64], name: str, shape: tuple[int | None, ...]) -> F64:
    got = t[name].shape if name in t else None
    if (
        got is None
        or len(got) != len(shape)
        or any(w not in (None, g) for g, w in zip(got, shape, strict=True))
    ):
        raise ValueError(f"{name} is {got or 'missing'}, want {shape}")
    return t[name]


def _layer(t: dict[str, F64], stem: str, n_in: int) -> tuple[F64, F64]:
    weight = _want(t, f"{stem}.weight", (None, n_in))
    return weight, _want(t, f"{stem}.bias", (len(weight),))
