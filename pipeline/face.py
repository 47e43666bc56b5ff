"""Faces as the stages of the chain see them. All arrays float32 unless said; pixels of the frame.

Coordinates: x to the right, y down, pixel centres at integer coordinates as in cv2.warpAffine.
Pose: degrees; yaw > 0 looks to the image's right, pitch > 0 looks down, roll > 0 turns clockwise
in the image. Blendshapes: the 52 coefficients of MediaPipe's face landmarker, [0, 1], in the order
of `BLENDSHAPE_NAMES` (index 0 is `_neutral`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from keyface.pipeline.frame import Frame, ImageRgb, Redaction

F32 = npt.NDArray[np.float32]

BLENDSHAPE_NAMES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight",
    "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft",
    "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight",
    "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower",
    "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight",
    "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected face: box_xyxy (4,) px, points_5 (5, 2) px (right eye, left eye, nose, right and left
    mouth corner, "right" being the subject's, so leftmost in the image), score [0, 1]."""

    box_xyxy: F32
    points_5: F32
    score: float


@dataclass(frozen=True, slots=True)
class FaceMesh:
    """Landmarks and expression of one face.

    Attributes:
        points_xyz: (478, 3) px of the image given; z in the same scale, smaller is nearer.
        blendshapes: (52,) [0, 1], order of BLENDSHAPE_NAMES.
        pose_ypr_deg: (3,) yaw, pitch, roll in degrees, from a rigid fit (see pipeline.faces.geometry).
        score: presence of a face, [0, 1].
    """

    points_xyz: F32
    blendshapes: F32
    pose_ypr_deg: F32
    score: float

    @property
    def points_xy(self) -> F32:
        """(478, 2) view."""
        return self.points_xyz[:, :2]


@dataclass(frozen=True, slots=True)
class AlignedFace:
    """A face crop: crop_rgb uint8 (S, S, 3); frame_from_crop float32 (2, 3) maps crop to frame px."""

    crop_rgb: ImageRgb
    frame_from_crop: F32


@dataclass(frozen=True, slots=True)
class Face:
    """One tracked face in one frame.

    Attributes:
        track_id: stable over the clip, also after a re-entry that was recognised.
        box_xyxy: (4,) px, the tracker's filtered box.
        points_5: (5, 2) px or None when only predicted.
        score: detector or landmark confidence, [0, 1].
        is_predicted: no detection or landmark supports the box in this very frame.
        mesh: landmarks, or None when the landmarker found none.
        age: frames since the track began.
    """

    track_id: int
    box_xyxy: F32
    points_5: F32 | None
    score: float
    is_predicted: bool
    mesh: FaceMesh | None
    age: int = 0


@dataclass(frozen=True, slots=True)
class AnalysedFrame:
    """A frame with its faces, and boxes to be mosaicked whatever else happens.

    Attributes:
        is_cut: first frame after a scene cut.
        known_until_s: time up to which all frames had been analysed when the look-ahead gave this one on;
            None without a look-ahead: nothing later is known. The same in each run, however threads go.
    """

    frame: Frame
    faces: tuple[Face, ...]
    must_redact: tuple[Redaction, ...] = ()
    is_cut: bool = False
    known_until_s: float | None = None


@dataclass(frozen=True, slots=True)
class VirtualFace:
    """A rendered virtual face, ready to be pasted.

    Attributes:
        track_id: the track that it replaces.
        crop_rgb: uint8 (S, S, 3), S = 256 or 512 or 1024.
        mesh: of the rendered face, in crop pixels.
        frame_from_crop: (2, 3), crop to frame.
    """

    track_id: int
    crop_rgb: ImageRgb
    mesh: FaceMesh
    frame_from_crop: F32


@dataclass(frozen=True, slots=True)
class ReenactedFrame:
    """What the paste stage receives: virtual faces for some faces, the others to be redacted."""

    analysed: AnalysedFrame
    virtual: tuple[VirtualFace, ...]
    must_redact: tuple[Redaction, ...] = field(default=())
