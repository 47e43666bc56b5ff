"""The picture that stands in for renderings when faults are counted; see `stages.CannedReenactor`.

The chain passes over virtual people who are too like the driver. A picture that lies on every face must be unlike
everybody, too, or a recogniser finds somebody under it whom nobody has shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keyface.configs.errors import EngineError
from keyface.engines.store import ModelStore
from keyface.pipeline.assemble import network_opener, open_portrait
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.faces.align import FFHQ_BOX
from keyface.pipeline.faces.geometry import points_5_from_mesh
from keyface.pipeline.faces.landmarks import LiteRtLandmarker
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.faults.run import Clip
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.process_options import ProcessOptions

_NUMBERS = (3, 5, 8, 13, 21, 34)


def choose_stand_in(
    store: ModelStore, clips: Sequence[Clip], options: ProcessOptions
) -> tuple[ImageRgb, FaceMesh]:
    """Of a few generated people, from the front, the one least like anybody in the clips: uint8 (S, S, 3) and the
    mesh of the face.

    Raises:
        EngineError: none of the pictures shows a face.
    """
    network = network_opener(store, options)
    landmarker = LiteRtLandmarker(network("face_mesh"), network("face_blendshapes"))
    recogniser = Recogniser(network("sface_fast"))
    try:
        filmed = _filmed(clips, recogniser)
        chosen, least = None, np.inf
        for number in _NUMBERS:
            with open_portrait(store, number, options) as portrait:
                picture = portrait.render(np.zeros(3, np.float32), np.zeros(52, np.float32))
            mesh = landmarker.detect(picture, box_xyxy=FFHQ_BOX * picture.shape[0])
            if mesh is None:
                continue
            own = recogniser.embed(picture, points_5_from_mesh(mesh.points_xyz))
            likeness = float((filmed @ own).max(initial=-1.0))
            if likeness < least:
                chosen, least = (picture, mesh), likeness
    finally:
        landmarker.close()
        recogniser.close()
    if chosen is None:
        raise EngineError("the pictures that stand in for renderings show no face.")
    return chosen


def _filmed(clips: Sequence[Clip], recogniser: Recogniser) -> F32:
    """(N, 128) embeddings of the people in the first picture of each clip that shows any."""
    found: list[F32] = []
    for clip in clips:
        for picture, faces in zip(clip.pictures, clip.faces, strict=True):
            points = [face.points_5 for face in faces if face.points_5 is not None]
            if points:
                found += [recogniser.embed(picture, five) for five in points]
                break
    return np.reshape(found, (-1, 128)).astype(np.float32)
