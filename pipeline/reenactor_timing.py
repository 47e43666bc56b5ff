"""How long reenactors take for a frame: all of them in turn on the same frames, so that what else the machine does
weighs on each alike."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from keyface.pipeline.chain import AnalyseStage, ChainParts
from keyface.pipeline.frame import Frame

SETTLING = 15  # frames that are not counted: the search for a stand-in, its rehearsals, engines that warm up


def time_reenactors(
    frames: Iterable[Frame], chains: Mapping[str, ChainParts], *, n_frames: int = 50
) -> dict[str, list[float]]:
    """Milliseconds of the stage `reenact`, by reenactor, on the calling thread.

    Only the largest face is reenacted, and only frames in which each of them shows a virtual face count.

    Args:
        frames: of one clip; as many are taken as are needed.
        chains: parts of a chain for each reenactor; opened and closed here, not released.
        n_frames: counted at most.

    Raises:
        KeyfaceError: a stage fails.
    """
    found: dict[str, list[float]] = {name: [] for name in chains}
    names = [name for name, parts in chains.items() if parts.reenact is not None]
    with ExitStack() as stack:
        analyses = {}
        for name in names:
            parts = chains[name]
            assert parts.reenact is not None
            analyses[name] = AnalyseStage(parts.analyse, parts.observer, "largest")
            for stage in (analyses[name], parts.reenact):
                stack.callback(stage.close)
                stage.open()
        for index, frame in enumerate(frames):
            took_ms = {}
            for name in names if index % 2 else names[::-1]:
                took = _reenact_ms(chains[name], analyses[name], frame)
                if took is not None:
                    took_ms[name] = took
            if index >= SETTLING and len(took_ms) == len(names):
                for name, took in took_ms.items():
                    found[name].append(took)
            if names and len(found[names[0]]) >= n_frames:
                break
    return found


def _reenact_ms(parts: ChainParts, analysis: AnalyseStage, frame: Frame) -> float | None:
    """None when no virtual face is shown."""
    assert parts.reenact is not None
    analysed = analysis.process(frame)
    began_s = time.perf_counter()
    shown = parts.reenact.process(analysed)
    took_ms = (time.perf_counter() - began_s) * 1e3
    return took_ms if shown.virtual else None
