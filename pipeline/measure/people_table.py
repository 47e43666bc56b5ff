"""What was seen of all photos of an evaluation, in arrays: one row a photo, the same row under every key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyface.pipeline.face import F32
from keyface.pipeline.faces.geometry import iou_matrix
from keyface.pipeline.measure.people_folder import Photo
from keyface.pipeline.measure.people_render import Outcome
from keyface.pipeline.measure.seen_faces import FaceSeen
from keyface.pipeline.measure.verification import F64

Mask = npt.NDArray[np.bool_]
MISSED = "missed"  # the chain saw no face: nothing is replaced and nothing mosaicked


@dataclass(frozen=True)
class Row:
    """One photo: its original, and by condition what became of it and what is seen of it."""

    photo: Photo
    original: FaceSeen
    anonymised: Mapping[str, tuple[Outcome, FaceSeen]]


@dataclass(frozen=True)
class View:
    """All photos under one key or none; N rows.

    Attributes:
        is_there: (N,) the photo was anonymised under this condition.
        is_replaced: (N,) the face carries a virtual face (in originals: always).
        is_found: (N,) the detector sees a face.
        reasons: why a face was mosaicked instead, by row.
        pose_ypr_deg: (N, 3); blendshapes: (N, 52); nan where no mesh was found.
    """

    is_there: Mask
    is_replaced: Mask
    is_found: Mask
    reasons: Sequence[str | None]
    embeddings: Mapping[str, F64]
    pose_ypr_deg: F64
    blendshapes: F64
    features: Mapping[str, F64]

    @property
    def is_usable(self) -> Mask:
        """(N,) there is a virtual face to compare."""
        return self.is_there & self.is_replaced

    @property
    def is_shown(self) -> Mask:
        """(N,) a face is to be seen, virtual or left as it was: all but mosaics."""
        missed = np.array([reason == MISSED for reason in self.reasons])
        shown: Mask = self.is_there & (self.is_replaced | missed)
        return shown


class PeopleTable:
    """Rows as arrays.

    Args:
        rows: one a photo, each with a face in the original.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise ValueError("people table: got no photos")
        self.rows = tuple(rows)
        self.names = sorted({row.photo.person for row in rows})
        number = {name: i for i, name in enumerate(self.names)}
        self.people = np.array([number[row.photo.person] for row in rows], np.int64)
        self.original = _view([(None, row.original) for row in rows], rows)
        conditions = dict.fromkeys(c for row in rows for c in row.anonymised)
        self.conditions = {c: _view([row.anonymised.get(c) for row in rows], rows) for c in conditions}

    @property
    def n_people(self) -> int:
        """Different people."""
        return len(self.names)


def _view(seen: Sequence[tuple[Outcome | None, FaceSeen] | None], rows: Sequence[Row]) -> View:
    faces = [None if pair is None else pair[1] for pair in seen]
    reasons = [
        None if pair is None else _reason(pair[0], row.original.box_xyxy)
        for pair, row in zip(seen, rows, strict=True)
    ]
    first = rows[0].original
    return View(
        is_there=np.array([face is not None for face in faces]),
        is_replaced=np.array(
            [face is not None and reason is None for face, reason in zip(faces, reasons, strict=True)]
        ),
        is_found=np.array([face is not None and face.is_found for face in faces]),
        reasons=reasons,
        embeddings={
            name: _stack([None if f is None else f.embeddings[name] for f in faces], len(vector))
            for name, vector in first.embeddings.items()
        },
        pose_ypr_deg=_stack([None if f is None else f.pose_ypr_deg for f in faces], 3),
        blendshapes=_stack([None if f is None else f.blendshapes for f in faces], 52),
        features={
            name: _stack([None if f is None else f.features[name] for f in faces], len(vector))
            for name, vector in first.features.items()
        },
    )


def _reason(outcome: Outcome | None, box_xyxy: F32) -> str | None:
    """Why the face in this box carries no virtual face; None when it does."""
    if outcome is None:
        return None
    if outcome.faults:
        return "fault"
    for box, reason in outcome.redactions:
        mosaic = np.array(box, np.float32)
        if iou_matrix(box_xyxy[None], mosaic[None])[0, 0] > 0.2 or _covers(mosaic, box_xyxy):
            return reason
    return None if outcome.replaced else MISSED


def _covers(mosaic: F32, box_xyxy: F32) -> bool:
    middle = (box_xyxy[:2] + box_xyxy[2:]) / 2
    return bool((mosaic[:2] <= middle).all() and (middle <= mosaic[2:]).all())


def _stack(vectors: Sequence[F32 | None], size: int) -> F64:
    rows = [np.full(size, np.nan) if v is None else np.asarray(v, np.float64) for v in vectors]
    return np.stack(rows)
