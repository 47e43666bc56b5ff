"""Training pairs: made in pieces, gone on with, and read back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

from keyface.configs.errors import UsageError
from keyface.models.warp_pairs import SHARD, View, load_pairs, make_pairs


def view(person: int, number: int) -> View:
    image = np.full((256, 256, 3), (person * 7 + number) % 255, np.uint8)
    return View(
        image, np.full((478, 3), person, np.float32), np.full(54, number, np.float32), np.zeros(3, np.float32)
    )


class Performer:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, number: int) -> list[View | None]:
        self.asked.append(number)
        views: list[View | None] = [view(number, i) for i in range(3)]
        if number == 2:
            views[0] = None  # nobody in the source frame
        if number == 3:
            views[1] = None
        return views


def test_pairs_are_made_once_and_gone_on_with(tmp_path: Path) -> None:
    first, told = Performer(), list[int]()
    n = SHARD + 4
    assert make_pairs(tmp_path, first, people=SHARD, views=3, on_person=told.append) == SHARD
    assert told[-1] == SHARD and first.asked == list(range(SHARD))
    second = Performer()
    assert make_pairs(tmp_path, second, people=n, views=3) == n
    assert second.asked == list(range(SHARD, n))
    pairs = load_pairs(tmp_path)
    assert len(pairs) == n - 1  # the one without a source frame is left out
    assert pairs.points[2, 0, 0, 0] == 3  # ... so the third is person 3
    assert (
        pairs.controls[2, 1, 0] == 0 and pairs.controls[2, 2, 0] == 2
    )  # its missing view is the source frame
    train, held = pairs.split(5)
    assert (len(train), len(held)) == (n - 6, 5) and held.points[0, 0, 0, 0] == 0


def test_time_ends_between_files(tmp_path: Path) -> None:
    assert make_pairs(tmp_path, Performer(), people=2 * SHARD, views=3, seconds=0) == 0
    with pytest.raises(UsageError, match="no pairs"):
        load_pairs(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    make_pairs(tmp_path, Performer(), people=4, views=3)
    (tmp_path / "pairs-0000.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="pairs-0000"):
        load_pairs(tmp_path)
