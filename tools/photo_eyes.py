"""Opens the networks that judge photos of people, having fetched what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from keyface.tools.evaluate_command import pull_judges

if TYPE_CHECKING:
    from keyface.configs.evaluation import EvaluationConfig
    from keyface.configs.manifest import ModelEntry
    from keyface.engines.engine import Engine
    from keyface.pipeline.measure.seen_faces import Embeds, PhotoEyes

_DETECTOR, _LANDMARKER, _INCEPTION = "scrfd_500m", "face_landmarker", "inception"


@contextmanager
def open_photo_eyes(
    *, threads: int = 1, with_inception: bool = True
) -> Iterator[tuple[PhotoEyes, EvaluationConfig]]:
    """Pulls and opens them. Raises ModelStoreError when they cannot be had."""
    from keyface.configs.evaluation import load_evaluation
    from keyface.engines.open import open_engine
    from keyface.engines.store import ModelStore
    from keyface.pipeline.faces.landmarks_mediapipe import MediaPipeLandmarker
    from keyface.pipeline.measure.eyes import Scrfd
    from keyface.pipeline.measure.seen_faces import PhotoEyes

    config, store = load_evaluation(), ModelStore()
    names = [_DETECTOR, *config.image_recognisers, *([_INCEPTION] if with_inception else [])]
    pull_judges(store, [*names, _LANDMARKER])
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(open_engine(store.path(name), name=name, threads=threads))
            for name in names
        }
        recognisers = [
            _judge(store.manifest[name], engines[name], limit.far_0_1_percent)
            for name, limit in config.image_recognisers.items()
        ]
        landmarker = MediaPipeLandmarker(store.path(_LANDMARKER))
        stack.callback(landmarker.close)
        yield PhotoEyes(Scrfd(engines[_DETECTOR]), recognisers, landmarker, engines.get(_INCEPTION)), config


def _judge(entry: ModelEntry, engine: Engine, threshold: float) -> Embeds:
    from keyface.pipeline.measure.eyes import Recogniser
    from keyface.pipeline.measure.photo_judges import FaceNetJudge, PointsJudge

    if entry.name == "facenet":
        return FaceNetJudge(entry.name, engine, entry.mean, entry.std)
    return PointsJudge(Recogniser.of(entry, engine, threshold))
