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

import torch

from keyface.configs.projector import ProjectorConfig, load_projector_config
from keyface.models import population
from keyface.models.generator import onnx_initialisers
from keyface.models.keep_best import KeepBest
from keyface.models.loss_plot import plot_losses
from keyface.models.projector import Latents, Projector, RotationProjector, mapping_layers
from keyface.models.projector_data import PhotoTriplets, TripletSource, fit_metric
from keyface.models.projector_judge import judge_projector
from keyface.models.rendered_people import (
    Guess,
    fit_guess,
    load_people,
    render_pasted,
    render_people,
)
from keyface.models.surrogate import Seen, Surrogate, train_surrogate
from keyface.models.train_projector import (
    Phase,
    Training,
    load_projector,
    make_projector,
    save_projector,
)
from keyface.tools import train_networks, train_projector_loop
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
    if args.start is not None:
        return _start_in_loop(shop)
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
    figures: dict[str, Any] = {}
    if config.fine_steps and training.steps_done("surrogate") >= config.steps:
        training, figures = _train_in_loop(shop, projector, guess)
    projector.eval()
    save_projector(projector, args.out)
    plot_losses(args.out.with_suffix(".csv"), args.out.with_suffix(".png"))
    judged = judge_projector(
        projector, shop.latents, surrogate, load_photos(args.work / PHOTOS, "validation")
    )
    steps = {phase: training.steps_done(phase) for phase in ("surrogate", "fine")}
    return {
        "steps": steps, "wanted": {"surrogate": config.steps, "fine": config.fine_steps}, **judged, **figures
    }  # fmt: skip


def _start_in_loop(shop: _Workshop) -> dict[str, Any]:
    """Goes on from another projector, with the generator in the loop."""
    args = shop.args
    with (
        train_networks.mapping_network(shop.store, args) as mapping,
        open_renderer(shop.store, args, shop.basis) as renderer,
    ):
        guess = fit_guess(args.work, shop.latents, mapping, renderer.measure, renderer.at_rest)
    projector = load_projector(shop.config, shop.latents, args.start)
    training, figures = _train_in_loop(shop, projector, guess)
    save_projector(projector, args.out)
    if args.out.with_suffix(".csv").exists():  # a row each 25 steps
        plot_losses(args.out.with_suffix(".csv"), args.out.with_suffix(".png"))
    done = {"fine": training.steps_done("fine")}
    return {"steps": done, "wanted": {"fine": shop.config.fine_steps}, **figures}


def _train_in_loop(
    shop: _Workshop, projector: Projector, guess: Guess
) -> tuple[Training, dict[str, dict[str, float]]]:
    """The fine phase; ends with the weights that were best on validation people, and with their figures."""
    args, config = shop.args, shop.config
    with _photo_reader(shop) as reader, train_projector_loop.open_puppet(shop.store, args) as puppet:
        resting = shop.basis.resting
        real = train_projector_loop.read_people(args, reader, puppet, resting, "train", args.loop_people)
        judges = train_projector_loop.read_people(
            args, reader, puppet, resting, "validation", args.judge_people
        )
        training = Training(projector, shop.latents, PhotoTriplets(real.photos), args.out)
        best = KeepBest(
            projector, args.out, lambda: judges.judge(projector, shop.latents),
            train_projector_loop.SCORE, every=args.judge_every,
        )  # fmt: skip
        if not training.steps_done("fine"):
            best.look(0)
        loop = train_projector_loop.make_loop(shop.store, args, shop.latents, guess, real)
        phase = Phase("fine", config.fine_steps, config.fine_batch, config.fine_lr, loop)
        training.run(phase, until_s=shop.until_s, after=best.look)
        best.restore()
        projector.eval()
        return training, {"pasted": judges.judge(projector, shop.latents)}


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
