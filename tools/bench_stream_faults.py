"""The fault count of `keyface bench stream --faults N`: in pieces, so that a run can be stopped and resumed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import UsageError

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.chain import ChainParts
    from keyface.pipeline.faults.judge import LeakJudge
    from keyface.pipeline.faults.stages import FaultBoard

_DETECTOR, _RECOGNISERS = "scrfd_500m", ("w600k_mbf", "edgeface_s")
_PIECE = 1000  # frames
_REAL_EVERY = 25  # one piece in so many is rendered
_MOST_EXAMPLES = 50


def count_leaks(
    clips: Sequence[Path], n_frames: int, *, seed: int, state: Path | None, backend: str, is_generated: bool
) -> dict[str, Any]:
    """Runs the pieces that are not in the state file yet, and sums up all.

    Args:
        is_generated: nobody real is in the clips, so recognisers are not asked; see `LeakJudge`.
        state: one line of JSON for each piece that is done; None: nothing is kept.

    Returns:
        The `faults` of the report: what was counted with real rendering and with a picture in its place.
    """
    from keyface.pipeline.faults.run import merge_counts

    done = _read_state(state, seed)
    totals: dict[str, dict[str, Any]] = {}
    examples: list[dict[str, Any]] = []
    n_pieces = max(1, -(-n_frames // _PIECE))
    with ExitStack() as stack:
        bench: _FaultBench | None = None
        for number in range(n_pieces):
            row = done.get(number)
            if row is None:
                bench = bench or _FaultBench(clips, stack, backend, () if is_generated else _RECOGNISERS)
                row = bench.run_piece(number, seed, min(_PIECE, n_frames - number * _PIECE))
                _note(state, row)
            kind, count = row["kind"], dict(row["count"])
            examples += [{**example, "piece": f"{kind} {number}"} for example in count.pop("examples")]
            totals[kind] = merge_counts(totals.get(kind, {}), count)
    return {
        "real": totals.get("real"),
        "canned": totals.get("canned"),
        "seed": seed,
        "examples": examples[:_MOST_EXAMPLES],
    }


def _read_state(state: Path | None, seed: int) -> dict[int, dict[str, Any]]:
    if state is None or not state.exists():
        return {}
    rows = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(row.get("seed") != seed for row in rows):
        raise UsageError(f"--state: {state.name} belongs to another seed.", "Name another file.")
    return {int(row["piece"]): row for row in rows}


def _note(state: Path | None, row: dict[str, Any]) -> None:
    if state is not None:
        with state.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class _FaultBench:
    """What all pieces share: the clips, the judge's networks, the picture that stands in."""

    def __init__(
        self, clips: Sequence[Path], stack: ExitStack, backend: str, recognisers: Sequence[str]
    ) -> None:
        from keyface.engines.open import open_engine
        from keyface.engines.store import ModelStore
        from keyface.pipeline.faults.run import load_clip
        from keyface.pipeline.faults.stand_in import choose_stand_in
        from keyface.pipeline.measure.eyes import Scrfd
        from keyface.tools.evaluate_command import pull_judges

        self._store, self._backend = ModelStore(), backend
        pull_judges(self._store, [_DETECTOR, *recognisers])
        engines = {
            name: stack.enter_context(
                open_engine(self._store.path(name), name=name, threads=1, any_thread=True)
            )
            for name in (_DETECTOR, *recognisers)
        }
        self._engines, self._recognisers = engines, recognisers
        self._detector = Scrfd(engines[_DETECTOR], sizes=(320,))
        self._clips = [load_clip(path, self._detector) for path in clips]
        if not any(any(clip.faces) for clip in self._clips):
            raise UsageError("--clip: the independent detector finds no face of 40 px in any clip.")
        self._stand_in = choose_stand_in(self._store, self._clips, _options(backend))

    def run_piece(self, number: int, seed: int, n_frames: int) -> dict[str, Any]:
        """One piece; see `count_leaks`."""
        from keyface.pipeline.faults.run import run_faults

        kind = "real" if number % _REAL_EVERY == 0 else "canned"
        make: Callable[[FaultBoard], ChainParts] = self._real if kind == "real" else self._canned
        judge = self._judge()
        began_s = time.monotonic()
        report, injected = run_faults(
            make, self._clips, judge, seed=1_000_003 * seed + number, n_frames=n_frames
        )
        count = {
            **judge.count.to_json(), "injected": injected, "faults": report.faults, "redacted": report.redacted,
            "replaced": report.replaced, "dropped": report.dropped,
            "wall_s": round(time.monotonic() - began_s, 1),
        }  # fmt: skip
        print(
            f"bench: piece {number} ({kind}): {count['frames']} frames, {count['raw_frames']} with a raw face, "
            f"{count['wall_s']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        return {"piece": number, "seed": seed, "kind": kind, "count": count}

    def _judge(self) -> LeakJudge:
        from keyface.configs.evaluation import load_evaluation
        from keyface.pipeline.faults.judge import LeakJudge
        from keyface.pipeline.measure.eyes import Recogniser

        limits = load_evaluation().recognisers
        eyes = [
            Recogniser.of(self._store.manifest[name], self._engines[name], limits[name].far_0_1_percent)
            for name in self._recognisers
        ]
        return LeakJudge(self._detector, eyes)

    def _canned(self, board: FaultBoard) -> ChainParts:
        from keyface.pipeline.chain import ChainParts
        from keyface.pipeline.faults.stages import CannedReenactor
        from keyface.pipeline.paste.paster import Paster

        analyse = faulty_analysis(self._store, board, self._backend)
        return ChainParts(
            analyse=analyse, observer=None, reenact=CannedReenactor(*self._stand_in), paste=Paster()
        )

    def _real(self, board: FaultBoard) -> ChainParts:
        from dataclasses import replace

        from keyface.pipeline.assemble import make_parts
        from keyface.pipeline.live.run import LIVE_IDENTITY
        from keyface.pipeline.people.key import Key

        with Key.generate() as key:
            parts = make_parts(self._store, key, _options(self._backend), identity=LIVE_IDENTITY)
        return replace(parts, analyse=faulty_analysis(self._store, board, self._backend))


def faulty_analysis(store: ModelStore, board: FaultBoard, backend: str) -> Any:
    """The real analysis, with faults."""
    from keyface.pipeline.assemble import network_opener
    from keyface.pipeline.faces.detect import YuNetDetector
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker
    from keyface.pipeline.faces.recognise import Recogniser
    from keyface.pipeline.faults.stages import FaultyAnalyser
    from keyface.pipeline.live.run import live_analysis

    network = network_opener(store, _options(backend))
    return FaultyAnalyser(
        board,
        live_analysis(),
        open_detector=lambda: YuNetDetector(network("yunet_dynamic")),
        open_landmarker=lambda: LiteRtLandmarker(network("face_mesh"), network("face_blendshapes")),
        open_recogniser=lambda: Recogniser(network("sface_fast")),
    )


def _options(backend: str) -> Any:
    from keyface.pipeline.process_options import ProcessOptions

    return ProcessOptions(threads=1, backend=backend)  # type: ignore[arg-type]  # checked by the parser
