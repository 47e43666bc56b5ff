"""`keyface process`: options, jobs, videos, photos, folders, resuming, and what is said about them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from keyface.configs.errors import KeyFileError, SourceError, UsageError
from keyface.pipeline.batch import RESUME_FILE, Job, ResumeLog, plan_jobs
from keyface.pipeline.chain import ChainParts, MosaicAll, make_plans
from keyface.pipeline.choose import FaceChooser
from keyface.pipeline.face import AnalysedFrame, Face, ReenactedFrame
from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.inline import InlineChain
from keyface.pipeline.key import Key
from keyface.pipeline.process import process_photo, process_video
from keyface.pipeline.process_options import ProcessOptions
from keyface.pipeline.redact import redact_frame
from keyface.tools import process_command
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(120)

MakeClip = Callable[..., Path]
BOX = (20.0, 10.0, 52.0, 42.0)


class Analyse:
    """Finds a face at the same place in every frame, or none."""

    def __init__(self, boxes: tuple[tuple[float, ...], ...] = (BOX,)) -> None:
        self._boxes = boxes
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def process(self, item: Frame) -> AnalysedFrame:
        assert self.is_open
        faces = (
            Face(number, np.array(box, np.float32), None, 0.9, False, None)
            for number, box in enumerate(self._boxes)
        )
        return AnalysedFrame(item, tuple(faces))

    def close(self) -> None:
        self.is_open = False


class Paste:
    """Mosaics what it is told to."""

    def open(self) -> None:
        pass

    def process(self, item: ReenactedFrame) -> SafeFrame:
        return redact_frame(item.analysed.frame, [*item.analysed.must_redact, *item.must_redact])

    def close(self) -> None:
        pass


def fake_parts(*boxes: tuple[float, ...], released: list[bool] | None = None) -> ChainParts:
    def release() -> None:
        if released is not None:
            released.append(True)

    return ChainParts(analyse=Analyse(boxes), observer=None, reenact=None, paste=Paste(), release=release)


def read_video(path: Path) -> tuple[list[npt.NDArray[np.uint8]], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [f.to_ndarray(format="rgb24") for f in frames], [float(f.time) for f in frames]


def is_mosaic(image: npt.NDArray[Any], box: tuple[float, ...] = BOX) -> bool:
    """True when the middle of the box is made of flat blocks, as far as the codec leaves them flat."""
    x0, y0, x1, y1 = (int(v) for v in box)
    patch = image[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4].astype(np.int32)
    steps = np.abs(np.diff(patch, axis=1)).max(axis=2)
    return bool((steps <= 6).mean() > 0.75)


# Options.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"faces": "some"}, "Legal: all, largest"),
        ({"on_fault": "ignore"}, "Legal: redact, stop"),
        ({"backend": "abacus"}, "Legal: auto"),
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


def save_photo(path: Path, texture: Callable[..., npt.NDArray[np.uint8]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture((96, 64))).save(path)
    return path


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


# Jobs.


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_one_file_goes_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    clip = touch(tmp_path / "a.mov")
    assert plan_jobs([clip], tmp_path / "b.mp4") == [Job(clip, tmp_path / "b.mp4", "video")]
    out = tmp_path / "out"
    out.mkdir()
    assert plan_jobs([clip], out) == [Job(clip, out / "a.mp4", "video")]


def test_folders_keep_relative_names(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "in" / "out"
    for name in ("b/c.MOV", "a.jpeg", "d.png", ".hidden.mp4", ".git/x.mp4", "text.txt", "out/old.mp4"):
        touch(root / name)
    jobs = plan_jobs([root], out)
    assert [(str(j.source.relative_to(root)), str(j.output.relative_to(out)), j.kind) for j in jobs] == [
        ("a.jpeg", "a.jpeg", "photo"),
        ("d.png", "d.png", "photo"),
        ("b/c.MOV", "b/c.mp4", "video"),
    ]


def test_names_that_would_collide(tmp_path: Path) -> None:
    for name in ("a.mov", "a.mp4"):
        touch(tmp_path / "in" / name)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out")
    assert {j.output.name for j in jobs} == {"a.mp4", "a.mov.mp4"}
    twice = [touch(tmp_path / folder / "a.mp4") for folder in ("x", "y")]
    with pytest.raises(UsageError, match="would both become"):
        plan_jobs(twice, tmp_path / "out")


def test_jobs_that_make_no_sense(tmp_path: Path) -> None:
    clip, photo = touch(tmp_path / "a.mp4"), touch(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="does not exist"):
        plan_jobs([tmp_path / "none.mp4"], tmp_path / "b.mp4")
    with pytest.raises(SourceError, match="no video or photo"):
        plan_jobs([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"must end in \.mp4"):
        plan_jobs([clip], tmp_path / "b.avi")
    with pytest.raises(UsageError, match="must be a PNG file"):
        plan_jobs([photo], tmp_path / "b.jpg")
    with pytest.raises(UsageError, match="is a file, but a folder is needed"):
        plan_jobs([clip, photo], touch(tmp_path / "file"))
    with pytest.raises(UsageError, match="--force"):
        plan_jobs([clip], touch(tmp_path / "b.mp4"))
    assert plan_jobs([clip], tmp_path / "b.mp4", may_replace=True)
    os.link(clip, tmp_path / "link.mp4")
    for same in (clip, tmp_path / "x" / ".." / "a.mp4", tmp_path / "link.mp4", tmp_path):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="is the input"):
            plan_jobs([clip], same, may_replace=True)


def test_resume_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = Job(touch(tmp_path / "a.mp4"), touch(out / "sub" / "a.mp4"), "video")

    def log(settings: dict[str, Any] | None = None, fingerprint: str = "1234abcd") -> ResumeLog:
        return ResumeLog(out, settings=settings or {"crf": 18}, fingerprint=fingerprint)

    first = log()
    assert not first.is_finished(job)
    first.add(job)
    assert log().is_finished(job)
    assert not log({"crf": 20}).is_finished(job) and not log(fingerprint="0").is_finished(job)
    text = (out / RESUME_FILE).read_text()
    assert "1234abcd" not in text and str(tmp_path) not in text
    os.utime(job.source, (1, 1))
    assert not log().is_finished(job)
    log().add(job)
    job.output.write_bytes(b"changed")
    assert not log().is_finished(job)
    job.output.unlink()
    assert not log().is_finished(job)
    for damage in ("", "[]", "{}", '{"version": 2, "finished": {}}', '{"version": 1, "finished": 3}'):
        (out / RESUME_FILE).write_text(damage)
        assert not log().is_finished(job)


# The command.


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key.generate().save(path)
    return path


@pytest.fixture
def fake_chain(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces networks by fakes; returns the key fingerprints that chains were made with."""
    pytest.importorskip("keyface.pipeline.assemble")
    used: list[str] = []

    def make_parts(store: object, key: Key | None, options: object, **_: object) -> ChainParts:
        used.append("" if key is None else key.fingerprint)
        return fake_parts(BOX)

    monkeypatch.setattr("keyface.pipeline.assemble.make_parts", make_parts)
    monkeypatch.setattr("keyface.engines.store.ModelStore.ensure", lambda *_, **__: {})
    return used


