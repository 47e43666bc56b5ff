"""The identity book with real photos through the real networks: the same face for whoever was seen before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from book_cases import key

from keyface.pipeline.assemble import EnginePool, make_parts, network_opener
from keyface.pipeline.chain import make_plans
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.media.photo import read_photo
from keyface.pipeline.people.book import IdentityBook
from keyface.pipeline.people.identity import Identities
from keyface.pipeline.process_options import ProcessOptions

pytestmark = pytest.mark.timeout(560)

# People of the test part, three photos each, none of whom a network of keyface was trained on.
PHOTOS = {
    name: [f"{name}/{name}_{number:04d}.jpg" for number in (1, 2, 3)]
    for name in ("Thabo_Mbeki", "Victoria_Clarke")
}
OPTIONS = ProcessOptions(threads=1)


def stand_in(models: Any, pool: EnginePool, photo: Path, book: IdentityBook | None) -> np.ndarray | None:
    """w of whoever replaces the largest face of a photo."""
    parts = make_parts(models, key(), OPTIONS, open_network=pool, is_still=True, book=book)
    plans = make_plans(parts, faces="largest", lookahead_s=None)
    frame, _ = read_photo(photo)
    with InlineChain(plans, on_fault="stop") as chain:
        chain.process(frame)
    parts.release()
    if book is not None:
        book.end_clip()
    assert isinstance(parts.observer, Identities)
    pins = [pin for pin in map(parts.observer.pin_of, range(parts.observer.n_people)) if pin is not None]
    return pins[0].w if pins else None


def test_photos_of_one_person_get_one_virtual_face_with_a_book_and_others_without(
    models: Any, shared_dir: Path, tmp_path: Path
) -> None:
    folder = shared_dir / "data" / "ident" / "lfw"
    book = IdentityBook(tmp_path / "my.book", key(), remembers=True)
    shown: dict[str, list[np.ndarray | None]] = {}
    with EnginePool(network_opener(models, OPTIONS)) as pool:
        for person, photos in PHOTOS.items():
            shown[person] = [stand_in(models, pool, folder / name, book) for name in photos]
        again = stand_in(models, pool, folder / PHOTOS["Thabo_Mbeki"][2], book)
        without = [stand_in(models, pool, folder / name, None) for name in PHOTOS["Thabo_Mbeki"][1:]]
    for person, faces in shown.items():
        assert faces[1] is not None and faces[2] is not None
        assert np.array_equal(faces[1], faces[2]), f"{person}: known from the second photo on"
    assert again is not None and np.array_equal(again, shown["Thabo_Mbeki"][2])
    assert not np.array_equal(shown["Thabo_Mbeki"][2], shown["Victoria_Clarke"][2])
    assert without[0] is not None and without[1] is not None
    assert not np.array_equal(without[0], without[1]), "without a book they are alike at best"
