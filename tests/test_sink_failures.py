"""Writing videos: failures that leave nothing behind, and the side-by-side file."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_media import Sound, picture, write_sound_only, write_video
from sink_cases import copy, info_of, leftovers, safe, times

from keyface.configs.errors import SinkError, SourceError
from keyface.pipeline.frame import Frame, seal
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.partial import PartialFile
from keyface.pipeline.media.sink import ComparisonWriter, Mp4Sink

# --- failures -----------------------------------------------------------------------------------------


def test_the_name_appears_at_the_end_only(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"before")
    with Mp4Sink(out, info_of(tmp_path)) as sink:
        sink.write(safe(Frame(picture(), 0, 0.0)))
        assert out.read_bytes() == b"before"
        assert len(leftovers(tmp_path)) == 1
        sink.commit()
    assert out.stat().st_size > 500 and leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["abort", "leave", "forget", "raise"])
def test_giving_up_leaves_nothing(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"before")
    sink = Mp4Sink(out, info_of(tmp_path, sounds=[Sound()]), audio_from=tmp_path / "source.mkv")
    sink.write(safe(Frame(picture(), 0, 0.0)))
    match how:
        case "abort":
            sink.abort()
            sink.abort()
        case "leave":
            with sink:
                pass
        case "forget":
            del sink
            gc.collect()
        case "raise":
            with pytest.raises(KeyboardInterrupt), sink:
                raise KeyboardInterrupt
    assert out.read_bytes() == b"before" and leftovers(tmp_path) == []


def test_abort_after_commit_keeps_the_file(tmp_path: Path) -> None:
    with Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path)) as sink:
        sink.write(safe(Frame(picture(), 0, 0.0)))
        sink.commit()
        sink.abort()
    assert len(times(tmp_path / "out.mp4")) == 1


def test_nothing_written_is_no_file(tmp_path: Path) -> None:
    with Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path)) as sink, pytest.raises(SinkError, match="no frame"):
        sink.commit()
    assert not (tmp_path / "out.mp4").exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EFBIG, "larger"), (errno.EIO, "could not be")],
)
@pytest.mark.parametrize("when", ["write", "close", "sync"])
def test_a_failing_disk_gives_one_sentence_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, when: str
) -> None:
    sink = Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    class Failing:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return (
                fail
                if name == {"write": "mux", "close": "close"}.get(when)
                else getattr(self._container, name)
            )

    sink._file.container = Failing(sink._file.container)
    if when == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    with sink, pytest.raises(SinkError, match=words):
        for i in range(4):
            sink.write(safe(Frame(picture(i), i, i / 25)))
        sink.commit()
    assert not (tmp_path / "out.mp4").exists() and leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are a matter of POSIX")
def test_a_real_limit_of_file_size_is_survived(tmp_path: Path) -> None:
    info_of(tmp_path, size_wh=(320, 240))
    code = f"""
import resource, signal, sys
import numpy as np
from keyface.configs.errors import SinkError
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.frame import Frame, seal
from keyface.pipeline.media.sink import Mp4Sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with FileSource({str(tmp_path / "source.mkv")!r}) as source:
    info = source.info
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
rng = np.random.default_rng(0)
try:
    with Mp4Sink({str(tmp_path / "out.mp4")!r}, info) as sink:
        for i in range(60):
            frame = Frame(rng.integers(0, 255, (240, 320, 3), np.uint8), i, i / 25)
            sink.write(seal(frame, frame.image_rgb))
        sink.commit()
except SinkError as error:
    print("SinkError:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("SinkError:") and "larger" in done.stdout, done.stderr
    assert not (tmp_path / "out.mp4").exists() and leftovers(tmp_path) == []


def test_bad_targets_are_refused_before_work_starts(tmp_path: Path) -> None:
    info = info_of(tmp_path)
    for target, words in [
        (tmp_path / "no" / "out.mp4", "does not exist"),
        (tmp_path, "is a folder"),
        (info.path, "is the source itself"),
    ]:
        with pytest.raises(SinkError, match=words):
            Mp4Sink(target, info)
    link = tmp_path / "link.mkv"
    link.symlink_to(info.path)
    with pytest.raises(SinkError, match="the source itself"):
        Mp4Sink(link, info)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    info = info_of(tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SinkError, match="may not be written"):
        Mp4Sink(tmp_path / "out.mp4", info)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no device files here")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(SinkError, match="not a regular file"):
        PartialFile("/dev/null")


def test_a_long_name_is_possible(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 250 + ".mp4")
    with Mp4Sink(out, info_of(tmp_path)) as sink:
        sink.write(safe(Frame(picture(), 0, 0.0)))
        sink.commit()
    assert out.exists()
    with pytest.raises(SinkError):
        Mp4Sink(tmp_path / ("n" * 300 + ".mp4"), info_of(tmp_path))


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    with Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path)) as sink:
        with pytest.raises(SinkError, match="got a frame of 48x32, want 96x64"):
            sink.write(safe(Frame(picture(0, (48, 32)), 0, 0.0)))
        with pytest.raises(SinkError, match="failed before"):
            sink.write(safe(Frame(picture(), 0, 0.0)))


def test_only_sound_has_no_sink(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        copy(write_sound_only(tmp_path / "a.m4a"), tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


# --- side by side -------------------------------------------------------------------------------------


def test_the_comparison_shows_both_under_their_labels(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=6, size_wh=(160, 120), options={"crf": "4"})
    with FileSource(path) as source, ComparisonWriter(tmp_path / "both.mp4", source.info) as writer:
        for frame in source:
            writer.write(frame, seal(frame, np.full_like(frame.image_rgb, 90)))
        writer.commit()
    assert times(tmp_path / "both.mp4") == times(path)
    with FileSource(tmp_path / "both.mp4") as result:
        got = next(iter(result)).image_rgb.astype(int)
    assert got.shape == (120 + 20, 320, 3)
    assert np.abs(got[20:, :160] - picture(0, (160, 120))).mean() < 5
    assert np.abs(got[20:, 160:] - 90).mean() < 5
    label = got[:20, :160]
    assert label[..., 0].mean() > label[..., 1].mean() + 60, "the label of the original is red"
    assert (label.min(axis=2) > 150).any(), "there is text on it"


def test_the_comparison_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    info = info_of(tmp_path)
    one, two = Frame(picture(), 0, 0.0), Frame(picture(), 1, 0.04)
    for pair in [(safe(one), safe(one)), (one, one), (one.image_rgb, safe(one))]:
        with ComparisonWriter(tmp_path / "both.mp4", info) as writer, pytest.raises(TypeError):
            writer.write(*pair)  # type: ignore[arg-type]
    with ComparisonWriter(tmp_path / "both.mp4", info) as writer, pytest.raises(SinkError, match="belong"):
        writer.write(one, safe(two))
    with ComparisonWriter(tmp_path / "both.mp4", info) as writer, pytest.raises(SinkError, match="no frame"):
        writer.commit()
    assert not (tmp_path / "both.mp4").exists() and leftovers(tmp_path) == []
