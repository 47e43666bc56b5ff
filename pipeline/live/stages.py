"""The stages of a live chain that obey: each asks the controls and the quality before every frame.

What is on its way when something is switched is looked at again where it comes by: a virtual face is not pasted
once mosaics are asked for, and nothing at all is shown in a pause (see `run.LiveOutput`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from keyface.pipeline.chain import MosaicAll
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.faces.scene_cut import SceneCutDetector
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.guard import redactions_of, whole_frame
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.quality import STEPS, QualityGovernor
from keyface.pipeline.paste.redact import outline_boxes
from keyface.pipeline.people.key import Key
from keyface.pipeline.reenact.reenactor import Pace
from keyface.pipeline.stage import Stage

LONGEST_GAP_S = 0.5  # over which faces are followed
_GAP_S, _GAP_STEPS = 0.2, 3.0  # between two frames of one scene: so long, or so many usual steps
_LEAST_CHANGE, _LEAST_CHANGE_RATIO = 4.0, 2.5  # of the picture, grey levels, and to the usual one


@runtime_checkable
class PacedAnalyser(Protocol):
    """An analysis whose search can be thinned out."""

    detect_every: int
    detect_scale: float


@runtime_checkable
class RotatingReenactor(Protocol):
    """A reenactment that can be slowed down and given another key."""

    pace: Pace

    @property
    def is_rotating(self) -> bool: ...

    def rotate(self, key: Key, *, keeps_old: bool) -> None: ...


class SceneGuard:
    """Mosaics a new scene whole until a face is found in it, for `settle_s` at most.

    A scene is new at the start, after a cut and after a gap or a change of the picture's size. A gap is what is long
    against the usual time between two frames: a camera of two frames a second has none. What a detector
    misses there nobody has seen before, so nothing else could hide it. A change that is too small for a cut counts
    when the last face is lost with it: in a cut within one room, faces move and little else.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since_s = -math.inf
        self._step_s = 0.04
        self._is_settled = False
        self._last: tuple[float, tuple[int, ...]] | None = None
        self._changes = SceneCutDetector(
            min_difference=_LEAST_CHANGE, min_ratio=_LEAST_CHANGE_RATIO, max_overlap=math.inf
        )

    def doubt(self) -> None:
        """A frame could not be analysed: it may have been the first of a scene."""
        self._last = None

    def apply(self, analysed: AnalysedFrame, *, is_damaged: bool = False) -> AnalysedFrame:
        """Call on each frame, in order. A damaged one shows nobody: its mosaics lie where faces were before."""
        now_s, shape = analysed.frame.pts_s, analysed.frame.image_rgb.shape
        last_s, last_shape = self._last or (-np.inf, shape)
        is_new = analysed.is_cut or shape != last_shape or self._is_gap(now_s - last_s)
        self._last = now_s, shape
        frame = analysed.frame
        has_changed = self._changes.is_cut(frame.image_rgb, is_suspect=is_damaged) and not is_damaged
        is_seen = not is_damaged and _is_anybody_seen(analysed)
        if is_new or (has_changed and not is_seen):
            self._since_s, self._is_settled = now_s, False
        self._is_settled = self._is_settled or is_seen
        if self._is_settled or now_s - self._since_s >= self._settle_s:
            return analysed
        everything = whole_frame(analysed.frame, "late_detection")
        return replace(analysed, must_redact=(*analysed.must_redact, everything))

    def _is_gap(self, step_s: float) -> bool:
        is_gap = not 0 <= step_s <= max(_GAP_S, _GAP_STEPS * self._step_s)
        if math.isfinite(step_s):
            self._step_s += 0.2 * (min(max(step_s, 0.0), 1.0) - self._step_s)
        return is_gap


def _is_anybody_seen(analysed: AnalysedFrame) -> bool:
    """Whether a face was found, be it one that is only to be mosaicked."""
    is_found = any(not face.is_predicted for face in analysed.faces)
    return is_found or any(redaction.track_id is not None for redaction in analysed.must_redact)


