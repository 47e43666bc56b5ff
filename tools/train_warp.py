"""`keyface train pairs`, `keypoints` and `warp`: the weights of the warping reenactor, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from keyface.configs.errors import UsageError
from keyface.tools import train_networks

if TYPE_CHECKING:
    import torch

    from keyface.engines.store import ModelStore
    from keyface.models.keypoints import Shapes
    from keyface.models.population import F32
    from keyface.models.warp_batches import Drive
    from keyface.models.warp_judges import Judges
    from keyface.models.warp_loop import WarpLoop
    from keyface.models.warp_pairs import Pairs, Perform
    from keyface.models.warp_schedule import WarpSchedule
    from keyface.models.warp_validation import Validation
    from keyface.pipeline.reenact.keypoints import KeypointModel

_SIDE_PX = 256
JUDGES = ("face_mesh", "face_blendshapes", "mobilefacenet", "lpips")
Schedule = TypeVar("Schedule", bound="WarpSchedule")


# ---------------------------------------------------------------- pairs
def pairs(args: argparse.Namespace) -> dict[str, Any]:
    """Pictures of people in many poses; see `models.warp_pairs`."""
    from tqdm import tqdm

    from keyface.models.warp_pairs import make_pairs

    if args.views < 3:
        raise UsageError(
            f"--views: got {args.views}, want 3 or more: at rest, laughing, and some to learn from."
        )
    performers = _clips(args) if args.clips else _generated(args)
    with performers as perform, tqdm(total=args.people, unit="person", disable=args.quiet) as bar:
        done = make_pairs(
            args.out, perform, people=args.people, views=args.views, side_px=args.side, seconds=args.seconds,
            on_person=lambda n: bar.update(n - bar.n),
        )  # fmt: skip
    return {"people": done, "wanted": args.people}


@contextmanager
def _generated(args: argparse.Namespace) -> Iterator[Perform]:
    from keyface.models import motion_data, population
    from keyface.pipeline.faces.recognise import Recogniser
    from keyface.pipeline.people.virtual import IdentityBasis
    from keyface.pipeline.reenact.motion import MotionMap
    from keyface.pipeline.reenact.puppet import Puppet, ReenactEngines
    from keyface.tools.train_controls import load_controls
    from keyface.tools.train_performers import GeneratedPerformer

    wanted = motion_data.wanted_controls(load_controls(args.controls))
    synthesis = "synthesis_256" if args.side == _SIDE_PX else "synthesis_1024"
    store = train_networks.models(
        args, synthesis, "mapping", "face_mesh", "face_blendshapes", "sface_fast", "motion_map",
        "identity_basis", "projector",
    )  # fmt: skip
    keyed = train_networks.keyed_people(store)
    resting = IdentityBasis.load(store.path("identity_basis")).resting
    with (
        train_networks.mapping_network(store, args) as mapping,
        train_networks.network(store, synthesis, args) as generator,
        train_networks.network(store, "sface_fast", args) as sface,
        train_networks.landmarker(store) as landmarker,
    ):
        people = population.load_or_measure(args.samples, mapping)

        def draw(n: int, rng: np.random.Generator) -> F32:
            return keyed(n, rng) if rng.random() < args.keyed else people.draw(n, rng, mapping)

        engines = ReenactEngines(generator, landmarker, Recogniser(sface))
        puppet = Puppet(engines, MotionMap(store.path("motion_map")))
        yield GeneratedPerformer(puppet, draw, wanted, resting, args.views, args.seed, side_px=args.side)


@contextmanager
def _clips(args: argparse.Namespace) -> Iterator[Perform]:
    """Person n: other frames of clip n * clips // people, so that all clips have as many."""
    from keyface.pipeline.faces.detect import YuNetDetector
    from keyface.tools.train_performers import ClipPerformer, list_clips

    clips = list_clips(args.clips)
    if not clips:
        raise UsageError("There is no clip in the folders given.", "Give folders that hold some: --clips DIR")
    store = train_networks.models(args, "yunet_dynamic", "face_mesh", "face_blendshapes")
    lengths: dict[Path, int] = {}
    with (
        train_networks.network(store, "yunet_dynamic", args) as engine,
        train_networks.landmarker(store) as landmarker,
    ):
        performer = ClipPerformer(YuNetDetector(engine), landmarker, side_px=args.side)

        def perform(number: int) -> list[Any]:
            clip = clips[number * len(clips) // max(args.people, len(clips))]
            if clip not in lengths:
                lengths[clip] = first_shot_frames(clip)
            rng = np.random.default_rng([args.seed, number])
            n = lengths[clip]
            return performer.views(pick_frames(clip, rng.choice(n, args.views, replace=n < args.views)))

        yield perform


def first_shot_frames(clip: Path) -> int:
    """Frames before the first scene cut. Raises SourceError."""
    from keyface.pipeline.faces.scene_cut import SceneCutDetector
    from keyface.pipeline.media.capture import FileSource

    cuts, count = SceneCutDetector(), 0
    with FileSource(clip) as source:
        for frame in source:
            if cuts.is_cut(frame.image_rgb):
                break
            count += 1
    return count


def pick_frames(clip: Path, wanted: Sequence[int] | np.ndarray) -> list[Any]:
    """uint8 (H, W, 3) of the frames with these numbers, in the order of the numbers given. Raises SourceError."""
    from keyface.pipeline.media.capture import FileSource

    found: dict[int, Any] = {}
    numbers = [int(number) for number in wanted]
    with FileSource(clip) as source:
        for index, frame in enumerate(source):
            if index in numbers:
                found[index] = frame.image_rgb
            if index >= max(numbers):
                break
    return [found[number] for number in numbers]


# ---------------------------------------------------------------- keypoints
def keypoints(args: argparse.Namespace) -> dict[str, Any]:
    """The map from blendshapes to shifts of keypoints; see `models.keypoints`."""
    import torch

    from keyface.models.keypoints import KeypointConfig, train_keypoints
    from keyface.models.warp_pairs import load_pairs

    found = load_pairs(args.pairs)
    if len(found) < 2:
        raise UsageError(f"{args.pairs} holds {len(found)} people, want 2 or more.", "Make more of them.")
    store = train_networks.models(args, "face_mesh", "face_blendshapes")
    measure = train_networks.face_measure(store)
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    config = replace(KeypointConfig(), seconds=args.seconds, seed=args.seed)
    if args.steps is not None:
        config = replace(config, steps=args.steps)

    def read(points: torch.Tensor) -> torch.Tensor:
        seen = (points + 1) * (_SIDE_PX / 2) - 0.5
        shapes: torch.Tensor = measure.shapes(seen[:, measure.subset, :2])[0].reshape(-1, 52)
        return shapes

    result = train_keypoints(shapes_of(found), read, args.out, config)
    return {name: round(value, 4) for name, value in result.items()} | {"wanted": config.steps}


def shapes_of(found: Pairs) -> Shapes:
    """The canonical points of all views, and how each source frame lies in its crop."""
    from keyface.models.keypoints import Shapes
    from keyface.pipeline.reenact.keypoints import fit_pose, unit_points

    n_people, n_views = found.points.shape[:2]
    canonical = np.zeros_like(found.points)
    rotation, shift = np.zeros((n_people, 3, 3), np.float32), np.zeros((n_people, 3), np.float32)
    scale = np.zeros(n_people, np.float32)
    for person in range(n_people):
        for view in reversed(range(n_views)):
            points = unit_points(found.points[person, view], _SIDE_PX)
            turned, size, moved = fit_pose(points)
            canonical[person, view] = (points - moved) @ turned / size
        rotation[person], shift[person], scale[person] = turned, moved, size  # of the first view, the source
    return Shapes(canonical, found.controls, rotation, shift, scale)


# ---------------------------------------------------------------- warp
def warp(args: argparse.Namespace) -> dict[str, Any]:
    """The networks; writes them, curves and a validation grid, whether or not the schedule has ended."""
    from keyface.tools import train_warp_full

    if args.size == "full":
        return train_warp_full.train(args)
    import torch

    from keyface.models.train_warp import WarpConfig, train_warp
    from keyface.models.warp_export import export_warp
    from keyface.models.warp_validation import validate
    from keyface.pipeline.reenact.keypoints import KeypointModel

    config = read_schedule(args, WarpConfig)
    config = replace(config, is_compiled=config.is_compiled and train_networks.may_compile(args))
    train, held = load_all_pairs(args.pairs, args.held)
    own = () if args.keypoints else ("keypoints",)
    store = train_networks.models(args, *JUDGES, *own)
    model = KeypointModel.load(args.keypoints or store.path("keypoints"))
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    training = train_warp(train, drive_of(model, train), judges_of(store), args.out, config)
    found = validate(training.average, held, drive_of(model, held), training.judges, device=training.c.device)
    result = write_validation(training, found, args.out)
    export_warp(training.average, args.out)
    return {"steps": training.step, "wanted": config.steps, **result}


def read_schedule(args: argparse.Namespace, kind: type[Schedule]) -> Schedule:
    """The size's own configuration or the one given, with what the command line says.

    Raises:
        UsageError: it cannot be read, or holds what cannot be.
    """
    from keyface.configs.schema import load_options

    if args.minutes is not None and not args.minutes > 0:
        raise UsageError(f"--minutes: got {args.minutes:g}, want more than 0.")
    path = args.config or Path(str(files("keyface.configs"))) / "warp" / f"{args.size}.toml"
    try:
        config = load_options(kind, path)
    except ValueError as error:  # sizes of a network that do not fit together
        raise UsageError(f"{path}: {error}.") from error
    changes: dict[str, Any] = {"seconds": args.seconds, "device": args.device}
    if args.minutes is not None:
        changes["seconds"] = min(args.seconds, 60 * args.minutes)
    given = {name: getattr(args, name) for name in ("steps", "seed") if getattr(args, name) is not None}
    return replace(config, **changes, **given)


def judges_of(store: ModelStore) -> Judges:
    """The frozen networks of the losses, from a store that holds `JUDGES`."""
    from keyface.models.lpips import Lpips
    from keyface.models.warp_judges import Judges

    return Judges(Lpips.load(store.path("lpips")), train_networks.face_measure(store, "mobilefacenet"))


def load_all_pairs(folders: Sequence[Path], n_held: int) -> tuple[Pairs, Pairs]:
    """All people but the first folder's first `n_held`, and those.

    Raises:
        UsageError: a folder without pairs, too few people, other numbers of views, or pictures of another side.
    """
    from keyface.models.warp_pairs import Pairs, load_pairs

    first, *others = [load_pairs(folder) for folder in folders]
    if not 0 < n_held < len(first):
        raise UsageError(f"--held: got {n_held}, want 1 to {len(first) - 1} of the people in {folders[0]}.")
    train, held = first.split(n_held)
    views = {found.images.shape[1] for found in (first, *others)}
    if len(views) > 1:
        raise UsageError(
            f"The folders of pairs have {' and '.join(str(n) for n in sorted(views))} views of each person.",
            "Make them with one number of --views.",
        )
    sides = {found.side_px for found in (first, *others)}
    if len(sides) > 1:
        raise UsageError(
            f"The folders of pairs hold pictures of {' and '.join(str(n) for n in sorted(sides))} px.",
            "Make them with one --side.",
        )
    names = ("images", "points", "controls", "poses")
    joined = [np.concatenate([getattr(found, name) for found in (train, *others)]) for name in names]
    return Pairs(*joined), held


def drive_of(model: KeypointModel, found: Pairs) -> Drive:
    """(person, source view, driving view) -> the points (478, 3) that the keypoint model predicts."""
    from keyface.pipeline.face import FaceMesh
    from keyface.pipeline.reenact.keypoints import SourceShape

    sources: dict[tuple[int, int], SourceShape] = {}

    def drive(person: int, source: int, driving: int) -> np.ndarray:
        at = person, source
        if at not in sources:
            mesh = FaceMesh(found.points[at], found.controls[at][2:], found.poses[at], 1.0)
            sources[at] = model.source(mesh, _SIDE_PX)
        return model.driving(sources[at], found.controls[person, driving])

    return drive


def write_validation(training: WarpLoop, found: Validation, out: Path) -> dict[str, float]:
    """Writes the grid of pictures and the curves into a folder, and gives the figures for the summary."""
    from keyface.models.loss_plot import plot_losses
    from keyface.models.warp_validation import write_grid, write_history

    write_grid(out / "validation.jpg", found)
    if training.history:
        write_history(out / "losses.csv", training.history)
        plot_losses(out / "losses.csv", out / "losses.png")
    return {name: round(value, 4) for name, value in found.figures.items()}
