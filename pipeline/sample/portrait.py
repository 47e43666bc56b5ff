"""A generated person who can be told how to look: for sample clips and previews. Nobody real is involved."""

from __future__ import annotations

import numpy as np

from keyface.configs.errors import EngineError
from keyface.pipeline.face import F32
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.people.virtual import N_CODE, IdentityBasis
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG, transfer
from keyface.pipeline.reenact.puppet import Puppet


class GeneratedPortrait:
    """`clip.Portrait` on a puppet.

    Args:
        number: which person; any integer >= 0, the same number is always the same person.

    Raises:
        EngineError: the generator shows no face for this number.
    """

    def __init__(self, puppet: Puppet, basis: IdentityBasis, number: int) -> None:
        # RandomState, not Generator: numpy promises its stream for ever.
        code = np.random.RandomState(number).standard_normal(N_CODE).astype(np.float32)
        code *= np.sqrt(N_CODE) / np.linalg.norm(code)
        person = puppet.meet(basis.person(code))
        if person is None:
            raise EngineError(f"sample person {number} shows no face.", "Try another number.")
        self._puppet, self._basis, self._person = puppet, basis, person

    def render(self, pose_ypr_deg: F32, blendshapes: F32) -> ImageRgb:
        """uint8 (S, S, 3), FFHQ alignment; pose in degrees (roll ignored), blendshapes (52,) in [0, 1], on top
        of a resting face."""
        pose = np.asarray(pose_ypr_deg[:2], np.float32) / POSE_SCALE_DEG
        expression = transfer(blendshapes, np.zeros(52, np.float32), self._basis.resting)
        wanted = np.concatenate([pose, expression]).astype(np.float32)
        return self._puppet.show(self._person, wanted, self._person.own_mesh)[0]
