"""A look at the finished picture: the pose that a pasted face shows, against the driver's.

The outline of a pasted face is the driver's and its features are the virtual person's, so the head that one sees
is a little of both: its pitch may differ by 2 or 3 degrees from that of the crop, by about the same in every
frame. The reenactor looks now and then, and asks the generator for as much more or less.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from keyface.pipeline.face import F32, AnalysedFrame, Face, ReenactedFrame, VirtualFace
from keyface.pipeline.landmarks import Landmarker
from keyface.pipeline.motion import POSE_SCALE_DEG
from keyface.pipeline.paste import Paster


def pose_missed(landmarker: Landmarker, item: AnalysedFrame, face: Face, virtual: VirtualFace) -> F32 | None:
    """(2,) yaw and pitch of the driver minus those seen once `virtual` is pasted, in units of 30 degrees; None
    when the face cannot be pasted or is not found afterwards.

    The face is pasted alone and by a paster without a past, so the answer depends on this frame only.
    """
    if face.mesh is None:
        return None
    paster = Paster()
    paster.open()
    alone = replace(item, faces=(face,), must_redact=())
    safe = paster.process(ReenactedFrame(alone, (virtual,)))
    paster.close()
    if safe.replaced != (face.track_id,):
        return None
    seen = landmarker.detect(safe.image_rgb, previous=face.mesh)
    if seen is None:
        return None
    return np.asarray((face.mesh.pose_ypr_deg - seen.pose_ypr_deg)[:2] / POSE_SCALE_DEG, np.float32)
