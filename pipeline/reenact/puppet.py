"""The puppet: one generator with the networks that look at what it renders; and the part played for a track.

`Actor` is the seam: `Puppet` renders every frame, `warp_puppet.WarpPuppet` moves one rendering of a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from keyface.configs.errors import EngineError
from keyface.engines.engine import Engine
from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, VirtualFace
from keyface.pipeline.faces.align import FFHQ_BOX
from keyface.pipeline.faces.geometry import points_5_from_mesh
from keyface.pipeline.faces.landmarks import Landmarker
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.frame import ImageRgb, RedactionReason
from keyface.pipeline.reenact.motion import (
    MotionMap,
    OneEuro,
    RestingFace,
    SteadyMesh,
    amplified,
    controls_of,
)


@dataclass(frozen=True, slots=True)
class WarpEngines:
    """The networks of the warping reenactor: `source` looks at a person's picture once, `motion` says for each frame
    what goes where, `decode` makes the picture."""

    source: Engine
    motion: Engine
    decode: Engine


@dataclass(frozen=True, slots=True, eq=False)
class SecondRecogniser:
    """One more recogniser to ask how like the driver a face is, and embeddings (n, 128) of generated people by it."""

    recogniser: Recogniser
    cohort: F32


@dataclass(frozen=True, slots=True)
class ReenactEngines:
    """What the stage opens on its thread: generator (`w_plus` -> `image`), landmarker, recogniser; `warp` for the
    warping reenactor only; `second` wherever somebody is chosen to stand in for a real person."""

    generator: Engine
    landmarker: Landmarker
    recogniser: Recogniser
    warp: WarpEngines | None = None
    second: SecondRecogniser | None = None

    def warm_up(self) -> None:
        """Runs each network that renders once."""
        self.generator.warm_up()
        if self.warp is not None:
            for network in (self.warp.source, self.warp.motion, self.warp.decode):
                network.warm_up()

    def close(self) -> None:
        """Closes all."""
        for part in (self.generator, self.landmarker, self.recogniser):
            part.close()
        if self.second is not None:
            self.second.recogniser.close()
        if self.warp is not None:
            for network in (self.warp.source, self.warp.motion, self.warp.decode):
                network.close()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Person:
    """A virtual person: w (512,), the map's coefficients for what G(w) shows by itself, and its last mesh. Two are
    the same only when they are one object."""

    w: F32
    own_coefficients: F32
    own_mesh: FaceMesh


class Actor(Protocol):
    """Shows virtual people with given controls, and looks at what it shows. On the thread that owns its engines."""

    def meet(self, w: F32) -> Person | None:
        """Renders G(w) as it is and measures it; None when no face is found in it."""
        ...

    def ask(self, blendshapes: F32, rest: F32) -> F32:
        """(52,) to ask of `show` for blendshapes (52,) to appear, around the person's rest (52,)."""
        ...

    def show(
        self, person: Person, wanted: F32, previous: FaceMesh | None
    ) -> tuple[ImageRgb, FaceMesh | None] | RedactionReason:
        """The person with controls `wanted` (54,): uint8 (S, S, 3), and the mesh found in it; or why the person
        cannot be shown like that. Raises EngineError when a network fails."""
        ...

    def source_of(self, person: Person) -> tuple[ImageRgb, FaceMesh] | None:
        """The rendering at rest that all others of a person are made from, and the mesh in it; None where each is
        rendered anew, or none was made yet."""
        ...

    def look(self, crop_rgb: ImageRgb, previous: FaceMesh | None) -> FaceMesh | None:
        """The mesh of a rendered face."""
        ...

    def embed(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> F32:
        """(128,) unit embedding of a rendered face."""
        ...


class Puppet:
    """`Actor`: one generator with its landmarker, which renders a person anew for each frame."""

    def __init__(self, engines: ReenactEngines, motion: MotionMap) -> None:
        self._engines, self._motion = engines, motion

    def meet(self, w: F32) -> Person | None:
        """Renders G(w) as it is and measures it; None when no face is found in it."""
        crop = self.render(np.repeat(w[None], 23, axis=0))
        mesh = self.look(crop, None)
        if mesh is None:
            return None
        return Person(w, self._motion.coefficients(w, controls_of(mesh)), mesh)

    def ask(self, blendshapes: F32, rest: F32) -> F32:
        """See `Actor`: the motion map delivers less of some than it is asked for."""
        return amplified(blendshapes, rest)

    def show(
        self, person: Person, wanted: F32, previous: FaceMesh | None
    ) -> tuple[ImageRgb, FaceMesh | None]:
        """The person with controls `wanted` (54,): uint8 (S, S, 3), and the mesh found in it."""
        crop = self.render(self._motion.w_plus(person.w, wanted, person.own_coefficients))
        return crop, self.look(crop, previous)

    def source_of(self, person: Person) -> None:
        """See `Actor`: there is none."""
        return None

    def render(self, w_plus: F32) -> ImageRgb:
        """uint8 (S, S, 3) of W+ (23, 512). Raises EngineError when the output is not finite."""
        image = self._engines.generator.run({"w_plus": w_plus[None].astype(np.float32)})["image"][0]
        return pixels_of(image, "generator")

    def look(self, crop_rgb: ImageRgb, previous: FaceMesh | None) -> FaceMesh | None:
        """The mesh of a rendered face."""
        if previous is not None:
            return self._engines.landmarker.detect(crop_rgb, previous=previous)
        return self._engines.landmarker.detect(crop_rgb, box_xyxy=FFHQ_BOX * crop_rgb.shape[0])

    def embed(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> F32:
        """(128,) unit embedding of a rendered face."""
        return self._engines.recogniser.embed(crop_rgb, points_5_from_mesh(mesh.points_xyz))


def pixels_of(image: F32, network: str) -> ImageRgb:
    """uint8 (S, S, 3) of a network's image (3, S, S), about [-1, 1]. Raises EngineError when it is not finite."""
    if not np.isfinite(image).all():
        raise EngineError(f"{network}: the image is not finite.", "Try --backend onnxruntime.")
    pixels = np.clip(image * np.float32(127.5) + np.float32(128.0), 0, 255).astype(np.uint8)  # rounded
    return np.asarray(cv2.merge(list(pixels)), np.uint8)


class Rendered(NamedTuple):
    """The last rendering of a role: the crop, its mesh as it is and steadied, and the controls (54,) wanted of it."""

    crop_rgb: ImageRgb
    mesh: FaceMesh
    steady: FaceMesh
    wanted: F32


class Role:
    """One track's part: the person, the driver's embedding and filters, and what the last rendering missed.

    Attributes:
        rendered: what may be shown again; None after a cut.
        since_render: frames shown since `rendered` was made.
        n_rehearsed: rehearsals so far; to_look: what of the last one is still to be looked at.
        is_old: of a key that is being replaced.
    """

    def __init__(self, person: Person, driver: F32, resting: F32) -> None:
        self.person, self.driver = person, driver
        self.filter = OneEuro()
        self.steady_driver = SteadyMesh()
        self.steady_virtual = SteadyMesh()
        self.rest = RestingFace(resting)
        self.correction = np.zeros(54, np.float32)
        self.mesh: FaceMesh | None = person.own_mesh
        self.pasting = np.zeros(2, np.float32)  # what pasting takes from yaw and pitch, asked for in addition
        self.rendered: Rendered | None = None
        self.since_render = 0
        self.since_look = 0
        self.n_rehearsed = 0
        self.to_look: tuple[AnalysedFrame, Face, VirtualFace] | None = None
        self.is_too_alike = False
        self.is_old = False
        self.last_s = 0.0

    def forget_motion(self) -> None:
        """After a cut: the next frame has nothing to do with the last."""
        self.rendered = None
        for part in (self.filter, self.steady_driver, self.steady_virtual):
            part.reset()
