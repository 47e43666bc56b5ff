"""How dark, bright or hazy a rendered face is, as linear scores of its coordinates along the axes of w.

Recognisers tell a face in fog from others, so a projector that is only asked for different embeddings learns to make
fog. These scores keep it to faces that can be seen well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
RIDGE = 100.0
STRICTER = 0.6
N_POSE = 2
# controls (yaw and pitch over 30 degrees, then blendshapes) and how far above rest their mean may be; yaw and pitch
# also below: yaw, pitch, jaw open, both eyes closed, smile
_MOTION_LIMITS = (((0,), 0.12), ((1,), 0.12), ((27,), 0.02), ((11, 12), 0.08), ((46, 47), 0.35))
# column of the looks (brightness of the face, contrast about the eyes), sign, percentile of people allowed
_LIMITS = ((0, -1.0, 75.0), (0, 1.0, 88.0), (1, -1.0, 65.0))


@dataclass(frozen=True, slots=True)
class LookLimits:
    """normals, steps (G, A) and limits (G,): score i of coordinates c is normals[i] @ c; a step lowers it by 1."""

    normals: F32
    steps: F32
    limits: F32

    @classmethod
    def none(cls, n_axes: int) -> LookLimits:
        """No limit."""
        empty = np.zeros((0, n_axes), np.float32)
        return cls(empty, empty, np.zeros(0, np.float32))

    def with_row(self, normal: F32, limit: float) -> LookLimits:
        """One more score, with the least step that lowers it by 1."""
        step = normal / max(float(normal @ normal), 1e-12)
        return LookLimits(
            np.vstack([self.normals, normal]).astype(np.float32),
            np.vstack([self.steps, step]).astype(np.float32),
            np.append(self.limits, limit).astype(np.float32),
        )


def stricter_guard(
    looks: LookLimits, axes: F32, deviations: F32, guard_normal: F32, guard_limit: float
) -> LookLimits:
    """A guard of w once more as a limit of coordinates, lower by `STRICTER` of its deviations: a guard is learnt from
    few labels, and a projector finds people whom it lets pass."""
    normal = np.asarray((axes * deviations[:, None]) @ guard_normal, np.float32)
    return looks.with_row(normal, float(guard_limit - STRICTER * np.linalg.norm(normal)))


def limit_motion(looks: LookLimits, slope: F32, at_rest: F32) -> LookLimits:
    """Keeps people near rest by themselves, so that little has to be taken off them before they take on another's
    motion: a person with an open mouth is not quite the same once it is closed.

    Args:
        slope: (A + 1, 54) from coordinates and 1 to controls, see `models.rendered_people.Guess`.
        at_rest: (54,) controls of a calm face from the front.
    """
    for controls, room in _MOTION_LIMITS:
        normal = slope[:-1, list(controls)].mean(1)
        offset = float(slope[-1, list(controls)].mean() - at_rest[list(controls)].mean())
        looks = looks.with_row(normal, room - offset)
        if controls[0] < N_POSE:
            looks = looks.with_row(-normal, room + offset)
    return looks


def fit_look_limits(coordinates: F32, looks: F32) -> LookLimits:
    """From people's coordinates (N, A) and the looks (N, 2) of their renderings."""
    x = coordinates.astype(np.float64)
    y = (looks - looks.mean(0)) / np.maximum(looks.std(0), 1e-9)
    slope = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    normals = np.stack([sign * slope[:, column] for column, sign, _ in _LIMITS])
    limits = [np.percentile(x @ n, p) for n, (_, _, p) in zip(normals, _LIMITS, strict=True)]
    steps = normals / (normals**2).sum(1, keepdims=True)
    return LookLimits(*(np.asarray(a, np.float32) for a in (normals, steps, np.array(limits))))
