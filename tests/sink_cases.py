"""What the tests of the sinks share: copying a clip through source and sink, and looking at the result."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from odd_media import write_video

from keyface.pipeline.frame import Frame, SafeFrame, seal
from keyface.pipeline.media.capture import FileSource, SourceInfo
from keyface.pipeline.media.sink import Mp4Sink


def safe(frame: Frame) -> SafeFrame:
    return seal(frame, frame.image_rgb)


def copy(
    path: Path, out: Path, *, start_s: float | None = None, end_s: float | None = None, **options: Any
) -> Mp4Sink:
    """Reads `path` and writes every frame to `out`, with its sound."""
    options = {"audio_from": path, **options}
    with (
        FileSource(path, start_s=start_s, end_s=end_s) as source,
        Mp4Sink(out, source.info, **options) as sink,
    ):
        for frame in source:
            sink.write(safe(frame))
        sink.commit()
    return sink


def times(path: Path) -> list[Fraction]:
    """Presentation times of all frames on the clock of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [f.pts * stream.time_base for f in container.decode(stream)]


def length_s(path: Path) -> float:
    """From the first frame to the end of the last one."""
    with FileSource(path) as source:
        for _ in source:
            pass
        last = source.info.last_frame
        assert last.pts is not None
        return float((last.pts + last.duration - source.info.first_pts) * source.info.time_base)


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".keyface-")]


def info_of(folder: Path, **options: Any) -> SourceInfo:
    with FileSource(write_video(folder / "source.mkv", n_frames=2, **options)) as source:
        return source.info
