"""The projector's last steps: with the generator, the motion map, the paster and the recognisers in the loop."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from keyface.configs.errors import UsageError
from keyface.configs.people_split import Split
from keyface.models.generator import Generator256
from keyface.models.paste import PhotoCrops
from keyface.models.pasted_loop import PastedLoop, load_motion_map
from keyface.models.projector import Latents, Projector
from keyface.models.projector_data import Photos
from keyface.models.projector_judge import judge_projector
from keyface.models.rendered_people import Guess
from keyface.pipeline.face import F32
from keyface.pipeline.faces.align import ARCFACE_112
from keyface.pipeline.frame import ImageRgb
from keyface.pipeline.reenact.motion import MotionMap
from keyface.pipeline.reenact.puppet import Puppet, ReenactEngines
from keyface.tools import train_networks
from keyface.tools.train_photos import PhotoReader, list_photos
from keyface.tools.train_scenes import Scene, read_scenes

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore

SCORE = "score"


@dataclass(frozen=True, slots=True)
class PastedPeople:
    """What the loop needs of the photos of one part."""

    scenes: list[Scene]
    puppet: Puppet
    reader: PhotoReader

    @property
    def photos(self) -> Photos:
        """Embeddings and people of the scenes."""
        embeddings = np.stack([s.embeddings for s in self.scenes])
        return Photos(embeddings, np.array([s.person for s in self.scenes], np.int64))

    def place(self, number: int, crop_rgb: ImageRgb) -> tuple[F32, ImageRgb] | None:
        """`models.pasted_loop.Place`."""
        mesh = self.puppet.look(crop_rgb, None)
        return None if mesh is None else self.scenes[number].place(crop_rgb, mesh)

    def pasted(self, w: F32, number: int) -> ImageRgb:
        """The person w (512,) over a photo as the product makes it, but for the correction of pose: uint8
        (112, 112, 3); the photo itself where the face cannot be pasted."""
        scene = self.scenes[number]
        person = self.puppet.meet(w)
        crop, mesh = (
            (None, None) if person is None else self.puppet.show(person, scene.controls, person.own_mesh)
        )
        placed = None if crop is None or mesh is None else scene.place(crop, mesh)
        return scene.seen_in(scene.item.frame.image_rgb) if placed is None else placed[1]

    def recognise(self, styles: Tensor, photo: Tensor) -> Tensor:
        """Embeddings (N, R, 128) of the pasted faces, for `judge_projector`."""
        points = ARCFACE_112
        rows = [
            self.reader.recognise(self.pasted(w, int(number)), points)
            for w, number in zip(styles[:, 0].numpy(), photo, strict=True)
        ]
        return torch.from_numpy(np.stack(rows))

    def judge(self, projector: Projector, latents: Latents) -> dict[str, float]:
        """`judge_projector` on these photos. `score`: how much nearer the virtual faces of one person are than those
        of two people, of two keys, and than the original; mean cosines."""
        found = judge_projector(projector, latents, self.recognise, self.photos)
        apart = found["two_keys"] + found["different"] + 0.5 * found["original"]
        return found | {SCORE: round(2 * found["same"] - apart, 4)}


def make_loop(
    store: ModelStore, args: argparse.Namespace, latents: Latents, guess: Guess, people: PastedPeople
) -> PastedLoop:
    """The differentiable chain over the photos. Not compiled: with four renderings a step it gains nothing."""
    measure = train_networks.face_measure(store, "sface_fast", "mobilefacenet")
    return PastedLoop(
        Generator256.load(store.path("synthesis_1024"), store.path("head256")),
        measure.embed,
        load_motion_map(str(store.path("motion_map"))),
        latents,
        guess=guess.slope,
        photos=PhotoCrops.of([scene.crops for scene in people.scenes]),
        controls=np.stack([scene.controls for scene in people.scenes]),
        place=people.place,
        is_bfloat16=not args.no_compile,
    )


def read_people(
    args: argparse.Namespace, reader: PhotoReader, puppet: Puppet, resting: F32, part: Split, count: int
) -> PastedPeople:
    """Scenes of up to `count` people of a part.

    Raises:
        UsageError: no photos were given, or fewer than two people have two that can be used.
    """
    if not args.data:
        raise UsageError(
            "Steps with the generator in the loop paste over photos.", "Say where they are: --data DIR"
        )
    scenes = read_scenes(list_photos(args.data), part, reader, resting, people=count)
    if len({scene.person for scene in scenes}) < 2:
        raise UsageError(f"Fewer than two people of the part '{part}' have two photos that can be used.")
    return PastedPeople(scenes, puppet, reader)


@contextmanager
def open_puppet(store: ModelStore, args: argparse.Namespace) -> Iterator[Puppet]:
    """The product's puppet; its networks are closed on leaving."""
    from keyface.pipeline.faces.recognise import Recogniser

    with ExitStack() as stack:
        generator = stack.enter_context(train_networks.network(store, "synthesis_256", args))
        landmarker = stack.enter_context(train_networks.landmarker(store))
        recogniser = Recogniser(train_networks.network(store, "sface_fast", args))
        stack.callback(recogniser.close)
        yield Puppet(ReenactEngines(generator, landmarker, recogniser), MotionMap(store.path("motion_map")))
