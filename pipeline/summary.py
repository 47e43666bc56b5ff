"""What was done to a file: counted while it runs, told at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from keyface.configs.schema import ReenactorName
from keyface.pipeline.frame import SafeFrame
from keyface.pipeline.people.book import ClipReport
from keyface.pipeline.stage_times import StageTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One processed file.

    Attributes:
        source, output: paths.
        kind: "video" or "photo".
        frames: frames written; 1 for a photo.
        faces: different tracks seen; in a photo, faces.
        replaced: faces replaced, summed over frames.
        redacted_frames: frames with at least one mosaic.
        redacted: reason -> frames with a mosaic for that reason.
        faults: stage -> frames on which it failed and which were mosaicked in its place.
        duration_s: playing time of what was written; 0 for a photo.
        wall_s: time that it took, models loaded included.
        fps: frames / wall_s.
        first_frame_s: from the start to the first frame written.
        stages: name -> times.
        notes: what was done to sound, metadata and size, in sentences.
        warnings: what the user should look at, in sentences.
        book: what the identity book had to do with it, see `ClipReport`; None without a book.
        reenactor: what showed the virtual faces; None where all faces are mosaicked.
    """

    source: str
    output: str
    kind: Literal["video", "photo"]
    frames: int
    faces: int
    replaced: int
    redacted_frames: int
    redacted: dict[str, int]
    faults: dict[str, int]
    duration_s: float
    wall_s: float
    fps: float
    first_frame_s: float | None
    stages: dict[str, StageTimes]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    book: ClipReport | None = None
    reenactor: ReenactorName | None = None

    def with_book(self, report: ClipReport) -> Summary:
        """The same with what the identity book has to say."""
        return replace(
            self,
            book=report,
            notes=(*self.notes, *report.sentences()),
            warnings=(*self.warnings, *report.warnings()),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values for `json.dumps`."""
        return {
            "source": self.source,
            "output": self.output,
            "kind": self.kind,
            "reenactor": self.reenactor,
            "frames": self.frames,
            "faces": self.faces,
            "replaced": self.replaced,
            "redacted_frames": self.redacted_frames,
            "redacted": self.redacted,
            "faults": self.faults,
            "duration_s": round(self.duration_s, 3),
            "wall_s": round(self.wall_s, 3),
            "fps": round(self.fps, 2),
            "first_frame_s": None if self.first_frame_s is None else round(self.first_frame_s, 3),
            "stages": {name: times.to_json() for name, times in self.stages.items()},
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            **({} if self.book is None else {"book": self.book.to_json()}),
        }


@dataclass(slots=True)
class Tally:
    """Counts safe frames; on one thread."""

    frames: int = 0
    replaced: int = 0
    redacted_frames: int = 0
    redacted: Counter[str] = field(default_factory=Counter)
    tracks: set[int] = field(default_factory=set)
    first_pts_s: float | None = None
    last_pts_s: float = 0.0

    def add(self, safe: SafeFrame) -> None:
        """Counts one frame."""
        self.frames += 1
        self.first_pts_s = safe.pts_s if self.first_pts_s is None else self.first_pts_s
        self.last_pts_s = safe.pts_s
        self.replaced += len(safe.replaced)
        self.tracks.update(safe.replaced)
        self.tracks.update(r.track_id for r in safe.redactions if r.track_id is not None)
        if safe.redactions:
            self.redacted_frames += 1
            self.redacted.update({redaction.reason for redaction in safe.redactions})

    def duration_s(self, fps: float) -> float:
        """Playing time from the first frame to the end of the last, which counts one frame at `fps`."""
        if self.first_pts_s is None:
            return 0.0
        return self.last_pts_s - self.first_pts_s + (1.0 / fps if fps > 0 else 0.0)
