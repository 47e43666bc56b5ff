"""Processing one video or photo: what is kept, what is counted, what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from fake_chain import BOX, Analyse, MakeClip, Paste, fake_parts, is_mosaic, read_video, save_photo
from PIL import Image

from keyface.configs.errors import UsageError
from keyface.pipeline.chain import ChainParts, MosaicAll, make_plans
from keyface.pipeline.choose import FaceChooser
from keyface.pipeline.face import AnalysedFrame, Face
from keyface.pipeline.frame import Frame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.process import process_photo, process_video
from keyface.pipeline.process_options import ProcessOptions

pytestmark = pytest.mark.timeout(240)


# Options.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"faces": "some"}, "Legal: all, largest"),
        ({"on_fault": "ignore"}, "Legal: redact, stop"),
        ({"backend": "abacus"}, "Legal: auto"),
        ({"preset": "fast"}, "Legal: default, exact"),
        ({"generator_px": 300}, "Legal: 256, 1024"),
        ({"start_s": -1.0}, "--start: got -1, want 0 or more"),
        ({"start_s": float("nan")}, "--start: got nan"),
        ({"end_s": float("inf")}, "--end: got inf"),
        ({"start_s": 5.0, "end_s": 3.0}, "not after the start"),
        ({"end_s": 0.0}, "not after the start"),
        ({"crf": 52}, "--crf: got 52, want 0 to 51"),
        ({"threads": -1}, "--threads"),
        ({"stage_timeout_s": 0.0}, "--stage-timeout"),
    ],
)
def test_bad_options_name_what_is_legal(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ProcessOptions(**options)
    assert said in str(caught.value)


# One video.


def test_a_video_keeps_frames_times_and_sound(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("in.mp4", n_frames=30, with_audio=True)
    out, released = tmp_path / "out.mp4", []
    ticks = []
    summary = process_video(
        clip,
        out,
        parts=fake_parts(BOX, released=released),
        on_tick=lambda report, info: ticks.append((report.delivered, info.n_frames_hint)),
    )
    before, times_before = read_video(clip)
    after, times_after = read_video(out)
    assert len(after) == len(before) == 30 and times_after == pytest.approx(times_before, abs=1e-3)
    with av.open(str(out)) as container:
        assert len(container.streams.audio) == 1
    for raw, image in zip(before, after, strict=True):
        change = np.abs(image.astype(int) - raw).mean(axis=2)
        assert change[14:38, 24:48].mean() > 7 > 2 * change[50:, 70:].mean()
    assert (summary.frames, summary.faces, summary.replaced, summary.redacted_frames) == (30, 1, 0, 30)
    assert summary.redacted == {"requested": 30} and summary.faults == {} and summary.warnings == ()
    assert summary.duration_s == pytest.approx(30 / 25, abs=0.01)
    assert summary.first_frame_s is not None and 0 < summary.first_frame_s <= summary.wall_s
    assert set(summary.stages) == {"source", "analyse", "lookahead", "reenact", "paste", "write"}
    assert json.loads(json.dumps(summary.to_json()))["frames"] == 30
    assert ticks[-1] == (30, 30) and released == [True]


def test_a_video_without_faces_stays_as_it_is(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(n_frames=8)
    summary = process_video(clip, tmp_path / "out.mp4", parts=fake_parts())
    before, _ = read_video(clip)
    after, _ = read_video(tmp_path / "out.mp4")
    assert summary.faces == summary.redacted_frames == 0
    assert max(float(np.abs(a.astype(int) - b).mean()) for a, b in zip(before, after, strict=True)) < 3


def test_start_and_end(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(n_frames=50)
    options = ProcessOptions(start_s=0.4, end_s=1.2)
    summary = process_video(clip, tmp_path / "out.mp4", parts=fake_parts(), options=options)
    assert summary.frames == 20 and len(read_video(tmp_path / "out.mp4")[0]) == 20


def test_side_by_side_shows_both(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(n_frames=12)
    process_video(clip, tmp_path / "out.mp4", parts=fake_parts(BOX), comparison=tmp_path / "both.mp4")
    (before, *_), _ = read_video(clip)
    both, _ = read_video(tmp_path / "both.mp4")
    assert len(both) == 12 and both[0].shape[1] == 2 * before.shape[1]


def test_a_failure_leaves_nothing_and_releases_the_parts(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(n_frames=30)
    out = tmp_path / "out"
    out.mkdir()
    released: list[bool] = []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process_video(
            clip,
            out / "a.mp4",
            parts=fake_parts(BOX, released=released),
            comparison=out / "b.mp4",
            on_tick=interrupt,
        )
    assert list(out.iterdir()) == [] and released == [True]


def test_an_existing_output_survives_a_failure(make_clip: MakeClip, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"the earlier result")

    class Broken(Analyse):
        def process(self, item: Frame) -> AnalysedFrame:
            raise ValueError("it broke")

    parts = ChainParts(analyse=Broken(), observer=None, reenact=None, paste=Paste())
    with pytest.raises(Exception, match="it broke"):
        process_video(make_clip(), out, parts=parts, options=ProcessOptions(on_fault="stop"))
    assert out.read_bytes() == b"the earlier result"


def test_faults_are_told(make_clip: MakeClip, tmp_path: Path) -> None:
    class Shaky(Analyse):
        def process(self, item: Frame) -> AnalysedFrame:
            if item.index == 3:
                raise ValueError("a hiccup")
            return super().process(item)

    parts = ChainParts(analyse=Shaky(), observer=None, reenact=None, paste=Paste())
    summary = process_video(make_clip(), tmp_path / "out.mp4", parts=parts)
    assert summary.faults == {"analyse": 1}
    assert "failed on 1 frame," in summary.warnings[0] and "a hiccup" in summary.warnings[0]
    assert summary.redacted["stage_failed"] == 1


# Photos.


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_photo_keeps_its_format(
    name: str, tmp_path: Path, texture: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    source, out = save_photo(tmp_path / name, texture), tmp_path / "out" / name
    out.parent.mkdir()
    summary = process_photo(source, out, parts=fake_parts(BOX))
    with Image.open(source) as before, Image.open(out) as after:
        assert after.format == before.format and after.size == before.size
        assert is_mosaic(np.asarray(after.convert("RGB")))
        assert not is_mosaic(np.asarray(before.convert("RGB")))
    assert summary.kind == "photo" and summary.frames == 1 and summary.faces == 1
    json.dumps(summary.to_json())


def test_a_photo_on_which_a_stage_fails_is_mosaicked_whole(
    tmp_path: Path, texture: Callable[..., npt.NDArray[np.uint8]]
) -> None:
    class Broken(Analyse):
        def process(self, item: Frame) -> AnalysedFrame:
            raise ValueError("it broke")

    source, out = save_photo(tmp_path / "a.png", texture), tmp_path / "b.png"
    parts = ChainParts(analyse=Broken(), observer=None, reenact=None, paste=Paste())
    summary = process_photo(source, out, parts=parts)
    with Image.open(out) as image:
        assert is_mosaic(np.asarray(image), (0, 0, 96, 64))
    assert summary.faults == {"analyse": 1} and "it broke" in summary.warnings[0]
    out.unlink()
    with pytest.raises(Exception, match="it broke"):
        process_photo(source, out, parts=parts, options=ProcessOptions(on_fault="stop"))
    assert not out.exists()


def test_inline_chain_closes_all_when_one_does_not_open() -> None:
    class Closed(Analyse):
        def open(self) -> None:
            raise ValueError("no model")

    first = Analyse()
    plans = [*make_plans(fake_parts(), lookahead_s=0.5)]
    chain = InlineChain([*make_plans(ChainParts(analyse=first, observer=None, reenact=None, paste=Closed()))])
    with pytest.raises(ValueError, match="no model"), chain:
        pass
    assert not first.is_open and len(plans) == 4


# Which faces.


def _analysed(index: int, *faces: tuple[int, float]) -> AnalysedFrame:
    image = np.zeros((200, 400, 3), np.uint8)
    found = tuple(
        Face(track, np.array([100 * i, 0, 100 * i + side, side], np.float32), None, 0.9, False, None)
        for i, (track, side) in enumerate(faces)
    )
    return AnalysedFrame(Frame(image, index, index / 25), found)


def test_largest_keeps_one_track_and_mosaics_the_others() -> None:
    chooser = FaceChooser("largest")
    out = chooser.apply(_analysed(0, (1, 40), (2, 60), (3, 30)))
    assert [f.track_id for f in out.faces] == [2]
    assert {(r.track_id, r.reason) for r in out.must_redact} == {(1, "requested"), (3, "requested")}


def test_largest_does_not_swap_at_every_step() -> None:
    chooser = FaceChooser("largest")
    chosen = [
        chooser.apply(_analysed(i, (1, 60), (2, 58 + 4 * (i % 2)))).faces[0].track_id for i in range(50)
    ]
    assert set(chosen) == {1}


def test_largest_moves_on_when_another_is_clearly_larger_for_long_or_the_first_leaves() -> None:
    chooser = FaceChooser("largest")
    assert chooser.apply(_analysed(0, (1, 60), (2, 50))).faces[0].track_id == 1
    chosen = [chooser.apply(_analysed(i, (1, 60), (2, 90))).faces[0].track_id for i in range(1, 30)]
    assert chosen[0] == 1 and chosen[-1] == 2 and sorted(chosen) == chosen
    assert chooser.apply(_analysed(30, (3, 20))).faces[0].track_id == 3


def test_all_changes_nothing() -> None:
    analysed = _analysed(0, (1, 40), (2, 60))
    assert FaceChooser("all").apply(analysed) is analysed
    reenacted = MosaicAll().process(analysed)
    assert {r.track_id for r in reenacted.must_redact} == {1, 2} and reenacted.virtual == ()
