"""The key-driven virtual identity: from a recognition embedding and a key to a person of the generator.

    u = normalise(L (e - m)),      v = sqrt(n) Q_k u,      w = keep_out(w_mean + V diag(s) c(v))

e is SFace's embedding of the person (128,), L and m a learnt metric that keeps the n directions which tell people
apart, Q_k a secret orthogonal matrix, c the trained projector's network, V and s the first 128 principal axes and
deviations of the generator's w. Q_k keeps all angles, so one person's embeddings stay together under one key, and
another key turns everything elsewhere: the key-driven projector of KFAAR (section IV-B) with the concatenation
replaced by a rotation. See `pipeline.people.projector` for c.

Candidates 1 to 5 stay near candidate 0: their code is 0.75 Q_0 u + 0.66 Q_k u at length sqrt(n). Who has to be given
one because the first is too like the driver is then still much the same virtual person in a photo for which the first
would do. Later candidates are others altogether.

`keep_out` moves w just so far along a learned direction that the person wears no glasses and is no child: a
pasted face shows no temples, and a child's face suits few bodies. Both are linear scores of w.

Q_k is made of nothing but the derived key: SHAKE-256(derived key || candidate number) gives 2 * n * n 64-bit
integers; Box-Muller turns them into normal numbers, in row order; a QR decomposition with positive
diagonal of R gives a Haar-distributed Q (Mezzadri 2007). No library's random generator is involved, so every
machine gets the same matrix to within rounding (golden test: tests/test_virtual.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from keyface.configs.errors import ModelStoreError
from keyface.pipeline.face import F32
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.projector import Projector

F64 = npt.NDArray[np.float64]
N_CODE = 128  # principal axes of w
_GUARD_ROUNDS = 12
TRUNCATION = 0.75  # psi: nearer the mean face means fewer flaws and less variety
ROTATION_PURPOSE = "identity-rotation/v3"
N_NEAR, NEAR = 5, 0.75  # candidates near the first one, and the cosine of their codes with its code
_SECOND_MATRIX = 1 << 31  # added to the candidate number, for a projector with a fold


def secret_rotation(seed: bytes, candidate: int = 0, n: int = N_CODE) -> F64:
    """(n, n) Haar-distributed orthogonal matrix from 32 secret bytes and a candidate number >= 0."""
    if len(seed) != 32 or candidate < 0:
        raise ValueError(f"rotation: got {len(seed)} bytes and candidate {candidate}, want 32 bytes and >= 0")
    stream = hashlib.shake_256(seed + candidate.to_bytes(4, "big")).digest(16 * n * n)
    bits = np.frombuffer(stream, ">u8").astype(np.float64).reshape(2, n * n)
    uniform = (bits + 0.5) / 2.0**64
    normal = np.sqrt(-2.0 * np.log(uniform[0])) * np.cos(2.0 * np.pi * uniform[1])
    q, r = np.linalg.qr(normal.reshape(n, n))
    rotation: F64 = q * np.sign(np.diag(r))
    return rotation


@dataclass(frozen=True, slots=True)
class IdentityBasis:
    """Statistics that identities are made from.

    Attributes:
        mean_embedding: (128,) mean of unit embeddings of generated people.
        cohort: (64, 128) unit embeddings of generated people, see `Reenactor`'s likeness.
        w_mean: (512,); axes: (128, 512) principal axes of w; deviations: (128,) along them.
        resting: (52,) blendshapes of people at rest.
        guard_normals, guard_steps: (K, 512); score k of w is guard_normals[k] @ (w - w_mean), and moving w by
            guard_steps[k] raises it by 1; guard_limits: (K,) highest scores allowed.
    """

    mean_embedding: F32
    cohort: F32
    w_mean: F32
    axes: F32
    deviations: F32
    resting: F32
    guard_normals: F32
    guard_steps: F32
    guard_limits: F32

    @classmethod
    def load(cls, path: Path) -> IdentityBasis:
        """Reads models/weights/identity.safetensors. Raises ModelStoreError for other contents."""
        t = {name: array.astype(np.float32) for name, array in load_file(str(path)).items()}
        n_guards = len(t.get("guard_limits", ()))
        want = {
            "mean_embedding": (128,), "cohort": (64, 128), "w_mean": (512,),
            "axes": (128, 512), "deviations": (128,), "resting": (52,),
            "guard_normals": (n_guards, 512), "guard_steps": (n_guards, 512), "guard_limits": (n_guards,),
        }  # fmt: skip
        for name, shape in want.items():
            if name not in t or t[name].shape != shape:
                got = t[name].shape if name in t else "nothing"
                raise ModelStoreError(
                    f"{path.name}: {name} is {got}, want {shape}.", "Install keyface again."
                )
        return cls(**{name: t[name] for name in want})

    def person(self, code: F32) -> F32:
        """w (512,) of a code g (128,) of norm sqrt(128): a person of the population, without a key."""
        return self.keep_out(self.w_mean + TRUNCATION * ((code * self.deviations) @ self.axes))

    def person_at(self, coordinates: F64) -> F32:
        """w (512,) of coordinates (128,) along the axes, in deviations."""
        return self.keep_out(self.w_mean + (coordinates * self.deviations) @ self.axes)

    def keep_out(self, w: F32 | F64) -> F32:
        """Moves w until no score is above its limit. A step of one guard raises the scores of others (by up
        to 0.4 of what it lowers its own), so they take turns; every round leaves half the excess or less."""
        offset = w.astype(np.float64) - self.w_mean
        for _ in range(_GUARD_ROUNDS):
            for normal, step, limit in zip(
                self.guard_normals, self.guard_steps, self.guard_limits, strict=True
            ):
                offset = offset - max(0.0, float(normal @ offset - limit)) * step
        return np.asarray(self.w_mean + offset, np.float32)


class VirtualIdentities:
    """Turns embeddings into people under one key. Holds a derived secret: `close` forgets it."""

    def __init__(self, key: Key, basis: IdentityBasis, projector: Projector) -> None:
        if projector.n_axes != len(basis.axes):
            raise ValueError(
                f"identity: the projector is for {projector.n_axes} axes, there are {len(basis.axes)}"
            )
        self._seed = key.derive(ROTATION_PURPOSE, 32)
        self._basis, self._projector = basis, projector
        self._rotations: dict[int, tuple[F64, F64 | None]] = {}

    def code(self, embedding: F32, candidate: int = 0) -> F32:
        """Keyed code v (n,) of an embedding (128,); its norm is sqrt(n).

        Raises:
            ValueError: the embedding is of another shape, not finite, zero, or equals the mean.
        """
        return np.asarray(self._code(embedding, candidate), np.float32)

    def w(self, embedding: F32, candidate: int = 0) -> F32:
        """The virtual person's w (512,)."""
        return self._basis.person_at(self._projector.coordinates(self._code(embedding, candidate)))

    def under(self, key: Key) -> VirtualIdentities:
        """The same under another key."""
        return VirtualIdentities(key, self._basis, self._projector)

    def close(self) -> None:
        """Forgets the secret; codes can no longer be made."""
        self._seed = b""
        self._rotations.clear()

    def _code(self, embedding: F32, candidate: int) -> F64:
        unit = self._projector.unit(embedding)
        code = self._turned(unit, candidate)
        if not 0 < candidate <= N_NEAR:
            return code
        mixed = NEAR * self._turned(unit, 0) + (1.0 - NEAR**2) ** 0.5 * code
        return np.asarray(mixed * (np.linalg.norm(code) / np.linalg.norm(mixed)))

    def _turned(self, unit: F64, candidate: int) -> F64:
        if candidate not in self._rotations:
            n = self._projector.n_code
            second = (
                secret_rotation(self._seed, candidate + _SECOND_MATRIX, n) if self._projector.fold else None
            )
            self._rotations[candidate] = secret_rotation(self._seed, candidate, n), second
        return self._projector.code(unit, *self._rotations[candidate])
