"""Prepares what the motion map learns from: controls of real motion, and of generated people at rest.

Controls of real motion are kept as float32 (M, 56): number of the clip (0: a photo), yaw, pitch, roll in degrees,
52 blendshapes. Numbers of expression and pose only: no picture, no landmark, nothing of a face's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from keyface.configs.errors import UsageError
from keyface.models.arrays import read_arrays, write_arrays
from keyface.models.face_measure import FaceMeasure
from keyface.models.motion import POSE_SCALE_DEG, MotionMap
from keyface.models.population import F32, Population
from keyface.models.samples import Samples
from keyface.models.train_motion import controls_of, linear_directions, trait_axes

BATCH = 9
FILE = "measures.npz"


@dataclass(frozen=True, slots=True)
class SampleMeasures:
    """w float32 (N, 512) of the plain samples and their controls (N, 54), as measured on their pictures."""

    w: F32
    controls: F32


def wanted_controls(rows: F32) -> F32:
    """(M', 54) controls for `train_motion.WantedMotions` from rows (M, 56): all photos and every second row of
    the clips, whose neighbours are alike."""
    if rows.ndim != 2 or rows.shape[1] != 56:
        raise UsageError(
            f"The controls have shape {rows.shape}, want (M, 56).", "Make them: keyface train controls"
        )
    controls = np.concatenate([rows[:, 1:3] / np.float32(POSE_SCALE_DEG), rows[:, 4:]], 1)
    is_photo = rows[:, 0] == 0
    return np.concatenate([controls[is_photo], controls[~is_photo][::2]]).astype(np.float32)


def measure_samples(samples: Samples, measure: FaceMeasure) -> SampleMeasures:
    """Controls of every plain sample."""
    plain, found = samples.plain(), []
    with torch.no_grad():
        for start in range(0, len(plain), BATCH):
            picked = samples.images[plain[start : start + BATCH]]
            image = torch.from_numpy(picked).permute(0, 3, 1, 2).float() / 127.5 - 1
            found.append(controls_of(measure(image, with_identity=False)).numpy())
    return SampleMeasures(samples.w_plus[plain, 0], np.concatenate(found).astype(np.float32))


def load_or_measure(folder: Path, samples: Samples, measure: FaceMeasure) -> SampleMeasures:
    """The measures kept beside the samples; made anew when the samples are others."""
    path = folder / FILE
    if path.exists():
        try:
            kept = SampleMeasures(**read_arrays(path, "w", "controls"))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
        if np.array_equal(kept.w, samples.w_plus[samples.plain(), 0]):
            return kept
    measures = measure_samples(samples, measure)
    write_arrays(path, w=measures.w, controls=measures.controls)
    return measures


def read_map(path: Path, model: MotionMap) -> None:
    """Loads the weights of another training into `model`.

    Raises:
        UsageError: the file holds no motion map.
    """
    try:
        model.load_state_dict({name: t.float() for name, t in load_file(str(path)).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UsageError(
            f"{path} holds no motion map: {error}.", "Give one of `keyface train motion`."
        ) from error


def initial_map(population: Population, measures: SampleMeasures) -> MotionMap:
    """The map before training: the linear edit that regression over the samples gives."""
    model = MotionMap()
    model.initialise(
        torch.from_numpy(population.mean),
        torch.from_numpy(trait_axes(population.people)),
        torch.from_numpy(measures.controls.mean(0)),
        torch.from_numpy(linear_directions(measures.w, measures.controls)),
    )
    return model
