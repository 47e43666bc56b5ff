"""Reenactment in the generator's own space: the virtual person shows the driver's pose and expression.

Per face and frame: driver's controls -> smoothed (One-Euro) -> expression relative to the driver's rest, on the
virtual person's rest -> corrected by what the last renderings missed -> motion map -> W+ -> generator ->
landmarks of the rendered face -> placement. Only pose and relative expression of the driver travel (face motion
of FaceVid2Vid, eq. 1-4, with explicit controls in place of learned keypoints), so the driver's face shape does not.

What cannot be shown well is not shown: a face beyond the generator's pose range, a rendering in which no
face is found or that does not fit the driver's, is left to be mosaicked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keyface.configs.errors import BookError, EngineError
from keyface.engines.engine import Engine
from keyface.pipeline.book import Pin
from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import ImageRgb, Redaction, RedactionReason
from keyface.pipeline.geometry import points_5_from_mesh
from keyface.pipeline.identity import Identities
from keyface.pipeline.landmarks import Landmarker
from keyface.pipeline.mirror import look_at_pasted, pose_missed
from keyface.pipeline.motion import (
    POSE_SCALE_DEG,
    MotionMap,
    OneEuro,
    RestingFace,
    SteadyMesh,
    amplified,
    controls_of,
    transfer,
)
from keyface.pipeline.place import face_width, fit_frame_from_crop, misfit
from keyface.pipeline.recognise import Recogniser
from keyface.pipeline.virtual import IdentityBasis, VirtualIdentities

# where the face lies in an FFHQ-aligned crop, in shares of its side
_FFHQ_BOX = np.array([0.22, 0.24, 0.78, 0.86], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReenactOptions:
    """Limits and dynamics.

    Attributes:
        max_yaw_deg, max_pitch_deg: of what is asked of the generator; a driver beyond it is followed up to
            here, and no further than `slack_deg` beyond: then the face is mosaicked.
        correction: share of the last rendering's pose error that is added to the next request.
        max_correction_deg: most that it adds up to.
        max_misfit: weighted mean distance of rendered and driver's landmarks, in face widths.
        look_every: frames between looks at the pasted face; see pipeline.mirror.
        rehearsals: renderings by which a new track's pose correction settles before its first frame is shown.
        wanted_likeness: of a candidate who is taken at once; see `_likeness`, deviations. Most pasted faces have
            0.5 to 2.5; under 1.2 the recognisers of the evaluation see two people with room to spare.
        max_likeness: of the most unlike candidate, taken when none is as unlike as wanted.
        max_later_likeness: of the pasted face at a later look, from which it is mosaicked until it is less like the
            driver again; above `max_likeness`, since pose and expression move the score by about one.
        min_face_px: narrower faces (root of the area of the landmarks' box) are mosaicked: most of such a face is
            hair and outline, which are the driver's. A detector's box is then about 45 px high.
        max_candidates: tried at most.
    """

    max_yaw_deg: float = 40.0
    max_pitch_deg: float = 30.0
    slack_deg: float = 16.0
    correction: float = 0.12
    max_correction_deg: float = 10.0
    max_misfit: float = 0.09
    look_every: int = 12
    rehearsals: int = 6
    wanted_likeness: float = 1.2
    max_likeness: float = 3.6
    max_later_likeness: float = 4.2
    min_face_px: float = 38.0
    max_candidates: int = 12


@dataclass(frozen=True, slots=True)
class ReenactEngines:
    """What the stage opens on its thread: generator (`w_plus` -> `image`), landmarker, recogniser."""

    generator: Engine
    landmarker: Landmarker
    recogniser: Recogniser


@dataclass(frozen=True, slots=True)
class Person:
    """A virtual person: w (512,), the map's coefficients for what G(w) shows by itself, and its last mesh."""

    w: F32
    own_coefficients: F32
    own_mesh: FaceMesh


class Puppet:
    """One generator with its landmarker: renders a person with given controls, and measures the result."""

    def __init__(self, engines: ReenactEngines, motion: MotionMap) -> None:
        self._engines, self._motion = engines, motion

    def meet(self, w: F32) -> Person | None:
        """Renders G(w) as it is and measures it; None when no face is found in it."""
        crop = self.render(np.repeat(w[None], 23, axis=0))
        mesh = self.look(crop, None)
        if mesh is None:
            return None
        return Person(w, self._motion.coefficients(w, controls_of(mesh)), mesh)

    def show(
        self, person: Person, wanted: F32, previous: FaceMesh | None
    ) -> tuple[ImageRgb, FaceMesh | None]:
        """The person with controls `wanted` (54,): uint8 (S, S, 3), and the mesh found in it."""
        crop = self.render(self._motion.w_plus(person.w, wanted, person.own_coefficients))
        return crop, self.look(crop, previous)

    def render(self, w_plus: F32) -> ImageRgb:
        """uint8 (S, S, 3) of W+ (23, 512). Raises EngineError when the output is not finite."""
        image = self._engines.generator.run({"w_plus": w_plus[None].astype(np.float32)})["image"][0]
        if not np.isfinite(image).all():
            raise EngineError("generator: the image is not finite.", "Try --backend onnxruntime.")
        pixels = np.clip(image * 127.5 + 127.5, 0, 255).transpose(1, 2, 0)
        return np.ascontiguousarray(np.rint(pixels).astype(np.uint8))

    def look(self, crop_rgb: ImageRgb, previous: FaceMesh | None) -> FaceMesh | None:
        """The mesh of a rendered face."""
        if previous is not None:
            return self._engines.landmarker.detect(crop_rgb, previous=previous)
        return self._engines.landmarker.detect(crop_rgb, box_xyxy=_FFHQ_BOX * crop_rgb.shape[0])

    def embed(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> F32:
        """(128,) unit embedding of a rendered face."""
        return self._engines.recogniser.embed(crop_rgb, points_5_from_mesh(mesh.points_xyz))


class _Role:
    """One track's part: the person, the driver's embedding and filters, and what the last rendering missed."""

    def __init__(self, person: Person, driver: F32, resting: F32) -> None:
        self.person, self.driver = person, driver
        self.filter = OneEuro()
        self.steady_driver = SteadyMesh()
        self.steady_virtual = SteadyMesh()
        self.rest = RestingFace(resting)
        self.correction = np.zeros(54, np.float32)
        self.mesh: FaceMesh | None = person.own_mesh
        self.pasting = np.zeros(2, np.float32)  # what pasting takes from yaw and pitch, asked for in addition
        self.n_shown = 0
        self.is_too_alike = False

    def forget_motion(self) -> None:
        """After a cut: the next frame has nothing to do with the last."""
        for part in (self.filter, self.steady_driver, self.steady_virtual):
            part.reset()


class Reenactor:
    """`Stage[AnalysedFrame, ReenactedFrame]`.

    Args:
        open_engines: opens what the stage needs, on its thread.
        identities: knows the person behind a track.
        virtual: turns a person's embedding into a virtual person under the key.
    """

    def __init__(
        self,
        open_engines: Callable[[], ReenactEngines],
        motion: MotionMap,
        basis: IdentityBasis,
        identities: Identities,
        virtual: VirtualIdentities,
        options: ReenactOptions | None = None,
    ) -> None:
        self._open_engines, self._motion, self._basis = open_engines, motion, basis
        self._identities, self._virtual = identities, virtual
        self._o = options or ReenactOptions()
        self._engines: ReenactEngines | None = None
        self._puppet: Puppet | None = None
        self._cast: dict[int, Person | RedactionReason] = {}  # a reason: nobody stands in
        self._roles: dict[int, _Role] = {}

    def open(self) -> None:
        """Opens the engines and runs each once."""
        self._engines = self._open_engines()
        self._engines.generator.warm_up()
        self._puppet = Puppet(self._engines, self._motion)
        self._roles.clear()

    def close(self) -> None:
        """Closes the engines. Opened again, the same people keep their virtual faces."""
        engines, self._engines, self._puppet = self._engines, None, None
        if engines is not None:
            for part in (engines.generator, engines.landmarker, engines.recogniser):
                part.close()

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        """A virtual face for each face that can have one; a redaction, with the reason, for each other."""
        if item.is_cut:
            for role in self._roles.values():
                role.forget_motion()
        virtual: list[VirtualFace] = []
        redactions: list[Redaction] = []
        known_until_s = item.frame.pts_s if item.known_until_s is None else item.known_until_s
        for face in item.faces:
            found = self._play(item, face, known_until_s)
            if isinstance(found, VirtualFace):
                virtual.append(found)
            else:
                left, top, right, bottom = (float(v) for v in face.box_xyxy)
                redactions.append(Redaction((left, top, right, bottom), found, face.track_id))
        return ReenactedFrame(item, tuple(virtual), tuple(redactions))

    def _play(self, item: AnalysedFrame, face: Face, known_until_s: float) -> VirtualFace | RedactionReason:
        if face.mesh is None:
            return "predicted_only" if face.is_predicted else "no_landmarks"
        yaw, pitch, _ = np.abs(face.mesh.pose_ypr_deg)
        if yaw > self._o.max_yaw_deg + self._o.slack_deg or pitch > self._o.max_pitch_deg + self._o.slack_deg:
            return "extreme_pose"
        if face_width(face.mesh.points_xy) < self._o.min_face_px:
            return "too_small"
        role = self._role(item, face, known_until_s)
        if isinstance(role, str):
            return role
        wanted = self._wanted(role, face.mesh, item.frame.pts_s)
        if role.n_shown == 0:
            self._rehearse(role, wanted, item, face)
        role.n_shown += 1
        found = self._show(role, wanted, face, self._o.correction, item.frame.pts_s)
        if isinstance(found, VirtualFace) and role.n_shown % self._o.look_every == 0:
            self._look(role, item, face, found, 0.4)
        return "too_alike" if role.is_too_alike else found

    def _show(
        self, role: _Role, wanted: F32, face: Face, gain: float, t_s: float | None = None
    ) -> VirtualFace | RedactionReason:
        """Renders, learns from it with `gain`, and places; without a time nothing is steadied."""
        assert self._puppet is not None and face.mesh is not None
        asked = wanted.copy()
        asked[:2] += role.pasting
        crop, mesh = self._puppet.show(role.person, asked + role.correction, role.mesh)
        if mesh is None:  # look again without a hint, in case the face had moved out of it
            mesh = self._puppet.look(crop, None)
        if mesh is None:
            role.correction[:] = 0
            return "reenactment_failed"
        self._learn(role, asked, mesh, gain)
        steady, driver = mesh, face.mesh
        if t_s is not None:
            steady, driver = role.steady_virtual(mesh, t_s), role.steady_driver(face.mesh, t_s)
        frame_from_crop = fit_frame_from_crop(steady.points_xyz, driver.points_xyz)
        if misfit(mesh.points_xyz, face.mesh.points_xyz, frame_from_crop) > self._o.max_misfit:
            return "implausible"
        return VirtualFace(face.track_id, crop, steady, frame_from_crop)

    def _wanted(self, role: _Role, mesh: FaceMesh, t_s: float) -> F32:
        """(54,) controls that the virtual person is to show."""
        controls = role.filter(controls_of(mesh), t_s).copy()
        frontal = abs(float(controls[0])) < 0.6 and abs(float(controls[1])) < 0.6
        role.rest.update(controls[2:], t_s, is_frontal=frontal)
        limits = np.array([self._o.max_yaw_deg, self._o.max_pitch_deg], np.float32) / POSE_SCALE_DEG
        controls[:2] = np.clip(controls[:2], -limits, limits)
        resting = self._basis.resting
        controls[2:] = amplified(transfer(controls[2:], role.rest.blendshapes, resting), resting)
        return controls

    def _rehearse(self, role: _Role, wanted: F32, item: AnalysedFrame, face: Face) -> None:
        """Settles pose and placement, so that the first frame (a photo has no other) is right already."""
        for i in range(self._o.rehearsals):
            found = self._show(role, wanted, face, 0.6)
            if isinstance(found, VirtualFace) and i % 2:
                self._look(role, item, face, found, 0.7)

    def _look(self, role: _Role, item: AnalysedFrame, face: Face, virtual: VirtualFace, gain: float) -> None:
        """Learns what pasting does to the pose, and whether the pasted face is like the driver."""
        assert self._engines is not None and self._puppet is not None and face.mesh is not None
        looked = look_at_pasted(self._engines.landmarker, item, face, virtual)
        if looked is None:
            return
        image_rgb, seen = looked
        limit = self._o.max_correction_deg / POSE_SCALE_DEG
        missed = pose_missed(face.mesh, seen)
        role.pasting = np.clip(role.pasting + np.float32(gain) * missed, -limit, limit)
        likeness = self._alike(self._puppet.embed(image_rgb, seen), role.driver)
        role.is_too_alike = likeness >= self._o.max_later_likeness

    def _learn(self, role: _Role, wanted: F32, mesh: FaceMesh, gain: float) -> None:
        """Integral correction of the pose: what the rendering keeps missing is asked for in addition.

        Expressions are left out: they come and go faster than an integral follows, and an expression that the
        generator cannot show would wind it up.
        """
        role.mesh = mesh
        limit = self._o.max_correction_deg / POSE_SCALE_DEG
        error = (wanted - controls_of(mesh))[:2]
        role.correction[:2] = np.clip(role.correction[:2] + gain * error, -limit, limit)

    def _role(self, item: AnalysedFrame, face: Face, known_until_s: float) -> _Role | RedactionReason:
        if face.track_id not in self._roles:
            number = self._identities.person_of(face.track_id, until_pts_s=known_until_s)
            if number is None:
                return "reenactment_failed"
            driver = self._identities.embedding_of(number)
            if number not in self._cast:
                self._cast[number] = self._stand_in(number, driver, item, face)
            person = self._cast[number]
            if isinstance(person, str):
                return person
            self._roles[face.track_id] = _Role(person, driver, self._basis.resting)
        return self._roles[face.track_id]

    def _stand_in(
        self, number: int, driver: F32, item: AnalysedFrame, face: Face
    ) -> Person | RedactionReason:
        """Who the book says stands in for a person, or else who is chosen now, and kept. The one in the book is held
        to the same limit, and nobody takes his place: another face would be another pseudonym."""
        assert self._puppet is not None
        pin = self._identities.pin_of(number)
        if pin is None:
            chosen = self._choose(driver, item, face)
            if chosen is None:
                return "too_alike"
            candidate, person = chosen
            try:
                pin = self._identities.keep(number, Pin(candidate, person.w))
            except BookError:
                return "reenactment_failed"  # the book has noted why
            if np.array_equal(pin.w, person.w):
                return person
        known = self._puppet.meet(pin.w)
        if known is not None and self._likeness(known, driver, item, face) < self._o.max_likeness:
            return known
        self._identities.refuse(number)
        return "too_alike"

    def _choose(self, driver: F32, item: AnalysedFrame, face: Face) -> tuple[int, Person] | None:
        """The first candidate as unlike the driver as wanted, else the most unlike of all, and its number; None when
        all are too like."""
        assert self._puppet is not None
        chosen, least = None, self._o.max_likeness
        for candidate in range(self._o.max_candidates):
            person = self._puppet.meet(self._virtual.w(driver, candidate))
            likeness = math.inf if person is None else self._likeness(person, driver, item, face)
            if person is not None and likeness < least:
                chosen, least = (candidate, person), likeness
            if least < self._o.wanted_likeness:
                break
        return chosen

    def _likeness(self, person: Person, driver: F32, item: AnalysedFrame, face: Face) -> float:
        """How like the driver a candidate is; infinite where no face is found. The larger of two scores (`_alike`):
        of the virtual person at rest from the front, and of the face pasted over the driver's."""
        assert self._puppet is not None and self._engines is not None and face.mesh is not None
        at_rest = np.concatenate([np.zeros(2, np.float32), self._basis.resting])
        crop, mesh = self._puppet.show(person, at_rest, person.own_mesh)
        if mesh is None:
            return math.inf
        alone = self._alike(self._puppet.embed(crop, mesh), driver)
        found = self._show(
            _Role(person, driver, self._basis.resting), controls_of(face.mesh), face, self._o.correction
        )
        looked = None
        if isinstance(found, VirtualFace):
            looked = look_at_pasted(self._engines.landmarker, item, face, found)
        if looked is None:
            return alone
        return max(alone, self._alike(self._puppet.embed(*looked), driver))

    def _alike(self, virtual: F32, driver: F32) -> float:
        """How like two embeddings (128,) are: their cosine, measured in deviations above what generated people have
        with this driver (Z-norm, as in speaker verification; Auckenthaler et al. 2000).

        A driver who is generated himself is like all generated people to a recogniser, and a driver of flesh and
        blood like none; the normalised score means the same for both. Among 660 generated people different ones
        score above 2.6 in 1 % of pairs and above 3.6 in 0.1 %.
        """
        cohort = self._basis.cohort @ driver
        return (float(virtual @ driver) - float(cohort.mean())) / max(float(cohort.std()), 0.02)
