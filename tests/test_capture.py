"""Reading videos: timestamps, turns, colour, odd formats, damage, and what is refused."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from odd_media import (
    Sound,
    cut_file,
    picture,
    spoil_packets,
    write_changing_size,
    write_sound_only,
    write_video,
    write_without_frames,
)

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.frame import Frame
from keyface.pipeline.media.capture import FileSource
from keyface.pipeline.media.rotation import apply_turn, turn_of_display_matrix, turn_of_exif
from keyface.pipeline.media.yuv import av_from_rgb, rgb_from_av

U8 = npt.NDArray[np.uint8]


def read(path: Path, **options: float) -> tuple[FileSource, list[Frame]]:
    with FileSource(path, **options) as source:  # type: ignore[arg-type]
        return source, list(source)


def mean_error(image: U8, want: U8) -> float:
    return float(np.abs(image.astype(int) - want.astype(int)).mean())


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
def test_reads_every_frame_of_each_container(tmp_path: Path, name: str) -> None:
    source, frames = read(write_video(tmp_path / name, n_frames=20, options={"bf": "3"}))
    assert len(frames) == 20
    assert [f.index for f in frames] == list(range(20))
    np.testing.assert_allclose([f.pts_s for f in frames], np.arange(20) / 25, atol=1e-9)
    assert not any(f.is_suspect for f in frames)
    assert source.notes == ()
    assert source.info.size_wh == (96, 64) and source.info.n_frames_hint == 20
    assert source.info.duration_s == pytest.approx(0.8)
    for index in (0, 7, 19):
        assert mean_error(frames[index].image_rgb, picture(index)) < 4


def test_reads_webm(tmp_path: Path) -> None:
    _, frames = read(write_video(tmp_path / "a.webm", codec="libvpx-vp9", options={"deadline": "realtime"}))
    assert len(frames) == 12 and mean_error(frames[3].image_rgb, picture(3)) < 4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_keeps_uneven_timestamps_exactly(tmp_path: Path, name: str) -> None:
    want_ms = [0, 33, 70, 100, 300, 333, 1000, 1017]
    path = write_video(tmp_path / name, time_base=Fraction(1, 1000), pts=want_ms)
    source, frames = read(path)
    first = source.info.first_pts
    assert all(f.pts is not None and f.time_base is not None for f in frames)
    assert [(f.pts - first) * f.time_base * 1000 for f in frames] == want_ms  # type: ignore[operator]


def test_time_counts_from_the_first_frame_while_pts_stay_those_of_the_file(tmp_path: Path) -> None:
    source, frames = read(write_video(tmp_path / "a.mkv", pts=[50, 51, 52]))
    assert source.info.first_pts == 2000
    assert [f.pts for f in frames] == [2000, 2040, 2080]
    assert [f.pts_s for f in frames] == pytest.approx([0, 0.04, 0.08])
    assert source.info.duration_s == pytest.approx(0.12)


def test_frames_are_read_only(tmp_path: Path) -> None:
    _, frames = read(write_video(tmp_path / "a.mp4", n_frames=2))
    with pytest.raises(ValueError, match="read-only"):
        frames[0].image_rgb[0, 0, 0] = 1


@pytest.mark.parametrize("rotation_deg", [0, 90, 180, -90])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_turns_upright(tmp_path: Path, rotation_deg: int, is_mirrored: bool) -> None:
    stored = picture(0, (96, 64))
    path = write_video(
        tmp_path / "a.mp4",
        n_frames=1,
        rotation_deg=rotation_deg,
        is_mirrored=is_mirrored,
        options={"crf": "1"},
    )
    # Rotation is counter-clockwise, then mirrored.
    want = np.rot90(stored, rotation_deg // 90)
    want = want[:, ::-1] if is_mirrored else want
    source, frames = read(path)
    assert source.info.size_wh == (want.shape[1], want.shape[0])
    assert mean_error(frames[0].image_rgb, want) < 3


def test_all_eight_orientations_agree_with_numpy() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    want = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.transpose(1, 0, 2), 6: np.rot90(image, -1),
        7: image[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(image),
    }  # fmt: skip
    for tag, expected in want.items():
        np.testing.assert_array_equal(apply_turn(image, turn_of_exif(tag)), expected, err_msg=str(tag))


@pytest.mark.parametrize("broken", [b"", bytes(36), b"x" * 35])
def test_an_unusable_display_matrix_counts_as_upright(broken: bytes) -> None:
    assert turn_of_display_matrix(broken) == "as_is"


FORMATS = [
    ("a.mp4", "libx264", "yuv420p10le", "8 bits"),
    ("a.mkv", "libx265", "yuv420p10le", "8 bits"),
    ("a.mp4", "libx264", "yuvj420p", None),
    ("a.mp4", "libx264", "yuv444p", None),
    ("a.mp4", "libx264", "yuv422p", None),
    ("a.mkv", "libx264rgb", "rgb24", None),
    ("a.avi", "mjpeg", "yuvj420p", None),
    ("a.avi", "ffv1", "bgr0", None),
    ("a.mov", "prores_ks", "yuva444p10le", "Transparency"),
    ("a.mov", "png", "rgba", "Transparency"),
    ("a.webm", "libvpx-vp9", "yuva420p", None),
    ("a.mkv", "ffv1", "yuv420p16le", "8 bits"),
    ("a.mkv", "ffv1", "yuv410p", None),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "note"), FORMATS)
def test_pixel_formats_give_the_same_picture(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, note: str | None
) -> None:
    options = {"x265-params": "log-level=none:crf=8"} if codec == "libx265" else {}
    options |= {"crf": "8"} if codec in ("libx264", "libx264rgb") else {}
    source, frames = read(write_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, options=options))
    assert len(frames) == 12
    error = frames[5].image_rgb.astype(int) - picture(5)
    assert np.abs(error).mean() < 4
    assert np.abs(error.mean((0, 1))).max() < 1.5, "the colours are shifted"
    assert (note is None) == (source.notes == ())
    if note is not None:
        assert note in " ".join(source.notes)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "gray"), ("ffv1", "gray10le"), ("ffv1", "gray12le")])
def test_grey_stays_grey_and_full(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    ramp = np.repeat(np.tile(np.arange(0, 256, 2, dtype=np.uint8), (64, 1))[:, :, None], 3, axis=2)
    path = write_video(
        tmp_path / "a.mkv",
        codec=codec,
        pix_fmt=pix_fmt,
        images=[ramp] * 2,
        pts=[0, 1],
        tags={"color_range": 2},
    )
    _, frames = read(path)
    assert np.ptp(frames[0].image_rgb, axis=2).max() == 0
    assert np.abs(frames[0].image_rgb.astype(int) - ramp).max() <= 2


@pytest.mark.parametrize("tag", [1, 6, 9])
def test_the_colour_matrix_is_honoured(tmp_path: Path, tag: int) -> None:
    bars = np.zeros((64, 96, 3), np.uint8)
    for i in range(8):
        bars[:, i * 12 : (i + 1) * 12] = [255 * (i & 1), 255 * (i >> 1 & 1), 255 * (i >> 2 & 1)]
    path = write_video(
        tmp_path / "a.mp4",
        images=[bars],
        pts=[0],
        pix_fmt="yuv444p",
        options={"crf": "1"},
        tags={"colorspace": tag},
    )
    source, frames = read(path)
    assert source.info.colour.matrix_tag == tag
    assert np.abs(frames[0].image_rgb.astype(int) - bars)[:, 3::12].max() <= 6


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
def test_rgb_to_yuv_and_back_is_nearly_exact(matrix: str) -> None:
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (16, 1))[:, :, None], 3, axis=2)
    av_frame = av_from_rgb(ramp, matrix)  # type: ignore[arg-type]
    av_frame.colorspace = {"bt601": 5, "bt709": 1, "bt2020": 9}[matrix]
    av_frame.color_range = 1
    error = rgb_from_av(av_frame).astype(int) - ramp
    assert np.abs(error).max() <= 1 and abs(error.mean()) < 0.3


@pytest.mark.parametrize("size_wh", [(97, 65), (96, 65), (97, 64), (17, 33), (1, 1), (9, 7)])
def test_odd_sizes_are_read_whole(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    path = write_video(
        tmp_path / "a.mkv", codec="ffv1", n_frames=2, size_wh=size_wh,
        images=[picture(i, size_wh) for i in range(2)],
    )  # fmt: skip
    _, frames = read(path)
    assert frames[0].image_rgb.shape == (size_wh[1], size_wh[0], 3)
    if min(size_wh) > 8:
        assert mean_error(frames[0].image_rgb, picture(0, size_wh)) < 4


def test_hdr_is_said(tmp_path: Path) -> None:
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16}
    path = write_video(tmp_path / "a.mp4", pix_fmt="yuv420p10le", tags=tags)
    source, _ = read(path)
    assert any("HDR (PQ)" in note for note in source.notes)
    assert (source.info.colour.primaries_tag, source.info.colour.transfer_tag) == (9, 16)


def test_changing_sizes_are_scaled_to_the_first(tmp_path: Path) -> None:
    path = write_changing_size(tmp_path / "a.avi", [(96, 64), (48, 32), (192, 128)])
    source, frames = read(path)
    assert len(frames) == 12
    assert {f.image_rgb.shape for f in frames} == {(64, 96, 3)}
    assert len([n for n in source.notes if "size" in n]) == 1
    for number in (5, 9):
        assert mean_error(frames[number].image_rgb, picture(number % 4)) < 8


def test_the_span_is_cut_by_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=150, options={"g": "10", "bf": "3"})
    source, frames = read(path, start_s=3.0, end_s=4.0)
    assert [round(f.pts_s * 25) for f in frames] == list(range(75, 100))
    assert [f.index for f in frames] == list(range(25))
    assert mean_error(frames[0].image_rgb, picture(75)) < 4
    assert source.info.n_frames_hint == 25 and source.info.duration_s == pytest.approx(1.0)
    _, near = read(path, start_s=0.2)
    assert round(near[0].pts_s * 25) == 5 and len(near) == 145
    _, early = read(path, end_s=0.2)
    assert len(early) == 5


def test_a_file_that_cannot_be_searched_is_read_from_the_beginning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", n_frames=100, options={"g": "100"})
    _, frames = read(path, start_s=3.0)
    assert [round(f.pts_s * 25) for f in frames] == list(range(75, 100))


@pytest.mark.parametrize(
    "span", [{"start_s": -1.0}, {"end_s": 0.0}, {"start_s": 2.0, "end_s": 1.0}, {"start_s": float("nan")}]
)
def test_a_span_that_makes_no_sense_is_refused(tmp_path: Path, span: dict[str, float]) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=2)
    with pytest.raises(UsageError):
        FileSource(path, **span)  # type: ignore[arg-type]


def test_a_start_after_the_end_of_the_video_is_said(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=10)
    with pytest.raises(SourceError, match="no frame from 60 s"):
        read(path, start_s=60.0)


def test_a_source_is_read_once(tmp_path: Path) -> None:
    with FileSource(write_video(tmp_path / "a.mp4", n_frames=2)) as source:
        assert len(list(source)) == 2
        with pytest.raises(SourceError, match="already"):
            list(source)


def test_audio_tracks_are_listed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", sounds=[Sound("aac"), Sound("libopus")])
    with FileSource(path) as source:
        assert [(t.codec, t.channels, t.rate_hz) for t in source.info.audio_tracks] == [
            ("aac", 2, 48000), ("opus", 2, 48000),
        ]  # fmt: skip
        assert source.info.has_audio


# --- damage -------------------------------------------------------------------------------------------


def test_damage_in_the_middle_marks_frames_until_the_next_key_frame(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4",
        n_frames=60,
        size_wh=(320, 240),
        options={"g": "15", "keyint_min": "15", "bf": "2"},
    )
    _, clean = read(path)
    spoil_packets(path, [20, 21])
    source, frames = read(path)
    by_time = {round(f.pts_s * 25): f for f in frames}
    assert len(frames) >= 58 and set(range(15)) <= set(by_time) and set(range(30, 60)) <= set(by_time)
    assert not any(by_time[i].is_suspect for i in (*range(15), *range(31, 60)))
    changed = [
        i for i, f in by_time.items() if np.abs(f.image_rgb.astype(int) - clean[i].image_rgb).max() > 40
    ]
    assert changed and all(by_time[i].is_suspect for i in changed)
    assert any("damaged" in note for note in source.notes)


def test_damaged_hevc_is_noticed(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mkv", codec="libx265", n_frames=60, size_wh=(320, 240),
        options={"x265-params": "keyint=15:log-level=none"},
    )  # fmt: skip
    spoil_packets(path, [20])
    source, frames = read(path)
    assert len(frames) >= 58 and any(f.is_suspect for f in frames)
    assert not any(f.is_suspect for f in frames if not 0.55 < f.pts_s < 1.25)
    assert any("damaged" in note for note in source.notes)


def test_a_damaged_intra_only_stream_recovers_at_once(tmp_path: Path) -> None:
    path = spoil_packets(
        write_video(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p", n_frames=20), [5], keep_share=0
    )
    _, frames = read(path)
    assert len(frames) >= 19
    assert not any(f.is_suspect for f in frames if f.pts_s > 0.3)


def test_a_truncated_file_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=60, size_wh=(320, 240), movflags="faststart")
    source, frames = read(cut_file(path, 0.7))
    assert 20 < len(frames) < 60
    assert any("truncated" in note and "60" in note for note in source.notes)


def test_a_truncated_matroska_file_says_what_is_missing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", n_frames=60, size_wh=(320, 240))
    source, frames = read(cut_file(path, 0.6))
    assert 20 < len(frames) < 60
    assert any("2.4 s" in note for note in source.notes)


# --- refused ------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_bad_file_has_a_sentence_of_its_own(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    messages = {
        "text": refusal(text),
        "empty": refusal(empty),
        "missing": refusal(tmp_path / "missing.mp4"),
        "folder": refusal(tmp_path),
        "truncated": refusal(cut_file(write_video(tmp_path / "cut.mp4"), 0.5)),
        "sound": refusal(write_sound_only(tmp_path / "sound.m4a")),
        "no frames": refusal(write_without_frames(tmp_path / "none.avi")),
        "dead": refusal(spoil_packets(write_video(tmp_path / "dead.mp4"), range(12), keep_share=0)),
    }
    wanted = {
        "text": "not a video", "empty": "empty", "missing": "does not exist", "folder": "is a folder",
        "truncated": "truncated", "sound": "only sound", "no frames": "without a single frame",
        "dead": "none of its 12 frames",
    }  # fmt: skip
    for name, words in wanted.items():
        assert words in messages[name], name


@pytest.mark.parametrize("name", ["song.mp3", "song.m4a"])
def test_a_song_with_a_cover_picture_is_only_sound(tmp_path: Path, name: str) -> None:
    sound = Sound("libmp3lame") if name.endswith("mp3") else Sound()
    assert "only sound" in refusal(write_sound_only(tmp_path / name, sound, cover=True))


def test_a_photo_is_not_a_video(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a.jpg", "a.png", "a.webp"):
        Image.fromarray(picture()).save(tmp_path / name)
        assert "is a picture" in refusal(tmp_path / name)


def test_too_large_frames_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=2, size_wh=(320, 240))
    with pytest.raises(SourceError, match="320x240"):
        FileSource(path, max_pixels=320 * 240 - 1)
    with FileSource(path, max_pixels=320 * 240):
        pass


def test_a_later_frame_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = write_changing_size(tmp_path / "a.avi", [(96, 64), (640, 480)])
    with (
        FileSource(path, max_pixels=200_000) as source,
        pytest.raises(SourceError, match="640x480"),
    ):
        list(source)


@pytest.mark.slow
def test_8k_is_read(tmp_path: Path) -> None:
    image = np.full((4320, 7680, 3), 90, np.uint8)
    path = write_video(tmp_path / "a.mp4", images=[image] * 2, pts=[0, 1], options={"preset": "ultrafast"})
    _, frames = read(path)
    assert frames[1].image_rgb.shape == (4320, 7680, 3)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read everything")
def test_a_file_without_permission_is_said(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", n_frames=2)
    path.chmod(0)
    assert "may not be read" in refusal(path)


def test_a_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    refusal(path)


def test_the_cover_of_a_video_is_not_the_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as probe:
        assert len(probe.streams.video) == 2
    source, frames = read(path)
    assert source.info.size_wh == (96, 64) and len(frames) == 12
    assert any("1 picture" in note for note in source.notes)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_escapes_the_error_tree(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = [
        lambda: write_video(tmp_path / "a.mp4", sounds=[Sound()], cover=True),
        lambda: write_video(tmp_path / "a.mkv", sounds=[Sound("pcm_s16le"), Sound("libopus")]),
        lambda: write_video(tmp_path / "a.avi", codec="mpeg4", sounds=[Sound("libmp3lame")]),
        lambda: write_video(tmp_path / "a.mov", rotation_deg=90, sounds=[Sound("pcm_s16le")]),
    ][seed % 4]()
    data = bytearray(path.read_bytes())
    reach = (len(data), 2000)[seed // 4 % 2]
    for place in rng.integers(0, reach, int(rng.choice([1, 10, 100]))):
        data[place] = rng.integers(256)
    path.write_bytes(bytes(data))
    try:
        _, frames = read(path)
    except SourceError:
        return
    times = [f.pts_s for f in frames]
    assert times == sorted(set(times)) and len({f.image_rgb.shape for f in frames}) == 1
