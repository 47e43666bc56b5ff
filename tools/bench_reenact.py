"""Times both reenactors in turn on the same frames: what a face costs in one frame, and where the time goes."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyface.engines.engine import Array, Engine, ForwardingEngine

if TYPE_CHECKING:
    from keyface.pipeline.assemble import OpenNetwork
    from keyface.pipeline.chain import ChainParts
    from keyface.pipeline.choose import FacesChoice
    from keyface.pipeline.frame import Frame
    from keyface.pipeline.stage_times import DurationLog

# Which part of the time a network's runs belong to; what no network takes is "numpy".
PART_OF = {
    "synthesis_256": "network", "warp_source": "network", "warp_motion": "network", "warp_decode": "network",
    "face_mesh": "landmarks", "face_blendshapes": "landmarks",
}  # fmt: skip
PARTS = ("network", "landmarks", "numpy")


class TimedEngine(ForwardingEngine):
    """An engine whose runs are added up.

    Args:
        spent_s: seconds by part of `PARTS`; added to.
    """

    def __init__(self, engine: Engine, part: str, spent_s: dict[str, float]) -> None:
        super().__init__(engine)
        self._part, self._spent_s = part, spent_s

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        began_s = time.perf_counter()
        try:
            return self._engine.run(inputs)
        finally:
            self._spent_s[self._part] += time.perf_counter() - began_s


@dataclass
class Runner:
    """One reenactor under measurement.

    Attributes:
        spent_s: what its networks took in the frame at hand, by part.
        backends: network -> what runs it.
        first_s: of the first frame, in which the person is chosen and prepared.
    """

    spent_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    backends: dict[str, str] = field(default_factory=dict)
    durations: dict[str, DurationLog] = field(default_factory=dict)
    replaced: int = 0
    redacted: Counter[str] = field(default_factory=Counter)
    first_s: float = 0.0

    def timed(self, open_network: OpenNetwork) -> OpenNetwork:
        """Networks of the store whose runs are added up here."""

        def open_timed(name: str) -> Engine:
            engine = open_network(name)
            if name not in PART_OF:
                return engine
            self.backends[name] = engine.backend
            return TimedEngine(engine, PART_OF[name], self.spent_s)

        return open_timed

    def to_json(self) -> dict[str, Any]:
        """A row of the report."""
        times = {name: log.times().to_json() for name, log in self.durations.items()}
        return {
            **times, "first_s": round(self.first_s, 3), "replaced": self.replaced,
            "redacted": dict(self.redacted), "backends": self.backends,
        }  # fmt: skip


def measure(
    frames: Iterable[Frame],
    chains: Mapping[str, tuple[ChainParts, Runner]],
    *,
    n_skipped: int,
    faces: FacesChoice = "all",
) -> tuple[int, tuple[int, int]]:
    """Sends every frame through all chains on this thread, and times the reenactment of each.

    Who is first changes from frame to frame, so that neither finds the caches as the other left them throughout. A
    frame in which no virtual face is shown costs nothing, and its time does not count.

    Args:
        chains: name -> parts, and where their times go.
        n_skipped: frames at the start that are not counted: the person is chosen, buffers are made.
        faces: whose face is shown.

    Returns:
        Frames counted, and their width and height.
    """
    from contextlib import ExitStack

    from keyface.pipeline.chain import AnalyseStage

    n_seen, size_wh = 0, (0, 0)
    with ExitStack() as stack:
        analyses = {}
        for name, (parts, _) in chains.items():
            assert parts.reenact is not None
            analyses[name] = AnalyseStage(parts.analyse, parts.observer, faces)
            for stage in (analyses[name], parts.reenact):
                stack.callback(stage.close)
                stage.open()
        orders = itertools.cycle((list(chains), list(chains)[::-1]))
        for frame, order in zip(frames, orders, strict=False):
            analysed = {name: analyses[name].process(frame) for name in order}
            for name in order:
                parts, runner = chains[name]
                _time_one(parts, runner, analysed[name], n_seen, is_counted=n_seen >= n_skipped)
            n_seen, size_wh = n_seen + 1, (frame.image_rgb.shape[1], frame.image_rgb.shape[0])
    return max(0, n_seen - n_skipped), size_wh


def _time_one(parts: Any, runner: Runner, analysed: Any, number: int, *, is_counted: bool) -> None:
    from keyface.pipeline.stage_times import DurationLog

    runner.spent_s.update(dict.fromkeys(PARTS, 0.0))
    began_s = time.perf_counter()
    out = parts.reenact.process(analysed)
    total_s = time.perf_counter() - began_s
    if number == 0:
        runner.first_s = total_s
    if not is_counted:
        return
    runner.replaced += len(out.virtual)
    runner.redacted.update(redaction.reason for redaction in out.must_redact)
    if not out.virtual:
        return
    networks_s = runner.spent_s["network"] + runner.spent_s["landmarks"]
    spent = {"total": total_s, **runner.spent_s, "numpy": total_s - networks_s}
    for name, duration_s in spent.items():
        runner.durations.setdefault(name, DurationLog()).add(duration_s)
