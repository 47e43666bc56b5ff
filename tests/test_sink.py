"""Writing videos: time, sound, colour, privacy, and failures that leave nothing behind."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from odd_media import (
    Sound,
    cut_file,
    picture,
    sound_packets,
    sound_samples,
    tone,
    write_changing_size,
    write_video,
)
from sink_cases import copy, info_of, leftovers, length_s, safe, times

from keyface.configs.errors import SinkError, SourceError
from keyface.pipeline.frame import Frame
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.metadata import without_pictures
from keyface.pipeline.media.sink import Mp4Sink

BASELINE = pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])


# --- time ---------------------------------------------------------------------------------------------


@BASELINE
def test_frames_keep_count_times_and_length(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, n_frames=30, options={"bf": "3"})
    copy(path, tmp_path / "out.mp4")
    with FileSource(path) as source:
        want = [f.pts_s for f in source]
    with FileSource(tmp_path / "out.mp4") as source:
        got = [f.pts_s for f in source]
        assert source.info.codec == "h264" and source.info.pix_fmt == "yuv420p"
    assert got == pytest.approx(want, abs=1e-9)
    assert length_s(tmp_path / "out.mp4") == pytest.approx(length_s(path), abs=1e-6)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_uneven_times_are_kept_exactly(tmp_path: Path, name: str) -> None:
    path = write_video(
        tmp_path / name,
        time_base=Fraction(1, 1000),
        pts=[0, 33, 70, 100, 300, 333, 1000, 1017],
        sounds=[Sound()],
    )
    copy(path, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == times(path)


@pytest.mark.parametrize("first", [0, 2, 20])
def test_the_first_time_and_the_sync_with_the_sound_are_kept(tmp_path: Path, first: int) -> None:
    path = write_video(tmp_path / "a.mp4", pts=list(range(first, first + 30)), sounds=[Sound(seconds=2)])
    copy(path, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == times(path)
    assert sound_samples(tmp_path / "out.mp4")[0] == pytest.approx(sound_samples(path)[0], abs=1e-6)


def test_a_clock_that_starts_late_is_moved_as_a_whole(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mkv", pts=list(range(2000, 2030)), sounds=[Sound(start_s=80.1, seconds=1)]
    )
    copy(path, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [t - 80 for t in times(path)]
    assert lag_samples(on_clock(tmp_path / "out.mp4"), on_clock(path, zero_s=80)) <= 48


@pytest.mark.parametrize("sound", ["aac", "pcm_s16le"])
def test_a_span_cuts_picture_and_sound_at_the_same_moment(tmp_path: Path, sound: str) -> None:
    path = write_video(
        tmp_path / "a.mkv", n_frames=150, options={"g": "25"}, sounds=[Sound(sound, seconds=6)]
    )
    copy(path, tmp_path / "out.mp4", start_s=3.0, end_s=4.0)
    got = times(tmp_path / "out.mp4")
    assert got == [Fraction(i, 25) for i in range(25)]
    start_s, heard = sound_samples(tmp_path / "out.mp4")
    assert abs(start_s) < 1e-3
    assert len(heard) / 48000 == pytest.approx(1.0, abs=0.04)
    assert lag_samples(heard, tone(6.0)[3 * 48000 :]) < 48  # 1 ms
    assert length_s(tmp_path / "out.mp4") == pytest.approx(1.0)


def test_frames_without_exact_time_are_placed_by_seconds(tmp_path: Path) -> None:
    info = info_of(tmp_path)
    with Mp4Sink(tmp_path / "out.mp4", info) as sink:
        for i in range(5):
            sink.write(safe(Frame(picture(i), i, pts_s=i * 0.1)))
        sink.commit()
    assert [float(t) for t in times(tmp_path / "out.mp4")] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-4)


def test_times_that_do_not_increase_are_refused(tmp_path: Path) -> None:
    with Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path)) as sink:
        sink.write(safe(Frame(picture(), 0, pts_s=0.5)))
        with pytest.raises(SinkError, match="does not increase"):
            sink.write(safe(Frame(picture(), 1, pts_s=0.5)))


def on_clock(path: Path, zero_s: float = 0) -> Any:
    """The sound from `zero_s` on the clock of the file, with silence before it begins."""
    start_s, heard = sound_samples(path)
    return np.concatenate([np.zeros(round((start_s - zero_s) * 48000)), heard])


def lag_samples(heard: Any, want: Any) -> int:
    """How far `heard` is displaced against `want`, by correlation over half a second."""
    n = 24000
    middle = heard[6000 : 6000 + n] - heard[6000 : 6000 + n].mean()
    scores = [float(np.dot(middle, want[6000 + k : 6000 + k + n])) for k in range(-2400, 2400, 8)]
    return abs(int(np.argmax(scores)) * 8 - 2400)


# --- sound --------------------------------------------------------------------------------------------


def test_sound_is_copied_untouched_where_mp4_can_carry_it(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mkv",
        n_frames=30,
        sounds=[Sound("aac"), Sound("libopus"), Sound("libmp3lame"), Sound("ac3")],
    )
    sink = copy(path, tmp_path / "out.mp4")
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(path)
    assert sink.notes == []
    for track in range(3):
        got, want = sound_samples(tmp_path / "out.mp4", track), sound_samples(path, track)
        assert got[0] == pytest.approx(want[0], abs=2e-3)
        assert lag_samples(got[1], want[1]) <= 96


def test_sound_of_an_mp4_stays_the_same_to_the_byte(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=30, sounds=[Sound("aac", rate_hz=44100, layout="mono")])
    copy(path, tmp_path / "out.mp4")
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(path)
    assert sound_samples(tmp_path / "out.mp4")[0] == sound_samples(path)[0]


@pytest.mark.parametrize(
    ("codec", "name"), [("pcm_s16le", "a.mov"), ("pcm_s24le", "a.mkv"), ("vorbis", "a.mkv"), ("mp2", "a.avi")]
)
def test_other_sound_becomes_aac_and_this_is_said(tmp_path: Path, codec: str, name: str) -> None:
    if codec == "vorbis":
        codec = "libvorbis" if "libvorbis" in av.codecs_available else pytest.skip("no encoder for Vorbis")
    path = write_video(tmp_path / name, n_frames=30, sounds=[Sound(codec, seconds=1.2)])
    sink = copy(path, tmp_path / "out.mp4")
    assert [t[0] for t in sound_packets(tmp_path / "out.mp4")] == ["aac"]
    assert any("transcoded" in note and "AAC" in note for note in sink.notes)
    start_s, heard = sound_samples(tmp_path / "out.mp4")
    assert abs(start_s) < 1e-3 and lag_samples(heard, sound_samples(path)[1]) <= 96
    assert len(heard) / 48000 == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("rate_hz", "layout"), [(8000, "mono"), (44100, "stereo"), (96000, "5.1"), (11000, "mono")]
)
def test_odd_rates_and_layouts_are_transcoded(tmp_path: Path, rate_hz: int, layout: str) -> None:
    path = write_video(
        tmp_path / "a.mkv", n_frames=30, sounds=[Sound("pcm_s16le", rate_hz=rate_hz, layout=layout)]
    )
    copy(path, tmp_path / "out.mp4")
    _, heard = sound_samples(tmp_path / "out.mp4")
    assert len(heard) / 48000 == pytest.approx(1.0, abs=0.15)


def test_sound_longer_than_the_picture_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=10, sounds=[Sound(seconds=3)])
    copy(path, tmp_path / "out.mp4")
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(path)


def test_without_audio_from_the_file_is_silent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", sounds=[Sound()])
    copy(path, tmp_path / "out.mp4", audio_from=None)
    assert sound_packets(tmp_path / "out.mp4") == []


def test_truncated_sound_does_not_stop_the_picture(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mkv", n_frames=60, size_wh=(320, 240), sounds=[Sound("pcm_s16le", seconds=2.4)]
    )
    copy(cut_file(path, 0.5), tmp_path / "out.mp4")
    assert len(times(tmp_path / "out.mp4")) == len(times(path)) > 10


def test_the_source_of_sound_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path), audio_from=tmp_path / "missing.mp4")
    assert leftovers(tmp_path) == []


# --- picture ------------------------------------------------------------------------------------------


def colour_bars(size_wh: tuple[int, int] = (256, 128)) -> Any:
    """Eight bars of 75 % above, a grey ramp below."""
    width, height = size_wh
    image = np.zeros((height, width, 3), np.uint8)
    for i in range(8):
        image[: height // 2, i * width // 8 : (i + 1) * width // 8] = [
            191 * (i & 1), 191 * (i >> 1 & 1), 191 * (i >> 2 & 1),
        ]  # fmt: skip
    image[height // 2 :] = np.linspace(0, 255, width).round()[None, :, None]
    return image


@pytest.mark.parametrize(
    "tags", [{}, {"colorspace": 1, "color_primaries": 1, "color_trc": 1}, {"colorspace": 6}]
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p"])
def test_colours_survive(tmp_path: Path, tags: dict[str, int], pix_fmt: str) -> None:
    image = colour_bars()
    colour_range = {"color_range": 2} if pix_fmt.startswith("yuvj") else {}
    path = write_video(
        tmp_path / "a.mp4", images=[image] * 4, pts=range(4), pix_fmt=pix_fmt, tags={**tags, **colour_range},
        options={"crf": "4"},
    )  # fmt: skip
    copy(path, tmp_path / "out.mp4")
    with FileSource(path) as source, FileSource(tmp_path / "out.mp4") as result:
        want, got = next(iter(source)).image_rgb.astype(int), next(iter(result)).image_rgb.astype(int)
        assert result.info.colour == source.info.colour
        assert result.info.pix_fmt == "yuv420p"
    error = got - want
    assert np.abs(error[64:, :, :].mean((0, 1))).max() < 1.0, "the grey ramp is shifted"
    inside = error[8:56, 16::32]
    assert np.abs(inside.mean(0)).max() < 3, "the bars are shifted"


def test_unspecified_colour_stays_unspecified(tmp_path: Path) -> None:
    copy(write_video(tmp_path / "a.mp4"), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (2, 2, 2)


@pytest.mark.parametrize("size_wh", [(97, 65), (96, 65), (97, 64)])
def test_odd_sizes_are_padded_not_cut(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mkv", codec="ffv1", pix_fmt="bgr0", size_wh=size_wh)
    sink = copy(path, tmp_path / "out.mp4")
    assert any("padded" in note for note in sink.notes)
    with FileSource(tmp_path / "out.mp4") as result:
        got = next(iter(result)).image_rgb
    assert got.shape == (size_wh[1] + size_wh[1] % 2, size_wh[0] + size_wh[0] % 2, 3)
    want = picture(0, size_wh)
    assert np.abs(got[: size_wh[1], : size_wh[0]].astype(int) - want).mean() < 4
    edge = np.abs(got[-1].astype(int) - got[-2]).mean() if size_wh[1] % 2 else 0
    assert edge < 3


def test_turned_video_is_written_upright_without_a_flag(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", rotation_deg=90, options={"crf": "4"})
    copy(path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0 and (frame.width, frame.height) == (64, 96)
    with FileSource(tmp_path / "out.mp4") as result:
        got = next(iter(result)).image_rgb
    assert np.abs(got.astype(int) - np.rot90(picture())).mean() < 4


def test_pixels_that_are_not_square_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
        out.mux(stream.encode(None))
    copy(path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_crf_sets_the_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", size_wh=(320, 240), options={"crf": "4"})
    copy(path, tmp_path / "fine.mp4", crf=10)
    copy(path, tmp_path / "coarse.mp4", crf=40)
    assert (tmp_path / "fine.mp4").stat().st_size > 1.5 * (tmp_path / "coarse.mp4").stat().st_size
    with pytest.raises(SinkError, match="0 to 51"):
        copy(path, tmp_path / "out.mp4", crf=52)


def test_changing_sizes_end_in_one(tmp_path: Path) -> None:
    path = write_changing_size(tmp_path / "a.avi", [(96, 64), (48, 32)])
    copy(path, tmp_path / "out.mp4")
    assert len(times(tmp_path / "out.mp4")) == 8


# --- nothing that could show the original -------------------------------------------------------------

SECRETS = {"location": "+48.8577+002.295/", "title": "Our holiday", "comment": "by Ada"}


def test_no_other_track_no_cover_no_text_gets_through(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", cover=True, metadata=SECRETS, sounds=[Sound()])
    copy(path, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        for stream in container.streams:
            assert set(stream.metadata) <= {"language", "handler_name", "vendor_id"}
        assert container.chapters() == []
    data = (tmp_path / "out.mp4").read_bytes()
    for secret in (*SECRETS.values(), "covr", "Lavf", "JFIF"):
        assert secret.encode() not in data
    assert cover_bytes(path) in path.read_bytes() and cover_bytes(path)[:200] not in data


def test_texts_are_kept_on_request_but_no_picture(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", cover=True, metadata=SECRETS)
    copy(path, tmp_path / "out.mp4", keep_metadata=True)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [s.type for s in container.streams] == ["video"]
        assert container.metadata["title"] == "Our holiday" and container.metadata["comment"] == "by Ada"
        assert "48.8577" in str(container.metadata)
    assert cover_bytes(path)[:200] not in (tmp_path / "out.mp4").read_bytes()


def cover_bytes(path: Path) -> bytes:
    with av.open(str(path)) as container:
        cover = container.streams.video[1]
        return next(bytes(p) for p in container.demux(cover) if p.size)


def test_metadata_that_may_hold_a_picture_is_never_kept() -> None:
    kept = without_pictures({
        "title": "Day 1", "THUMBNAIL": "x", "cover_art": "x", "xmp": "<x/>", "comment": "a" * 1001,
        "note": "QUJD" * 60, "make": "Phone", "encoder": "Lavf",
    })  # fmt: skip
    assert kept == {"title": "Day 1", "make": "Phone"}


def test_the_language_of_a_track_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_video(path, sounds=[Sound()])
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        copies[1].metadata["language"] = "fra"
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    copy(tmp_path / "b.mkv", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].language == "fra"


@pytest.mark.parametrize("what", ["frame", "array", "none", "lookalike"])
def test_a_sink_takes_nothing_but_safe_frames(tmp_path: Path, what: str) -> None:
    class Lookalike:
        image_rgb, index, pts_s, pts, time_base = picture(), 0, 0.0, None, None

    raw = {"frame": Frame(picture(), 0, 0.0), "array": picture(), "none": None, "lookalike": Lookalike()}[
        what
    ]
    with Mp4Sink(tmp_path / "out.mp4", info_of(tmp_path)) as sink:
        with pytest.raises(TypeError, match="want SafeFrame"):
            sink.write(raw)  # type: ignore[arg-type]
        with pytest.raises(SinkError):
            sink.commit()
    assert not (tmp_path / "out.mp4").exists() and leftovers(tmp_path) == []


# --- real clips ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lp_d10.mp4", "st_AOC.mp4", "skv_carphone.mp4"])
def test_real_clips_keep_everything_but_codec_error(tmp_path: Path, shared_dir: Path, name: str) -> None:
    path = shared_dir / "data" / "videos" / "real" / name
    copy(path, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == times(path)
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(path)
    assert length_s(tmp_path / "out.mp4") == pytest.approx(length_s(path), abs=1e-6)
    with FileSource(path) as source, FileSource(tmp_path / "out.mp4") as result:
        pairs = [(a.image_rgb, b.image_rgb) for a, b in zip(source, result, strict=True)][::20]
    error = np.concatenate([(a.astype(int) - b).reshape(-1, 3) for a, b in pairs])
    assert np.abs(error).mean() < 3 and np.abs(error.mean(0)).max() < 1
