"""Reenactment: the virtual person shows the driver's pose and expression.

Per face and frame: driver's controls -> smoothed (One-Euro) -> expression relative to the driver's rest, on the
virtual person's rest -> corrected by what the last renderings missed -> an `Actor` shows the person so (the generator
anew: motion map -> W+ -> generator; or `warp_puppet`) -> landmarks of the rendered face -> placement. Only pose and
relative expression of the driver travel (face motion of FaceVid2Vid, eq. 1-4, with explicit controls in place of
learned keypoints), so the driver's face shape does not.

What cannot be shown well is not shown: a face beyond the generator's pose range, a rendering in which no
face is found or that does not fit the driver's, is left to be mosaicked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, ReenactedFrame, VirtualFace
from keyface.pipeline.frame import Redaction, RedactionReason
from keyface.pipeline.paste.place import face_width, fit_frame_from_crop, misfit
from keyface.pipeline.people.identity import Identities
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.virtual import IdentityBasis, VirtualIdentities
from keyface.pipeline.reenact.casting import Casting, CastingOptions, Scene, Search
from keyface.pipeline.reenact.keypoints import KeypointModel
from keyface.pipeline.reenact.likeness import Likeness
from keyface.pipeline.reenact.mirror import pose_missed
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG, MotionMap, controls_of, transfer
from keyface.pipeline.reenact.puppet import Actor, Person, ReenactEngines, Rendered, Role
from keyface.pipeline.reenact.warp_puppet import WarpPuppet, make_actor

_MOVED = 0.2  # largest change of a control (a pose of 6 degrees, a fifth of a blink) that an old rendering may miss
_LATEST_RENDER = 4  # frames that a rendering is shown at most
_FORGET_S = 60.0  # roles of tracks not seen for that long
# Casting shows a person twice and rehearses six times; the second picture of a live one waits for what comes after.
_LIVE_SHOWS_BEFORE_SECOND = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ReenactOptions:
    """Limits and dynamics.

    Attributes:
        max_yaw_deg, max_pitch_deg: of what is asked of the generator; a driver beyond it is followed up to
            here, and no further than `slack_deg` beyond: then the face is mosaicked.
        correction: share of the last rendering's pose error that is added to the next request.
        max_correction_deg: most that it adds up to.
        max_misfit: weighted mean distance of rendered and driver's landmarks, in face widths.
        look_every: frames between looks at the pasted face; see pipeline.reenact.mirror.
        rehearsals: renderings by which a new track's pose correction settles before its first frame is shown.
        max_later_likeness: of the pasted face at a later look, from which it is mosaicked until it is less like the
            driver again; above `casting.max_likeness`, since pose and expression move the score.
        min_face_px: narrower faces (root of the area of the landmarks' box) are mosaicked: most of such a face is
            hair and outline, which are the driver's. A detector's box is then about 45 px high.
        casting: who may stand in.
    """

    max_yaw_deg: float = 40.0
    max_pitch_deg: float = 30.0
    slack_deg: float = 16.0
    correction: float = 0.12
    max_correction_deg: float = 10.0
    max_misfit: float = 0.09
    look_every: int = 12
    rehearsals: int = 6
    max_later_likeness: float = 3.0
    min_face_px: float = 38.0
    casting: CastingOptions = field(default_factory=CastingOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much may be done for one frame.

    Attributes:
        render_every: frames from one rendering of a face to the next; it is laid on the driver anew in each frame.
            A larger movement is rendered at once.
        is_stepwise: a search for a stand-in, and the rehearsals after it, take one step per frame, while the face
            is mosaicked or keeps the virtual face that it has. Else all of it happens in one frame.
    """

    render_every: int = 1
    is_stepwise: bool = False


class Reenactor:
    """`Stage[AnalysedFrame, ReenactedFrame]`.

    Args:
        open_engines: opens what the stage needs, on its thread.
        identities: knows the person behind a track.
        virtual: turns a person's embedding into a virtual person under the key.
        keypoints: of the warping reenactor, whose engines `open_engines` then opens too; None: the generator renders
            every frame.
    """

    def __init__(
        self,
        open_engines: Callable[[], ReenactEngines],
        motion: MotionMap,
        basis: IdentityBasis,
        identities: Identities,
        virtual: VirtualIdentities,
        options: ReenactOptions | None = None,
        *,
        keypoints: KeypointModel | None = None,
    ) -> None:
        self._open_engines, self._motion, self._basis = open_engines, motion, basis
        self._keypoints = keypoints
        self._identities, self._virtual = identities, virtual
        self._o = options or ReenactOptions()
        self.pace = Pace()  # may be set on any thread; the next frame obeys
        self._engines: ReenactEngines | None = None
        self._puppet: Actor | None = None
        self._likeness: Likeness | None = None
        self._cast: dict[int, Person | RedactionReason] = {}  # a reason: nobody stands in
        self._searches: dict[int, tuple[Search, Scene]] = {}
        self._roles: dict[int, Role] = {}
        self._understudies: dict[int, Role] = {}  # still rehearsing
        self._n_frames = self._n_steps = 0

    def open(self) -> None:
        """Opens the engines and runs each once."""
        self._engines = self._open_engines()
        self._engines.warm_up()
        self._puppet = make_actor(self._engines, self._motion, self._basis.resting, self._keypoints)
        self._likeness = Likeness(self._engines, self._basis.cohort)
        self._searches.clear()
        self._roles.clear()
        self._understudies.clear()

    def close(self) -> None:
        """Closes the engines. Opened again, the same people keep their virtual faces."""
        engines, self._engines, self._puppet, self._likeness = self._engines, None, None, None
        if engines is not None:
            engines.close()

    def release(self) -> None:
        """Forgets the key."""
        self._virtual.close()

    def rotate(self, key: Key, *, keeps_old: bool = True) -> None:
        """From the next frame on stand-ins are sought under another key, which is used here only; the one before is
        forgotten. A face in the picture keeps its virtual face until the new one is ready, then they swap between
        two frames; see `is_rotating`. Without `keeps_old` it is not shown again. Call between two frames."""
        virtual = self._virtual.under(key)
        self._virtual.close()
        self._virtual = virtual
        self._identities.leave_book()
        self._cast.clear()
        self._searches.clear()
        self._understudies.clear()
        if not keeps_old:
            self._roles.clear()
        for role in self._roles.values():
            role.is_old = True

    @property
    def is_rotating(self) -> bool:
        """Whether a virtual face of the key before is still shown."""
        return any(role.is_old for role in self._roles.values())

    def process(self, item: AnalysedFrame) -> ReenactedFrame:
        """A virtual face for each face that can have one; a redaction, with the reason, for each other."""
        if item.is_cut:
            for role in (*self._roles.values(), *self._understudies.values()):
                role.forget_motion()
        self._n_frames += 1
        self._n_steps = 0
        if isinstance(self._puppet, WarpPuppet):
            self._puppet.shows_before_second = _LIVE_SHOWS_BEFORE_SECOND if self.pace.is_stepwise else 1
        self._forget(item)
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

    def _forget(self, item: AnalysedFrame) -> None:
        """Drops roles of the key before whose faces have gone, and those not played for long."""
        now_s, present = item.frame.pts_s, {face.track_id for face in item.faces}
        for roles in (self._roles, self._understudies):
            for track_id in set(roles) - present:
                if roles[track_id].is_old or abs(now_s - roles[track_id].last_s) > _FORGET_S:
                    del roles[track_id]

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
        role.last_s = item.frame.pts_s
        wanted = self._wanted(role, face.mesh, item.frame.pts_s)
        again = self._show_again(role, wanted, face, item.frame.pts_s)
        found = again or self._show(role, wanted, face, self._o.correction, item.frame.pts_s)
        role.since_look += 1
        # A look costs as much as a rendering: where renderings are shown again it waits for such a frame.
        is_cheap = (
            again is not None or self.pace.render_every == 1 or role.since_look > 2 * self._o.look_every
        )
        if isinstance(found, VirtualFace) and role.since_look >= self._o.look_every and is_cheap:
            role.since_look = 0
            self._look(role, item, face, found, 0.4)
        return "too_alike" if role.is_too_alike else found

    def _show_again(self, role: Role, wanted: F32, face: Face, t_s: float) -> VirtualFace | None:
        """The last rendering laid on the face as it is now; None when a new one is due."""
        assert face.mesh is not None
        role.since_render += 1
        every = self.pace.render_every
        # Faces take turns, and what is being prepared in this frame has taken the turn already.
        is_turn = (self._n_frames + face.track_id) % every == 0 or role.since_render >= every
        if self._n_steps and role.since_render < _LATEST_RENDER:
            is_turn = False
        if is_turn or role.rendered is None or np.abs(wanted - role.rendered.wanted).max() > _MOVED:
            return None
        driver = role.steady_driver(face.mesh, t_s)
        crop_rgb, mesh, steady, _ = role.rendered
        frame_from_crop = fit_frame_from_crop(steady.points_xyz, driver.points_xyz)
        if misfit(mesh.points_xyz, face.mesh.points_xyz, frame_from_crop) > self._o.max_misfit:
            return None
        return VirtualFace(face.track_id, crop_rgb, steady, frame_from_crop)

    def _show(
        self, role: Role, wanted: F32, face: Face, gain: float, t_s: float | None = None
    ) -> VirtualFace | RedactionReason:
        """Renders, learns from it with `gain`, and places; without a time nothing is steadied."""
        assert self._puppet is not None and face.mesh is not None
        asked = wanted.copy()
        asked[:2] += role.pasting
        shown = self._puppet.show(role.person, asked + role.correction, role.mesh)
        if isinstance(shown, str):  # what cannot be shown says nothing about the frames to come
            role.correction[:] = 0
            role.forget_motion()
            return shown
        crop, mesh = shown
        if mesh is None:  # look again without a hint, in case the face had moved out of it
            mesh = self._puppet.look(crop, None)
        role.rendered = None
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
        if t_s is not None:
            role.rendered, role.since_render = Rendered(crop, mesh, steady, wanted), 0
        return VirtualFace(face.track_id, crop, steady, frame_from_crop)

    def _wanted(self, role: Role, mesh: FaceMesh, t_s: float) -> F32:
        """(54,) controls that the virtual person is to show."""
        assert self._puppet is not None
        controls = role.filter(controls_of(mesh), t_s).copy()
        frontal = abs(float(controls[0])) < 0.6 and abs(float(controls[1])) < 0.6
        role.rest.update(controls[2:], t_s, is_frontal=frontal)
        limits = np.array([self._o.max_yaw_deg, self._o.max_pitch_deg], np.float32) / POSE_SCALE_DEG
        controls[:2] = np.clip(controls[:2], -limits, limits)
        resting = self._basis.resting
        controls[2:] = self._puppet.ask(transfer(controls[2:], role.rest.blendshapes, resting), resting)
        return controls

    def _rehearse(self, role: Role, item: AnalysedFrame, face: Face) -> None:
        """One step to settle pose and placement, so that the first frame (a photo has no other) is right already: a
        rendering, or a look at the last one once pasted."""
        assert face.mesh is not None
        if role.to_look is not None:
            (seen, driver, found), role.to_look = role.to_look, None
            self._look(role, seen, driver, found, 0.7)
        else:
            wanted = self._wanted(role, face.mesh, item.frame.pts_s)
            shown = self._show(role, wanted, face, 0.6)
            if isinstance(shown, VirtualFace) and role.n_rehearsed % 2:
                role.to_look = item, face, shown
                return
        role.n_rehearsed += 1

    def _look(self, role: Role, item: AnalysedFrame, face: Face, virtual: VirtualFace, gain: float) -> None:
        """Learns what pasting does to the pose, and whether the pasted face is like the driver."""
        assert self._likeness is not None and face.mesh is not None
        looked = self._likeness.of_pasted(item, face, virtual, role.driver)
        if looked is None:
            return
        likeness, seen = looked
        limit = self._o.max_correction_deg / POSE_SCALE_DEG
        missed = pose_missed(face.mesh, seen)
        role.pasting = np.clip(role.pasting + np.float32(gain) * missed, -limit, limit)
        role.is_too_alike = likeness >= self._o.max_later_likeness

    def _learn(self, role: Role, wanted: F32, mesh: FaceMesh, gain: float) -> None:
        """Integral correction of the pose: what the rendering keeps missing is asked for in addition.

        Expressions are left out: they come and go faster than an integral follows, and an expression that the
        generator cannot show would wind it up.
        """
        role.mesh = mesh
        limit = self._o.max_correction_deg / POSE_SCALE_DEG
        error = (wanted - controls_of(mesh))[:2]
        role.correction[:2] = np.clip(role.correction[:2] + gain * error, -limit, limit)

    def _role(self, item: AnalysedFrame, face: Face, known_until_s: float) -> Role | RedactionReason:
        """The role of a track, prepared when it has none of the present key."""
        role = self._roles.get(face.track_id)
        if role is not None and not role.is_old:
            return role
        number = self._identities.person_of(face.track_id, until_pts_s=known_until_s)
        if number is None:
            return "reenactment_failed" if role is None else role
        ready = self._prepare(number, item, face)
        while ready is None and not self.pace.is_stepwise:
            ready = self._prepare(number, item, face)
        if isinstance(ready, Role):
            self._roles[face.track_id] = ready
            return ready
        if ready is None:  # not yet: meanwhile the virtual face of the key before, if there is one
            return "choosing" if role is None else role
        self._roles.pop(face.track_id, None)
        return ready

    def _prepare(self, number: int, item: AnalysedFrame, face: Face) -> Role | RedactionReason | None:
        """One step towards a role, at most one a frame where steps are counted; None: it takes more."""
        if self.pace.is_stepwise and self._n_steps:
            return None
        driver = self._identities.embedding_of(number)
        if number not in self._cast:
            self._n_steps += 1
            self._search(number, driver, item, face)
            return None
        person = self._cast[number]
        if isinstance(person, str):
            return person
        role = self._understudies.get(face.track_id)
        if role is None or role.person is not person:
            role = self._understudies[face.track_id] = Role(person, driver, self._basis.resting)
        role.last_s = item.frame.pts_s
        if role.n_rehearsed >= self._o.rehearsals:
            return self._understudies.pop(face.track_id)
        self._n_steps += 1
        self._rehearse(role, item, face)
        return None

    def _search(self, number: int, driver: F32, item: AnalysedFrame, face: Face) -> None:
        """One step of the search for a person's stand-in. A search that fails begins anew."""
        search, scene = self._searches.pop(number, (None, Scene(item, face)))
        scene.item, scene.face = item, face
        search = search or self._casting().stand_in(number, driver, scene)
        try:
            next(search)
        except StopIteration as end:
            self._cast[number] = end.value
        else:
            self._searches[number] = search, scene

    def _casting(self) -> Casting:
        assert self._likeness is not None and self._puppet is not None

        def place(role: Role, wanted: F32, face: Face) -> VirtualFace | RedactionReason:
            return self._show(role, wanted, face, self._o.correction)

        return Casting(
            self._likeness, self._puppet, place, self._basis, self._identities, self._virtual, self._o.casting
        )
