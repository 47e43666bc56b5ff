"""Training pictures: seeded people of the generator with their 1024 px rendering, area-averaged to 256 px.

Sample i is always the same person: every draw comes from one seeded generator in a fixed order, so that labels
given by hand to samples (models/labels) stay true, and so that making more samples continues the same list.
Every fourth sample mixes the styles of two people, which only the head is trained on.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from keyface.configs.errors import UsageError
from keyface.models.arrays import read_arrays, write_arrays
from keyface.models.population import F32, Mapping

U8 = npt.NDArray[np.uint8]
Synthesis = Callable[[F32], F32]  # W+ (1, 23, 512) -> RGB (1, 3, 1024, 1024), about [-1, 1]

SEED = 7
COUNT = 900
N_STYLES = 23
SIDE_PX = 256
MIX_EVERY = 4
SHARD = 50  # samples in a file
FORMAT = "keyface/samples/1"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one sample is made from: two z (2, 512), truncation psi, and the row of W+ from which on the second
    person's w is used (None: never)."""

    z: F32
    psi: float
    switch: int | None


def is_mixed(index: int) -> bool:
    """True for the samples that mix two people."""
    return index % MIX_EVERY == 0


def recipes(seed: int = SEED) -> Iterator[Recipe]:
    """All recipes in order, without end."""
    rng = np.random.default_rng(seed)
    for index in itertools.count():
        z = rng.standard_normal((2, 512)).astype(np.float32)
        psi = float(rng.uniform(0.5, 1.0))
        yield Recipe(z, psi, int(rng.integers(1, 18)) if is_mixed(index) else None)


def styles(recipe: Recipe, mapping: Mapping, mean_w: F32) -> F32:
    """W+ (23, 512) of a recipe; mean_w (512,) is what psi draws towards."""
    w = mean_w + np.float32(recipe.psi) * (mapping(recipe.z) - mean_w)
    w_plus = np.repeat(w[:1], N_STYLES, 0)
    if recipe.switch is not None:
        w_plus[recipe.switch :] = w[1]
    return w_plus.astype(np.float32)


def shrunk(image_nchw: F32) -> U8:
    """(1, 3, S, S) about [-1, 1] -> uint8 (256, 256, 3), averaged by areas."""
    unit = (image_nchw[0].transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5
    small = cv2.resize(unit, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(np.rint(small), np.uint8)


@dataclass(frozen=True, slots=True)
class Samples:
    """w_plus float32 (N, 23, 512) and images uint8 (N, 256, 256, 3) of samples 0..N-1 under `seed`."""

    w_plus: F32
    images: U8
    seed: int

    def plain(self) -> npt.NDArray[np.int64]:
        """Indices of the samples that show one person, whose w is row 0 of W+."""
        return np.array([i for i in range(len(self.images)) if not is_mixed(i)], np.int64)


def make_samples(
    folder: Path,
    mapping: Mapping,
    synthesis: Synthesis,
    mean_w: F32,
    *,
    count: int = COUNT,
    seed: int = SEED,
    seconds: float = float("inf"),
    on_sample: Callable[[int], None] = lambda done: None,
) -> int:
    """Makes samples 0..count-1 in `folder`, those that are there already not again.

    Args:
        seconds: time after which the files begun are finished and no new one is begun.
        on_sample: told the number of samples that exist.

    Returns:
        The number of samples in the folder.

    Raises:
        UsageError: the folder holds samples of another seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, seed)
    source, start, done = recipes(seed), time.monotonic(), 0
    for shard in range(-(-count // SHARD)):
        wanted = min(SHARD, count - shard * SHARD)
        ordered = list(itertools.islice(source, SHARD))[:wanted]
        path = _shard_path(folder, shard)
        present = _n_in(path)
        if present < wanted:
            if time.monotonic() - start >= seconds:
                break
            _make_shard(path, ordered, mapping, synthesis, mean_w, _counting_from(done, on_sample))
            present = wanted
        done += present
        on_sample(done)
    return done


def _counting_from(n_before: int, on_sample: Callable[[int], None]) -> Callable[[int], None]:
    return lambda n: on_sample(n_before + n)


def _make_shard(
    path: Path,
    ordered: list[Recipe],
    mapping: Mapping,
    synthesis: Synthesis,
    mean_w: F32,
    on_sample: Callable[[int], None],
) -> None:
    w_plus = np.zeros((len(ordered), N_STYLES, 512), np.float32)
    images = np.zeros((len(ordered), SIDE_PX, SIDE_PX, 3), np.uint8)
    for i, recipe in enumerate(ordered):
        w_plus[i] = styles(recipe, mapping, mean_w)
        images[i] = shrunk(synthesis(w_plus[i : i + 1]))
        on_sample(i + 1)
    write_arrays(path, w_plus=w_plus, images=images)


def load_samples(folder: Path) -> Samples:
    """All samples of a folder, up to the first gap.

    Raises:
        UsageError: there are none, or a file is damaged.
    """
    way_out = f"Make them: keyface train samples --out {folder}"
    try:
        facts = json.loads((folder / "samples.json").read_text("utf-8"))
        w_plus, images = [], []
        for shard in itertools.count():
            path = _shard_path(folder, shard)
            if not path.exists():
                break
            kept = read_arrays(path, "w_plus", "images")
            w_plus.append(kept["w_plus"])
            images.append(kept["images"])
            if len(images[-1]) < SHARD:
                break
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no samples.", way_out) from None
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} holds damaged samples: {error}.", way_out) from error
    if not images:
        raise UsageError(f"{folder} holds no samples.", way_out)
    return Samples(np.concatenate(w_plus), np.concatenate(images), int(facts["seed"]))


def _claim(folder: Path, seed: int) -> None:
    facts, path = {"format": FORMAT, "seed": seed}, folder / "samples.json"
    if path.exists() and json.loads(path.read_text("utf-8")) != facts:
        raise UsageError(f"{folder} holds samples of another seed or format.", "Choose another --out.")
    path.write_text(json.dumps(facts) + "\n", "utf-8")


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"samples-{shard:04}.npz"


def _n_in(path: Path) -> int:
    """Samples in a file; 0 for a file that is missing or damaged, which is then made anew."""
    if not path.exists():
        return 0
    try:
        return len(read_arrays(path, "images")["images"])
    except ValueError:
        return 0
