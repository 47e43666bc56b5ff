"""Which files are made from which, in what order, and which of them are finished already."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keyface.configs.errors import SinkError, SourceError, UsageError
from keyface.pipeline.media.capture import VIDEO_SUFFIXES

PHOTO_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WebP"}
RESUME_FILE = ".keyface-resume.json"

Kind = Literal["video", "photo"]


@dataclass(frozen=True, slots=True)
class Job:
    """One file to make."""

    source: Path
    output: Path
    kind: Kind


def kind_of(path: Path) -> Kind:
    """By the suffix: photos are JPEG, PNG and WebP; the rest is for the video decoder to judge."""
    return "photo" if path.suffix.lower() in PHOTO_FORMATS else "video"


def plan_jobs(inputs: Sequence[Path], out: Path, *, may_replace: bool = False) -> list[Job]:
    """The jobs for `keyface process`.

    One file goes to the file `out`, or into `out` if that is a folder. Many files, or a folder (with what
    is below it), go into the folder `out` under their own relative names, videos with the suffix .mp4.

    Args:
        may_replace: existing outputs are no error.

    Raises:
        SourceError: an input does not exist, or nothing in a folder is a video or photo.
        UsageError: `out` does not suit, an output is an input, exists, or comes twice.
    """
    for path in inputs:
        if not path.exists():
            raise SourceError(f"Input '{path}' does not exist.", "Check its name.")
    if len(inputs) == 1 and not inputs[0].is_dir() and not out.is_dir():
        jobs = [_single_job(inputs[0], out)]
    else:
        if out.exists() and not out.is_dir():
            raise UsageError(
                f"Output '{out}' is a file, but a folder is needed for these inputs.", "Name a folder."
            )
        jobs = _jobs_into(inputs, out)
    _check_outputs(jobs, may_replace)
    return jobs


def _single_job(source: Path, out: Path) -> Job:
    kind = kind_of(source)
    if kind == "video" and out.suffix.lower() != ".mp4":
        raise UsageError(f"Output '{out}' must end in .mp4.", "Videos are written as MP4.")
    want = PHOTO_FORMATS.get(source.suffix.lower())
    if kind == "photo" and PHOTO_FORMATS.get(out.suffix.lower()) != want:
        raise UsageError(
            f"Output '{out}' must be a {want} file as the input is.", f"End its name in {source.suffix}."
        )
    return Job(source, out, kind)


def _jobs_into(inputs: Sequence[Path], out: Path) -> list[Job]:
    found = [pair for path in inputs for pair in _files_of(path, out)]
    if not found:
        raise SourceError(
            f"There is no video or photo in '{inputs[0]}'.",
            f"Looked for {', '.join(sorted(VIDEO_SUFFIXES | set(PHOTO_FORMATS)))}.",
        )
    names = Counter(_output_name(relative) for _, relative in found)
    jobs = []
    for source, relative in found:
        name = _output_name(relative)
        if names[name] > 1 and name != relative:
            name = relative.with_name(f"{relative.name}.mp4")  # a.mov beside a.mp4
        jobs.append(Job(source, out / name, kind_of(source)))
    return jobs


def _files_of(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Files to process and their names relative to the input, sorted; nothing hidden, nothing from `out`."""
    if not path.is_dir():
        yield path, Path(path.name)
        return
    skipped = out.resolve()
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and (Path(folder) / f).resolve() != skipped
        )
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and (suffix in VIDEO_SUFFIXES or suffix in PHOTO_FORMATS):
                source = Path(folder) / name
                yield source, source.relative_to(path)


def _output_name(relative: Path) -> Path:
    return relative if kind_of(relative) == "photo" else relative.with_suffix(".mp4")


def _check_outputs(jobs: Sequence[Job], may_replace: bool) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    seen: dict[Path, Job] = {}
    for job in jobs:
        output = job.output.resolve()
        if output in sources or _is_same_file(job.source, job.output):
            raise UsageError(
                f"Output '{job.output}' is the input '{sources.get(output, job.source)}'.",
                "Choose another name: an input is never overwritten.",
            )
        if output in seen:
            raise UsageError(
                f"'{seen[output].source}' and '{job.source}' would both become '{job.output}'.",
                "Process them into different folders.",
            )
        seen[output] = job
    existing = [job.output for job in jobs if os.path.lexists(job.output)]
    if existing and not may_replace:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"Output '{existing[0]}'{others} already exists.",
            "Pass --force to replace, or --resume to go on with a folder begun with --resume.",
        )


def _is_same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


class ResumeLog:
    """The hidden list of finished files in an output folder, kept when `--resume` is given.

    It holds names relative to the folder, sizes, times of change and a hash of the settings; the key
    enters that hash by its fingerprint only.

    Args:
        folder: of the outputs; made when the first file is finished.
        settings: what decides the outputs, as plain values.
        fingerprint: of the key, "" without one.
    """

    def __init__(self, folder: Path, *, settings: dict[str, Any], fingerprint: str) -> None:
        self._folder = folder
        text = json.dumps({**settings, "key": fingerprint}, sort_keys=True, default=str)
        self._settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._finished = self._read()

    def is_finished(self, job: Job) -> bool:
        """True when the output is there, unchanged, and was made from this very input and settings."""
        return job.output.is_file() and self._finished.get(self._name(job)) == self._facts(job)

    def add(self, job: Job) -> None:
        """Notes a finished job; the list is replaced as a whole, never half written. Raises SinkError."""
        self._finished[self._name(job)] = self._facts(job)
        path = self._folder / RESUME_FILE
        temporary = path.with_name(f"{RESUME_FILE}.part")
        try:
            text = json.dumps({"version": 1, "finished": self._finished}, indent=1)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SinkError(
                f"The list of finished files '{path}' cannot be written: {error.strerror or error}.",
                "Make room or check permissions, then run the same command again.",
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self._folder / RESUME_FILE).read_text(encoding="utf-8"))
            finished = content["finished"] if content["version"] == 1 else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # missing or damaged: everything is made again
        return dict(finished) if isinstance(finished, dict) else {}

    def _name(self, job: Job) -> str:
        return os.path.relpath(job.output, self._folder).replace(os.sep, "/")

    def _facts(self, job: Job) -> dict[str, Any]:
        source, output = job.source.stat(), job.output.stat()
        return {
            "source_bytes": source.st_size,
            "source_mtime_ns": source.st_mtime_ns,
            "output_bytes": output.st_size,
            "settings": self._settings,
        }
