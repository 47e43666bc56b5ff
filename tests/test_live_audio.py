"""Sound on its way: bounded, in order, of one format, on the clock of the pictures."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from live_reading import Reading

from keyface.pipeline.live.address import parse_source
from keyface.pipeline.live.audio import AUDIO_RATE_HZ, AudioPiece, AudioTap
from keyface.pipeline.live.source import LiveSource, LiveSourceOptions
from keyface.pipeline.live.source_sound import SoundFeed

pytestmark = pytest.mark.timeout(150)


def piece(pts_s: float, n: int = 4800) -> AudioPiece:
    return AudioPiece(np.full((n, 2), 0.5, np.float32), pts_s)


def test_each_reader_gets_everything_in_order() -> None:
    tap = AudioTap()
    tap.put(piece(0.0))
    first, second = tap.reader(), tap.reader()
    for number in range(1, 4):
        tap.put(piece(number / 10))
    assert [p.pts_s for p in first.take(0.25)] == [0.1, 0.2]
    assert [p.pts_s for p in first.take()] == [0.3]
    assert [p.pts_s for p in second.take()] == [0.1, 0.2, 0.3]
    assert first.take() == [] and first.dropped_s == 0


def test_a_slow_reader_loses_the_oldest_and_nobody_else_does() -> None:
    tap = AudioTap(capacity_s=1.0)
    slow, quick = tap.reader(), tap.reader()
    for number in range(50):
        tap.put(piece(number / 10))
        assert len(quick.take()) == 1
    kept = slow.take()
    assert len(kept) == 10 and kept[-1].pts_s == 4.9
    assert slow.dropped_s == pytest.approx(4.0) and quick.dropped_s == 0


def test_pieces_are_checked_and_read_only() -> None:
    assert piece(1.0).end_s == pytest.approx(1.1)
    with pytest.raises(ValueError, match="read-only"):
        piece(0.0).samples[0, 0] = 1
    for bad in (np.zeros((5, 2)), np.zeros((5, 1), np.float32), np.zeros(5, np.float32)):
        with pytest.raises(ValueError, match="want float32"):
            AudioPiece(bad, 0.0)
    with pytest.raises(ValueError, match="capacity"):
        AudioTap(capacity_s=math.inf)


def test_threads_may_put_and_take_at_once() -> None:
    tap = AudioTap(capacity_s=1000)
    reader = tap.reader()
    writers = [
        threading.Thread(target=lambda: [tap.put(piece(0.0, 10)) for _ in range(500)]) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    got = 0
    while any(writer.is_alive() for writer in writers):
        got += len(reader.take())
    assert got + len(reader.take()) == 2000


# The feed: formats and clocks.


def sound(rate_hz: int, layout: str, form: str, n: int) -> av.AudioFrame:
    channels = av.AudioLayout(layout).nb_channels
    is_planar = form.endswith("p")
    shape = (channels, n) if is_planar else (1, channels * n)
    kind = {"s16": np.int16, "flt": np.float32, "u8": np.uint8}[form.rstrip("p")]
    frame = av.AudioFrame.from_ndarray(np.full(shape, 0.25 if kind is np.float32 else 64, kind), form, layout)
    frame.sample_rate = rate_hz
    return frame


@pytest.fixture
def feed() -> tuple[SoundFeed, Callable[[], list[AudioPiece]]]:
    tap = AudioTap()
    reader = tap.reader()
    return SoundFeed(tap, lambda: 100.0), reader.take


@pytest.mark.parametrize(
    ("rate_hz", "layout", "form"),
    [(8000, "mono", "s16"), (44100, "stereo", "fltp"), (48000, "5.1", "fltp"), (16000, "mono", "u8")],
)
def test_every_format_becomes_one(feed: tuple, rate_hz: int, layout: str, form: str) -> None:
    maker, taken = feed
    for number in range(10):
        maker.put(sound(rate_hz, layout, form, rate_hz // 10), number / 10)
    pieces = taken()
    assert all(b.pts_s == pytest.approx(a.end_s) for a, b in pairwise(pieces))
    assert sum(len(p.samples) for p in pieces) == pytest.approx(AUDIO_RATE_HZ, rel=0.02)


def test_a_change_of_format_is_survived(feed: tuple) -> None:
    maker, taken = feed
    maker.put(sound(44100, "stereo", "fltp", 4410), 0.0)
    for number in range(1, 6):
        maker.put(sound(8000, "mono", "s16", 800), number / 10)
    assert taken()[-1].end_s == pytest.approx(0.6, abs=0.05)


def test_small_steps_of_stamps_leave_no_gap_and_large_ones_do(feed: tuple) -> None:
    maker, taken = feed
    for at_s in (0.0, 0.12, 0.19, 0.31, 1.0):
        maker.put_samples(np.zeros((4800, 2), np.float32), at_s)
    starts_s = [p.pts_s for p in taken()]
    assert starts_s == pytest.approx([0.0, 0.1, 0.2, 0.3, 1.0])


def test_what_overlaps_is_cut_off(feed: tuple) -> None:
    maker, taken = feed
    maker.put_samples(np.zeros((48000, 2), np.float32), 0.0)
    maker.put_samples(np.zeros((48000, 2), np.float32), 0.5)
    maker.put_samples(np.zeros((4800, 2), np.float32), 0.2)
    first, second = taken()
    assert second.pts_s == first.end_s and second.end_s == pytest.approx(1.5)


def test_samples_out_of_range_are_clipped(feed: tuple) -> None:
    maker, taken = feed
    maker.put_samples(np.full((100, 2), 7.0, np.float32), 0.0)
    assert taken()[0].samples.max() == 1.0


# Sources with sound.


def test_the_sound_of_a_file_goes_with_its_pictures(make_clip: Callable[..., Path]) -> None:
    clip = make_clip("a.mp4", n_frames=20, with_audio=True)
    source = LiveSource(parse_source(str(clip)), LiveSourceOptions(with_audio=True, is_looped=True))
    assert source.audio is not None
    reader = source.audio.reader()
    with Reading(source) as reading:
        reading.wait(lambda: len(reading.frames) >= 45)
    assert source.audio.is_present
    pieces = reader.take()
    assert pieces[0].pts_s < 0.1 and pieces[-1].end_s > 1.6
    assert all(b.pts_s >= a.end_s - 1e-6 for a, b in pairwise(pieces))
    heard_s = sum(p.end_s - p.pts_s for p in pieces)
    assert heard_s > 0.9 * (pieces[-1].end_s - pieces[0].pts_s)
    loud = np.concatenate([p.samples for p in pieces])
    assert 0.1 < np.abs(loud).max() < 0.3


def test_a_file_without_sound_says_so(make_clip: Callable[..., Path]) -> None:
    source = LiveSource(parse_source(str(make_clip(n_frames=3))), LiveSourceOptions(with_audio=True))
    assert len(list(source)) == 3
    assert source.audio is not None and not source.audio.is_present


def test_the_pattern_sounds_when_its_bar_sets_out() -> None:
    options = LiveSourceOptions(size_wh=(64, 48), fps=50, with_audio=True)
    source = LiveSource(parse_source("test"), options)
    assert source.audio is not None
    reader = source.audio.reader()
    with Reading(source) as reading:
        reading.wait(lambda: len(reading.frames) >= 20)
    pieces = reader.take()
    whole = np.concatenate([p.samples for p in pieces])
    assert pieces[0].pts_s == 0.0 and np.abs(whole[:4000]).max() > 0.1
    assert not whole[4801:].any() and source.audio.is_present