class LiveAnalysis:
    """`Stage[Frame, AnalysedFrame]`: the analysis at the pace of the quality, and the guard of new scenes.

    Args:
        stage: the chain's first stage.
        analyser: what inside it is paced, if it can be.
        settle_s: see `SceneGuard`.
    """

    def __init__(
        self, stage: Stage[Frame, AnalysedFrame], analyser: object, quality: QualityGovernor, settle_s: float
    ) -> None:
        self._stage, self._quality, self._settle_s = stage, quality, settle_s
        self._analyser = analyser if isinstance(analyser, PacedAnalyser) else None
        self._least_every = 1 if self._analyser is None else self._analyser.detect_every
        self._guard = SceneGuard(settle_s)

    def open(self) -> None:
        """Opens the analysis."""
        self._guard = SceneGuard(self._settle_s)
        self._stage.open()

    def process(self, item: Frame) -> AnalysedFrame:
        """See the class."""
        step = STEPS[self._quality.step]
        if self._analyser is not None:
            self._analyser.detect_every = max(self._least_every, step.detect_every)
            self._analyser.detect_scale = step.detect_scale
        try:
            analysed = self._stage.process(item)
        except Exception:
            self._guard.doubt()
            raise
        return self._guard.apply(analysed, is_damaged=item.is_suspect)

    def close(self) -> None:
        """Closes the analysis."""
        self._stage.close()


class LiveReenactment:
    """`Stage[AnalysedFrame, ReenactedFrame]`: virtual faces, or mosaics where these are asked for; another key
    from the frame on in which it is asked for."""

    def __init__(
        self, stage: Stage[AnalysedFrame, ReenactedFrame], controls: LiveControls, quality: QualityGovernor
    ) -> None:
        self._stage, self._controls, self._quality = stage, controls, quality
        self._rotating = stage if isinstance(stage, RotatingReenactor) else None
        self._is_unconfirmed = False

    def open(self) -> None:
        """Opens the reenactment."""
        self._stage.open()

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        """See the class."""
        is_live = self._controls.mode == "live"
        self._take_key(keeps_old=is_live)
        if not is_live:
            return MosaicAll().process(item)
        if self._rotating is not None:
            self._rotating.pace = Pace(render_every=STEPS[self._quality.step].render_every, is_stepwise=True)
        out = self._stage.process(item)
        if self._is_unconfirmed and (self._rotating is None or not self._rotating.is_rotating):
            self._is_unconfirmed = False
            self._controls.confirm_key()
        return out

    def close(self) -> None:
        """Closes the reenactment."""
        self._stage.close()

    def _take_key(self, *, keeps_old: bool) -> None:
        key = self._controls.take_key()
        if key is None:
            return
        with key:
            if self._rotating is not None:
                self._rotating.rotate(key, keeps_old=keeps_old)
        self._is_unconfirmed = True


class LivePaste:
    """`Stage[ReenactedFrame, SafeFrame]`: the paste, which leaves out what is no longer wanted, and draws boxes
    on the finished picture."""

    def __init__(self, stage: Stage[ReenactedFrame, SafeFrame], controls: LiveControls) -> None:
        self._stage, self._controls = stage, controls

    def open(self) -> None:
        """Opens the paste."""
        self._stage.open()

    def process(self, item: ReenactedFrame) -> SafeFrame:
        """See the class."""
        if item.virtual and self._controls.mode != "live":
            item = _all_mosaicked(item)
        safe = self._stage.process(item)
        if self._controls.shows_boxes and isinstance(safe, SafeFrame):
            safe = outline_boxes(safe, [face.box_xyxy for face in item.analysed.faces])
        return safe

    def close(self) -> None:
        """Closes the paste."""
        self._stage.close()


def _all_mosaicked(item: ReenactedFrame) -> ReenactedFrame:
    done = {redaction.track_id for redaction in item.must_redact}
    left: list[Face] = [face for face in item.analysed.faces if face.track_id not in done]
    more: Any = redactions_of(left, "requested", enlarge=1.0)
    return ReenactedFrame(item.analysed, (), (*item.must_redact, *more))
