"""Aligned crops: the FFHQ crop that the generator was trained on, and the ArcFace crop of recognisers."""

from __future__ import annotations

import cv2
import numpy as np

from keyface.engines.card_frame import Border
from keyface.pipeline.face import F32, AlignedFace, FaceMesh
from keyface.pipeline.faces.geometry import (
    ffhq_quad,
    fit_similarity,
    frame_from_quad,
    points_5_from_mesh,
)
from keyface.pipeline.faces.sampling import sampling_of
from keyface.pipeline.frame import ImageRgb

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
    frame_from_crop = arcface_frame_from_crop(points_5, size)
    return AlignedFace(cut_out(image_rgb, frame_from_crop, size, border="black"), frame_from_crop)


def arcface_frame_from_crop(points_5: F32, size: int = 112) -> F32:
    """(2, 3), of `align_arcface`."""
    return fit_similarity(ARCFACE_112 * (size / 112.0), points_5)


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
    sampling = sampling_of(image_rgb.shape[:2], frame_from_crop, size, max_step)
    x0, y0, x1, y1 = sampling.part_xyxy
    source = image_rgb[y0:y1, x0:x1]
    if sampling.small_wh != (x1 - x0, y1 - y0):
        source = np.asarray(cv2.resize(source, sampling.small_wh, interpolation=cv2.INTER_AREA), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = sampling.small_from_crop
    crop = cv2.warpAffine(source, matrix, (size, size), flags=flags, borderMode=_BORDERS[border])
    return np.asarray(crop, np.uint8)
