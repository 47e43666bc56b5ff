"""The figures of an evaluation on photos of people as JSON, and as a Markdown table beside the papers' figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keyface.configs.evaluation import RecogniserThresholds, Target
from keyface.configs.papers import PaperFigure, Papers
from keyface.pipeline.measure.evaluation import Verdict, verdict_json
from keyface.pipeline.measure.people_attacks import Recovery
from keyface.pipeline.measure.people_figures import Frechet, PeopleFigures
from keyface.pipeline.measure.unlinkability import Unlinkability
from keyface.pipeline.measure.verification import Estimate

SCHEMA = "keyface/evaluate-images/1"

_MEANINGS = {
    "anonymity": "anonymity: photos not matched with their originals, threshold at equal error",
    "anonymity_far_0_1": "the same, threshold at 0.1 % false accepts",
    "diversity": "diversity: same photo, two keys, not matched",
    "synchronism_shared_eer": "synchronism, one key for all (Set B), EER",
    "synchronism_shared_auc": "synchronism, one key for all (Set B), AUC",
    "synchronism_own_eer": "synchronism, a key for each (Set A), EER",
    "synchronism_own_auc": "synchronism, a key for each (Set A), AUC",
    "synchronism_book_eer": "synchronism, one key and an identity book, EER",
    "synchronism_book_auc": "synchronism, one key and an identity book, AUC",
    "original_eer": "originals, EER",
    "original_auc": "originals, AUC",
    "differentiation": "differentiation: two people under one key, not matched",
    "differentiation_own": "differentiation: two people under two keys, not matched",
    "similarity_original_virtual": "cosine of original and virtual face",
    "similarity_two_keys": "cosine of one photo's virtual faces under two keys",
    "similarity_random_virtual": "cosine of virtual faces of two people under two keys",
    "similarity_random_original": "cosine of originals of two people",
    "recovered_by_second_pass": "recovered by a second pass with the right key, matched",
    "similarity_second_pass": "cosine of original and second pass",
    "detection_rate": "virtual faces that are detected",
    "detection_rate_all": "photos whose face is virtual and detected",
    "replaced_rate": "photos whose face got a virtual face (the rest: mosaic)",
    "yaw_error": "yaw error, degrees",
    "pitch_error": "pitch error, degrees",
    "roll_error": "roll error, degrees",
    "blendshape_error": "mean error of 52 blendshapes",
    "expression_agreement": "expression: correlation over photos, mean of seven",
}


@dataclass(frozen=True)
class PeopleReport:
    """Figures with what they are held against.

    Attributes:
        about: what was evaluated and how, plain values (folder's name, split, counts, key fingerprint, ...).
    """

    figures: PeopleFigures
    judges: Mapping[str, RecogniserThresholds]
    targets: Mapping[str, Target]
    papers: Papers
    about: Mapping[str, Any]

    @property
    def independent(self) -> tuple[str, ...]:
        """Recognisers that nothing was trained against."""
        return tuple(name for name, judge in self.judges.items() if not judge.is_used_in_training)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Each target against the worst of the independent recognisers."""
        return tuple(
            Verdict(name, self._worst(name, target), target) for name, target in self.targets.items()
        )

    def _worst(self, name: str, target: Target) -> float | None:
        if name in self.figures.picture:
            return self.figures.picture[name].value
        values = [self.figures.identity[judge][name].value for judge in self.independent]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return min(known) if target.comparison == "at_least" else max(known)


def to_json(report: PeopleReport) -> dict[str, Any]:
    """Plain values; no path, no pixel, no embedding. `configs/evaluate_images.schema.json` describes it."""
    figures = report.figures
    return {
        "schema": SCHEMA,
        "about": dict(report.about),
        "photos": figures.photos,
        "people": figures.people,
        "mosaicked": {condition: dict(reasons) for condition, reasons in figures.mosaicked.items()},
        "recognisers": {
            name: {
                "is_used_in_training": judge.is_used_in_training,
                "equal_error": judge.equal_error,
                "far_0_1_percent": judge.far_0_1_percent,
                "figures": {key: _estimate_json(e) for key, e in figures.identity[name].items()},
                "unlinkability": _links_json(figures.links[name]),
                "recovery": {key: _recovery_json(r) for key, r in figures.recovery[name].items()},
            }
            for name, judge in report.judges.items()
        },
        "picture": {key: _estimate_json(e) for key, e in figures.picture.items()},
        "frechet": {
            condition: {name: _frechet_json(f) for name, f in rows.items()}
            for condition, rows in figures.frechet.items()
        },
        "key_lengths": {
            str(bits): {
                name: {key: _estimate_json(e) for key, e in rows.items()} for name, rows in by_judge.items()
            }
            for bits, by_judge in figures.key_lengths.items()
        },
        "verdicts": [verdict_json(v) for v in report.verdicts()],
        "papers": [
            {"figure": p.figure, "paper": p.paper, "where": p.where, "value": p.value, "same": p.same}
            for p in report.papers.figures
        ],
    }


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {
        "value": _round(found.value),
        "low": _round(found.low),
        "high": _round(found.high),
        "count": found.count,
        "people": found.people,
    }


def _links_json(found: Unlinkability | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "d_sys": _round(found.d_sys),
        "chance": _round(found.chance),
        "mated": found.n_mated,
        "other": found.n_other,
        "local": [
            [_round(float(s)), _round(float(d))] for s, d in zip(found.centres, found.local, strict=True)
        ],
    }


def _recovery_json(found: Recovery) -> dict[str, Any]:
    return {
        "cosine": _round(found.cosine),
        "chance": _round(found.chance),
        "gain": _round(found.gain),
        "rank_1": _round(found.rank_1),
        "auc": _round(found.auc),
        "fitted": found.fitted,
        "tested": found.tested,
    }


def _frechet_json(found: Frechet) -> dict[str, Any]:
    return {
        "value": _round(found.value),
        "count": found.count,
        "halves_of_originals": _round(found.halves),
        "half_counts": list(found.half_counts),
    }


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


# ---------------------------------------------------------------- Markdown
def to_markdown(report: PeopleReport) -> str:
    """The report for people."""
    figures, names = report.figures, list(report.judges)
    lines = [
        "# Evaluation on photos of people",
        "",
        ". ".join(f"{key}: {value}" for key, value in report.about.items()) + ".",
        "",
        f"{figures.photos} photos of {figures.people} people. In brackets the 95 % interval of a bootstrap over "
        "people, and the number of photos or pairs. Recognisers marked * were used in training and are no "
        "independent judges.",
        "",
        "| recogniser | threshold at equal error | at 0.1 % false accepts | EER on LFW pairs |",
        "| --- | --- | --- | --- |",
    ]
    for name in names:
        judge = report.judges[name]
        lines.append(
            f"| {_mark(report, name)} | {judge.equal_error:.4f} | {judge.far_0_1_percent:.4f} | "
            f"{judge.equal_error_rate:.4f} |"
        )
    lines += ["", *_verdict_lines(report), "", "## By recogniser", ""]
    lines += ["| figure | " + " | ".join(_mark(report, n) for n in names) + " | papers, LFW |"]
    lines += ["| --- " * (len(names) + 2) + "|"]
    for key in next(iter(figures.identity.values()), {}):
        cells = " | ".join(_cell(figures.identity[name][key]) for name in names)
        lines.append(f"| {_MEANINGS.get(key, key)} | {cells} | {_beside(report.papers.beside(key))} |")
    cells = " | ".join(_links_cell(figures.links[name]) for name in names)
    lines.append(f"| unlinkability, D_sys (with shuffled labels) | {cells} | - |")
    lines += ["", "## Pictures", "", "| figure | measured | papers, LFW |", "| --- | --- | --- |"]
    for key, found in figures.picture.items():
        lines.append(f"| {_MEANINGS.get(key, key)} | {_cell(found)} | {_beside(report.papers.beside(key))} |")
    lines += [
        *_recovery_lines(report),
        *_frechet_lines(report),
        *_key_lines(report),
        *_mosaic_lines(figures),
        "",
    ]
    return "\n".join(lines)


def _mark(report: PeopleReport, name: str) -> str:
    return f"{name} *" if report.judges[name].is_used_in_training else name


def _verdict_lines(report: PeopleReport) -> list[str]:
    lines = [
        f"## Targets, by the worst of {', '.join(report.independent)}",
        "",
        "| figure | measured | target | verdict |",
        "| --- | --- | --- | --- |",
    ]
    for v in report.verdicts():
        value = "-" if v.value is None else f"{v.value:.3f}"
        lines.append(f"| {v.target.meaning} | {value} | {v.target.wish} | {v.outcome} |")
    return lines


def _recovery_lines(report: PeopleReport) -> list[str]:
    rows = [
        f"| {_mark(report, name)} | {key.replace('_', ' ')} | {r.cosine:.3f} | {r.chance:.3f} | {r.gain:.3f} | "
        f"{r.rank_1:.3f} ({1 / r.tested:.3f}) | {r.auc:.3f} | {r.fitted} / {r.tested} |"
        for name, attacks in report.figures.recovery.items()
        for key, r in attacks.items()
    ]
    if not rows:
        return []
    return [
        "",
        "## A trained inverter",
        "",
        "From the virtual face's embedding to the original's, fitted on half of the people, tried on the others. No "
        "key: pairs under other keys. Right key: pairs under that very key. Wrong key: fitted under one, tried "
        "under others.",
        "",
        "| recogniser | attack | cosine | with others | gain | rank 1 (chance) | AUC | fitted / tried |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _frechet_lines(report: PeopleReport) -> list[str]:
    lines = [
        "",
        "## Frechet distance",
        "",
        "Faces cut to 128 px, originals against anonymised. It falls with the number of photos: compare only at "
        "equal counts.",
        "",
        "| key | features | distance | photos | halves of the originals (photos) | papers, LFW |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for condition, rows in report.figures.frechet.items():
        for name, found in rows.items():
            lines.append(
                f"| {condition} | {name} | {_number(found.value)} | {found.count} | {_number(found.halves)} "
                f"({found.half_counts[0]} and {found.half_counts[1]}) | "
                f"{_beside(report.papers.beside(f'frechet_{name}'))} |"
            )
    return lines if len(lines) > 7 else []


def _key_lines(report: PeopleReport) -> list[str]:
    if not report.figures.key_lengths:
        return []
    lines = [
        "",
        "## Key length",
        "",
        "| bits | recogniser | anonymity | cosine, one bit flipped | cosine, two keys | not matched, one bit "
        "flipped | KFAAR, anonymity |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for bits, by_judge in report.figures.key_lengths.items():
        for name, rows in by_judge.items():
            cells = [
                _cell(rows[key]) if key in rows else "-"
                for key in ("anonymity", "one_bit_similarity", "two_keys_similarity", "one_bit_diversity")
            ]
            beside = _beside(report.papers.beside(f"key_{bits}_anonymity"))
            lines.append(f"| {bits} | {_mark(report, name)} | {' | '.join(cells)} | {beside} |")
    return lines


def _mosaic_lines(figures: PeopleFigures) -> list[str]:
    lines = ["", "## Faces without a virtual face", ""]
    for condition, reasons in figures.mosaicked.items():
        told = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in reasons.items()) or "none"
        lines.append(f"- {condition}: {told}")
    return lines


def _cell(found: Estimate) -> str:
    if found.value is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.3f} ({found.count})"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] ({found.count})"


def _links_cell(found: Unlinkability | None) -> str:
    return "-" if found is None else f"{found.d_sys:.3f} ({found.chance:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _beside(rows: Sequence[PaperFigure]) -> str:
    return ", ".join(f"{row.paper} {row.value:g}" for row in rows) or "-"
