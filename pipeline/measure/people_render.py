"""Anonymises a folder of people under the keys of an evaluation, with the product's own chain, and remembers
what is done: a second run goes on where the first ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keyface.configs.errors import SinkError
from keyface.engines.store import ModelStore
from keyface.pipeline.assemble import model_names
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.measure.evaluation_keys import OWN, RECOVERED, EvaluationKeys
from keyface.pipeline.measure.people_folder import Photo
from keyface.pipeline.media.partial import PartialFile
from keyface.pipeline.people.key import Key
from keyface.pipeline.process import process_photo
from keyface.pipeline.process_options import ProcessOptions

FACES_FOLDER = "faces"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Task:
    """One photo under the key of one condition."""

    photo: Photo
    condition: str


MakeParts = Callable[[Key, Task], ChainParts]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a photo.

    Attributes:
        replaced: faces that carry a virtual face.
        redactions: boxes xyxy in px and the reason, of what was mosaicked.
        faults: stages that failed; the whole frame is then mosaicked.
        wall_s: time that it took.
    """

    replaced: int
    redactions: tuple[tuple[tuple[float, float, float, float], str], ...]
    faults: tuple[str, ...]
    wall_s: float


def recipe(store: ModelStore, key: Key, options: ProcessOptions) -> dict[str, Any]:
    """What decides the anonymised photos: settings, models, and the fingerprint of the key."""
    entries = [store.manifest[name] for name in store.manifest.closure(model_names(options))]
    versions = {e.name: e.sha256 or getattr(e.source, "builder_version", 0) for e in entries}
    return {"settings": options.settings(), "models": versions, "key": key.fingerprint}


class Rendered:
    """The anonymised photos of an out folder, and how each came about.

    Args:
        out: the folder; made when the first photo is written.
        recipe: what decides the pictures (settings, weights, fingerprint of the key), as plain values.
            Photos of another recipe count as not there.
    """

    def __init__(self, out: Path, recipe: dict[str, Any]) -> None:
        self._out = out
        text = json.dumps({**recipe, "version": _VERSION}, sort_keys=True, default=str)
        self._recipe = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def book_path(self) -> Path:
        """Where the identity book of the condition `book` lies; another recipe has another book."""
        return self._out / f"people-{self._recipe}.book"

    def path(self, task: Task) -> Path:
        """Where the anonymised photo lies."""
        return self._out / FACES_FOLDER / task.condition / task.photo.name

    def source(self, task: Task) -> Path:
        """What it is made from: the photo, or for `recovered` the virtual face under the person's own key."""
        return self.path(Task(task.photo, OWN)) if task.condition == RECOVERED else task.photo.path

    def outcome(self, task: Task) -> Outcome | None:
        """What became of it; None when it is not made yet, or its source or the recipe has changed."""
        try:
            note = json.loads(self._note(task).read_text(encoding="utf-8"))
            is_current = note["recipe"] == self._recipe and note["source"] == _digest(self.source(task))
            if not is_current or note["output"] != _digest(self.path(task)):
                return None
            told = note["outcome"]
            redactions = tuple((tuple(box), str(reason)) for box, reason in told["redactions"])
            return Outcome(int(told["replaced"]), redactions, tuple(told["faults"]), float(told["wall_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def todo(self, tasks: Sequence[Task]) -> list[Task]:
        """Those that are not made yet, or on which a stage failed."""
        return [task for task in tasks if (done := self.outcome(task)) is None or done.faults]

    def add(self, task: Task, outcome: Outcome) -> None:
        """Notes a finished photo. Raises SinkError."""
        note = {
            "recipe": self._recipe,
            "source": _digest(self.source(task)),
            "output": _digest(self.path(task)),
            "outcome": asdict(outcome),
        }
        file = PartialFile(self._note(task))
        try:
            file.temporary.write_text(json.dumps(note), encoding="utf-8")
            file.commit()
        except OSError as error:
            raise SinkError(f"'{file.path}' cannot be written: {error.strerror}.", "Make room.") from error
        finally:
            file.abort()

    def _note(self, task: Task) -> Path:
        path = self.path(task)
        return path.with_name(f"{path.name}.json")


def render(
    tasks: Sequence[Task],
    rendered: Rendered,
    keys: EvaluationKeys,
    make_parts: MakeParts,
    *,
    options: ProcessOptions,
) -> Iterator[Task]:
    """Makes what is missing, one after the other on this thread; gives each task when it is done.

    Args:
        make_parts: of the chain under a key, for one task; an `EnginePool` saves opening the networks.

    Raises:
        KeyfaceError: a photo cannot be read or written. What was made before stays.
    """
    for task in rendered.todo(tasks):
        output = rendered.path(task)
        _make_folder(output.parent)
        seen: list[SafeFrame] = []
        with keys.key(task.condition, task.photo.person) as key:
            summary = process_photo(
                rendered.source(task),
                output,
                parts=make_parts(key, task),
                options=options,
                on_safe=seen.append,
            )
        redactions = tuple((r.box_xyxy, str(r.reason)) for r in seen[0].redactions)
        rendered.add(task, Outcome(summary.replaced, redactions, tuple(summary.faults), summary.wall_s))
        yield task


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"Folder '{folder}' cannot be made: {error.strerror}.", "Choose another --out."
        ) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
