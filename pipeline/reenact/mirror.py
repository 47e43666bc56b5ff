"""A look at the finished picture: what a pasted face shows, against the driver.

The outline of a pasted face is the driver's and its features are the virtual person's, so the head that one sees
is a little of both: its pitch may differ by 2 or 3 degrees from that of the crop, by about the same in every
frame. And since outline, skin tone and hair are the driver's, the whole may be more like the driver than the
virtual face is by itself. The reenactor looks when it chooses a virtual person, and now and then.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.paste.paster import Paster
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG


def look_at_pasted(
    landmarker: Landmarker, item: AnalysedFrame, face: Face, virtual: VirtualFace
) -> tuple[ImageRgb, FaceMesh] | None:
    """The frame with `virtual` pasted over `face` alone, and the mesh then seen there; None when the face cannot be
    pasted or is not found afterwards.

    The paster has no past, so the answer depends on this frame only.
    """
    image_rgb = None if face.mesh is None else pasted_alone(item, face, virtual)
    if image_rgb is None:
        return None
    seen = landmarker.detect(image_rgb, previous=face.mesh)
    return None if seen is None else (image_rgb, seen)


def pasted_alone(item: AnalysedFrame, face: Face, virtual: VirtualFace) -> ImageRgb | None:
    """The frame with `virtual` pasted over `face` and over no other, by a paster without a past; None when the face
    cannot be pasted."""
    paster = Paster()
    paster.open()
    alone = replace(item, faces=(face,), must_redact=())
    safe = paster.process(ReenactedFrame(alone, (virtual,)))
    paster.close()
    return safe.image_rgb if safe.replaced == (face.track_id,) else None


def pose_missed(driver: FaceMesh, seen: FaceMesh) -> F32:
    """(2,) yaw and pitch of the driver minus those seen once the face is pasted, in units of 30 degrees."""
    return np.asarray((driver.pose_ypr_deg - seen.pose_ypr_deg)[:2] / POSE_SCALE_DEG, np.float32)
