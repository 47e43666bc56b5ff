"""`keyface train projector`: photos, renderings, surrogate, projector, fine-tuning, in this order.

Whatever is there already is not made again, so that a stopped training goes on, and several configurations share
photos, renderings and surrogate.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from keyface.configs.projector import ProjectorConfig, load_projector_config
from keyface.models import population
from keyface.models.generator import Generator256, onnx_initialisers
from keyface.models.generator_loop import GeneratorLoop, load_motion_map
from keyface.models.loss_plot import plot_losses
from keyface.models.projector import Latents, Projector, RotationProjector, mapping_layers
from keyface.models.projector_data import TripletSource, fit_metric
from keyface.models.projector_judge import judge_projector
from keyface.models.rendered_people import (
    Guess,
    fit_guess,
    load_people,
    render_pasted,
    render_people,
)
from keyface.models.surrogate import Seen, Surrogate, train_surrogate
from keyface.models.train_projector import Phase, Training, make_projector, save_projector
from keyface.tools import train_networks
from keyface.tools.train_photos import PhotoReader, list_photos, load_photos, read_photos
from keyface.tools.train_renders import Renderer, find_drivers, open_renderer

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.people.virtual import IdentityBasis

_MODELS = (
    "mapping", "synthesis_256", "synthesis_1024", "head256", "face_mesh", "face_blendshapes", "yunet_dynamic",
    "sface", "sface_fast", "mobilefacenet", "motion_map", "identity_basis",
)  # fmt: skip
PHOTOS, SURROGATE, FIRST = "photos.npz", "surrogate{}.safetensors", "first.safetensors"

FIRST_STEPS = 600


class _Workshop:
    """What every part of the training needs."""

    def __init__(self, args: argparse.Namespace) -> None:
        from keyface.pipeline.people.virtual import IdentityBasis

        self.args = args
        self.until_s = time.monotonic() + args.seconds if math.isfinite(args.seconds) else math.inf
        config = load_projector_config(args.config).without(tuple(args.without))
        self.config: ProjectorConfig = (
            config if args.seed is None else dataclasses.replace(config, seed=args.seed)
        )
        self.store: ModelStore = train_networks.models(args, *_MODELS)
        self.basis: IdentityBasis = IdentityBasis.load(self.store.path("identity_basis"))
        torch.set_num_threads(args.threads)
        args.work.mkdir(parents=True, exist_ok=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        b = self.basis
        self.latents = Latents(
            b.w_mean, b.axes, b.deviations, (b.guard_normals, b.guard_steps, b.guard_limits),
            mapping_layers(onnx_initialisers(self.store.path("mapping"))),
        )  # fmt: skip

    @property
    def seconds_left(self) -> float:
        return self.until_s - time.monotonic()


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is not done yet; the summary holds the figures on validation people."""
    shop = _Workshop(args)
    _read_photos(shop)
    with train_networks.mapping_network(shop.store, args) as mapping:
        people = population.load_or_measure(args.work, mapping)
        with open_renderer(shop.store, args, shop.basis) as renderer:
            guess = fit_guess(args.work, shop.latents, mapping, renderer.measure, renderer.at_rest)
            done = render_people(
                args.work,
                shop.latents,
                mapping,
                guess,
                renderer.embed,
                count=args.renders,
                seconds=shop.seconds_left,
            )
            if done < args.renders * 0.9:
                return {"renders": done, "wanted": args.renders}
            surrogate = _surrogate(shop, people, "")
            if args.renders_again:
                if not (args.work / SURROGATE.format("-again")).exists():
                    _render_pasted(shop, renderer, surrogate, guess)
                surrogate = _surrogate(shop, people, "-again")
    return _train_on(shop, surrogate, guess)


def _render_pasted(shop: _Workshop, renderer: Renderer, surrogate: Surrogate, guess: Guess) -> None:
    """People of a first projector, pasted over photos."""
    first = _first_projector(shop, surrogate, guess)
    with _photo_reader(shop) as reader:
        drivers = find_drivers(list_photos(shop.args.data), reader, shop.basis.resting)
    render_pasted(
        shop.args.work, shop.latents, guess,
        lambda w, own, number: renderer.embed_pasted(w, own, drivers[number - 1]), first,
        count=shop.args.renders_again, n_drivers=len(drivers), seconds=shop.seconds_left,
    )  # fmt: skip


