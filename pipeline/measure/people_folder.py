"""A folder of people: one sub-folder for each, with photos of that person, as in LFW."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from keyface.configs.errors import SourceError, UsageError
from keyface.configs.people_split import Split, split_of
from keyface.pipeline.media.photo import PHOTO_SUFFIXES


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo: the person's name, the file, and its name below the folder with forward slashes."""

    person: str
    path: Path
    name: str


def find_photos(
    folder: Path, *, people: int, photos: int, split: Split | None = None, min_photos: int = 2
) -> list[Photo]:
    """The photos to evaluate on, person by person.

    Args:
        folder: one sub-folder a person; hidden ones are left out.
        people: at most so many; those whose name has the smallest SHA-256, so that the choice neither
            follows the alphabet nor changes from run to run.
        photos: at most so many of each person, first by name.
        split: only people of this part (configs.people_split); None: all.
        min_photos: people with fewer are left out, since synchronism needs two.

    Raises:
        SourceError: it is no folder, or nobody in it has enough photos.
        UsageError: a count is out of range.
    """
    for option, value, least in (("--people", people, 2), ("--photos", photos, min_photos)):
        if value < least:
            raise UsageError(f"{option}: got {value}, want {least} or more.")
    if not folder.is_dir():
        raise SourceError(f"'{folder}' is not a folder.", "Give a folder with one sub-folder a person.")
    found = []
    for place in folder.iterdir():
        if place.is_dir() and not place.name.startswith(".") and split in (None, split_of(place.name)):
            own = sorted(p for p in place.iterdir() if _is_photo(p))
            if len(own) >= min_photos:
                found.append((hashlib.sha256(place.name.encode()).digest(), place.name, own[:photos]))
    if len(found) < 2:
        part = "" if split is None else f" of the {split} part"
        raise SourceError(
            f"'{folder}' has {len(found)} people{part} with {min_photos} photos or more; want two or more.",
            "Give a folder with one sub-folder a person and JPEG, PNG or WebP files in each.",
        )
    chosen = sorted(sorted(found)[:people], key=lambda row: row[1])
    return [Photo(name, path, f"{name}/{path.name}") for _, name, own in chosen for path in own]


def _is_photo(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
