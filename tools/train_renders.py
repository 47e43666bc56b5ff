"""Renders and recognises people for the projector's training, with the product's own networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from keyface.models.projector import ROWS_OF_GROUP
from keyface.pipeline.face import F32, AnalysedFrame, Face, FaceMesh, VirtualFace
from keyface.pipeline.faces.geometry import box_from_mesh, points_5_from_mesh
from keyface.pipeline.faces.recognise import Recogniser
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.paste.place import fit_frame_from_crop
from keyface.pipeline.reenact.mirror import look_at_pasted
from keyface.pipeline.reenact.motion import MotionMap, amplified, controls_of, transfer
from keyface.pipeline.reenact.puppet import Puppet, ReenactEngines
from keyface.tools import train_networks
from keyface.tools.train_photos import PARTS, PersonPhoto, PhotoReader

MAX_DRIVER_DEG = 16.0

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.people.virtual import IdentityBasis


def look_of(crop_rgb: ImageRgb) -> F32:
    """(2,) mean lightness of the face and its deviation about the eyes, of an FFHQ-aligned picture (256, 256, 3)."""
    lightness = cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2LAB)[..., 0].astype(np.float32)
    return np.array([lightness[90:200, 75:180].mean(), lightness[115:135, 80:175].std()], np.float32)


@dataclass(frozen=True, slots=True)
class Driver:
    """A photo over which virtual people are pasted; controls (54,) that they take on."""

    item: AnalysedFrame
    face: Face
    controls: F32


def find_drivers(
    photos: Sequence[PersonPhoto], reader: PhotoReader, resting: F32, n: int = 64
) -> list[Driver]:
    """The first `n` people of the training part, in a seeded order, who look about ahead."""
    people: dict[int, PersonPhoto] = {}
    for photo in photos:
        if PARTS[photo.part] == "train":
            people.setdefault(photo.person, photo)
    found: list[Driver] = []
    for number in np.random.default_rng(0).permutation(sorted(people)):
        looked = reader.look(people[int(number)].path)
        if looked is None or (np.abs(looked[1].pose_ypr_deg[:2]) > MAX_DRIVER_DEG).any():
            continue
        image_rgb, mesh = looked
        controls = controls_of(mesh)
        controls[2:] = amplified(transfer(controls[2:], resting, resting), resting)
        box, points_5 = box_from_mesh(mesh.points_xyz), points_5_from_mesh(mesh.points_xyz)
        face = Face(1, box, points_5, 1.0, is_predicted=False, mesh=mesh)
        found.append(Driver(AnalysedFrame(Frame(image_rgb, 0, 0.0), (face,)), face, controls))
        if len(found) == n:
            break
    return found


class Renderer:
    """`models.rendered_people.Measure` and `Embed`."""

    def __init__(
        self,
        engines: ReenactEngines,
        motion: MotionMap,
        resting: F32,
        embed: Callable[[ImageRgb, F32], F32],
    ) -> None:
        self._puppet, self._motion, self._embed = Puppet(engines, motion), motion, embed
        self._landmarker = engines.landmarker
        self.at_rest = np.concatenate([np.zeros(2, np.float32), resting]).astype(np.float32)

    def measure(self, w_plus: F32) -> F32 | None:
        """(56,): controls of a rendering of W+ (23, 512), and how it looks; None when no face is found in it."""
        crop = self._puppet.render(w_plus)
        mesh = self._puppet.look(crop, None)
        return None if mesh is None else np.concatenate([controls_of(mesh), look_of(crop)])

    def show(self, styles: F32, own_controls: F32) -> tuple[ImageRgb, FaceMesh | None]:
        """The person of styles (3, 512) at rest, who by itself shows `own_controls` (54,), and its mesh."""
        w = styles[0].astype(np.float32)
        w_plus = np.repeat(styles, ROWS_OF_GROUP, 0).astype(np.float32)
        own = self._motion.coefficients(w, own_controls)
        w_plus = w_plus + self._motion.w_plus(w, self.at_rest, own) - w
        crop = self._puppet.render(w_plus)
        return crop, self._puppet.look(crop, None)

    def embed(self, styles: F32, own_controls: F32) -> F32 | None:
        """(2, 128) unit embeddings of that rendering."""
        crop, mesh = self.show(styles, own_controls)
        return None if mesh is None else self._embed(crop, points_5_from_mesh(mesh.points_xyz))

    def embed_pasted(self, styles: F32, own_controls: F32, driver: Driver) -> F32 | None:
        """(2, 128) unit embeddings of the person with the driver's motion, pasted over him."""
        w = styles[0].astype(np.float32)
        w_plus = np.repeat(styles, ROWS_OF_GROUP, 0).astype(np.float32)
        own = self._motion.coefficients(w, own_controls)
        crop = self._puppet.render(w_plus + self._motion.w_plus(w, driver.controls, own) - w)
        mesh, mesh_of_driver = self._puppet.look(crop, None), driver.face.mesh
        if mesh is None or mesh_of_driver is None:
            return None
        frame_from_crop = fit_frame_from_crop(mesh.points_xyz, mesh_of_driver.points_xyz)
        virtual = VirtualFace(driver.face.track_id, crop, mesh, frame_from_crop)
        looked = look_at_pasted(self._landmarker, driver.item, driver.face, virtual)
        return None if looked is None else self._embed(looked[0], points_5_from_mesh(looked[1].points_xyz))


@contextmanager
def open_renderer(store: ModelStore, args: argparse.Namespace, basis: IdentityBasis) -> Iterator[Renderer]:
    """A renderer; its networks are closed on leaving."""
    with ExitStack() as stack:
        generator = stack.enter_context(train_networks.network(store, "synthesis_256", args))
        landmarker = stack.enter_context(train_networks.landmarker(store))
        recogniser = Recogniser(train_networks.network(store, "sface_fast", args))
        stack.callback(recogniser.close)
        embed = stack.enter_context(train_networks.recognisers(store, args))
        motion = MotionMap(store.path("motion_map"))
        yield Renderer(ReenactEngines(generator, landmarker, recogniser), motion, basis.resting, embed)
