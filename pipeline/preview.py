"""What a key makes of the people on a photo: looked at before the key is used for anything.

The photo goes through the chain as `process_photo` would send it; nothing is written. Whoever was chosen to stand in
is then rendered at rest, turned and smiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from keyface.configs.errors import SourceError
from keyface.engines.store import ModelStore
from keyface.pipeline.assemble import (
    EnginePool,
    make_chain_actor,
    make_parts,
    network_opener,
    open_reenact_engines,
)
from keyface.pipeline.chain import make_plans
from keyface.pipeline.choose import FacesChoice
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, ImageRgb, RedactionReason, SafeFrame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.media.contact_sheet import contact_sheet
from keyface.pipeline.people.book import IdentityBook
from keyface.pipeline.people.identity import Identities
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.virtual import IdentityBasis
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG
from keyface.pipeline.stage import Stage

_TURN_DEG = 25.0
_SMILE = {"mouthSmileLeft": 0.75, "mouthSmileRight": 0.75, "cheekSquintLeft": 0.3, "cheekSquintRight": 0.3}
_CELL_PX, _CAPTION_PX = 224, 20
_AROUND = 1.9  # side of the cut-out in longer sides of the face's box


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewedFace:
    """What becomes of one face of the photo.

    Attributes:
        number: 1 for the largest face of the photo, and so on.
        box_xyxy: in the photo, px.
        reason: why the face is mosaicked; None: it is replaced.
        candidate: number of the virtual person under the key; None where nobody suits.
        pictures: (title, uint8 (H, W, 3)): the photo around the face as it would be written, and the virtual person
            at rest, turned to both sides, and smiling. None of them shows the face of the person on the photo.
    """

    number: int
    box_xyxy: tuple[float, float, float, float]
    reason: RedactionReason | None
    candidate: int | None
    pictures: tuple[tuple[str, ImageRgb], ...]


class Previewer:
    """Opens the networks once for any number of keys; a context manager, on one thread."""

    def __init__(self, store: ModelStore, options: ProcessOptions | None = None) -> None:
        self._store = store
        self._o = options or ProcessOptions()
        self._pool = EnginePool(network_opener(store, self._o))
        self._basis = IdentityBasis.load(store.path("identity_basis"))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._pool)
        engines = open_reenact_engines(self._pool, self._o)
        self._actor = make_chain_actor(engines, self._store, self._basis, self._o)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def preview(
        self, photo: Frame, key: Key, *, faces: FacesChoice = "largest", book: IdentityBook | None = None
    ) -> tuple[PreviewedFace, ...]:
        """What becomes of the faces of a photo, largest first.

        Args:
            faces: "largest" or all of them.
            book: only read, whatever it is allowed.

        Raises:
            SourceError: there is no face on the photo.
            KeyfaceError: a network failed.
        """
        parts = make_parts(self._store, key, self._o, open_network=self._pool, is_still=True, book=book)
        assert parts.reenact is not None and isinstance(parts.observer, Identities)
        tap = _Tap(parts.reenact)
        try:
            plans = make_plans(replace(parts, reenact=tap), faces=faces, lookahead_s=None)
            with InlineChain(plans, on_fault="stop") as chain:
                safe: SafeFrame = chain.process(photo)
        finally:
            parts.release()
        if tap.seen is None or not tap.seen.analysed.faces:
            raise SourceError("No face was found on the photo.", "Give a photo with a face of 50 px or more.")
        largest_first = sorted(tap.seen.analysed.faces, key=lambda face: -_area(face))
        return tuple(
            self._previewed(number, face, safe, parts.observer)
            for number, face in enumerate(largest_first, start=1)
        )

    def _previewed(self, number: int, face: Face, safe: SafeFrame, identities: Identities) -> PreviewedFace:
        reason = next((r.reason for r in safe.redactions if r.track_id == face.track_id), None)
        if reason is None and face.track_id not in safe.replaced:
            reason = "reenactment_failed"
        person = identities.person_of(face.track_id)
        pin = None if person is None else identities.pin_of(person)
        left, top, right, bottom = (float(v) for v in face.box_xyxy)
        pictures = [("pasted into the photo", _cut_out(safe.image_rgb, face.box_xyxy))]
        if pin is not None:
            pictures += self._poses(pin.w)
        return PreviewedFace(
            number=number, box_xyxy=(left, top, right, bottom), reason=reason,
            candidate=None if pin is None else pin.candidate, pictures=tuple(pictures),
        )  # fmt: skip

    def _poses(self, w: F32) -> list[tuple[str, ImageRgb]]:
        person = self._actor.meet(w)
        if person is None:
            return []
        rest = self._basis.resting
        smile = rest.copy()
        for name, value in _SMILE.items():
            smile[BLENDSHAPE_NAMES.index(name)] = value
        asked = (
            ("at rest", 0.0, rest),
            ("turned", -_TURN_DEG, rest),
            ("turned", _TURN_DEG, rest),
            ("smiling", 0.0, smile),
        )
        shown = []
        for title, yaw_deg, blendshapes in asked:
            wanted = np.concatenate([[yaw_deg / POSE_SCALE_DEG, 0.0], blendshapes]).astype(np.float32)
            found = self._actor.show(person, wanted, person.own_mesh)
            if not isinstance(found, str):
                shown.append((title, found[0]))
        return shown


def preview_sheet(rows: Sequence[tuple[str, Sequence[PreviewedFace]]]) -> ImageRgb:
    """One row of pictures per key and face, each with its caption.

    Args:
        rows: title of the key, and what becomes of the faces under it.
    """
    lines = []
    for title, faces in rows:
        for face in faces:
            text = f"{title}, face {face.number}"
            if face.reason is not None:
                text += f": MOSAICKED ({face.reason.replace('_', ' ')})"
            lines.append((text, [_captioned(picture, caption) for caption, picture in face.pictures]))
    return contact_sheet(lines, cell_px=_CELL_PX)


def _captioned(picture: ImageRgb, caption: str) -> ImageRgb:
    """Fitted into a square cell, with a strip of text at its foot."""
    cell = Image.new("RGB", (_CELL_PX, _CELL_PX), (225, 225, 225))
    inner_px = _CELL_PX - _CAPTION_PX
    fitted = ImageOps.contain(Image.fromarray(picture), (_CELL_PX, inner_px), Image.Resampling.LANCZOS)
    cell.paste(fitted, ((_CELL_PX - fitted.width) // 2, 0))
    draw = ImageDraw.Draw(cell)
    draw.text((4, inner_px + 2), caption, (40, 40, 40), ImageFont.load_default(_CAPTION_PX - 6))
    return np.asarray(cell, np.uint8).copy()


class _Tap:
    """A reenactment that is overheard."""

    def __init__(self, stage: Stage[AnalysedFrame, ReenactedFrame]) -> None:
        self._stage = stage
        self.seen: ReenactedFrame | None = None

    def open(self) -> None:
        self._stage.open()

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        self.seen = self._stage.process(item)
        return self.seen

    def close(self) -> None:
        self._stage.close()


def _area(face: Face) -> float:
    return float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))


def _cut_out(image_rgb: ImageRgb, box_xyxy: F32) -> ImageRgb:
    """The square around a face, as far as the picture goes."""
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    half = _AROUND / 2 * float((box_xyxy[2:] - box_xyxy[:2]).max())
    height, width = image_rgb.shape[:2]
    left, top = np.clip(np.floor(centre - half), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(centre + half), (left + 1, top + 1), (width, height)).astype(int)
    return np.ascontiguousarray(image_rgb[top:bottom, left:right])
