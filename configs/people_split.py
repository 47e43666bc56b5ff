"""Which people a projector is trained on, and which are kept for its validation and test: 8:1:1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "validation", "test"]

_N_PARTS = 10
_VALIDATION_PART, _TEST_PART = 8, 9


def split_of(person: str) -> Split:
    """The part a person belongs to, by name alone: SHA-256 of the name (UTF-8) as a number, mod 10.

    8 is validation, 9 is test, the rest is training. It does not depend on who else is in a folder, so a
    person of the test part stays there when people are added or left out.
    """
    part = int.from_bytes(hashlib.sha256(person.encode("utf-8")).digest(), "big") % _N_PARTS
    if part == _TEST_PART:
        return "test"
    return "validation" if part == _VALIDATION_PART else "train"


def people_of(split: Split, people: Iterable[str]) -> list[str]:
    """The people of one part, each once, sorted by name."""
    return [person for person in sorted(set(people)) if split_of(person) == split]
