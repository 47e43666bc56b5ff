"""The warping reenactor: two renderings of the virtual person, moved.

Per person once: the generator renders the person at rest, looking ahead; `warp_source` makes features of that
picture and of the mesh in it. A second rendering, laughing with closed eyes, shows what the first cannot: teeth and
lids. Per frame: the person's own keypoints with the wanted pose and expression
(`KeypointModel.driving`, eq. 1-4 of FaceVid2Vid) -> `warp_motion`, what goes where, in float32 -> `warp_decode`,
warp, occlusion and decoder -> the picture. Nothing of the driver gets here but 54 controls.

What cannot be shown is refused with a reason, so that the face is mosaicked; a network that fails or whose output
is not finite raises, and then all faces of the frame are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from keyface.configs.errors import EngineError
from keyface.pipeline.face import BLENDSHAPE_NAMES, F32, FaceMesh
from keyface.pipeline.frame import ImageRgb, RedactionReason
from keyface.pipeline.reenact.keypoints import KeypointModel, SourceShape, unit_points
from keyface.pipeline.reenact.motion import POSE_SCALE_DEG, MotionMap
from keyface.pipeline.reenact.puppet import Actor, Person, Puppet, ReenactEngines, pixels_of

Run = Callable[[Mapping[str, F32]], Mapping[str, F32]]  # of a network: its inputs to its outputs

SIDE_PX = 256
# Yaw and pitch: what `ReenactOptions` lets through, with both corrections at their most.
_MAX_ASKED = np.array([60.0, 50.0], np.float32) / POSE_SCALE_DEG
# The second picture's blendshapes, both sides alike: as open as shows both rows of teeth of most people.
_LAUGH = {"jawOpen": 0.5, "mouthSmile": 0.6, "mouthUpperUp": 0.5, "mouthLowerDown": 0.5, "eyeBlink": 1.0}


def laughing(resting: F32) -> F32:
    """(54,) controls of the second source picture: those of `resting` (52,), laughing with closed eyes."""
    blendshapes = resting.copy()
    for column, name in enumerate(BLENDSHAPE_NAMES):
        part = name.removesuffix("Left").removesuffix("Right")
        blendshapes[column] = _LAUGH.get(part, blendshapes[column])
    return np.concatenate([np.zeros(2, np.float32), blendshapes]).astype(np.float32)


def make_actor(
    engines: ReenactEngines, motion: MotionMap, resting: F32, keypoints: KeypointModel | None
) -> Actor:
    """The warping reenactor's where there are keypoints, else the generator's own.

    Args:
        resting: (52,) blendshapes of people at rest.

    Raises:
        ValueError: there are keypoints, and the engines lack the networks that warp.
    """
    if keypoints is None:
        return Puppet(engines, motion)
    return WarpPuppet(engines, motion, resting, keypoints)


@dataclass(frozen=True, slots=True)
class WarpSource:
    """What a person is shown from.

    Attributes:
        shape: the person's keypoints in the source picture.
        points: (1, 478, 3) those of `shape`, for `warp_motion`; second_points: those of the second picture.
        seen: the source picture, uint8 (256, 256, 3), and the mesh in it.
        look: what `warp_decode` gets in each frame: `image`, `second` (1, 3, 256, 256) [-1, 1], `features`,
            `details`. Where there is no second picture the first is its own.
        has_second: False: none was asked for yet. None: one was, and showed no face.
    """

    shape: SourceShape
    points: F32
    second_points: F32
    seen: tuple[ImageRgb, FaceMesh]
    look: Mapping[str, F32]
    has_second: bool | None = False


class WarpPuppet:
    """`Actor`: renders a person once and warps that picture for each frame. See `make_actor`.

    Attributes:
        shows_before_second: after how many the second picture is made. In a live picture late enough that no frame in
            which somebody is tried waits for it.
    """

    def __init__(
        self, engines: ReenactEngines, motion: MotionMap, resting: F32, keypoints: KeypointModel
    ) -> None:
        if engines.warp is None:
            raise ValueError("warp puppet: got no engines that warp")
        self._renderer, self._warp, self._keypoints = Puppet(engines, motion), engines.warp, keypoints
        self._at_rest = np.concatenate([np.zeros(2, np.float32), resting]).astype(np.float32)
        self._laughing = laughing(resting)
        self._laughing[2:] = self._renderer.ask(self._laughing[2:], resting)
        # A reason: there is nothing to show this person from. Goes with the person.
        self._sources: WeakKeyDictionary[Person, WarpSource | RedactionReason] = WeakKeyDictionary()
        self._n_shown: WeakKeyDictionary[Person, int] = WeakKeyDictionary()
        self.shows_before_second = 1

    def meet(self, w: F32) -> Person | None:
        """See `Actor`. What the person is shown from is made when it is first shown, and the second picture when it
        is shown again: a live picture waits for one rendering a frame, not for three."""
        return self._renderer.meet(w)

    def ask(self, blendshapes: F32, rest: F32) -> F32:
        """See `Actor`: as wanted, since the network was trained on what its pictures were measured to show."""
        del rest
        return blendshapes

    def show(
        self, person: Person, wanted: F32, previous: FaceMesh | None
    ) -> tuple[ImageRgb, FaceMesh | None] | RedactionReason:
        """See `Actor`. Refused are: motion that is not finite ("implausible"), a pose beyond what the reenactor may
        ask ("extreme_pose"), a person in whose own picture no usable face is found ("reenactment_failed")."""
        if not np.isfinite(wanted).all():
            return "implausible"
        if (np.abs(wanted[:2]) > _MAX_ASKED).any():
            return "extreme_pose"
        source = self._sources.get(person)
        if source is None:
            source = self._sources[person] = self._source(person)
        elif isinstance(source, WarpSource) and source.has_second is False and self._is_second_due(person):
            source = self._sources[person] = self._with_second(person, source)
        if isinstance(source, str):
            return source
        driving = self._keypoints.driving(source.shape, wanted)
        if not np.isfinite(driving).all():
            return "implausible"
        crop = moved_picture(self._warp.motion.run, self._warp.decode.run, source, wanted, driving)
        return crop, self.look(crop, previous)

    def source_of(self, person: Person) -> tuple[ImageRgb, FaceMesh] | None:
        """See `Actor`."""
        source = self._sources.get(person)
        return source.seen if isinstance(source, WarpSource) else None

    def look(self, crop_rgb: ImageRgb, previous: FaceMesh | None) -> FaceMesh | None:
        """See `Actor`."""
        return self._renderer.look(crop_rgb, previous)

    def embed(self, crop_rgb: ImageRgb, mesh: FaceMesh) -> F32:
        """See `Actor`."""
        return self._renderer.embed(crop_rgb, mesh)

    def _source(self, person: Person) -> WarpSource | RedactionReason:
        crop, mesh = self._renderer.show(person, self._at_rest, person.own_mesh)
        if mesh is None:  # without a hint, in case the face had moved out of it
            mesh = self.look(crop, None)
        if mesh is None:
            return "reenactment_failed"
        try:
            shape = self._keypoints.source(mesh, crop.shape[0])
        except ValueError:  # the mesh is not finite or has no extent
            return "reenactment_failed"
        return look_at_source(self._warp.source.run, shape, crop, mesh)

    def _is_second_due(self, person: Person) -> bool:
        self._n_shown[person] = self._n_shown.get(person, 0) + 1
        return self._n_shown[person] >= self.shows_before_second

    def _with_second(self, person: Person, source: WarpSource) -> WarpSource:
        """A face that cannot be found in the second picture leaves the first alone: softer teeth, nothing worse."""
        crop, mesh = self._renderer.show(person, self._laughing, source.seen[1])
        if mesh is None or not np.isfinite(mesh.points_xyz).all():
            return replace(source, has_second=None)
        look = {**source.look, "second": _unit_image(crop)}
        points = unit_points(mesh.points_xyz, crop.shape[0])[None]
        return replace(source, second_points=points, look=look, has_second=True)


def look_at_source(run: Run, shape: SourceShape, crop_rgb: ImageRgb, mesh: FaceMesh) -> WarpSource:
    """What a picture uint8 (256, 256, 3) is moved from; run: of `warp_source`. Raises EngineError when the features
    are missing or not finite."""
    image, points = _unit_image(crop_rgb), shape.points[None]
    made = run({"image": image, "points": points})
    features = {name: _finite(made, name) for name in ("features", "details")}
    look = {"image": image, "second": image, **features}
    return WarpSource(shape, points, points, (crop_rgb, mesh), look)


def _unit_image(crop_rgb: ImageRgb) -> F32:
    """(1, 3, S, S), [-1, 1]."""
    return np.ascontiguousarray((crop_rgb.astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1))[None]


def moved_picture(
    run_motion: Run, run_decode: Run, source: WarpSource, wanted: F32, driving: F32
) -> ImageRgb:
    """uint8 (256, 256, 3): the source with controls `wanted` (54,) and keypoints `driving` (478, 3); by `warp_motion`
    and `warp_decode`. Raises EngineError when the picture is not finite."""
    controls = np.concatenate([wanted, source.shape.controls])[None].astype(np.float32)
    points = {
        "source_points": source.points,
        "second_points": source.second_points,
        "driving_points": driving[None],
    }
    motion = dict(run_motion({**points, "controls": controls}))
    if not source.has_second and "opening" in motion:
        motion["opening"] = np.zeros_like(motion["opening"])  # no teeth to lay there
    picture = run_decode({**source.look, **motion, "controls": controls})["picture"][0]
    return pixels_of(picture, "warp_decode")


def _finite(outputs: Mapping[str, F32], name: str) -> F32:
    found = outputs.get(name)
    if found is None or not np.isfinite(found).all():
        problem = "are missing" if found is None else "are not finite"
        raise EngineError(f"warp_source: the {name} {problem}.", "Try --backend onnxruntime.")
    return found
