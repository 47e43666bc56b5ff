"""Can the original be told from the virtual face? Learnt from some people of the folder, tried on the others.

All three fit a map from the virtual face's embedding to the original's and look at people that it was not fitted on:

    no_key      fitted and tried on faces under a key for each person (Set A): the attacker has pairs, but of other
                keys. What it gains over chance is what virtual faces tell without the key ("irreversibility").
    right_key   fitted and tried on faces under one key (Set B): the key's holder, who can make as many pairs as he
                likes, or an attacker who got hold of so many (KFAAR VII-A, scenario 4; VI-C-1, inversion model).
    wrong_key   fitted under that one key and tried on faces under other keys (KFAAR table VII, scenario 3).

A folder gives few people to fit on: read these as lower bounds, and the projector's own figures with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyface.pipeline.measure.attacks import Inversion, measure_inversion
from keyface.pipeline.measure.evaluation_keys import OWN, SHARED
from keyface.pipeline.measure.people_table import PeopleTable, View
from keyface.pipeline.measure.verification import F64

ATTACKS = {"no_key": (OWN, OWN), "right_key": (SHARED, SHARED), "wrong_key": (SHARED, OWN)}
_MIN_FITTED = 10
_MIN_TESTED = 5


@dataclass(frozen=True, slots=True)
class Recovery:
    """One attack, mean of two fits with the halves of the people exchanged.

    Attributes:
        cosine: of the estimate and the embedding of the original, both about the mean original.
        chance: of the estimate and the originals of other people.
        rank_1: share of people whose original is the nearest to the estimate; by chance 1 / tested.
        auc: of telling the own original from others'; 0.5 by chance.
        fitted: photos; tested: people, in each half.
    """

    cosine: float
    chance: float
    rank_1: float
    auc: float
    fitted: int
    tested: int

    @property
    def gain(self) -> float:
        """What the attack tells above chance."""
        return self.cosine - self.chance


def measure_recovery(table: PeopleTable, judge: str) -> dict[str, Recovery]:
    """By attack; empty where there are too few people."""
    found = {}
    for name, (fitted_on, tried_on) in ATTACKS.items():
        fitted, tried = table.conditions[fitted_on], table.conditions[tried_on]
        halves = [_try(table, judge, fitted, tried, half) for half in (0, 1)]
        done = [half for half in halves if half is not None]
        if len(done) == 2:
            found[name] = Recovery(
                cosine=float(np.mean([h.cosine for h in done])),
                chance=float(np.mean([h.chance for h in done])),
                rank_1=float(np.mean([h.rank_1 for h in done])),
                auc=float(np.mean([h.auc for h in done])),
                fitted=min(h.n_fitted for h in done),
                tested=min(h.n_tested for h in done),
            )
    return found


def _try(table: PeopleTable, judge: str, fitted: View, tried: View, half: int) -> Inversion | None:
    """Fits on the people of one half and tries the first photo of each of the other."""
    is_half = table.people % 2 == half
    learn = np.flatnonzero(is_half & fitted.is_usable)
    rows = np.flatnonzero(~is_half & tried.is_usable)
    firsts = rows[np.unique(table.people[rows], return_index=True)[1]]
    if len(learn) < _MIN_FITTED or len(firsts) < _MIN_TESTED:
        return None
    original = table.original.embeddings[judge]
    virtual: F64 = fitted.embeddings[judge][learn]
    return measure_inversion(virtual, original[learn], tried.embeddings[judge][firsts], original[firsts])
