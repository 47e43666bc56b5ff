"""Aligned crops: the FFHQ crop that the generator was trained on, and the ArcFace crop of recognisers."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from keyface.pipeline.face import F32, AlignedFace, FaceMesh
from keyface.pipeline.faces.geometry import (
    F64,
    ffhq_quad,
    fit_similarity,
    frame_from_quad,
    points_5_from_mesh,
    similarity_scale,
)
from keyface.pipeline.frame import ImageRgb

Border = Literal["repeat", "mirror", "black"]

_BORDERS: dict[Border, int] = {
    "repeat": cv2.BORDER_REPLICATE,
    "mirror": cv2.BORDER_REFLECT_101,
    "black": cv2.BORDER_CONSTANT,
}
# Where the face lies in an FFHQ-aligned crop: x0, y0, x1, y1 in shares of its side.
FFHQ_BOX = np.array([0.22, 0.24, 0.78, 0.86], np.float32)
# Where ArcFace puts the five points (order of `Detection`) in a crop of 112 px.
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)


def align_ffhq(image_rgb: ImageRgb, points_5: F32, size: int = 256) -> AlignedFace:
    """The FFHQ crop (`geometry.ffhq_quad`) of a face, roll taken out; beyond the border mirrored.

    Args:
        image_rgb: uint8 (H, W, 3).
        points_5: (5, 2) px, order of `Detection`.
        size: of the crop, px.
    """
    frame_from_crop = frame_from_quad(ffhq_quad(points_5), size)
    return AlignedFace(cut_out(image_rgb, frame_from_crop, size, border="mirror"), frame_from_crop)


def align_ffhq_mesh(image_rgb: ImageRgb, mesh: FaceMesh, size: int = 256) -> AlignedFace:
    """`align_ffhq` from the mesh's eyes and mouth, steadier than a detector's points."""
    return align_ffhq(image_rgb, points_5_from_mesh(mesh.points_xyz), size)


def align_arcface(image_rgb: ImageRgb, points_5: F32, size: int = 112) -> AlignedFace:
    """The crop that recognisers expect: least-squares similarity of five points (5, 2) px onto ArcFace's;
    beyond the border black."""
    target = ARCFACE_112 * (size / 112.0)
    frame_from_crop = fit_similarity(target, points_5)
    return AlignedFace(cut_out(image_rgb, frame_from_crop, size, border="black"), frame_from_crop)


def cut_out(
    image_rgb: ImageRgb,
    frame_from_crop: F32,
    size: int,
    *,
    border: Border = "mirror",
    max_step: float = 1.4,
) -> ImageRgb:
    """Samples a square crop bilinearly.

    Args:
        image_rgb: uint8 (H, W, 3).
        frame_from_crop: (2, 3) similarity from crop to frame pixels.
        size: of the crop, px.
        border: what lies beyond the picture.
        max_step: frame pixels per crop pixel from which the picture is first shrunk by area averaging to
            that step, since bilinear sampling alone would alias.
    Returns:
        uint8 (size, size, 3), C-contiguous, fresh.
    """
    matrix = np.asarray(frame_from_crop, np.float64)
    step = similarity_scale(matrix)
    if step > max_step:
        image_rgb, matrix = _shrink(image_rgb, matrix, size, max_step / step)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(image_rgb, matrix, (size, size), flags=flags, borderMode=_BORDERS[border])
    return np.asarray(crop, np.uint8)


def _shrink(image_rgb: ImageRgb, matrix: F64, size: int, factor: float) -> tuple[ImageRgb, F64]:
    """Shrinks the part of the picture that the crop touches; the map then leads into the smaller one."""
    height, width = image_rgb.shape[:2]
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ matrix.T
    margin = 2.0 / factor
    low = np.floor(corners.min(0) - margin).clip(0, [width, height]).astype(int)
    high = np.ceil(corners.max(0) + margin).clip(0, [width, height]).astype(int)
    if (high - low < 2).any():
        return image_rgb, matrix
    part = image_rgb[low[1] : high[1], low[0] : high[0]]
    size_wh = np.maximum(np.round((high - low) * factor), 1).astype(int)
    small = cv2.resize(part, (int(size_wh[0]), int(size_wh[1])), interpolation=cv2.INTER_AREA)
    scale = size_wh / (high - low)
    # Pixel centres: small = (frame - low + 0.5) * scale - 0.5.
    into_small = scale[:, None] * matrix
    into_small[:, 2] += (0.5 - low) * scale - 0.5
    return np.asarray(small, np.uint8), into_small
