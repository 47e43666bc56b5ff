"""The figures of an evaluation on photos of people, by the definitions of the papers where they give one.

IVFG: Yuan et al., "Generating Identifiable Virtual Faces" (2022). KFAAR: Wang et al., "A Key-Driven Framework
for Identity-Preserving Face Anonymization" (NDSS 2025). T(x, k) is the anonymised photo, I(.) who a recogniser
takes it for; two photos match when their cosine reaches the recogniser's threshold at equal error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from keyface.configs.evaluation import RecogniserThresholds
from keyface.pipeline.measure.evaluation_keys import BOOK, KEY_LENGTHS, OWN, RECOVERED, SHARED, bits_condition
from keyface.pipeline.measure.frechet import frechet_distance
from keyface.pipeline.measure.motion import EXPRESSIONS
from keyface.pipeline.measure.people_attacks import Recovery, measure_recovery
from keyface.pipeline.measure.people_table import Mask, PeopleTable, View
from keyface.pipeline.measure.unlinkability import Unlinkability, unlinkability
from keyface.pipeline.measure.verification import (
    F64,
    Estimate,
    Scores,
    estimate,
    estimate_area,
    estimate_below,
    estimate_equal_error,
    estimate_mean,
    estimate_share,
    pairs_aligned,
    pairs_between,
    pairs_within,
)

_MIN_LINK_SCORES = 20
_MIN_SPREAD = 0.03  # of an expression over photos; below it a correlation says nothing


@dataclass(frozen=True)
class Frechet:
    """Frechet distances of cut-out faces to the originals.

    Attributes:
        value: N anonymised photos against the same N originals.
        halves: original photos of one half of the people against those of the other half, so with about N / 2
            photos on each side: what two sets of real photos differ by.
        count, half_counts: photos.
    """

    value: float | None
    halves: float | None
    count: int
    half_counts: tuple[int, int]


@dataclass(frozen=True)
class PeopleFigures:
    """All figures.

    Attributes:
        photos, people: what was evaluated; mosaicked: photos whose face got no virtual face, by condition and
            reason.
        picture: figures that need no recogniser. identity: figures by recogniser. links: unlinkability by
            recogniser. recovery: by recogniser and
            attack. frechet: by condition and feature. key_lengths: by bits, recogniser and figure.
    """

    photos: int
    people: int
    mosaicked: Mapping[str, Mapping[str, int]]
    picture: Mapping[str, Estimate]
    identity: Mapping[str, Mapping[str, Estimate]]
    links: Mapping[str, Unlinkability | None]
    recovery: Mapping[str, Mapping[str, Recovery]]
    frechet: Mapping[str, Mapping[str, Frechet]]
    key_lengths: Mapping[int, Mapping[str, Mapping[str, Estimate]]] = field(default_factory=dict)


def measure_figures(table: PeopleTable, judges: Mapping[str, RecogniserThresholds]) -> PeopleFigures:
    """All figures of a table that has the conditions `shared` and `own`; others are used where there."""
    both = {c: table.conditions[c] for c in (SHARED, OWN)}
    return PeopleFigures(
        photos=len(table.rows),
        people=table.n_people,
        mosaicked={c: _mosaicked(view) for c, view in table.conditions.items()},
        picture=_picture_figures(table),
        identity={name: _identity(table, name, limits) for name, limits in judges.items()},
        links={name: _links(table, name) for name in judges},
        recovery={name: measure_recovery(table, name) for name in judges},
        frechet={
            c: {name: _frechet(table, view, name) for name in table.original.features}
            for c, view in both.items()
        },
        key_lengths={
            n: {name: _key_length(table, bits_condition(n), name, limits) for name, limits in judges.items()}
            for n in KEY_LENGTHS
            if bits_condition(n) in table.conditions
        },
    )


def _mosaicked(view: View) -> dict[str, int]:
    reasons = [reason for reason in view.reasons if reason is not None]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


# ---------------------------------------------------------------- figures by recogniser
def _identity(table: PeopleTable, name: str, limits: RecogniserThresholds) -> dict[str, Estimate]:
    """Identity figures of one recogniser."""
    n, people = table.n_people, table.people
    x = table.original.embeddings[name]
    shared, own = table.conditions[SHARED], table.conditions[OWN]
    a, b = shared.embeddings[name], own.embeddings[name]
    hidden = _join(_aligned(x, a, people, shared.is_shown), _aligned(x, b, people, own.is_shown))
    twice = _aligned(a, b, people, shared.is_usable & own.is_usable)
    everyone = np.ones(len(people), bool)
    original_other = _between(x, people, everyone)
    shared_other, own_other = _between(a, people, shared.is_usable), _between(b, people, own.is_usable)
    shared_same, own_same = _within(a, people, shared.is_usable), _within(b, people, own.is_usable)
    figures = {
        # IVFG 5.3.2, "protection rate ... the unsuccessful match rate between the original and anonymized face
        # images" (property 1: I(T(x1, k1)) != I(x1)); KFAAR V-B-1
        # likewise. Both keys of each photo count, and faces that were missed.
        "anonymity": estimate_below(hidden, limits.equal_error, n),
        "anonymity_far_0_1": estimate_below(hidden, limits.far_0_1_percent, n),
        # IVFG 5.3.3, property 2: I(T(x1, k1)) != I(T(x1, k2)); the two keys are the shared one and the own one.
        "diversity": estimate_below(twice, limits.equal_error, n),
        # IVFG 5.3.1, property 3: I(T(x1, k)) = I(T(x2, k)). Set B, one key for all; Set A, a key for each.
        "synchronism_shared_eer": estimate_equal_error(shared_same, shared_other, n),
        "synchronism_shared_auc": estimate_area(shared_same, shared_other, n),
        "synchronism_own_eer": estimate_equal_error(own_same, own_other, n),
        "synchronism_own_auc": estimate_area(own_same, own_other, n),
        "original_eer": estimate_equal_error(_within(x, people, everyone), original_other, n),
        "original_auc": estimate_area(_within(x, people, everyone), original_other, n),
        # IVFG property 4, KFAAR "differentiation": I(T(x, k1)) != I(T(y, k1)), and under different keys.
        "differentiation": estimate_below(shared_other, limits.equal_error, n),
        "differentiation_own": estimate_below(own_other, limits.equal_error, n),
        "similarity_original_virtual": estimate_mean(hidden, n),
        "similarity_two_keys": estimate_mean(twice, n),
        "similarity_random_virtual": estimate_mean(own_other, n),
        "similarity_random_original": estimate_mean(original_other, n),
    }
    if BOOK in table.conditions:
        noted = table.conditions[BOOK]
        c = noted.embeddings[name]
        same, other = _within(c, people, noted.is_usable), _between(c, people, noted.is_usable)
        figures["synchronism_book_eer"] = estimate_equal_error(same, other, n)
        figures["synchronism_book_auc"] = estimate_area(same, other, n)
    if RECOVERED in table.conditions:
        # IVFG 5.3.4: anonymise the anonymised photo again with the same key and match it with the original;
        # the successful match rate.
        again = table.conditions[RECOVERED]
        back = _aligned(x, again.embeddings[name], people, again.is_usable & own.is_usable)
        missed = estimate_below(back, limits.equal_error, n)
        figures["recovered_by_second_pass"] = _complement(missed)
        figures["similarity_second_pass"] = estimate_mean(back, n)
    return figures


def _key_length(
    table: PeopleTable, condition: str, name: str, limits: RecogniserThresholds
) -> dict[str, Estimate]:
    """KFAAR VI-B, table XI (anonymity by key length), and two virtual faces of keys that differ in one bit.

    What the flipped bit is to be compared with is `similarity_two_keys` of the same photos: two keys that have
    nothing to do with each other. Pose, light and hair are the same in both.
    """
    n, people = table.n_people, table.people
    x, view = table.original.embeddings[name], table.conditions[condition]
    flipped = table.conditions.get(f"{condition}-flipped")
    own, shared = table.conditions[OWN], table.conditions[SHARED]
    figures = {
        "anonymity": estimate_below(
            _aligned(x, view.embeddings[name], people, view.is_usable), limits.equal_error, n
        )
    }
    if flipped is not None:
        there = view.is_usable & flipped.is_usable
        pairs = _aligned(view.embeddings[name], flipped.embeddings[name], people, there)
        figures["one_bit_similarity"] = estimate_mean(pairs, n)
        figures["one_bit_diversity"] = estimate_below(pairs, limits.equal_error, n)
        two = _aligned(
            shared.embeddings[name], own.embeddings[name], people, there & shared.is_usable & own.is_usable
        )
        figures["two_keys_similarity"] = estimate_mean(two, n)
    return figures


def _links(table: PeopleTable, name: str) -> Unlinkability | None:
    """D_sys over two different photos, one under the shared key and one under the person's own."""
    shared, own = table.conditions[SHARED], table.conditions[OWN]
    usable = shared.is_usable & own.is_usable
    a, b, people = shared.embeddings[name][usable], own.embeddings[name][usable], table.people[usable]
    cosines = a @ b.T
    same = people[:, None] == people[None]
    mated, other = cosines[same & ~np.eye(len(people), dtype=bool)], cosines[~same]
    if min(len(mated), len(other)) < _MIN_LINK_SCORES:
        return None
    return unlinkability(mated, other)


