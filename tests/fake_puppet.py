"""A stand-in for generator, landmarker, recogniser and motion map, for tests of reenactment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keyface.configs.errors import BookError
from keyface.engines.engine import TensorSpec
from keyface.engines.fake import FakeEngine
from keyface.pipeline.face import BLENDSHAPE_NAMES, AnalysedFrame, Face, FaceMesh, ReenactedFrame
from keyface.pipeline.frame import Frame
from keyface.pipeline.people.book import Pin
from keyface.pipeline.reenact.keypoints import KeypointModel
from keyface.pipeline.reenact.puppet import ReenactEngines, SecondRecogniser
from keyface.pipeline.reenact.reenactor import ReenactOptions, Reenactor

SIDE = 64
REST = np.full(52, 0.1, np.float32)
JAW = BLENDSHAPE_NAMES.index("jawOpen")

MakeMesh = Callable[..., FaceMesh]


@dataclass
class World:
    """The stand-ins: a generator that shows what it is asked for, but for faults that a test sets.

    Attributes:
        gain, bias_deg: rendered yaw and pitch are gain * asked + bias.
        blind: calls of the landmarker, by number since the last `forget`, that find nothing.
        similarity: of each candidate to the real person; second_similarity: to the second recogniser, if there is
            one; second_cohort: its generated people.
        faceless: candidates whose plain rendering shows no face.
        bend: multiplies the height of the rendered face.
        pins: person -> who stands in for him according to the book.
        stored_meanwhile: what the book has when a choice is to be kept, if not that choice.
        book_problem: why the book cannot be written.
        kept, refused: what the book was told: (person, candidate), and people.
        keys: those that were changed to; has_left_book: the book was left for it.
        asked: controls (54,) of each rendering, None for a person as he is.
        keypoints: of the warping reenactor, see `fake_warp`.
    """

    mesh: FaceMesh
    gain: float = 1.0
    bias_deg: tuple[float, float] = (0.0, 0.0)
    blind: Callable[[int], bool] = lambda _: False
    similarity: tuple[float, ...] = (0.0,) * 12
    second_similarity: tuple[float, ...] | None = None
    second_cohort: np.ndarray = field(default_factory=lambda: Basis().cohort)
    faceless: tuple[int, ...] = ()
    bend: float = 1.0
    image: float = 0.0
    asked: list[np.ndarray | None] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)
    hints: list[bool] = field(default_factory=list)
    known: dict[int, int | None] = field(default_factory=lambda: {0: 0, 1: 1, 2: 0})
    asked_until: list[float] = field(default_factory=list)
    pins: dict[int, Pin] = field(default_factory=dict)
    stored_meanwhile: Pin | None = None
    book_problem: str = ""
    kept: list[tuple[int, int]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    has_left_book: bool = False
    n_opened: int = 0
    keypoints: KeypointModel | None = None

    def generator(self) -> FakeEngine:
        def render(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
            w_plus = inputs["w_plus"][0]
            self.candidates.append(round(float(w_plus[22, 0])))
            self.asked.append(None if np.array_equal(w_plus[0], w_plus[22]) else w_plus[0, :54].copy())
            return {"image": np.full((1, 3, SIDE, SIDE), self.image, np.float32)}

        return FakeEngine(
            (TensorSpec("w_plus", "float32", (1, 23, 512)),),
            (TensorSpec("image", "float32", (1, 3, SIDE, SIDE)),),
            render,
        )

    def open_engines(self) -> ReenactEngines:
        self.n_opened += 1
        recogniser: Any = Likeness(self, lambda: self.similarity, "recogniser")
        eyes: Any = Eyes(self)
        return ReenactEngines(self.generator(), eyes, recogniser, second=self.second())

    def second(self) -> SecondRecogniser | None:
        """The second recogniser, where the world has one."""
        if self.second_similarity is None:
            return None
        recogniser: Any = Likeness(self, lambda: self.second_similarity or (), "second recogniser")
        return SecondRecogniser(recogniser, self.second_cohort)

    def forget(self) -> None:
        self.asked.clear()
        self.candidates.clear()
        self.hints.clear()

    @property
    def has_met_nobody(self) -> bool:
        """No person was rendered as he is since the last `forget`."""
        return all(controls is not None for controls in self.asked)

    @property
    def shown(self) -> np.ndarray:
        """(54,) of the last rendering with controls."""
        return next(controls for controls in reversed(self.asked) if controls is not None)


class Eyes:
    """The landmarker."""

    def __init__(self, world: World) -> None:
        self.world = world

    def detect(
        self, image_rgb: np.ndarray, *, points_5: Any = None, box_xyxy: Any = None, previous: Any = None
    ) -> FaceMesh | None:
        world = self.world
        if image_rgb.shape != (SIDE, SIDE, 3):  # a look at the pasted face: it shows what the driver does
            return previous
        assert (box_xyxy is None) != (previous is None)
        world.hints.append(previous is not None)
        asked = world.asked[-1]
        is_faceless = asked is None and world.candidates[-1] in world.faceless
        if is_faceless or world.blind(len(world.hints) - 1):
            return None
        controls = np.concatenate([np.zeros(2), REST]) if asked is None else asked
        pose = np.array([*(world.gain * 30 * controls[:2] + world.bias_deg), 0.0], np.float32)
        points = world.mesh.points_xyz * np.array([1, world.bend, 1], np.float32)
        return FaceMesh(points, controls[2:].astype(np.float32), pose, 0.9)

    def close(self) -> None:
        self.world.closed.append("landmarker")


class Likeness:
    """A recogniser: the driver, on a black picture, is e_0; candidate k is as similar to him as told."""

    def __init__(self, world: World, similarity: Callable[[], tuple[float, ...]], name: str) -> None:
        self.world, self.similarity, self.name = world, similarity, name
        self.seen: list[str] = []

    def embed(self, image_rgb: np.ndarray, points_5: np.ndarray) -> np.ndarray:
        is_driver = not image_rgb.any()
        self.seen.append("driver" if is_driver else "alone" if len(image_rgb) == SIDE else "pasted")
        told, number = self.similarity(), self.world.candidates[-1] if self.world.candidates else 0
        cosine = 1.0 if is_driver else told[number] if number < len(told) else 0.9  # nobody further suits
        out = np.zeros(128, np.float32)
        out[:2] = cosine, np.sqrt(1 - cosine**2)
        return out

    def close(self) -> None:
        self.world.closed.append(self.name)


class Script:
    """The motion map: writes the controls where the stand-in generator reads them."""

    def coefficients(self, w: np.ndarray, controls: np.ndarray) -> np.ndarray:
        return np.zeros(96, np.float32)

    def w_plus(self, w: np.ndarray, wanted: np.ndarray, own_coefficients: np.ndarray) -> np.ndarray:
        out = np.repeat(w[None], 23, axis=0)
        out[0, :54] = wanted
        return out


class People:
    def __init__(self, world: World) -> None:
        self.world = world

    def person_of(self, track_id: int, *, until_pts_s: float) -> int | None:
        self.world.asked_until.append(until_pts_s)
        return self.world.known.get(track_id)

    def embedding_of(self, person: int) -> np.ndarray:
        return np.eye(128, dtype=np.float32)[0]

    def pin_of(self, person: int) -> Pin | None:
        return self.world.pins.get(person)

    def keep(self, person: int, pin: Pin) -> Pin:
        if self.world.book_problem:
            raise BookError(self.world.book_problem)
        self.world.kept.append((person, pin.candidate))
        return self.world.stored_meanwhile or pin

    def refuse(self, person: int) -> None:
        self.world.refused.append(person)

    def leave_book(self) -> None:
        self.world.has_left_book = True

    def under(self, key: Any) -> People:
        self.world.keys.append(key)
        return self

    def close(self) -> None:
        self.world.closed.append("key")

    def w(self, embedding: np.ndarray, candidate: int) -> np.ndarray:
        return np.full(512, candidate, np.float32)


@dataclass
class Basis:
    resting: np.ndarray = field(default_factory=lambda: REST)
    # no likeness on average, deviation 0.1: a cosine of 0.25 scores 2.5
    cohort: np.ndarray = field(default_factory=lambda: np.outer(np.repeat([-0.1, 0.1], 32), np.eye(128)[0]))


def open_reenactor(world: World, **changes: Any) -> Reenactor:
    """A Reenactor of the world, opened, with options changed."""
    people: Any = People(world)
    options = replace(ReenactOptions(), **changes)
    made = Reenactor(
        world.open_engines,
        Script(),
        Basis(),
        people,
        people,
        options,
        keypoints=world.keypoints,  # type: ignore[arg-type]
    )
    made.open()
    world.forget()
    return made


def make_face(
    mesh_at: MakeMesh, track_id: int = 0, yaw: float = 0.0, pitch: float = 0.0, **blendshapes: float
) -> Face:
    """A face in the middle of the picture of `item`."""
    box = np.array([100, 80, 172, 156], np.float32)
    values = REST.copy()
    for name, value in blendshapes.items():
        values[BLENDSHAPE_NAMES.index(name)] = value
    pose = np.array([yaw, pitch, 0.0], np.float32)
    mesh = replace(mesh_at(box), pose_ypr_deg=pose, blendshapes=values)
    return Face(track_id, box, None, 0.9, False, mesh)


def item(*faces: Face, index: int = 0, fps: float = 25.0, **more: Any) -> AnalysedFrame:
    return AnalysedFrame(Frame(np.zeros((200, 300, 3), np.uint8), index, index / fps), faces, **more)


def reasons(out: ReenactedFrame) -> list[str]:
    return [redaction.reason for redaction in out.must_redact]
