"""What the warping reenactor learns from: pictures of one person in many poses and expressions.

The people are generated, so there is no end of them and nobody's face is among them; frames of clips fit the same
form. A person's first view is the source frame: at rest, looking ahead. The last one is the second source, which
shows what the first cannot: teeth and closed lids.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keyface.configs.errors import UsageError
from keyface.models.arrays import read_arrays, write_arrays

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

SIDE_PX = 256
SHARD = 20  # people in a file
_NAMES = ("images", "points", "controls", "poses", "is_seen")


@dataclass(frozen=True, slots=True)
class View:
    """One picture of a person: image_rgb uint8 (S, S, 3), FFHQ-aligned; points (478, 3) px of the picture at 256 px,
    whatever its side; controls (54,); pose_ypr_deg (3,)."""

    image_rgb: U8
    points: F32
    controls: F32
    pose_ypr_deg: F32


Perform = Callable[
    [int], "list[View | None]"
]  # number of a person -> its views; None where no face was found


@dataclass(frozen=True, slots=True)
class Pairs:
    """images uint8 (P, V, S, S, 3), points (P, V, 478, 3) px of 256 px pictures, controls (P, V, 54), poses (P, V, 3)
    degrees."""

    images: U8
    points: F32
    controls: F32
    poses: F32

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side_px(self) -> int:
        """S, of the pictures."""
        return int(self.images.shape[2])

    def split(self, n_held: int) -> tuple[Pairs, Pairs]:
        """The people to train on, and the first `n_held`, who are held out."""
        return self._part(slice(n_held, None)), self._part(slice(n_held))

    def _part(self, people: slice) -> Pairs:
        return Pairs(self.images[people], self.points[people], self.controls[people], self.poses[people])


def make_pairs(
    folder: Path,
    perform: Perform,
    *,
    people: int,
    views: int,
    side_px: int = SIDE_PX,
    seconds: float = float("inf"),
    on_person: Callable[[int], None] = lambda done: None,
) -> int:
    """Makes people 0..people-1 in files of 20, those that are there already not again; returns how many there are.

    `perform` gives pictures of `side_px`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, done = time.monotonic(), 0
    for shard in range(-(-people // SHARD)):
        path = folder / f"pairs-{shard:04}.npz"
        n = min(SHARD, people - shard * SHARD)
        if not path.exists():
            if time.monotonic() - start >= seconds:
                break
            made = _blank(n, views, side_px)
            for i in range(n):
                _enter(made, i, perform(shard * SHARD + i))
                on_person(done + i + 1)
            write_arrays(path, **made)
        done += n
        on_person(done)
    return done


def load_pairs(folder: Path) -> Pairs:
    """All people of a folder whose source frame shows a face; a view without one is replaced by the source frame.

    Raises:
        UsageError: there are none, a file is damaged, or their pictures or views do not fit together.
    """
    shards = []
    for shard in itertools.count():
        path = folder / f"pairs-{shard:04}.npz"
        if not path.exists():
            break
        try:
            shards.append(read_arrays(path, *_NAMES))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}.", "Remove it; it is made anew.") from error
    if not shards:
        raise UsageError(f"{folder} holds no pairs.", f"Make them: keyface train pairs --out {folder}")
    if len({shard["images"].shape[1:] for shard in shards}) > 1:
        raise UsageError(
            f"{folder} holds pictures of more than one side, or people of more than one number of views.",
            "Make them anew in another folder.",
        )
    images, points, controls, poses, is_seen = (np.concatenate([s[name] for s in shards]) for name in _NAMES)
    people, views = np.nonzero(~is_seen)
    for part in (images, points, controls, poses):
        part[people, views] = part[people, 0]
    good = is_seen[:, 0]
    return Pairs(images[good], points[good], controls[good], poses[good])


def _blank(n: int, views: int, side_px: int) -> dict[str, npt.NDArray[np.generic]]:
    return {
        "images": np.zeros((n, views, side_px, side_px, 3), np.uint8),
        "points": np.zeros((n, views, 478, 3), np.float32),
        "controls": np.zeros((n, views, 54), np.float32),
        "poses": np.zeros((n, views, 3), np.float32),
        "is_seen": np.zeros((n, views), bool),
    }


def _enter(made: dict[str, npt.NDArray[np.generic]], person: int, views: list[View | None]) -> None:
    for number, view in enumerate(views):
        if view is not None:
            made["images"][person, number] = view.image_rgb
            made["points"][person, number] = view.points
            made["controls"][person, number] = view.controls
            made["poses"][person, number] = view.pose_ypr_deg
            made["is_seen"][person, number] = True