def _aligned(
    first: F64, second: F64, people: np.ndarray[tuple[int], np.dtype[np.int64]], usable: Mask
) -> Scores:
    return pairs_aligned(first[usable], second[usable], people[usable])


def _within(vectors: F64, people: np.ndarray[tuple[int], np.dtype[np.int64]], usable: Mask) -> Scores:
    return pairs_within(vectors[usable], people[usable])


def _between(vectors: F64, people: np.ndarray[tuple[int], np.dtype[np.int64]], usable: Mask) -> Scores:
    return pairs_between(vectors[usable], people[usable])


def _join(first: Scores, second: Scores) -> Scores:
    return Scores(
        np.concatenate([first.values, second.values]), np.concatenate([first.people, second.people])
    )


def _complement(share: Estimate) -> Estimate:
    if share.value is None or share.low is None or share.high is None:
        return share
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.count, share.people)


# ---------------------------------------------------------------- figures of the pictures
def _picture_figures(table: PeopleTable) -> dict[str, Estimate]:
    """Detection, mosaics, pose and expression, over both keys of each photo."""
    views = [table.conditions[c] for c in (SHARED, OWN)]
    figures = {
        # KFAAR table III, IVFG table 4: share of virtual faces that a detector finds (SCRFD here, not MTCNN).
        "detection_rate": _share([(v.is_found, v.is_usable) for v in views], table),
        "detection_rate_all": _share([(v.is_found & v.is_replaced, v.is_there) for v in views], table),
        "replaced_rate": _share([(v.is_replaced, v.is_there) for v in views], table),
    }
    # KFAAR table IV: mean absolute difference of the head's angles (MediaPipe's own program here, not Face++).
    for axis, name in enumerate(("yaw_error", "pitch_error", "roll_error")):
        parts = []
        for view in views:
            gap = (view.pose_ypr_deg - table.original.pose_ypr_deg)[:, axis]
            parts.append((np.abs((gap + 180.0) % 360.0 - 180.0), view.is_usable))
        figures[name] = _mean(parts, table)
    gaps = [(np.abs(v.blendshapes - table.original.blendshapes).mean(1), v.is_usable) for v in views]
    figures["blendshape_error"] = _mean(gaps, table)
    figures["expression_agreement"] = _expression(table, views)
    return figures


