"""Joins the stages to a chain: analyse, look ahead, reenact, paste, each with its check and its rescue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from keyface.configs.schema import ReenactorName
from keyface.pipeline import guard
from keyface.pipeline.choose import FaceChooser, FacesChoice
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.lookahead import Lookahead
from keyface.pipeline.stage import Stage, StagePlan


class Observer(Protocol):
    """Sees every face before the look-ahead, so that it knows more of a person than the frame at hand."""

    def open(self) -> None:
        """Called on the analysis thread, as are the others."""
        ...

    def observe(self, frame: Frame, face: Face) -> None: ...

    def close(self) -> None: ...


def _nothing() -> None:
    """What there is to release by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainParts:
    """What a chain is made of.

    Attributes:
        analyse: finds the faces.
        observer: learns who they are; None when nobody needs to know.
        reenact: renders virtual faces; None: all faces are mosaicked.
        paste: puts them into the frame.
        release: called when the parts are no longer used; forgets secrets.
        reenactor: what `reenact` is, for summaries; None without one.
    """

    analyse: Stage[Frame, AnalysedFrame]
    observer: Observer | None
    reenact: Stage[AnalysedFrame, ReenactedFrame] | None
    paste: Stage[ReenactedFrame, SafeFrame]
    release: Callable[[], None] = _nothing
    reenactor: ReenactorName | None = None


def make_plans(
    parts: ChainParts, *, faces: FacesChoice = "all", lookahead_s: float | None = 0.5, capacity: int = 2
) -> list[StagePlan]:
    """The chain from Frame to SafeFrame, without source and sink.

    Args:
        faces: which faces get a virtual face.
        lookahead_s: how far a late detection reaches back; None: no look-ahead (live).
        capacity: frames waiting before each stage.
    """
    reenact = MosaicAll() if parts.reenact is None else parts.reenact
    plans = [
        StagePlan(
            name="analyse",
            stage=AnalyseStage(parts.analyse, parts.observer, faces),
            check=guard.check_analysis,
            rescue=guard.rescue_analysis,
            capacity=capacity,
        )
    ]
    if lookahead_s is not None:
        stage = Lookahead(window_s=lookahead_s)
        plans.append(StagePlan(name="lookahead", stage=stage, is_buffered=True, capacity=capacity))
    plans.append(
        StagePlan(
            name="reenact",
            stage=reenact,
            check=guard.check_reenactment,
            rescue=guard.rescue_reenactment,
            capacity=capacity,
        )
    )
    plans.append(
        StagePlan(
            name="paste",
            stage=parts.paste,
            check=guard.check_safe,
            rescue=guard.rescue_paste,
            capacity=capacity,
        )
    )
    return plans


class AnalyseStage:
    """`Stage[Frame, AnalysedFrame]`: the analysis, and what must be decided where it happens: whose face
    is learnt, which faces were asked for, and what of a damaged frame is shown."""

    def __init__(
        self, analyse: Stage[Frame, AnalysedFrame], observer: Observer | None, faces: FacesChoice
    ) -> None:
        self._analyse = analyse
        self._observer = observer
        self._faces = faces
        self._forget()

    def open(self) -> None:
        """Opens the analysis and the observer."""
        self._forget()
        self._analyse.open()
        if self._observer is not None:
            self._observer.open()

    def process(self, item: Frame) -> AnalysedFrame:
        """See the class."""
        analysed = self._analyse.process(item)
        guard.check_analysis(item, analysed)
        if self._observer is not None and not item.is_suspect:
            for face in analysed.faces:
                self._observer.observe(item, face)
        return self._chooser.apply(self._damage.apply(analysed))

    def close(self) -> None:
        """Closes both."""
        try:
            self._analyse.close()
        finally:
            if self._observer is not None:
                self._observer.close()

    def _forget(self) -> None:
        self._damage = guard.DamageGuard()
        self._chooser = FaceChooser(self._faces)


class MosaicAll:
    """`Stage[AnalysedFrame, ReenactedFrame]` that replaces nobody: all faces are mosaicked."""

    def open(self) -> None:
        """Nothing to get."""

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        """Asks for a mosaic over each face."""
        return ReenactedFrame(item, (), guard.redactions_of(item.faces, "requested", enlarge=1.0))

    def close(self) -> None:
        """Nothing to release."""
