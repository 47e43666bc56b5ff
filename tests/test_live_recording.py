"""Recordings of a live stream: times, sound, and what is left after a failure, a crash, a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fake_chain import read_video
from live_sink_cases import SIZE_WH, safe, tone, until

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live.sink import SoundSink, make_sink
from keyface.pipeline.live.sink_hls import HlsSink, segments_of
from keyface.pipeline.live.sink_recording import FileSink, RecordingSink
from keyface.pipeline.media.partial import PartialFile
from keyface.pipeline.paste.redact import redact_frame

pytestmark = pytest.mark.timeout(150)


def written(sink: FileSink, n: int, *, with_sound: bool = False, begin_s: float = 7.0) -> None:
    """Opens the sink and writes `n` frames at 25 a second."""
    if with_sound:
        sink.expect_sound()
    sink.open(SIZE_WH, 25.0)
    for number in range(n):
        time_s = begin_s + number / 25
        if with_sound:
            sink.write_sound(tone(time_s))
        sink.write(safe(time_s, 40 + number % 150))


def sound_of(path: Path) -> tuple[np.ndarray, float]:
    """Left channel and the time of its first sample."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        assert frames[0].sample_rate == 48_000
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]), float(frames[0].time)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# MP4.


def test_a_recording_is_an_ordinary_file_with_the_times_of_capture(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open(SIZE_WH, 25.0)
    times_s = [3.0, 3.04, 3.5, 3.45, 3.6]  # a slate ran ahead of the frame after it
    for index, time_s in enumerate(times_s):
        sink.write(safe(time_s, 40 + 30 * index))
    assert names(tmp_path) == ["a.mp4.partial"]
    sink.close()
    assert names(tmp_path) == ["a.mp4.partial"]
    sink.finish(is_complete=True)
    sink.finish(is_complete=True)
    assert names(tmp_path) == ["a.mp4"]
    images, got_s = read_video(tmp_path / "a.mp4")
    assert [round(time_s, 3) for time_s in got_s] == [0.0, 0.04, 0.5, 0.501, 0.6]
    assert abs(float(images[4][..., 1].mean()) - 160) < 4
    assert _top_boxes(tmp_path / "a.mp4").count("moof") == 0


def _top_boxes(path: Path) -> list[str]:
    data, at, boxes = path.read_bytes(), 0, []
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at + 4 : at + 8].decode("latin1"))
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            break
        at += size
    return boxes


