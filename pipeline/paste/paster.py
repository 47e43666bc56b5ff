"""The paste stage: every face of a frame leaves it replaced by a virtual one, or mosaicked.

A face is replaced only when its virtual face is there, lies where the driver's mesh is, and covers the
driver's features; whatever is missing or odd, and any exception while one face is pasted, ends in a mosaic
over that face. `Paster.process` accounts for every face before it seals the frame.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keyface.pipeline.face import F32, Face, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Frame, ImageRgb, Redaction, RedactionReason, SafeFrame, seal
from keyface.pipeline.paste.blend import put_on_host
from keyface.pipeline.paste.composite import FaceCompositor, Unfit
from keyface.pipeline.paste.on_card import CardPut
from keyface.pipeline.paste.place import face_width, misfit
from keyface.pipeline.paste.redact import mosaic_in_place, redact_whole

_LOG = logging.getLogger(__name__)

MAX_MISFIT = 0.2  # mean distance of the two meshes in face widths: more is no fit at all
MIN_FACE_PX = 12.0
FORGET_S = 2.0
_LONGEST_STEP_S = 1.0


@dataclass(slots=True)
class _Track:
    compositor: FaceCompositor
    last_pts_s: float


class Paster:
    """Stage `ReenactedFrame -> SafeFrame`. Holds state per track; frames come in order of time.

    Args:
        keep_occluders: hands, microphones and the like stay in front of the virtual face.
        card: writes faces into the frame on a graphics card; None: in host memory.
    """

    def __init__(self, *, keep_occluders: bool = True, card: CardPut | None = None) -> None:
        self._card = card
        self._keep_occluders = keep_occluders
        self._tracks: dict[int, _Track] = {}

    def open(self) -> None:
        """Forgets everything: a new source begins. Raises DeviceError when a card asked for cannot be used."""
        self._tracks.clear()
        if self._card is not None:
            self._card.open()

    def close(self) -> None:
        """Forgets everything."""
        self._tracks.clear()
        if self._card is not None:
            self._card.close()

    def process(self, item: ReenactedFrame) -> SafeFrame:
        """Pastes, mosaics and seals one frame.

        A frame that the decoder calls damaged is mosaicked whole: no face position in it can be trusted.
        Pixels outside the faces' regions and the mosaics keep their exact values.
        """
        frame = item.analysed.frame
        if frame.is_suspect:
            return redact_whole(frame, "implausible")
        self._forget(item)
        image_rgb = frame.image_rgb.copy()
        redactions = [*item.analysed.must_redact, *item.must_redact]
        replaced: list[int] = []
        for face, virtual in _pair(item):
            reason = self._replace(frame, face, virtual, image_rgb, redactions)
            if reason is None:
                replaced.append(face.track_id)
            else:
                redactions.append(Redaction(_whole_box(face), reason, face.track_id))
        for redaction in redactions:
            mosaic_in_place(image_rgb, redaction.box_xyxy)
        return seal(frame, image_rgb, redactions=tuple(redactions), replaced=tuple(replaced))

    def _replace(
        self,
        frame: Frame,
        face: Face,
        virtual: VirtualFace | None,
        image_rgb: ImageRgb,
        redactions: Sequence[Redaction],
    ) -> RedactionReason | None:
        """Pastes one face; the reason when that was not possible. Never raises."""
        for redaction in redactions:
            if redaction.track_id == face.track_id:
                return redaction.reason
        try:
            driver_xy, virtual = _fit_for_paste(face, virtual)
            track = self._tracks.get(face.track_id)
            if track is None:
                put = put_on_host if self._card is None else self._card
                compositor = FaceCompositor(keep_occluders=self._keep_occluders, put=put)
                track = self._tracks[face.track_id] = _Track(compositor, frame.pts_s)
            dt_s = float(np.clip(frame.pts_s - track.last_pts_s, 1e-3, _LONGEST_STEP_S))
            track.last_pts_s = frame.pts_s
            track.compositor.compose(frame, driver_xy, _cover_points(face), virtual, image_rgb, dt_s)
        except Unfit as unfit:
            return unfit.reason
        except Exception:  # fail closed: whatever broke, this face gets its mosaic
            _LOG.exception("frame %d: track %d could not be pasted, mosaicked", frame.index, face.track_id)
            self._tracks.pop(face.track_id, None)
            return "stage_failed"
        return None

    def _forget(self, item: ReenactedFrame) -> None:
        """Drops all tracks at a cut, and those not seen for long."""
        now_s = item.analysed.frame.pts_s
        if item.analysed.is_cut:
            self._tracks.clear()
        for track_id in [t for t, s in self._tracks.items() if not 0 <= now_s - s.last_pts_s <= FORGET_S]:
            del self._tracks[track_id]


def _pair(item: ReenactedFrame) -> list[tuple[Face, VirtualFace | None]]:
    """All faces, far (small) ones first so that near ones cover them. A track id that comes twice, among the
    faces or the virtual ones, cannot be told apart and has no virtual face."""
    faces = sorted(item.analysed.faces, key=lambda f: float(np.prod(f.box_xyxy[2:] - f.box_xyxy[:2])))
    ids = [f.track_id for f in faces]
    virtual_ids = [v.track_id for v in item.virtual]
    by_id = {v.track_id: v for v in item.virtual if virtual_ids.count(v.track_id) == 1}
    return [(f, by_id.get(f.track_id) if ids.count(f.track_id) == 1 else None) for f in faces]


def _fit_for_paste(face: Face, virtual: VirtualFace | None) -> tuple[F32, VirtualFace]:
    """The driver's mesh (478, 2) and the virtual face, or raises Unfit."""
    if face.is_predicted:
        raise Unfit("predicted_only")
    if face.mesh is None:
        raise Unfit("no_landmarks")
    if virtual is None:
        raise Unfit("reenactment_failed")
    mesh, own = face.mesh.points_xy, virtual.mesh.points_xy
    values = (mesh, own, virtual.frame_from_crop, face.box_xyxy)
    if mesh.shape != own.shape or not all(bool(np.isfinite(v).all()) for v in values):
        raise Unfit("implausible")
    if face_width(mesh) < MIN_FACE_PX:
        raise Unfit("too_small")
    if misfit(own, mesh, virtual.frame_from_crop) > MAX_MISFIT:
        raise Unfit("implausible")
    return np.asarray(mesh, np.float32), virtual


def _cover_points(face: Face) -> F32:
    """What must be covered if the mesh is where the face is: the detector's points, the box's middle."""
    centre = ((face.box_xyxy[:2] + face.box_xyxy[2:]) / 2)[None]
    return np.asarray(
        centre if face.points_5 is None else np.concatenate([face.points_5, centre]), np.float32
    )


def _whole_box(face: Face) -> tuple[float, float, float, float]:
    """The tracker's box and the mesh together: wherever of the two the face is, it is inside."""
    low, high = face.box_xyxy[:2], face.box_xyxy[2:]
    if face.mesh is not None:
        low = np.minimum(low, face.mesh.points_xy.min(0))
        high = np.maximum(high, face.mesh.points_xy.max(0))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
