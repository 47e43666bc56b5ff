"""What stands between a failing stage and a raw face: checks of outputs, and safe ones in their place.

Each `check_*` raises when what a stage gave cannot be trusted; each `rescue_*` makes what stands in for
it: a frame in which everything known of faces is mosaicked, or all of it when nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from keyface.configs.errors import StageError
from keyface.pipeline.face import F32, AnalysedFrame, Face, ReenactedFrame, VirtualFace
from keyface.pipeline.faces.geometry import enlarge_box
from keyface.pipeline.frame import Frame, ImageRgb, Redaction, RedactionReason, SafeFrame
from keyface.pipeline.paste.redact import redact_frame, redact_whole

# On top of the mosaic's own enlargement: a box that comes from before a failure may be a little off.
_ENLARGE = 1.2
_GROWTH_PER_FRAME = 0.04  # of boxes from before the damage, while no frame can be trusted
_SAME_SHARE = 0.9  # of the pixels of a replaced face: a hand in front of it may leave many as they were
_FLAT_LEVELS = 4.0  # standard deviation: a patch flatter than this may look the same replaced


def whole_frame(frame: Frame, reason: RedactionReason) -> Redaction:
    """A redaction of all pixels."""
    height, width = frame.image_rgb.shape[:2]
    return Redaction((0.0, 0.0, float(width), float(height)), reason)


def redactions_of(
    faces: Iterable[Face], reason: RedactionReason, *, enlarge: float = _ENLARGE
) -> tuple[Redaction, ...]:
    """One redaction for each face: its box, enlarged."""
    return tuple(
        Redaction(_to_tuple(enlarge_box(face.box_xyxy, enlarge)), reason, face.track_id) for face in faces
    )


# Analysis.


def check_analysis(frame: Frame, output: object) -> None:
    """Raises StageError unless `output` is an AnalysedFrame of this very frame with usable faces."""
    if not isinstance(output, AnalysedFrame) or output.frame.index != frame.index:
        raise StageError(f"analysis of frame {frame.index}: got {_kind(output)}, want its AnalysedFrame.")
    seen: set[int] = set()
    for face in output.faces:
        box = np.asarray(face.box_xyxy)
        if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
            raise StageError(f"analysis of frame {frame.index}: got box {box.tolist()} for a face.")
        if face.track_id in seen:
            raise StageError(f"analysis of frame {frame.index}: track {face.track_id} comes twice.")
        seen.add(face.track_id)


def rescue_analysis(frame: Frame, error: Exception) -> AnalysedFrame:
    """Nothing is known about the frame: all of it is mosaicked."""
    del error
    return AnalysedFrame(frame, (), (whole_frame(frame, "stage_failed"),))


class DamageGuard:
    """Decides about frames that the decoder calls damaged.

    No face in such a frame is replaced, because landmarks in smeared pixels mean nothing. What is
    mosaicked: faces found in it, and those of the last sound frame of the scene in boxes that grow while the
    damage lasts. When there is neither, the whole frame.
    """

    def __init__(self) -> None:
        self._last_boxes: tuple[tuple[F32, int], ...] = ()
        self._n_damaged = 0

    def apply(self, analysed: AnalysedFrame) -> AnalysedFrame:
        """Returns sound frames as they are; call on each frame, in order."""
        if not analysed.frame.is_suspect:
            self._n_damaged = 0
            self._last_boxes = tuple((face.box_xyxy, face.track_id) for face in analysed.faces)
            return analysed
        if analysed.is_cut:
            self._last_boxes = ()  # where faces were in another scene says nothing of this one
        self._n_damaged += 1
        growth = _ENLARGE + _GROWTH_PER_FRAME * self._n_damaged
        known = [
            Redaction(_to_tuple(enlarge_box(box, growth)), "implausible", track_id)
            for box, track_id in self._last_boxes
        ]
        known.extend(redactions_of(analysed.faces, "implausible"))
        if not known:
            known.append(whole_frame(analysed.frame, "implausible"))
        return replace(
            analysed,
            # The damage is dealt with: what follows need not mosaic the whole frame.
            frame=replace(analysed.frame, is_suspect=False),
            faces=(),
            must_redact=(*analysed.must_redact, *known),
        )


# Reenactment.


def check_reenactment(analysed: AnalysedFrame, output: object) -> None:
    """Raises StageError unless `output` is a ReenactedFrame of this frame whose virtual faces are whole."""
    index = analysed.frame.index
    if not isinstance(output, ReenactedFrame) or output.analysed.frame.index != index:
        raise StageError(f"reenactment of frame {index}: got {_kind(output)}, want its ReenactedFrame.")
    tracks = {face.track_id for face in output.analysed.faces}
    lost = {face.track_id for face in analysed.faces} - tracks
    if lost:
        raise StageError(f"reenactment of frame {index}: lost the faces of tracks {sorted(lost)}.")
    if not set(analysed.must_redact) <= {*output.analysed.must_redact, *output.must_redact}:
        raise StageError(f"reenactment of frame {index}: lost a redaction.")
    for virtual in output.virtual:
        _check_virtual(index, virtual, tracks)


def _check_virtual(index: int, virtual: VirtualFace, tracks: set[int]) -> None:
    crop = virtual.crop_rgb
    subject = f"virtual face of track {virtual.track_id} in frame {index}"
    if virtual.track_id not in tracks:
        raise StageError(f"{subject}: there is no such face.")
    if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape != (len(crop), len(crop), 3) or not len(crop):
        raise StageError(f"{subject}: got {crop.dtype} {crop.shape}, want uint8 (S, S, 3).")
    if virtual.frame_from_crop.shape != (2, 3) or virtual.mesh.points_xyz.shape != (478, 3):
        raise StageError(f"{subject}: its matrix or its mesh has a wrong shape.")
    if not (np.isfinite(virtual.frame_from_crop).all() and np.isfinite(virtual.mesh.points_xyz).all()):
        raise StageError(f"{subject}: its place is not finite.")


def rescue_reenactment(analysed: AnalysedFrame, error: Exception) -> ReenactedFrame:
    """No face is replaced; all are mosaicked."""
    del error
    return ReenactedFrame(analysed, (), redactions_of(analysed.faces, "stage_failed"))


# Paste-back.


def check_safe(item: ReenactedFrame, output: object) -> None:
    """Raises StageError unless `output` accounts for every face and every redaction of its frame, and the
    pixels of every replaced face have changed."""
    analysed = item.analysed
    index = analysed.frame.index
    if not isinstance(output, SafeFrame) or output.index != index:
        raise StageError(f"paste-back of frame {index}: got {_kind(output)}, want its SafeFrame.")
    redacted = {redaction.track_id for redaction in output.redactions}
    for face in analysed.faces:
        if face.track_id not in redacted and face.track_id not in output.replaced:
            raise StageError(f"paste-back of frame {index}: the face of track {face.track_id} was left out.")
        if face.track_id in output.replaced and _is_unchanged(analysed.frame, output.image_rgb, face):
            raise StageError(f"paste-back of frame {index}: the face of track {face.track_id} is unchanged.")
    if not {*analysed.must_redact, *item.must_redact} <= set(output.redactions):
        raise StageError(f"paste-back of frame {index}: a redaction was left out.")


def rescue_paste(item: ReenactedFrame, error: Exception) -> SafeFrame:
    """All faces are mosaicked, and all that was to be mosaicked anyway."""
    del error
    analysed = item.analysed
    if analysed.frame.is_suspect:
        return redact_whole(analysed.frame, "stage_failed")
    faces = redactions_of(analysed.faces, "stage_failed")
    return redact_frame(analysed.frame, (*analysed.must_redact, *item.must_redact, *faces))


def _is_unchanged(frame: Frame, image_rgb: ImageRgb, face: Face) -> bool:
    """True when most pixels in the middle of the face are exactly the raw ones and not flat."""
    height, width = image_rgb.shape[:2]
    x0, y0, x1, y1 = np.rint(enlarge_box(face.box_xyxy, 0.5)).astype(int)
    rows, columns = slice(max(y0, 0), min(y1, height), 2), slice(max(x0, 0), min(x1, width), 2)
    raw, now = frame.image_rgb[rows, columns], image_rgb[rows, columns]
    if raw.size == 0 or raw.std() < _FLAT_LEVELS:
        return False
    return bool((raw == now).all(axis=-1).mean() > _SAME_SHARE)


def _to_tuple(box_xyxy: F32) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return x0, y0, x1, y1


def _kind(value: object) -> str:
    index = getattr(getattr(value, "frame", value), "index", None)
    return f"{type(value).__name__} of frame {index}" if isinstance(index, int) else type(value).__name__