def _read_photos(shop: _Workshop) -> None:
    out = shop.args.work / PHOTOS
    if out.exists() and not shop.args.data:
        return
    photos = list_photos(shop.args.data)
    with _photo_reader(shop) as reader:
        read_photos(photos, out, reader, seconds=shop.seconds_left)


def _surrogate(shop: _Workshop, people: population.Population, suffix: str) -> Surrogate:
    path = shop.args.work / SURROGATE.format(suffix)
    if not path.exists():
        model, quality = train_surrogate(
            load_people(shop.args.work), people, steps=shop.args.surrogate_steps, seed=shop.config.seed
        )
        train_networks.log_line(f"surrogate{suffix}: {quality}")
        model.save(path)
    return Surrogate.load(path)


def _source(shop: _Workshop) -> TripletSource:
    people = load_people(shop.args.work)
    return TripletSource(load_photos(shop.args.work / PHOTOS, "train"), people.embeddings[people.driver == 0])


def _first_projector(shop: _Workshop, surrogate: Surrogate, guess: Guess) -> RotationProjector:
    """The default form, trained shortly: its people are where the surrogate has to be right."""
    config = dataclasses.replace(load_projector_config("default"), steps=FIRST_STEPS, spread=1.0)
    first = _trained(shop, config, surrogate, guess, shop.args.work / FIRST)
    assert isinstance(first, RotationProjector)
    return first


def _trained(
    shop: _Workshop, config: ProjectorConfig, surrogate: Surrogate, guess: Guess, out: Path
) -> Projector:
    metric = fit_metric(load_photos(shop.args.work / PHOTOS, "train"), config.n_code)
    projector = make_projector(config, shop.latents, metric, guess.looks, surrogate)
    phase = Phase("surrogate", config.steps, config.batch, config.lr, Seen(surrogate, seed=config.seed))
    Training(projector, shop.latents, _source(shop), out).run(phase, until_s=shop.until_s)
    projector.eval()
    return projector


def _train_on(shop: _Workshop, surrogate: Surrogate, guess: Guess) -> dict[str, Any]:
    config, args = shop.config, shop.args
    projector = _trained(shop, config, surrogate, guess, args.out)
    training = Training(projector, shop.latents, _source(shop), args.out)
    if config.fine_steps and training.steps_done("surrogate") >= config.steps:
        phase = Phase("fine", config.fine_steps, config.fine_batch, config.fine_lr, _loop(shop, guess))
        training.run(phase, until_s=shop.until_s)
    projector.eval()
    save_projector(projector, args.out)
    plot_losses(args.out.with_suffix(".csv"), args.out.with_suffix(".png"))
    judged = judge_projector(
        projector, shop.latents, surrogate, load_photos(args.work / PHOTOS, "validation")
    )
    steps = {phase: training.steps_done(phase) for phase in ("surrogate", "fine")}
    return {"steps": steps, "wanted": {"surrogate": config.steps, "fine": config.fine_steps}, **judged}


def _loop(shop: _Workshop, guess: Guess) -> GeneratorLoop:
    is_compiled = train_networks.may_compile(shop.args)
    generator = Generator256.load(shop.store.path("synthesis_1024"), shop.store.path("head256"))
    return GeneratorLoop(
        torch.compile(generator.to(memory_format=torch.channels_last), dynamic=False)
        if is_compiled
        else generator,
        train_networks.face_measure(shop.store, "sface", "mobilefacenet"),
        load_motion_map(str(shop.store.path("motion_map"))),
        shop.latents,
        guess=guess.slope,
        at_rest=np.concatenate([np.zeros(2, np.float32), shop.basis.resting]),
        is_bfloat16=is_compiled,
    )


@contextmanager
def _photo_reader(shop: _Workshop) -> Iterator[PhotoReader]:
    from keyface.pipeline.faces.detect import DetectOptions, YuNetDetector

    with ExitStack() as stack:
        detector = YuNetDetector(
            train_networks.network(shop.store, "yunet_dynamic", shop.args),
            DetectOptions(min_face_input_px=32),
        )
        stack.callback(detector.close)
        landmarker = stack.enter_context(train_networks.landmarker(shop.store))
        recognise = stack.enter_context(train_networks.recognisers(shop.store, shop.args))
        yield PhotoReader(detector, landmarker, recognise)
