"""A face of paper: a frontal mesh, a picture of it, and a virtual face laid on it, for tests of the paste-back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Frame, Redaction
from keyface.pipeline.paste.place import (
    LEFT_BROW,
    LEFT_EYE,
    LIPS,
    NOSE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    fit_frame_from_crop,
)

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def ring(index: npt.NDArray[Any], centre: tuple[float, float], radii: tuple[float, float], out: F32) -> None:
    angle = np.linspace(0, 2 * np.pi, len(index), endpoint=False) - np.pi / 2
    out[index] = np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], 1)


def a_mesh_xy(centre: tuple[float, float] = (128, 128), width: float = 120.0, jaw: float = 1.0) -> F32:
    """(478, 2): a frontal mesh, `width` px wide."""
    rng = np.random.default_rng(1)
    out = rng.uniform(-0.25, 0.25, (478, 2)).astype(np.float32)
    ring(OVAL, (0, 0), (0.5, 0.65 * jaw), out)
    for eye, brow, x in ((RIGHT_EYE, RIGHT_BROW, -0.2), (LEFT_EYE, LEFT_BROW, 0.2)):
        ring(eye, (x, -0.12), (0.09, 0.035), out)
        ring(brow, (x, -0.24), (0.12, 0.02), out)
    ring(NOSE, (0, 0.06), (0.08, 0.14), out)
    ring(LIPS, (0, 0.33), (0.16, 0.06), out)
    return (out * width + np.array(centre)).astype(np.float32)


def a_mesh(points: F32) -> FaceMesh:
    xyz = np.concatenate([points, np.zeros((478, 1), np.float32)], 1)
    return FaceMesh(xyz, np.zeros(52, np.float32), np.zeros(3, np.float32), 1.0)


def a_picture(size_wh: tuple[int, int], points: F32, skin: tuple[int, int, int], seed: int = 0) -> U8:
    """A drawn head with fine noise all over, so that a raw pixel can be told."""
    width, height = size_wh
    image = np.full((height, width, 3), (90, 110, 130), np.uint8)
    cv2.fillPoly(image, [np.rint(points[OVAL]).astype(np.int32)], skin)
    for index, colour in ((RIGHT_EYE, (40, 30, 30)), (LEFT_EYE, (40, 30, 30)), (LIPS, (150, 60, 60))):
        cv2.fillPoly(image, [np.rint(points[index]).astype(np.int32)], colour)
    noise = np.random.default_rng(seed).normal(0, 7, (height, width, 1))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def a_face(points: F32, track_id: int = 1, **changes: Any) -> Face:
    box = np.concatenate([points.min(0), points.max(0)]).astype(np.float32)
    return replace(Face(track_id, box, None, 0.9, False, a_mesh(points), 5), **changes)


def a_virtual(driver: F32, track_id: int = 1, **changes: Any) -> VirtualFace:
    own = a_mesh_xy((128, 124), 150.0, jaw=1.06)
    noise = np.random.default_rng(3).normal(0, 7, (256, 256, 1))
    crop = np.clip(np.array([200, 160, 140]) + noise, 0, 255).astype(np.uint8)  # no features: any are raw
    placed = VirtualFace(track_id, crop, a_mesh(own), fit_frame_from_crop(own, driver))
    return replace(placed, **changes)


def an_item(
    faces: tuple[Face, ...],
    virtual: tuple[VirtualFace, ...],
    *,
    image: U8 | None = None,
    index: int = 0,
    must_redact: tuple[Redaction, ...] = (),
    is_suspect: bool = False,
    is_cut: bool = False,
) -> ReenactedFrame:
    if image is None:
        image = a_picture((256, 256), a_mesh_xy(), (180, 130, 110))
    frame = Frame(image, index, index / 25, is_suspect=is_suspect)
    return ReenactedFrame(AnalysedFrame(frame, faces, must_redact, is_cut), virtual)
