"""`keyface process` on the command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fake_chain import BOX, MakeClip, fake_parts, read_video, save_photo, touch

from keyface.configs.errors import KeyFileError, SourceError, UsageError
from keyface.pipeline.batch import RESUME_FILE
from keyface.pipeline.chain import ChainParts
from keyface.pipeline.people.key import Key
from keyface.tools import process_command
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(240)


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
    for number, name in enumerate(("one", "two")):
        key = tmp_path / f"{name}.key"
        Key(bytes(range(number, number + 32))).save(key)
        out = tmp_path / f"{name}.mp4"
        assert run_process(clip, "-o", out, "--key-file", key, "--end", "1", "--quiet") == 0
        images[name], _ = read_video(out)
    before, _ = read_video(clip)
    for a, b, raw in zip(images["one"], images["two"], before, strict=False):
        assert a.shape == b.shape == raw.shape
    # The faces differ from the raw one and, by the key, from each other.
    change = np.abs(images["one"][6].astype(int) - before[6]).max(axis=2)
    assert (change > 15).mean() > 0.004
    assert (np.abs(images["one"][6].astype(int) - images["two"][6]).max(axis=2) > 15).mean() > 0.002