def test_sound_lies_beside_its_picture(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    assert isinstance(sink, SoundSink)
    written(sink, 50, with_sound=True)
    sink.close()
    sink.finish(is_complete=True)
    images, times_s = read_video(tmp_path / "a.mp4")
    assert len(images) == 50 and times_s[0] == 0.0 and times_s[-1] == pytest.approx(49 / 25)
    samples, begin_s = sound_of(tmp_path / "a.mp4")
    assert begin_s == pytest.approx(0.0, abs=0.001)
    assert len(samples) / 48_000 == pytest.approx(2.0, abs=0.05)
    assert np.sqrt(np.mean(samples[4800:-4800] ** 2)) == pytest.approx(0.5 / 2**0.5, abs=0.03)


def test_sound_that_is_missing_late_or_doubled_stays_in_step(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.expect_sound()
    sink.open(SIZE_WH, 25.0)
    for number in range(150):
        time_s = 7.0 + number / 25
        if not 25 <= number < 75:  # two seconds without sound
            sink.write_sound(tone(time_s))
        if number == 100:
            sink.write_sound(tone(time_s - 1.0, 0.5))  # what has its place already
        sink.write(safe(time_s))
    sink.close()
    sink.finish(is_complete=True)
    samples, _ = sound_of(tmp_path / "a.mp4")
    loud = np.sqrt(np.convolve(samples**2, np.ones(960) / 960, "same")) > 0.1
    assert len(samples) / 48_000 == pytest.approx(6.0, abs=0.06)
    edges_s = np.flatnonzero(np.diff(loud.astype(int))) / 48_000
    silent = [(a, b) for a, b in itertools.pairwise(edges_s) if b - a > 1.0 and 0.5 < a < 4]
    assert silent[0] == pytest.approx((1.0, 3.0), abs=0.05)
    assert loud[round(3.1 * 48_000) : round(5.8 * 48_000)].all()


def test_a_recording_cut_short_by_a_failure_stays_as_partial(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    written(sink, 30)
    sink.close()
    sink.finish(is_complete=False)
    assert names(tmp_path) == ["a.mp4.partial"]
    assert len(read_video(tmp_path / "a.mp4.partial")[0]) == 30
    again = RecordingSink(tmp_path / "a.mp4")
    written(again, 10)
    again.close()
    again.finish(is_complete=False)
    assert names(tmp_path) == ["a.mp4.2.partial", "a.mp4.partial"]  # the first is not overwritten
    assert len(read_video(tmp_path / "a.mp4.partial")[0]) == 30


def test_a_recording_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    opened, unopened = RecordingSink(tmp_path / "a.mp4"), RecordingSink(tmp_path / "b.mp4")
    opened.open(SIZE_WH, 25.0)
    for sink in (opened, unopened):
        sink.close()
        sink.finish(is_complete=True)
    assert names(tmp_path) == []


CRASH = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from live_sink_cases import SIZE_WH, safe, tone
from keyface.pipeline.live.sink import make_sink
sink = make_sink({name!r})
sink.expect_sound()
sink.open(SIZE_WH, 25.0)
for number in range(250):
    sink.write_sound(tone(number / 25))
    sink.write(safe(number / 25, 40 + number % 150))
print("written", flush=True)
signal.pause()
"""


def crash(target: Path) -> None:
    """Records ten seconds to `target` in a process of its own and kills it."""
    code = CRASH.format(tests=str(Path(__file__).parent), name=str(target))
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline().strip() == "written"
    program.send_signal(signal.SIGKILL)
    program.communicate()


def frames_until_damage(path: Path) -> int:
    n = 0
    with av.open(str(path)) as container:
        try:
            for packet in container.demux(video=0):
                n += len(packet.decode())
        except av.FFmpegError:
            pass  # where the file is torn
    return n


def test_a_crash_leaves_a_playable_file_under_another_name(tmp_path: Path) -> None:
    crash(tmp_path / "a.mp4")
    assert names(tmp_path) == ["a.mp4.partial"]
    assert 250 - frames_until_damage(tmp_path / "a.mp4.partial") <= 60  # at most the last fragment is lost


def test_recordings_take_safe_frames_of_one_size_only(tmp_path: Path) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    with pytest.raises(SinkError, match="not open"):
        sink.write(safe())
    sink.open(SIZE_WH, 25.0)
    with pytest.raises(TypeError, match="want SafeFrame"):
        sink.write(Frame(np.zeros((64, 96, 3), np.uint8), 0, 0.0))  # type: ignore[arg-type]
    with pytest.raises(SinkError, match="got a frame of 48x32, want 96x64"):
        sink.write(safe(size_wh=(48, 32)))
    sink.close()
    sink.finish(is_complete=False)


# Disks.


class FullDisk:
    """A container on which writing fails from now on."""

    def __init__(self, container: Any, number: int) -> None:
        self._container, self._number = container, number

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == "mux" else getattr(self._container, name)

    def _fail(self, *_: object) -> None:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8"])
@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EIO, "could not be")])
def test_a_disk_that_refuses_is_one_sentence_and_never_a_complete_recording(
    tmp_path: Path, name: str, number: int, said: str
) -> None:
    sink = make_sink(str(tmp_path / name))
    assert isinstance(sink, FileSink)
    written(sink, 120)
    assert sink._tracks is not None
    sink._tracks._container = FullDisk(sink._tracks._container, number)
    with pytest.raises(SinkError, match=said):
        for index in range(60):
            sink.write(safe(20 + index / 25))
    with pytest.raises(SinkError, match=said):
        sink.close()
    with pytest.raises(SinkError, match=said):
        sink.finish(is_complete=True)
    assert "a.mp4" not in names(tmp_path)
    if name == "a.mp4":
        assert frames_until_damage(tmp_path / "a.mp4.partial") >= 50
    else:
        assert "ENDLIST" not in (tmp_path / name).read_text()


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
import numpy as np
from live_sink_cases import safe
from keyface.configs.errors import SinkError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live.sink import make_sink
from keyface.pipeline.paste.redact import redact_frame
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sink = make_sink({name!r})
sink.open((320, 240), 25.0)
rng = np.random.default_rng(0)
try:
    for i in range(200):
        frame = Frame(rng.integers(0, 255, (240, 320, 3), np.uint8), i, i / 25)
        sink.write(redact_frame(frame, []))
except SinkError as error:
    print("SinkError:", error)
try:
    sink.close()
except SinkError as error:
    print("again:", error)
sink.finish(is_complete=False)
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8"])
def test_a_real_limit_of_file_size_is_survived(tmp_path: Path, name: str) -> None:
    code = LIMITED.format(tests=str(Path(__file__).parent), name=str(tmp_path / name))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.startswith("SinkError:") and "larger" in done.stdout and "again:" in done.stdout
    assert names(tmp_path) == (["a.mp4.partial"] if name == "a.mp4" else [])  # not even one segment fits


def test_a_name_that_cannot_be_given_at_the_end_keeps_the_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = RecordingSink(tmp_path / "a.mp4")
    written(sink, 10)
    sink.close()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SinkError, match="disk is full"):
        sink.finish(is_complete=True)
    assert names(tmp_path) == ["a.mp4.partial"]


@pytest.mark.parametrize("is_kept", [False, True])
def test_partial_files_stay_or_go(tmp_path: Path, is_kept: bool) -> None:
    left, aborted = (PartialFile(tmp_path / "a", is_kept=is_kept) for _ in range(2))
    left.leave()
    aborted.abort()
    assert names(tmp_path) == (["a.partial"] if is_kept else [])
    left.abort()
    assert names(tmp_path) == (["a.partial"] if is_kept else [])  # what was left is nobody's any more


# HLS.


def listed(playlist: Path) -> list[str]:
    return [line for line in playlist.read_text().splitlines() if line and not line.startswith("#")]


def test_segments_can_be_watched_while_they_grow(tmp_path: Path) -> None:
    playlist = tmp_path / "live.m3u8"
    sink = make_sink(str(playlist))
    assert isinstance(sink, HlsSink)
    written(sink, 130, with_sound=True)
    assert len(listed(playlist)) == 2 and "ENDLIST" not in playlist.read_text()
    for name in listed(playlist):
        assert len(read_video(tmp_path / name)[0]) == 50
    for number in range(130, 160):
        sink.write(safe(7 + number / 25))
    sink.close()
    assert "ENDLIST" not in playlist.read_text()
    sink.finish(is_complete=True)
    assert playlist.read_text().endswith("#EXT-X-ENDLIST\n") and len(listed(playlist)) == 4
    assert names(tmp_path) == [*listed(playlist), "live.m3u8"]
    with av.open(str(playlist), options={"allowed_extensions": "ALL"}) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        assert sum(1 for _ in container.decode(video=0)) == 160


def test_a_rolling_list_keeps_the_last_seconds_only(tmp_path: Path) -> None:
    playlist = tmp_path / "live.m3u8"
    sink = make_sink(f"hls:4:{playlist}")
    assert isinstance(sink, HlsSink)
    sink.open(SIZE_WH, 25.0)
    most = 0
    for number in range(25 * 20):
        sink.write(safe(number / 25))
        most = max(most, len(segments_of(playlist)))
    sink.close()
    sink.finish(is_complete=True)
    assert len(listed(playlist)) == 2 and most <= 5
    assert listed(playlist)[-1] == "live-00009.ts"
    assert set(listed(playlist)) <= set(names(tmp_path))


def test_a_crash_leaves_whole_segments_and_an_open_list(tmp_path: Path) -> None:
    playlist = tmp_path / "a.m3u8"
    crash(playlist)
    assert len(listed(playlist)) == 4 and "ENDLIST" not in playlist.read_text()
    assert all(len(read_video(tmp_path / name)[0]) == 50 for name in listed(playlist))


def test_a_failure_leaves_no_torn_segment(tmp_path: Path) -> None:
    playlist = tmp_path / "a.m3u8"
    sink = HlsSink(playlist)
    written(sink, 80)
    torn = tmp_path / "a-00077.ts.tmp"
    torn.write_bytes(b"half")
    sink.close()
    sink.finish(is_complete=False)
    assert "ENDLIST" not in playlist.read_text() and not torn.exists()
    assert set(names(tmp_path)) == {"a.m3u8", *listed(playlist)}


def test_an_earlier_recording_is_replaced_when_asked_only(tmp_path: Path) -> None:
    playlist = tmp_path / "a.m3u8"
    playlist.write_text("mine")
    for name in ("a-00000.ts", "a-00123.ts", "a-12.ts", "ab-00000.ts"):
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        make_sink(str(playlist))
    sink = make_sink(str(playlist), may_replace=True)
    assert playlist.read_text() == "mine"
    sink.open(SIZE_WH, 25.0)
    assert names(tmp_path) == ["a-12.ts", "ab-00000.ts"]
    sink.close()
    sink.finish(is_complete=True)


@pytest.mark.parametrize(
    "text", ["hls:a.mp4", "hls:0:a.m3u8", "hls:1.2.3:a.m3u8", "hls:99999999:a.m3u8", "hls:"]
)
def test_a_wrong_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sink hls"):
        make_sink(text)


def test_the_page_of_redactions_reaches_the_recording_as_it_is(tmp_path: Path) -> None:
    """Odd sizes are padded, and nothing but the safe frame's own pixels is in the file."""
    image = np.full((63, 95, 3), 120, np.uint8)
    sink = RecordingSink(tmp_path / "a.mp4")
    sink.open((95, 63), 25.0)
    for number in range(5):
        sink.write(redact_frame(Frame(image, number, number / 25), []))
    sink.close()
    sink.finish(is_complete=True)
    images, _ = read_video(tmp_path / "a.mp4")
    assert images[0].shape == (64, 96, 3) and np.abs(images[0].astype(int) - 120).max() <= 3
    assert until(lambda: names(tmp_path) == ["a.mp4"], 1)
