"""From wanted pose and expression to W+: the trained motion map in numpy, and the driver's relative motion.

    w_plus(c) = w + B (a(w, c) - a(w, c_0)),  c = (yaw / 30, pitch / 30, 52 blendshapes)

with c_0 the controls measured on G(w). The map is trained by `keyface train motion`; see models/motion.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, FaceMesh

N_CONTROLS = 54
N_STYLES = 23
POSE_SCALE_DEG = 30.0
_SHAPES = {
    "w_mean": (512,), "traits": (32, 512), "centre": (54,), "linear.weight": (96, 54),
    "fc1.weight": (256, 86), "fc1.bias": (256,), "fc2.weight": (256, 256), "fc2.bias": (256,),
    "out.weight": (96, 256), "basis": (96, 16 * 512),
}  # fmt: skip


def controls_of(mesh: FaceMesh) -> F32:
    """(54,) controls of a face: yaw and pitch over 30 degrees, then its blendshapes."""
    return np.concatenate([mesh.pose_ypr_deg[:2] / POSE_SCALE_DEG, mesh.blendshapes]).astype(np.float32)


class MotionMap:
    """The trained map; read-only after loading, so any thread may use it.

    Raises:
        ModelStoreError: the file lacks a tensor or has one of another shape.
    """

    def __init__(self, path: Path) -> None:
        tensors = {name: array.astype(np.float32) for name, array in load_file(str(path)).items()}
        for name, shape in _SHAPES.items():
            if name not in tensors or tensors[name].shape != shape:
                got = tensors[name].shape if name in tensors else "nothing"
                raise ModelStoreError(
                    f"{path.name}: {name} is {got}, want {shape}.", "Install keyface again."
                )
        self._t = tensors

    def coefficients(self, w: F32, controls: F32) -> F32:
        """a(w, c): (512,), (54,) -> (96,)."""
        t = self._t
        c = controls - t["centre"]
        hidden: F32 = np.concatenate([c, t["traits"] @ (w - t["w_mean"])]).astype(np.float32)
        hidden = _silu(t["fc2.weight"] @ _silu(t["fc1.weight"] @ hidden + t["fc1.bias"]) + t["fc2.bias"])
        found: F32 = t["linear.weight"] @ c + t["out.weight"] @ hidden
        return found

    def w_plus(self, w: F32, wanted: F32, own_coefficients: F32) -> F32:
        """(23, 512) for the person w (512,) who is to show `wanted` (54,); `own_coefficients` are
        `coefficients(w, c_0)`."""
        change = (self.coefficients(w, wanted) - own_coefficients) @ self._t["basis"]
        out = np.repeat(w[None], N_STYLES, axis=0)
        out[:16] += change.reshape(16, 512)
        return out


def _silu(x: F32) -> F32:
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -60.0, 60.0))), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneEuroOptions:
    """min_cutoff_hz at rest, plus `beta` times the speed of the signal; d_cutoff_hz smooths the speed."""

    min_cutoff_hz: float = 2.0
    beta: float = 12.0
    d_cutoff_hz: float = 2.0


_LEAST_STEP_S = 1e-6  # times nearer than this are the same: a speed over them would overflow


class OneEuro:
    """One-Euro filter (Casiez et al. 2012) on a vector: steady at rest, no lag in motion."""

    def __init__(self, options: OneEuroOptions | None = None) -> None:
        self._o = options or OneEuroOptions()
        self._x: F32 | None = None
        self._dx: F32 | None = None
        self._t_s = 0.0

    def reset(self) -> None:
        """Forgets the past, as after a cut."""
        self._x = None

    def __call__(self, x: F32, t_s: float, *, unit: float = 1.0) -> F32:
        """Filtered vector; t_s must rise, else the value is taken as it is. Speeds are measured in `unit`s."""
        dt = t_s - self._t_s
        self._t_s = t_s
        if self._x is None or self._dx is None or not _LEAST_STEP_S < dt <= 0.5:
            self._x, self._dx = x.astype(np.float32), np.zeros_like(x, np.float32)
            return self._x
        slope = (x - self._x) / dt
        self._dx = self._dx + _alpha(self._o.d_cutoff_hz, dt) * (slope - self._dx)
        cutoff: F32 = np.asarray(self._o.min_cutoff_hz + self._o.beta / unit * np.abs(self._dx), np.float32)
        self._x = (self._x + _alpha(cutoff, dt) * (x - self._x)).astype(np.float32)
        return self._x


def _alpha(cutoff_hz: F32 | float, dt_s: float) -> F32:
    return np.asarray(1.0 / (1.0 + 1.0 / (2 * np.pi * np.asarray(cutoff_hz) * dt_s)), np.float32)


class SteadyMesh:
    """One-Euro on the landmarks of one face, as MediaPipe smooths its own in video: per coordinate, with speeds
    measured in face widths a second, so that it acts alike on near and far faces."""

    def __init__(self) -> None:
        self._filter = OneEuro(OneEuroOptions(min_cutoff_hz=0.05, beta=80.0, d_cutoff_hz=1.0))

    def reset(self) -> None:
        """Forgets the past, as after a cut."""
        self._filter.reset()

    def __call__(self, mesh: FaceMesh, t_s: float) -> FaceMesh:
        """The same mesh with steadied points; pose and blendshapes are left as they are."""
        width = float(np.sqrt(np.prod(np.ptp(mesh.points_xy, axis=0))))
        if not np.isfinite(width) or width < 1.0:
            return mesh
        return replace(mesh, points_xyz=self._filter(mesh.points_xyz, t_s, unit=width))


# Blendshapes whose resting value depends on the shape of a face, and how far a person's may lie from the norm.
_PRIOR_STRENGTH_S = 4.0  # seconds of watching that weigh as much as the prior
_MAX_OFFSET = 0.22
# Who talks has the mouth open most of the time: what is below the rest that is taken from it would hardly move.
_QUANTILES = np.full(len(BLENDSHAPE_NAMES), 0.35, np.float32)
_QUANTILES[BLENDSHAPE_NAMES.index("jawOpen")] = 0.1
_GAZE = tuple(i for i, name in enumerate(BLENDSHAPE_NAMES) if name.startswith("eyeLook"))


class RestingFace:
    """A running estimate of a driver's blendshapes at rest, so that only motion relative to it travels.

    Low quantile of what was seen, pulled to the population's resting face while little was seen, and kept
    near it: who smiles throughout keeps smiling. Gaze has no personal rest.
    """

    def __init__(self, population: F32) -> None:
        """population: (52,) resting face of people at large."""
        self._population = population.astype(np.float32)
        self._quantile = population.astype(np.float32).copy()
        self._seen_s = 0.0
        self._last_s: float | None = None

    def update(self, blendshapes: F32, t_s: float, *, is_frontal: bool) -> None:
        """Learns from one frame; only frames near the front count, since turning distorts the reading."""
        if self._last_s is None or not 0 < t_s - self._last_s < 1.0:
            self._last_s = t_s
            return
        dt, self._last_s = t_s - self._last_s, t_s
        if not is_frontal:
            return
        self._seen_s += dt
        # stochastic quantile tracking: at 35 %, steps up by 0.35, down by 0.65 of the rate
        rate = 0.25 * dt
        self._quantile += np.where(
            blendshapes > self._quantile, _QUANTILES * rate, (_QUANTILES - 1) * rate
        ).astype(np.float32)

    @property
    def blendshapes(self) -> F32:
        """(52,)."""
        trust = self._seen_s / (self._seen_s + _PRIOR_STRENGTH_S)
        offset = np.clip(trust * (self._quantile - self._population), -_MAX_OFFSET, _MAX_OFFSET)
        offset[list(_GAZE)] = 0.0
        out: F32 = np.clip(self._population + offset, 0.0, 0.9).astype(np.float32)
        return out


# The map delivers less of these than is asked (slope of delivered on asked over 250 random motions of 25
# generated people: jaw 0.64, looking up 0.76, blinks 0.89), so as much more is asked.
_GAINS = np.ones(len(BLENDSHAPE_NAMES), np.float32)
for _name, _gain in {
    "jawOpen": 1.45, "eyeLookUpLeft": 1.25, "eyeLookUpRight": 1.25, "eyeBlinkLeft": 1.12, "eyeBlinkRight": 1.12,
}.items():  # fmt: skip
    _GAINS[BLENDSHAPE_NAMES.index(_name)] = _gain


def amplified(blendshapes: F32, rest: F32) -> F32:
    """What to ask of the motion map for blendshapes (52,) to appear, around the virtual person's rest (52,)."""
    out: F32 = np.clip(rest + (blendshapes - rest) * _GAINS, 0.0, 1.3).astype(np.float32)
    return out


def transfer(blendshapes: F32, rest: F32, virtual_rest: F32) -> F32:
    """The driver's expression relative to his rest, on the virtual person's rest; keeps 0 and 1 reachable.

    v = v0 + (b - b0) (1 - v0) / (1 - b0) above the rest b0, v = v0 b / b0 below it; all (52,) in [0, 1].
    """
    up = virtual_rest + (blendshapes - rest) * (1 - virtual_rest) / np.maximum(1 - rest, 0.1)
    down = virtual_rest * blendshapes / np.maximum(rest, 1e-3)
    out: F32 = np.clip(np.where(blendshapes >= rest, up, down), 0.0, 1.0).astype(np.float32)
    return out