def run_process(*arguments: str | Path) -> int:
    return main(["process", *(str(argument) for argument in arguments)])


def test_one_video_by_command(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert run_process(make_clip("in.mkv"), "-o", out, "--key-file", key) == 0
    text, err = capsys.readouterr()
    assert text == "" and "12 frames" in err and "1 face" in err and "mosaic in 12 frames" in err
    assert fake_chain == [Key.load(key).fingerprint] and out.exists()


def test_json_is_all_that_is_printed(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    key.chmod(0o644)
    args = (make_clip(), "-o", tmp_path / "out.mp4", "--key-file", key, "--json")
    assert run_process(*args) == 0
    text, err = capsys.readouterr()
    assert json.loads(text)["frames"] == 12
    assert "warning" in err and "chmod 600" in err


def test_a_folder_with_a_bad_file_goes_on_and_says_so(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str],
    texture: Callable[..., npt.NDArray[np.uint8]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, out = tmp_path / "in", tmp_path / "made" / "here"
    make_clip("b.mov", folder=source / "sub")
    save_photo(source / "c.png", texture)
    save_photo(source / "d.jpg", texture)
    (source / "a.mp4").write_text("no video")
    assert run_process(source, "-o", out, "--key-file", key, "--json") == SourceError.exit_code
    text, err = capsys.readouterr()
    answer = json.loads(text)
    assert len(answer["files"]) == 3 and answer["skipped"] == 0
    assert [Path(f["source"]).name for f in answer["failed"]] == ["a.mp4"] and "a.mp4" in err
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == ["c.png", "d.jpg", "sub/b.mp4"]


def test_resume_skips_what_is_finished(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        make_clip(name, folder=source, n_frames=4)
    command = (source, "-o", out, "--key-file", key, "--resume", "--json")
    assert run_process(*command) == 0 and len(fake_chain) == 2
    (out / "b.mp4").unlink()
    assert run_process(*command) == 0 and len(fake_chain) == 3
    assert run_process(*command) == 0 and len(fake_chain) == 3
    assert json.loads(capsys.readouterr().out.split("\n}\n")[-2] + "}")["skipped"] == 2
    # Other settings, another key, or no list at all: what is there is somebody's, not ours to replace.
    assert run_process(*command, "--crf", "30") == UsageError.exit_code
    (out / RESUME_FILE).unlink()
    assert run_process(*command) == UsageError.exit_code
    assert "--force" in capsys.readouterr().err
    assert run_process(*command, "--force") == 0 and len(fake_chain) == 5


def test_existing_outputs_need_force(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = touch(tmp_path / "out.mp4")
    assert run_process(make_clip(), "-o", out, "--key-file", key) == UsageError.exit_code
    assert "--force" in capsys.readouterr().err and out.read_bytes() == b"x"
    assert run_process(make_clip(), "-o", out, "--key-file", key, "--force") == 0
    assert len(read_video(out)[0]) == 12


def test_side_by_side_by_command(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_chain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    command = (make_clip(), "-o", out, "--key-file", key, "--side-by-side")
    assert run_process(*command) == 0
    assert "shows the original faces" in capsys.readouterr().err
    assert (tmp_path / "out-side-by-side.mp4").exists()
    out.unlink()
    assert run_process(*command) == UsageError.exit_code


def test_redact_only_needs_no_key(make_clip: MakeClip, tmp_path: Path, fake_chain: list[str]) -> None:
    assert run_process(make_clip(), "-o", tmp_path / "out.mp4", "--redact-only") == 0
    assert fake_chain == [""]


@pytest.mark.usefixtures("fake_chain")
def test_a_key_is_needed_and_must_open(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out, locked = make_clip(), tmp_path / "out.mp4", tmp_path / "locked.key"
    assert run_process(clip, "-o", out) == UsageError.exit_code
    assert "--key-file" in capsys.readouterr().err
    Key.generate().save(locked, passphrase="right")
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "wrong")
    assert run_process(clip, "-o", out, "--key-file", locked) == KeyFileError.exit_code
    assert "passphrase is wrong" in capsys.readouterr().err and not out.exists()
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "right")
    assert run_process(clip, "-o", out, "--key-file", locked) == 0


@pytest.mark.usefixtures("fake_chain")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_command_cleanly(
    number: signal.Signals, code: int, make_clip: MakeClip, key: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from keyface.tools.progress import FrameBar

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(FrameBar, "__call__", lambda *_: signal.raise_signal(number))
    assert run_process(make_clip(n_frames=200), "-o", out / "a.mp4", "--key-file", key) == code
    assert "nothing unfinished was kept" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_side_by_side_path() -> None:
    assert process_command.side_by_side_path(Path("x/a.mp4")) == Path("x/a-side-by-side.mp4")


# For real.


@pytest.mark.usefixtures("models")
def test_the_real_chain_on_a_real_clip(shared_dir: Path, tmp_path: Path) -> None:
    clip = shared_dir / "data" / "videos" / "real" / "intel_head-pose-face-detection-male.mp4"
    images = {}
    for name in ("one", "two"):
        key = tmp_path / f"{name}.key"
        Key.generate().save(key)
        out = tmp_path / f"{name}.mp4"
        assert run_process(clip, "-o", out, "--key-file", key, "--end", "1", "--quiet") == 0
        images[name], _ = read_video(out)
    before, _ = read_video(clip)
    for a, b, raw in zip(images["one"], images["two"], before, strict=False):
        assert a.shape == b.shape == raw.shape
    # The faces differ from the raw one and, by the key, from each other.
    change = np.abs(images["one"][6].astype(int) - before[6]).max(axis=2)
    assert (change > 30).mean() > 0.005
    assert (np.abs(images["one"][6].astype(int) - images["two"][6]).max(axis=2) > 30).mean() > 0.003
