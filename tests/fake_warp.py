"""The stand-ins of `fake_puppet` with the three networks of the warping reenactor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fake_puppet import SIDE, World

from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.reenact.keypoints import N_BLENDSHAPES, N_HIDDEN, N_MODES, N_POINTS, KeypointModel
from keyface.pipeline.reenact.puppet import ReenactEngines, WarpEngines

SHAPES = {
    "linear.weight": (N_MODES, N_BLENDSHAPES), "fc1.weight": (N_HIDDEN, N_BLENDSHAPES), "fc1.bias": (N_HIDDEN,),
    "fc2.weight": (N_MODES, N_HIDDEN), "modes": (N_MODES, 3 * N_POINTS),
}  # fmt: skip
_IMAGE, _POINTS, _CONTROLS = (1, 3, SIDE, SIDE), (1, N_POINTS, 3), (1, 108)
_LOOK = {"features": (1, 2, 16, 16), "details": (1, 1, 32, 32)}
_MOTION = {"grid_64": (1, 16, 16, 2), "grid_128": (1, 32, 32, 2), "grid_256": (1, SIDE, SIDE, 2),
           "raster_64": (1, 2, 16, 16), "raster_128": (1, 2, 32, 32), "grid_face": (1, 24, 24, 2),
           "grid_teeth": (1, 16, 24, 2),
           "opening": (1, 1, 16, 24)}  # fmt: skip


def specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


def keypoints() -> KeypointModel:
    """A map by which expressions move no landmark."""
    return KeypointModel({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})


class Unchecked:
    """An engine without the checks that all back-ends share."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.name, self.warm_up, self.close = engine.name, engine.warm_up, engine.close

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._engine._infer(inputs)


@dataclass
class WarpWorld(World):
    """A world whose people are warped: what a decoder is asked for is shown, as by the generator.

    Attributes:
        level: of the decoder's picture.
        rendered_by: "generator" or "decode", of each rendering; as long as `asked`.
        seen: the inputs of each run of source, motion and decode, by name.
        changes: network -> output -> what it gives in its place; None: it is left out.
        is_unchecked: engines that are opened are `Unchecked`.
    """

    level: float = 0.25
    rendered_by: list[str] = field(default_factory=list)
    seen: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"warp_source": [], "warp_motion": [], "warp_decode": []}
    )
    changes: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"warp_source": {}, "warp_motion": {}, "warp_decode": {}}
    )

    is_unchecked: bool = False

    def __post_init__(self) -> None:
        self.keypoints = keypoints()

    def generator(self) -> FakeEngine:
        engine = super().generator()
        render = engine._function
        assert render is not None

        def noted(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            self.rendered_by.append("generator")
            return render(inputs)

        engine._function = noted
        return engine

    def open_engines(self) -> ReenactEngines:
        made = super().open_engines()
        warp = WarpEngines(*(self._network(name) for name in ("warp_source", "warp_motion", "warp_decode")))
        return replace(made, warp=warp)

    def forget(self) -> None:
        super().forget()
        self.forget_runs()

    def forget_runs(self) -> None:
        """What `runs` counts."""
        self.rendered_by.clear()
        for runs in self.seen.values():
            runs.clear()

    def runs(self) -> dict[str, int]:
        """How often each network ran since the last `forget` or `forget_runs`."""
        return {"generator": self.rendered_by.count("generator")} | {
            n: len(runs) for n, runs in self.seen.items()
        }

    def _network(self, name: str) -> Any:
        inputs: dict[str, tuple[int, ...]]
        if name == "warp_source":
            inputs, outputs = {"image": _IMAGE, "points": _POINTS}, dict(_LOOK)
        elif name == "warp_motion":
            points = ("source_points", "second_points", "driving_points")
            inputs = {**dict.fromkeys(points, _POINTS), "controls": _CONTROLS}
            outputs = dict(_MOTION)
        else:
            inputs = {"image": _IMAGE, "second": _IMAGE, **_LOOK, **_MOTION, "controls": _CONTROLS}
            outputs = {"picture": _IMAGE}

        def run(given: Mapping[str, Any]) -> Mapping[str, Any]:
            self.seen[name].append({key: np.array(array) for key, array in given.items()})
            found = {key: np.zeros(shape, np.float32) for key, shape in outputs.items()}
            if name == "warp_motion":
                found["opening"][:] = 1
            if name == "warp_source":  # who it is
                found["features"][:] = self.candidates[-1]
            if name == "warp_decode":
                self.rendered_by.append("decode")
                self.asked.append(given["controls"][0, :54].copy())
                self.candidates.append(round(float(given["features"][0, 0, 0, 0])))
                found["picture"][:] = self.level
            given_instead = {**found, **self.changes[name]}
            return {key: array for key, array in given_instead.items() if array is not None}

        engine = FakeEngine(specs(inputs), specs(outputs), run, name=name)
        engine.warm_up = lambda: None  # type: ignore[method-assign]  # zeros would be noted as a rendering
        return Unchecked(engine) if self.is_unchecked else engine
