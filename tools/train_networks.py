"""The networks that training steps use, and what they need of the machine."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from keyface.engines.engine import Engine
    from keyface.engines.store import ModelStore
    from keyface.models.face_measure import FaceMeasure
    from keyface.models.population import F32, Mapping
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker
    from keyface.pipeline.frame import ImageRgb


def models(args: argparse.Namespace, *names: str) -> ModelStore:
    """The store, with these models in it."""
    from keyface.engines.store import ModelStore
    from keyface.tools.pull_bars import PullBars

    store = ModelStore()
    with PullBars(is_quiet=args.quiet) as bars:
        store.ensure(names, bars)
    return store


def network(store: ModelStore, name: str, args: argparse.Namespace) -> Engine:
    """On ONNX Runtime in float32 whatever is installed, so that every machine makes the same numbers."""
    from keyface.engines.open import open_engine

    return open_engine(
        store.path(name), name=name, backend="onnxruntime", precision="f32", threads=args.threads
    )


@contextmanager
def mapping_network(store: ModelStore, args: argparse.Namespace) -> Iterator[Mapping]:
    """z (N, 512) -> w (N, 512)."""
    with network(store, "mapping", args) as engine:
        yield lambda z: engine.run({"z": z})["w"]


def keyed_people(store: ModelStore) -> Callable[[int, np.random.Generator], F32]:
    """(n, rng) -> w (n, 512) of people as random keys make them, by the store's projector."""
    from keyface.pipeline.people.projector import Projector
    from keyface.pipeline.people.virtual import IdentityBasis

    projector = Projector.load(store.path("projector"))
    basis = IdentityBasis.load(store.path("identity_basis"))

    def draw(n: int, rng: np.random.Generator) -> F32:
        codes = rng.standard_normal((n, projector.n_code))
        codes *= (projector.n_code**0.5 / np.linalg.norm(codes, axis=1))[:, None]
        people = [basis.person_at(projector.coordinates(code)) for code in codes]
        return np.reshape(people, (n, len(basis.w_mean))).astype(np.float32)

    return draw


@contextmanager
def landmarker(store: ModelStore) -> Iterator[LiteRtLandmarker]:
    """The product's landmarks; closed on leaving."""
    from keyface.engines.open import open_engine
    from keyface.pipeline.faces.landmarks import LiteRtLandmarker

    mesh, shapes = (open_engine(store.path(n), name=n, threads=1) for n in ("face_mesh", "face_blendshapes"))
    found = LiteRtLandmarker(mesh, shapes)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def recognisers(store: ModelStore, args: argparse.Namespace) -> Iterator[Callable[[ImageRgb, F32], F32]]:
    """Picture and five points (5, 2) -> unit embeddings (2, 128) by SFace and MobileFaceNet."""
    from keyface.configs.manifest import load_manifest
    from keyface.pipeline.faces.align import align_arcface

    facts = load_manifest()["mobilefacenet"]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (facts.mean, facts.std))
    with ExitStack() as stack:
        sface, mobile = (
            stack.enter_context(network(store, n, args)) for n in ("sface_fast", "mobilefacenet")
        )
        name = next(iter(mobile.inputs))

        def embed(image_rgb: ImageRgb, points_5: F32) -> F32:
            crop = align_arcface(image_rgb, points_5).crop_rgb.transpose(2, 0, 1).astype(np.float32)[None]
            scaled = np.ascontiguousarray((crop - mean) / std, np.float32)
            found = [
                sface.run({"data": np.ascontiguousarray(crop)})["fc1"].ravel(),
                next(iter(mobile.run({name: scaled}).values())).ravel(),
            ]
            return np.stack([v / max(float(np.linalg.norm(v)), 1e-9) for v in found]).astype(np.float32)

        yield embed


def face_measure(store: ModelStore, *recogniser_names: str) -> FaceMeasure:
    """The differentiable judges of training, with these recognisers."""
    from keyface.models.face_measure import FaceMeasure
    from keyface.pipeline.faces import canonical

    rigid = canonical.RIGID_INDEX
    return FaceMeasure(
        store.path("face_mesh"),
        store.path("face_blendshapes"),
        {name.removesuffix("_fast"): store.path(name) for name in recogniser_names},
        np.column_stack([rigid, canonical.RIGID_WEIGHT, canonical.CANONICAL_XYZ[rigid]]),
    )


def log_line(text: str) -> None:
    """A line for who watches the training."""
    logging.getLogger("keyface").info("%s", text)


def may_compile(args: argparse.Namespace) -> bool:
    """Fused kernels need a C++ compiler; without one, says so and goes on more slowly."""
    if args.no_compile:
        return False
    if any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        return True
    logging.getLogger("keyface").warning("no C++ compiler found: training in float32 without fused kernels")
    return False
