"""Renders and recognises people for the projector's training, with the product's own networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from keyface.models.projector import ROWS_OF_GROUP
from keyface.pipeline.face import F32, FaceMesh
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.geometry import points_5_from_mesh
from keyface.pipeline.motion import MotionMap, controls_of
from keyface.pipeline.puppet import Puppet, ReenactEngines
from keyface.pipeline.recognise import Recogniser
from keyface.tools import train_networks

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.virtual import IdentityBasis


class Renderer:
    """`models.rendered_people.Measure` and `Embed`."""

    def __init__(
        self, puppet: Puppet, motion: MotionMap, resting: F32, embed: Callable[[ImageRgb, F32], F32]
    ) -> None:
        self._puppet, self._motion, self._embed = puppet, motion, embed
        self._at_rest = np.concatenate([np.zeros(2, np.float32), resting]).astype(np.float32)

    def controls(self, w_plus: F32) -> F32 | None:
        """(54,) of a rendering of W+ (23, 512); None when no face is found in it."""
        mesh = self._puppet.look(self._puppet.render(w_plus), None)
        return None if mesh is None else controls_of(mesh)

    def show(self, styles: F32, own_controls: F32) -> tuple[ImageRgb, FaceMesh | None]:
        """The person of styles (3, 512) at rest, who by itself shows `own_controls` (54,), and its mesh."""
        w = styles[0].astype(np.float32)
        w_plus = np.repeat(styles, ROWS_OF_GROUP, 0).astype(np.float32)
        own = self._motion.coefficients(w, own_controls)
        w_plus = w_plus + self._motion.w_plus(w, self._at_rest, own) - w
        crop = self._puppet.render(w_plus)
        return crop, self._puppet.look(crop, None)

    def embed(self, styles: F32, own_controls: F32) -> F32 | None:
        """(2, 128) unit embeddings of that rendering."""
        crop, mesh = self.show(styles, own_controls)
        return None if mesh is None else self._embed(crop, points_5_from_mesh(mesh.points_xyz))


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
        puppet = Puppet(ReenactEngines(generator, landmarker, recogniser), motion)
        yield Renderer(puppet, motion, basis.resting, embed)
