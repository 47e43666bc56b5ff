"""`keyface train`: makes the weights that this package carries (for developers; see docs/training.md)."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import EngineError, UsageError
from keyface.tools import train_networks
from keyface.tools.train_projector_options import add_projector_options
from keyface.tools.train_recogniser import add_recogniser_step, make_recogniser
from keyface.tools.train_warp_options import add_warp_steps

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.models.population import F32

SAMPLES, CONTROLS = Path("runs/samples"), Path("runs/controls.npy")
HEAD_STEPS, MOTION_STEPS = 1800, 1900
_NEED_TORCH = {"head", "motion", "projector", "pairs", "keypoints", "warp", "recogniser"}


def add_parser(subparsers: Any) -> None:
    """Adds `train` and its steps to the sub-commands."""
    parser = subparsers.add_parser(
        "train",
        help="make the weights that keyface carries",
        description="Makes the weights of models/weights, step by step. Every step can be stopped and goes on "
        "from where it was when it is run again. docs/training.md tells the order.",
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    samples = steps.add_parser("samples", help="pictures of seeded generated people, for head and motion")
    samples.add_argument("--out", type=Path, default=SAMPLES, metavar="DIR", help=f"default: {SAMPLES}")
    samples.add_argument("--count", type=int, default=900, metavar="N", help="default: 900")
    samples.add_argument("--seed", type=int, default=7, help="labels fit seed 7 only (default: 7)")

    head = steps.add_parser("head", help="the generator's 256 px head (needs PyTorch)")
    _add_inputs(head, "head256", controls=False)
    _add_schedule(head, HEAD_STEPS)

    controls = steps.add_parser("controls", help="pose and expression, as numbers, of photos and clips")
    controls.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders of photos and clips"
    )
    controls.add_argument("--out", type=Path, default=CONTROLS, metavar="NPY", help=f"default: {CONTROLS}")

    motion = steps.add_parser("motion", help="the map from pose and expression to W+ (needs PyTorch)")
    _add_inputs(motion, "motion", controls=True)
    motion.add_argument("--head", type=Path, metavar="FILE", help="a head of yours (default: keyface's own)")
    motion.add_argument("--people", type=int, default=3, metavar="N", help="a step (default: 3)")
    motion.add_argument(
        "--start", type=Path, metavar="FILE", help="go on from this map (default: the linear edit)"
    )
    motion.add_argument(
        "--keyed", type=float, default=0.0, metavar="SHARE",
        help="of the people, drawn as a key and the projector make them (default: 0)",
    )  # fmt: skip
    motion.add_argument(
        "--rate", type=float, default=1e-3, metavar="LR", help="learning rate (default: 0.001)"
    )
    motion.add_argument(
        "--identity-weight", type=float, default=3.5, metavar="X", help="against expression (default: 3.5)"
    )
    _add_schedule(motion, MOTION_STEPS)

    identity = steps.add_parser("identity", help="the statistics that virtual identities are made from")
    _add_inputs(identity, "identity", controls=True)
    identity.add_argument("--labels", type=Path, metavar="TOML", help="default: models/labels/guards.toml")
    projector = steps.add_parser(
        "projector", help="the network that turns keyed codes into people (needs PyTorch)"
    )
    add_projector_options(projector)
    recogniser = add_recogniser_step(steps)
    for step in (samples, head, controls, motion, identity, projector, recogniser, *add_warp_steps(steps)):
        _add_common(step)


def _add_inputs(parser: argparse.ArgumentParser, name: str, *, controls: bool) -> None:
    out = Path("runs") / f"{name}.safetensors"
    parser.add_argument("--samples", type=Path, default=SAMPLES, metavar="DIR", help=f"default: {SAMPLES}")
    if controls:
        parser.add_argument(
            "--controls", type=Path, default=CONTROLS, metavar="NPY", help=f"default: {CONTROLS}"
        )
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"default: {out}")


def _add_schedule(parser: argparse.ArgumentParser, steps: int) -> None:
    parser.add_argument("--steps", type=int, default=steps, metavar="N", help=f"in all (default: {steps})")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--no-compile", action="store_true", help="float32 without a C++ compiler; slower")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what PyTorch computes on (default: cpu)"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), metavar="S", help="stop after S seconds"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(args: argparse.Namespace) -> int:
    """Runs one step and prints what it made."""
    _check(args)
    start = time.monotonic()
    steps: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "samples": _samples, "head": _head, "controls": _controls, "motion": _motion, "identity": _identity,
        "projector": _projector, "recogniser": make_recogniser, "pairs": _pairs, "keypoints": _keypoints,
        "warp": _warp,
    }  # fmt: skip
    with _log_lines(is_quiet=args.quiet):
        summary = {"step": args.step, "out": str(args.out), **steps[args.step](args)}
    summary["seconds"] = round(time.monotonic() - start, 1)
    if args.json:
        print(json.dumps(summary))
    else:
        print(", ".join(f"{name} {value}" for name, value in summary.items() if name != "step"))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("count", "steps", "people", "threads"):
        given = getattr(args, name, None)
        if given is not None and given < 1:
            raise UsageError(f"--{name}: got {given}, want 1 or more.")
    if not args.seconds > 0:
        raise UsageError(f"--seconds: got {args.seconds:g}, want more than 0.")
    if args.step in _NEED_TORCH and importlib.util.find_spec("torch") is None:
        raise EngineError(
            f"'keyface train {args.step}' needs PyTorch, which is not installed.",
            "Install it: pip install 'keyface[train]'",
        )
    if getattr(args, "device", "cpu") == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise EngineError("--device cuda: PyTorch sees no graphics card here.", "Leave the option out.")


def _projector(args: argparse.Namespace) -> dict[str, Any]:
    from keyface.tools.train_projector import train

    return train(args)


def _pairs(args: argparse.Namespace) -> dict[str, Any]:
    from keyface.tools import train_warp

    return train_warp.pairs(args)


def _keypoints(args: argparse.Namespace) -> dict[str, Any]:
    from keyface.tools import train_warp

    return train_warp.keypoints(args)


def _warp(args: argparse.Namespace) -> dict[str, Any]:
    from keyface.tools import train_warp

    return train_warp.warp(args)


def _samples(args: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from keyface.models import population
    from keyface.models.samples import make_samples

    store = train_networks.models(args, "mapping", "synthesis_1024")
    with (
        train_networks.network(store, "synthesis_1024", args) as engine,
        train_networks.mapping_network(store, args) as mapping,
    ):
        mean = population.load_or_measure(args.out, mapping).mean
        with tqdm(desc="samples", total=args.count, unit="sample", disable=args.quiet) as bar:
            done = make_samples(
                args.out, mapping, lambda w: engine.run({"w_plus": w})["image"], mean,
                count=args.count, seed=args.seed, seconds=args.seconds,
                on_sample=lambda n: _advance(bar, n),
            )  # fmt: skip
    return {"samples": done, "wanted": args.count}


def _head(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from keyface.models.checkpoint import steps_done
    from keyface.models.samples import load_samples
    from keyface.models.train_head import N_HELD_OUT, HeadConfig, train_head

    samples = load_samples(args.samples)
    if len(samples.images) < N_HELD_OUT + HeadConfig.batch:
        raise UsageError(
            f"There are {len(samples.images)} samples, want {N_HELD_OUT + HeadConfig.batch} or more.",
            f"Make more: keyface train samples --out {args.samples}",
        )
    store = train_networks.models(args, "synthesis_1024")
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    config = HeadConfig(
        seconds=args.seconds, steps=args.steps, seed=args.seed, is_compiled=train_networks.may_compile(args),
        device=args.device,
    )  # fmt: skip
    quality = train_head(store.path("synthesis_1024"), samples.w_plus, samples.images, args.out, config)
    return {"steps": steps_done(args.out), "psnr_db": round(quality, 2)}


def _controls(args: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from keyface.pipeline.faces.detect import YuNetDetector
    from keyface.tools.train_controls import ControlReader, list_sources, read_controls

    sources = list_sources(args.data)
    store = train_networks.models(args, "yunet_dynamic", "face_mesh", "face_blendshapes")
    with (
        train_networks.network(store, "yunet_dynamic", args) as engine,
        train_networks.landmarker(store) as landmarker,
        tqdm(desc="files", total=len(sources), unit="file", disable=args.quiet) as bar,
    ):
        done, rows = read_controls(
            sources, args.out, ControlReader(YuNetDetector(engine), landmarker),
            seconds=args.seconds, on_file=lambda n, _: _advance(bar, n),
            on_unreadable=lambda error: bar.write(f"left out: {error}", file=sys.stderr),
        )  # fmt: skip
    return {"files": done, "wanted": len(sources), "rows": rows}


def _motion(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch

    from keyface.models import motion_data, population
    from keyface.models.checkpoint import steps_done
    from keyface.models.generator import Generator256
    from keyface.models.samples import load_samples
    from keyface.models.train_motion import MotionConfig, train_motion
    from keyface.tools.train_controls import load_controls

    wanted = motion_data.wanted_controls(load_controls(args.controls))
    samples = load_samples(args.samples)
    store = train_networks.models(
        args, "synthesis_1024", "mapping", "face_mesh", "face_blendshapes", "mobilefacenet", "head256",
        "identity_basis", "projector",
    )  # fmt: skip
    torch.set_num_threads(args.threads)
    measure = train_networks.face_measure(store, "mobilefacenet")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    config = MotionConfig(
        people=args.people, lr=args.rate, seconds=args.seconds, steps=args.steps, seed=args.seed,
        identity_weight=args.identity_weight, is_compiled=train_networks.may_compile(args), device=args.device,
    )  # fmt: skip
    with train_networks.mapping_network(store, args) as mapping:
        people = population.load_or_measure(args.samples, mapping)
        measures = motion_data.load_or_measure(args.samples, samples, measure)
        generator = Generator256.load(store.path("synthesis_1024"), args.head or store.path("head256"))
        initial = motion_data.initial_map(people, measures)
        if args.start is not None:
            motion_data.read_map(args.start, initial)
        keyed = train_networks.keyed_people(store)

        def draw(n: int, rng: np.random.Generator) -> F32:
            n_keyed = int(rng.binomial(n, args.keyed))
            return np.concatenate([people.draw(n - n_keyed, rng, mapping), keyed(n_keyed, rng)])

        train_motion(generator, measure, draw, wanted, initial, args.out, config, _motion_guards(store))
    return {"steps": steps_done(args.out), "wanted": args.steps}


def _motion_guards(store: Any) -> tuple[Any, Any]:
    """Normals and steps (2, 512) of the guards against glasses and hair over the face, which motion must not
    touch; the guard against child faces is none of its business."""
    from safetensors.numpy import load_file

    tensors = load_file(str(store.path("identity_basis")))
    return tensors["guard_normals"][[0, 2]], tensors["guard_steps"][[0, 2]]


def _identity(args: argparse.Namespace) -> dict[str, Any]:
    from keyface.models import identity_basis, population
    from keyface.models.samples import load_samples
    from keyface.tools.train_controls import load_controls

    labels = identity_basis.load_labels(
        args.labels or Path(str(files("keyface.models"))) / "labels/guards.toml"
    )
    rows = load_controls(args.controls)
    samples = load_samples(args.samples)
    store = train_networks.models(args, "mapping", "face_mesh", "face_blendshapes", "sface_fast")
    with train_networks.mapping_network(store, args) as mapping:
        people = population.load_or_measure(args.samples, mapping)
    guards = identity_basis.fit_guards(samples, labels, people)
    with _face_looks(store, args) as (embed, cover):
        embeddings = identity_basis.generated_embeddings(samples, embed)
        guards["cover"] = identity_basis.fit_cover_guard(samples, cover, people)
    identity_basis.save_identity_basis(
        args.out,
        embeddings=embeddings,
        resting=identity_basis.resting_expression(rows),
        population=people,
        guards=guards,
    )
    return {f"quality_{name}": round(guard.quality, 3) for name, guard in guards.items()}


@contextmanager
def _face_looks(
    store: ModelStore, args: argparse.Namespace
) -> Iterator[tuple[Callable[[Any], F32 | None], Callable[[Any], float | None]]]:
    """Embedding and covered share of the face in FFHQ-aligned pictures, uint8 (256, 256, 3)."""
    from keyface.pipeline.faces.align import FFHQ_BOX
    from keyface.pipeline.faces.geometry import points_5_from_mesh
    from keyface.pipeline.faces.recognise import Recogniser
    from keyface.pipeline.reenact.face_cover import covered_share

    box = FFHQ_BOX * 256
    with ExitStack() as stack:
        landmarker = stack.enter_context(train_networks.landmarker(store))
        recogniser = Recogniser(train_networks.network(store, "sface_fast", args))
        stack.callback(recogniser.close)

        def embed(image_rgb: Any) -> F32 | None:
            mesh = landmarker.detect(image_rgb, box_xyxy=box)
            return None if mesh is None else recogniser.embed(image_rgb, points_5_from_mesh(mesh.points_xyz))

        def cover(image_rgb: Any) -> float | None:
            mesh = landmarker.detect(image_rgb, box_xyxy=box)
            return None if mesh is None else covered_share(image_rgb, mesh.points_xy)

        yield embed, cover


def _advance(bar: Any, n: int) -> None:
    bar.update(n - bar.n)


@contextmanager
def _log_lines(*, is_quiet: bool) -> Iterator[None]:
    """What the training code logs, as lines on standard error."""
    logger, handler = logging.getLogger("keyface"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if is_quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