def _share(parts: list[tuple[Mask, Mask]], table: PeopleTable) -> Estimate:
    return estimate_share(
        _scores([(hit.astype(np.float64), there) for hit, there in parts], table), table.n_people
    )


def _mean(parts: list[tuple[F64, Mask]], table: PeopleTable) -> Estimate:
    return estimate_mean(_scores(parts, table), table.n_people)


def _scores(parts: list[tuple[F64, Mask]], table: PeopleTable) -> Scores:
    values = np.concatenate([v[m] for v, m in parts])
    people = np.concatenate([table.people[m] for _, m in parts])
    known = np.isfinite(values)
    return Scores(values[known], np.stack([people[known]] * 2, 1))


def _expression(table: PeopleTable, views: list[View]) -> Estimate:
    """Mean over expressions of the correlation, over all photos, of the original's and the virtual face's.

    KFAAR table IV gives Face++'s similarity of emotions, whose definition is not public: not comparable.
    """
    rows = [
        np.flatnonzero(v.is_usable & np.isfinite(v.blendshapes[:, 0] + table.original.blendshapes[:, 0]))
        for v in views
    ]
    people = np.concatenate([table.people[r] for r in rows])
    pairs = []
    for read in EXPRESSIONS.values():
        before = np.array([read(table.original.blendshapes[i].astype(np.float32)) for r in rows for i in r])
        after = np.array(
            [read(v.blendshapes[i].astype(np.float32)) for v, r in zip(views, rows, strict=True) for i in r]
        )
        if len(before) and before.std() > _MIN_SPREAD:
            pairs.append((before, after))
    if not pairs:
        return Estimate(None, None, None, len(people), len(np.unique(people)))

    def figure(weights: Sequence[F64]) -> float:
        return float(np.mean([_correlation(before, after, weights[0]) for before, after in pairs]))

    whose = Scores(np.zeros(len(people)), np.stack([people, people], 1))
    return estimate(figure, [whose], n_people=table.n_people)


def _correlation(first: F64, second: F64, weights: F64) -> float:
    a = first - np.average(first, weights=weights)
    b = second - np.average(second, weights=weights)
    spread = float(np.sqrt(np.average(a * a, weights=weights) * np.average(b * b, weights=weights)))
    return float(np.average(a * b, weights=weights)) / spread if spread > 1e-9 else 0.0


def _frechet(table: PeopleTable, view: View, name: str) -> Frechet:
    usable = view.is_usable
    real = table.original.features[name]
    halves = real[table.people % 2 == 0], real[table.people % 2 == 1]
    counts = len(halves[0]), len(halves[1])
    return Frechet(
        value=frechet_distance(real[usable], view.features[name][usable]) if usable.sum() > 1 else None,
        halves=frechet_distance(*halves) if min(counts) > 1 else None,
        count=int(usable.sum()),
        half_counts=counts,
    )
