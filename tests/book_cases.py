"""People for tests of the identity book: nobody real."""

from __future__ import annotations

import numpy as np

from keyface.pipeline.people.book_file import Entry
from keyface.pipeline.people.key import Key

SECRET = bytes(range(32))
# 64 unit vectors that are unlike everybody in these tests, with a deviation of about 0.09.
COHORT = np.random.RandomState(9).standard_normal((64, 128)).astype(np.float32)
COHORT /= np.linalg.norm(COHORT, axis=1, keepdims=True)


def key() -> Key:
    return Key(SECRET)


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def somebody(number: int) -> np.ndarray:
    """(128,) unit: different numbers are different people."""
    return unit(np.random.RandomState(1000 + number).standard_normal(128))


def alike(embedding: np.ndarray, cosine: float, number: int = 0) -> np.ndarray:
    """(128,) unit with that cosine to another one."""
    other = np.random.RandomState(5000 + number).standard_normal(128)
    other -= (other @ embedding) * embedding
    return unit(cosine * embedding + np.sqrt(1 - cosine**2) * unit(other))


def face_w(number: int) -> np.ndarray:
    """(512,) of a virtual person."""
    return np.random.RandomState(number).standard_normal(512).astype(np.float32)


def entry(number: int, *, clips: int = 1, day: str = "2026-03-01") -> Entry:
    embedding = somebody(number)
    return Entry(
        id=f"{number:08x}", made_from=embedding, candidate=number % 12, w=face_w(number), total=3 * embedding,
        weight=3.0, first_day=day, last_day=day, clips=clips,
    )  # fmt: skip


def same(a: Entry, b: Entry) -> bool:
    """Equal to the last bit."""
    plain = ("id", "candidate", "weight", "first_day", "last_day", "clips")
    arrays = ("made_from", "w", "total")
    return all(getattr(a, name) == getattr(b, name) for name in plain) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )
