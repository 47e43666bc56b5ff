"""The encoder of a card: what is asked of it, and what is said where there is none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from fake_chain import MakeClip, read_video
from live_sink_cases import SIZE_WH, free_port
from live_sink_cases import safe as live_safe
from sink_cases import copy, info_of, leftovers

from keyface.configs.errors import SinkError, UsageError
from keyface.pipeline.live.sink import make_sink
from keyface.pipeline.live.sink_encode import LiveCoding
from keyface.pipeline.media import encoder
from keyface.pipeline.media.encoder import check_encoder, nvenc_options
from keyface.pipeline.media.sink import Mp4Sink
from keyface.pipeline.process_options import ProcessOptions
from keyface.tools.main import main

NO_CARD = r"card's encoder \(NVENC\) cannot be used .*Leave out --encoder nvenc"


def refusal(options: dict[str, str]) -> str:
    """How NVENC, as libav has it here, refuses these options: their values are read before any driver is."""
    context = av.CodecContext.create("h264_nvenc", "w")
    context.width = context.height = 256
    context.pix_fmt = "yuv420p"
    context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
    context.options = options
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        return type(error).__name__
    return ""


@pytest.fixture
def no_card() -> None:
    if "h264_nvenc" not in av.codecs_available:
        pytest.skip("this libav has no NVENC")
    if not refusal({}):
        pytest.skip("there is a card with an encoder here")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """x264 in NVENC's place; what NVENC would have been asked for."""
    asked: list[dict[str, str]] = []

    def record(options: dict[str, str]) -> dict[str, str]:
        asked.append(nvenc_options(options))
        return {"preset": "ultrafast", "bf": "0"}

    monkeypatch.setitem(encoder._CODECS, "nvenc", "libx264")
    monkeypatch.setattr(encoder, "nvenc_options", record)
    return asked


CODINGS = [
    {"crf": "18", "preset": "superfast"},
    {"crf": "0", "preset": "slow"},
    LiveCoding().options(),
    LiveCoding(crf=23, is_immediate=True, bit_rate=2_000_000).options(),
]


@pytest.mark.parametrize("x264", CODINGS)
def test_nvenc_knows_every_option_and_value_that_it_is_given(x264: dict[str, str], no_card: None) -> None:
    options = nvenc_options(x264)
    assert refusal(options) == refusal({}) != "ArgumentError"  # only the card is missing
    for name in options:
        assert refusal({name: "?!"}) in ("ArgumentError", "ValueError"), f"{name} is no option of NVENC"


def test_quality_and_delay_are_asked_for_in_nvencs_words() -> None:
    file, lossless, live, pushed = map(nvenc_options, CODINGS)
    assert file == {"preset": "p4", "tune": "hq", "bf": "0", "rc": "vbr", "cq": "18"}
    assert lossless["tune"] == "lossless" and "cq" not in lossless
    assert live["forced-idr"] == "1" and live["tune"] == "hq" and live["cq"] == "18"
    assert pushed["tune"] == "ull" and pushed["delay"] == "0" and pushed["maxrate"] == "2000000"


def test_without_a_card_it_is_one_sentence_and_no_file(tmp_path: Path, no_card: None) -> None:
    check_encoder("software")
    with pytest.raises(SinkError, match=NO_CARD):
        check_encoder("nvenc")
    info = info_of(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SinkError, match=NO_CARD):
        Mp4Sink(tmp_path / "out.mp4", info, encoder="nvenc")
    assert sorted(tmp_path.iterdir()) == before and leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "push"])
def test_a_live_sink_without_a_card_fails_and_leaves_nothing(
    name: str, tmp_path: Path, no_card: None
) -> None:
    target = f"udp://127.0.0.1:{free_port()}" if name == "push" else str(tmp_path / name)
    sink = make_sink(target, encoder="nvenc")
    with pytest.raises(SinkError, match=NO_CARD):
        sink.open(SIZE_WH, 25.0)
        sink.write(live_safe())
    sink.close()
    sink.finish(is_complete=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["process", "stream"])
def test_the_commands_say_so_before_anything_else(
    command: str, tmp_path: Path, no_card: None, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    source.write_bytes(b"never read")
    where = [str(source), "-o", str(out)]
    if command == "stream":
        where = ["--source", str(source), "--sink", str(out)]
    assert main([command, *where, "--redact-only", "--encoder", "nvenc"]) == SinkError.exit_code
    text, said = capsys.readouterr()
    assert text == "" and said.count("NVENC") == 1 and "--encoder nvenc" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_is_encoded_by_what_was_asked_for(
    tmp_path: Path, make_clip: MakeClip, stand_in: list[dict[str, str]]
) -> None:
    clip = make_clip("in.mkv")
    copy(clip, tmp_path / "a.mp4", encoder="nvenc", crf=21, audio_from=None)
    assert len(read_video(tmp_path / "a.mp4")[0]) == len(read_video(clip)[0]) > 5
    assert [asked["cq"] for asked in stand_in] == ["21"]
    copy(clip, tmp_path / "b.mp4", audio_from=None)
    assert len(stand_in) == 1  # software never asks


def test_a_recording_is_encoded_by_what_was_asked_for(tmp_path: Path, stand_in: list[dict[str, str]]) -> None:
    for name in ("a.mp4", "b.m3u8"):
        sink = make_sink(str(tmp_path / name), encoder="nvenc")
        sink.open(SIZE_WH, 25.0)
        for number in range(30):
            sink.write(live_safe(number / 25))
        sink.close()
        sink.finish(is_complete=True)
        assert len(read_video(tmp_path / name)[0]) == 30
    assert [asked["g"] for asked in stand_in] == ["50", "50"]


def test_the_encoder_is_an_option_of_a_run_that_decides_its_output() -> None:
    with pytest.raises(UsageError, match=r"--encoder: got 'x265'\. Legal: software, nvenc"):
        ProcessOptions(encoder="x265")  # type: ignore[arg-type]
    assert "encoder" not in ProcessOptions(reenactor="latent").settings()  # as of older runs
    assert ProcessOptions(encoder="nvenc").settings()["encoder"] == "nvenc"
