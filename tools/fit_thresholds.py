"""Computes the similarity thresholds of the judging recognisers and writes them to evaluation.toml.

    python -m keyface.tools.fit_thresholds --photos DIR --pairs PAIRS.tsv [--n 1500]

DIR holds labelled faces, one folder a person (such as LFW); PAIRS.tsv has lines `path, path, 1 or 0`
(same person or not). The false accept rate is taken over all pairs of different people among the
photos used, since 0.1 % of a few hundred pairs would rest on one of them. Nothing of the photos is
stored but the thresholds.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from keyface.pipeline.face import F32
    from keyface.pipeline.measure.seen_faces import PhotoEyes

F64 = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and rewrites the file."""
    from keyface.configs import evaluation
    from keyface.tools.photo_eyes import open_photo_eyes

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1500, help="pairs to use, drawn with a fixed seed")
    parser.add_argument("--name", default="LFW", help="name of the photos in the provenance")
    target = Path(evaluation.__file__).with_name("evaluation.toml")
    parser.add_argument("--write", type=Path, default=target)
    args = parser.parse_args(argv)
    pairs = _read_pairs(args.pairs, args.n)
    paths = sorted({p for a, b, _ in pairs for p in (a, b)})
    with open_photo_eyes(with_inception=False) as (eyes, config):
        vectors = _embed_all(eyes, args.photos, paths)
    usable = [(a, b, same) for a, b, same in pairs if a in vectors and b in vectors]
    tables = [_provenance(args.name, len(usable), vectors)]
    for_clips, for_photos = [], []
    for number, recogniser in enumerate(eyes.recognisers):
        own = {path: rows[number] for path, rows in vectors.items()}
        name, fitted = recogniser.name, _fit(own, usable)
        print(f"{name}\n{fitted}")
        if name in config.recognisers:
            for_clips.append(f"[recognisers.{name}]\n{fitted}")
        trained = str(config.image_recognisers[name].is_used_in_training).lower()
        for_photos.append(f"[image_recognisers.{name}]\n{fitted}is_used_in_training = {trained}\n")
    tables += for_clips + for_photos
    _write(args.write, "\n".join(tables))
    return 0


def _read_pairs(path: Path, n: int) -> list[tuple[str, str, bool]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [(r[0], r[1], r[2] == "1") for r in csv.reader(lines, delimiter="\t") if len(r) >= 3]
    random.Random(0).shuffle(rows)
    return rows[:n]


def _embed_all(eyes: PhotoEyes, folder: Path, paths: list[str]) -> dict[str, list[F32]]:
    """Embeddings of the face nearest to the middle, by path; photos without one are left out."""
    vectors = {}
    for done, path in enumerate(paths):
        image = cv2.imread(str(folder / path))
        if image is None:
            raise SystemExit(f"{folder / path} cannot be read")
        image_rgb = np.ascontiguousarray(image[..., ::-1])
        found = eyes.detector.detect(image_rgb)
        if found:
            middle = np.array([image.shape[1], image.shape[0]]) / 2
            best = max(found, key=lambda d: _centrality(d.box_xyxy, middle))
            vectors[path] = [r.embed(image_rgb, best) for r in eyes.recognisers]
        if done % 500 == 0:
            print(f"{done}/{len(paths)}", file=sys.stderr)
    return vectors


def _centrality(box_xyxy: F32, middle_xy: F64) -> float:
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    return float(box_xyxy[2] - box_xyxy[0] - np.hypot(*(centre - middle_xy)))


def _fit(vectors: dict[str, F32], pairs: list[tuple[str, str, bool]]) -> str:
    same = np.sort([float(vectors[a] @ vectors[b]) for a, b, is_same in pairs if is_same])
    other = np.sort([float(vectors[a] @ vectors[b]) for a, b, is_same in pairs if not is_same])
    paths = list(vectors)
    people = np.array([Path(p).parent.name for p in paths])
    matrix = np.stack([vectors[p] for p in paths])
    different = np.triu(people[:, None] != people[None], 1)
    threshold = float(np.quantile((matrix @ matrix.T)[different], 0.999))
    candidates = np.unique(np.concatenate([same, other]))
    accepts = 1.0 - np.searchsorted(other, candidates, "left") / len(other)
    rejects = np.searchsorted(same, candidates, "left") / len(same)
    best = int(np.argmin(np.abs(accepts - rejects)))
    return (
        f"far_0_1_percent = {threshold:.4f}\n"
        f"equal_error = {candidates[best]:.4f}\n"
        f"equal_error_rate = {(accepts[best] + rejects[best]) / 2:.4f}\n"
        f"true_accepts = {float((same > threshold).mean()):.4f}\n"
    )


def _provenance(name: str, n_pairs: int, vectors: dict[str, list[F32]]) -> str:
    people = [Path(p).parent.name for p in vectors]
    counts = np.unique(people, return_counts=True)[1]
    n = len(people)
    impostors = (n * n - int((counts**2).sum())) // 2
    return (
        "[provenance]\n"
        f'data = "{name}: verification pairs for equal error, all cross-person pairs for false accepts"\n'
        'faces = "found and aligned by scrfd_500m, the face nearest to the middle"\n'
        f"pairs = {n_pairs}\nphotos = {n}\npeople = {len(counts)}\nimpostor_pairs = {impostors}\n"
    )


def _write(path: Path, tables: str) -> None:
    """Replaces everything between the head of the file and the figures to reach."""
    text = path.read_text(encoding="utf-8")
    head, rest = text[: text.index("[provenance]")], text[re.search(r"^# ---- figures", text, re.M).start() :]  # type: ignore[union-attr]
    path.write_text(f"{head}{tables}\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
