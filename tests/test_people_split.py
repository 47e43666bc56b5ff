"""configs/people_split.py: who is trained on must never move to those tested on."""

from __future__ import annotations

import hashlib

from keyface.configs.people_split import people_of, split_of


def test_known_names_keep_their_part() -> None:
    expected = {}
    for name in ("George_W_Bush", "Aaron_Peirsol", "Zoë", "person 1", ""):
        part = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        expected[name] = {8: "validation", 9: "test"}.get(part, "train")
    assert {name: split_of(name) for name in expected} == expected


def test_parts_are_disjoint_complete_and_about_8_1_1() -> None:
    people = [f"person_{n:05d}" for n in range(5000)]
    train, validation, test = (people_of(part, people) for part in ("train", "validation", "test"))  # type: ignore[arg-type]
    assert sorted(train + validation + test) == people
    assert 0.78 < len(train) / 5000 < 0.82
    assert 0.085 < len(validation) / 5000 < 0.115
    assert 0.085 < len(test) / 5000 < 0.115


def test_order_repeats_and_company_do_not_matter() -> None:
    people = [f"p{n}" for n in range(200)]
    alone = people_of("test", people)
    assert people_of("test", reversed(people + people)) == alone
    assert set(people_of("test", people[:50])) == set(alone) & set(people[:50])
