"""`keyface train recogniser`: generated people as the second recogniser sees them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keyface.configs.errors import EngineError
from keyface.tools import train_networks

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.models.population import F32
    from keyface.pipeline.face import FaceMesh
    from keyface.pipeline.frame import ImageRgb

OUT = Path("runs/recogniser")
COHORT = "cohort.safetensors"
N_COHORT = 64
_PEOPLE = ("mapping", "synthesis_256", "face_mesh", "face_blendshapes", "identity_basis")


def add_recogniser_step(steps: Any) -> argparse.ArgumentParser:
    """The parser of the step."""
    parser: argparse.ArgumentParser = steps.add_parser(
        "recogniser", help="generated people as the second recogniser sees them"
    )
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"default: {OUT}")
    return parser


def make_recogniser(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the embeddings."""
    from safetensors.numpy import save_file

    from keyface.pipeline.faces.geometry import points_5_from_mesh
    from keyface.pipeline.faces.recognise import MOBILEFACENET, Recogniser

    store = train_networks.models(args, "mobilefacenet", *_PEOPLE)
    args.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        recogniser = Recogniser(train_networks.network(store, "mobilefacenet", args), MOBILEFACENET)
        stack.callback(recogniser.close)
        people = itertools.islice(stack.enter_context(_People(store, args)), N_COHORT)
        cohort = np.stack([recogniser.embed(i, points_5_from_mesh(m.points_xyz)) for i, m in people])
    save_file({"mobilefacenet": np.ascontiguousarray(cohort, np.float16)}, str(args.out / COHORT))
    cosines = (cohort @ cohort.T)[np.triu_indices(N_COHORT, 1)]
    return {"people": N_COHORT, "mean_cosine": round(float(cosines.mean()), 3)}


class _People(ExitStack):
    """Pictures of the generated people of `keyface train samples`, those of one person each, with their meshes."""

    def __init__(self, store: ModelStore, args: argparse.Namespace) -> None:
        super().__init__()
        self._store, self._args = store, args

    def __iter__(self) -> Iterator[tuple[ImageRgb, FaceMesh]]:
        from keyface.models.samples import is_mixed, recipes, shrunk, styles
        from keyface.pipeline.faces.align import FFHQ_BOX
        from keyface.pipeline.people.virtual import IdentityBasis

        mean_w = IdentityBasis.load(self._store.path("identity_basis")).w_mean
        mapping = self.enter_context(train_networks.mapping_network(self._store, self._args))
        generator = self.enter_context(train_networks.network(self._store, "synthesis_256", self._args))
        landmarker = self.enter_context(train_networks.landmarker(self._store))

        def render(w_plus: F32) -> ImageRgb:
            return shrunk(generator.run({"w_plus": w_plus[None]})["image"])

        for index, recipe in enumerate(recipes()):
            if is_mixed(index):
                continue
            if index > 10 * N_COHORT:
                raise EngineError("the generator shows no faces.", "Pull the models again.")
            image_rgb = render(styles(recipe, mapping, mean_w))
            mesh = landmarker.detect(image_rgb, box_xyxy=FFHQ_BOX * image_rgb.shape[0])
            if mesh is not None:
                yield image_rgb, mesh
