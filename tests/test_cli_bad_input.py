"""The command line on bad input: one clear sentence, the right exit code, no partial result, no hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

MakeClip = Callable[..., Path]

USAGE, KEY_FILE, MODEL_STORE, MEDIA = 2, 3, 4, 6
INTERRUPTED = 130


def start(
    *arguments: str | Path, file_limit_bytes: int | None = None, **options: object
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "keyface.tools.main", *(str(argument) for argument in arguments)]
    if file_limit_bytes is not None:
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_limit_bytes}, {file_limit_bytes}))"
        run = "runpy.run_module('keyface.tools.main', run_name='__main__', alter_sys=True)"
        command[1:3] = ["-c", f"import resource, runpy; {limit}; {run}"]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def keyface(*arguments: str | Path, timeout_s: float = 300, **options: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command; kills it and fails if it hangs."""
    with start(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err


def assert_refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    """One complaint that names what is wrong, the right exit code, and no traceback."""
    status, out, err = result
    assert "Traceback" not in err, err
    assert status == code, (status, err)
    complaint = [line for line in err.splitlines() if line.startswith("keyface")]
    assert len(complaint) == 1, err
    for word in words:
        assert word.lower() in err.lower(), (word, err)
    assert out == ""


def folder_is(folder: Path, *names: str) -> None:
    """Nothing else is in the folder: no result, no temporary file left behind."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(names)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "good.key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def clip(make_clip: MakeClip) -> Path:
    return make_clip("in.mp4", n_frames=10)


# The command itself.


@pytest.mark.parametrize(
    "arguments",
    [["process", "a.mp4", "-o", "b.mp4", "--no-such-option"], ["no-such-command"], ["process"]],
)
def test_unknown_or_missing_option(arguments: list[str]) -> None:
    status, out, err = keyface(*arguments)
    assert status == USAGE and out == "" and "usage:" in err and "Traceback" not in err
    assert "error" in err.splitlines()[-1]


def test_a_bad_choice_lists_the_legal_ones(clip: Path, key: Path, out: Path) -> None:
    status, _, err = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key, "--faces", "some")
    assert status == USAGE and "largest" in err and "all" in err


def test_no_command_shows_the_help() -> None:
    status, out, err = keyface()
    assert status in (0, USAGE) and "process" in out + err and "Traceback" not in err


@pytest.mark.parametrize(
    "times", [["--start", "5", "--end", "3"], ["--start", "-1"], ["--end", "0"], ["--start", "nan"]]
)
def test_times_that_make_no_sense(clip: Path, key: Path, out: Path, times: list[str]) -> None:
    status, _, err = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key, *times)
    assert status == USAGE and "Traceback" not in err
    folder_is(out)


# The key.


@pytest.mark.parametrize("size", [0, 1, 16, 31, 33, 64])
def test_key_of_a_wrong_size(clip: Path, out: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(b"k" * size)
    path.chmod(0o600)
    result = keyface("process", clip, "-o", out / "a.mp4", "--key-file", path)
    assert_refused(result, KEY_FILE, str(path))
    folder_is(out)


def test_missing_key(clip: Path, out: Path, tmp_path: Path) -> None:
    result = keyface("process", clip, "-o", out / "a.mp4", "--key-file", tmp_path / "none.key")
    assert_refused(result, KEY_FILE, "none.key")
    folder_is(out)


def test_key_is_a_folder(clip: Path, out: Path, tmp_path: Path) -> None:
    assert_refused(keyface("process", clip, "-o", out / "a.mp4", "--key-file", tmp_path), KEY_FILE)


def test_no_key_named(clip: Path, out: Path) -> None:
    status, _, err = keyface("process", clip, "-o", out / "a.mp4")
    assert status == USAGE and "--key-file" in err and "Traceback" not in err
    folder_is(out)


def test_keygen_never_overwrites_silently(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    assert keyface("keygen", path)[0] == 0
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    status, _, err = keyface("keygen", path)
    assert status in (USAGE, KEY_FILE) and "--force" in err
    assert path.read_bytes() == before
    assert keyface("keygen", path, "--force")[0] == 0
    assert path.read_bytes() != before
    folder_is(tmp_path, "my.key")


def test_keygen_into_nowhere(tmp_path: Path) -> None:
    status, _, err = keyface("keygen", tmp_path / "no" / "folder" / "my.key")
    assert status in (USAGE, KEY_FILE) and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_key_that_others_can_read_is_a_warning(clip: Path, key: Path, out: Path) -> None:
    key.chmod(0o644)
    status, _, err = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key)
    assert status == 0, err
    assert "warning" in err.lower() and str(key) in err and "600" in err
    folder_is(out, "a.mp4")


# The source. A key, readable by its owner alone, and the models are there.


def write_text(path: Path, _: Path) -> None:
    path.write_text("This is not a video.\n" * 200)


def write_nothing(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def write_noise(path: Path, _: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(50_000))


def write_truncated(path: Path, clip: Path) -> None:
    path.write_bytes(clip.read_bytes()[:600])


def write_audio_only(path: Path, _: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_zero_frames(path: Path, _: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()


@pytest.mark.slow
@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    "write",
    [write_text, write_nothing, write_noise, write_truncated, write_audio_only, write_zero_frames],
    ids=lambda write: write.__name__.removeprefix("write_"),
)
def test_source_that_cannot_be_read(
    write: Callable[[Path, Path], None], clip: Path, key: Path, out: Path, tmp_path: Path
) -> None:
    source = tmp_path / "bad.mp4"
    write(source, clip)
    assert_refused(keyface("process", source, "-o", out / "a.mp4", "--key-file", key), MEDIA, "bad.mp4")
    folder_is(out)


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_photo_that_cannot_be_read(key: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    result = keyface("process", tmp_path / "bad.jpg", "-o", out / "a.jpg", "--key-file", key)
    assert_refused(result, MEDIA, "bad.jpg")
    folder_is(out)


def test_source_is_missing(key: Path, out: Path, tmp_path: Path) -> None:
    status, _, err = keyface("process", tmp_path / "none.mp4", "-o", out / "a.mp4", "--key-file", key)
    assert status in (USAGE, MEDIA) and "none.mp4" in err and "Traceback" not in err
    folder_is(out)


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_one_bad_file_of_many_does_not_stop_the_others(
    make_clip: MakeClip, key: Path, out: Path, tmp_path: Path
) -> None:
    good = make_clip("good.mp4", n_frames=6)
    (tmp_path / "bad.mp4").write_text("no video")
    status, _, err = keyface("process", tmp_path / "bad.mp4", good, "-o", out, "--key-file", key)
    assert status == MEDIA and "bad.mp4" in err and "Traceback" not in err
    folder_is(out, "good.mp4")


# The output.


@pytest.mark.parametrize("kind", ["same", "relative", "symlink", "hardlink"])
def test_output_that_is_the_input(clip: Path, key: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "other.mp4"
    if kind == "same":
        target = clip
    elif kind == "relative":
        target = clip.parent / "." / ".." / clip.parent.name / clip.name
    elif kind == "symlink":
        target.symlink_to(clip)
    else:
        os.link(clip, target)
    before = clip.read_bytes()
    assert_refused(keyface("process", clip, "-o", target, "--key-file", key), USAGE)
    assert clip.read_bytes() == before


def forbidden_folder(tmp_path: Path) -> Path:
    """A folder in which even the administrator may not create files, or one without write permission."""
    if os.geteuid() == 0:
        return Path("/proc")
    folder = tmp_path / "forbidden"
    folder.mkdir(mode=0o500)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_output_without_permission(clip: Path, key: Path, tmp_path: Path) -> None:
    target = forbidden_folder(tmp_path) / "a.mp4"
    status, _, err = keyface("process", clip, "-o", target, "--key-file", key)
    assert status in (USAGE, MEDIA) and str(target.parent) in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_output_below_a_file(clip: Path, key: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, err = keyface("process", clip, "-o", tmp_path / "file" / "a.mp4", "--key-file", key)
    assert status in (USAGE, MEDIA) and "Traceback" not in err


def test_many_inputs_need_a_folder(make_clip: MakeClip, key: Path, out: Path) -> None:
    clips = [make_clip(name, n_frames=3) for name in ("a.mp4", "b.mp4")]
    (out / "c.mp4").write_text("here before")
    status, _, err = keyface("process", *clips, "-o", out / "c.mp4", "--key-file", key)
    assert status == USAGE and "folder" in err and "Traceback" not in err
    assert (out / "c.mp4").read_text() == "here before"


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_disk_that_fills_up(make_clip: MakeClip, key: Path, out: Path) -> None:
    """A limit on the size of files fails the write in the middle, as a full disk does."""
    noisy = make_clip("long.mp4", n_frames=200, size_wh=(320, 240))
    result = keyface("process", noisy, "-o", out / "a.mp4", "--key-file", key, file_limit_bytes=40_000)
    assert_refused(result, MEDIA, "a.mp4")
    folder_is(out)


# Models.


def offline(folder: Path) -> dict[str, str]:
    """An environment without models, and in which pip finds nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
    return {**kept, **pip, "KEYFACE_MODEL_DIR": str(folder)}


@pytest.mark.parametrize(
    "command", [["process", "{clip}", "-o", "{out}", "--key-file", "{key}"], ["models", "pull"]]
)
def test_models_missing_while_offline(
    clip: Path, key: Path, out: Path, tmp_path: Path, command: list[str]
) -> None:
    store = tmp_path / "empty store"
    store.mkdir()
    arguments = [part.format(clip=clip, out=out / "a.mp4", key=key) for part in command]
    status, _, err = keyface(*arguments, env=offline(store))
    assert status == MODEL_STORE and "Traceback" not in err, err
    assert "keyface models pull" in err or "pip" in err
    folder_is(out)
    assert not [file for file in store.rglob("*") if file.is_file() and file.stat().st_size]


def damaged_store(folder: Path, pattern: str) -> Path:
    """A copy of the models in which one byte of each file that fits the pattern is wrong."""
    status, where, _ = keyface("models", "where")
    assert status == 0
    shutil.copytree(where.strip(), folder)
    victims = [file for file in folder.rglob(pattern) if file.stat().st_size > 1000]
    assert victims
    for victim in victims:
        data = bytearray(victim.read_bytes())
        data[1000] ^= 1
        victim.chmod(0o644)
        victim.write_bytes(data)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_damaged_models_are_not_used(clip: Path, key: Path, out: Path, tmp_path: Path) -> None:
    store = damaged_store(tmp_path / "store", "face_detection*.onnx")
    assert keyface("models", "verify", env=offline(store))[0] == MODEL_STORE
    result = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key, env=offline(store))
    assert result[0] == MODEL_STORE and "Traceback" not in result[2]
    folder_is(out)


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_damaged_model_is_built_again_from_sound_ones(
    clip: Path, key: Path, out: Path, tmp_path: Path
) -> None:
    store = damaged_store(tmp_path / "store", "*yunet_dynamic*.onnx")
    status, _, err = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key, env=offline(store))
    assert status == 0, err
    assert keyface("models", "verify", "default", env=offline(store))[0] == 0


# Ctrl-C.


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_ctrl_c_leaves_no_partial_file(make_clip: MakeClip, key: Path, out: Path) -> None:
    long = make_clip("long.mp4", n_frames=6000, size_wh=(320, 240))
    with start("process", long, "-o", out / "a.mp4", "--key-file", key) as process:
        deadline_s = time.monotonic() + 180
        while not any(out.iterdir()) and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert process.poll() is None, "ended before it could be interrupted"
        time.sleep(0.5)
        begin_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            text, err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == INTERRUPTED, err
    assert time.monotonic() - begin_s < 40  # the whole clip would take minutes
    assert "Traceback" not in err and "nterrupted" in err
    assert text == ""
    folder_is(out)


# What the summary says.


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_json_summary_of_a_clip_without_faces(make_clip: MakeClip, key: Path, out: Path) -> None:
    clip = make_clip("plain.mp4", n_frames=20, with_audio=True)
    status, text, err = keyface("process", clip, "-o", out / "a.mp4", "--key-file", key, "--json")
    assert status == 0, err
    summary = json.loads(text)
    assert summary["output"] == str(out / "a.mp4")
    assert (summary["frames"], summary["faces"], summary["replaced"], summary["redacted"]) == (20, 0, 0, {})
    assert summary["fps"] > 0 and {"analyse", "reenact", "paste"} <= set(summary["stages"])
    folder_is(out, "a.mp4")


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_json_is_never_mixed_with_other_text(key: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    status, text, _ = keyface(
        "process", tmp_path / "bad.mp4", "-o", out / "a.mp4", "--key-file", key, "--json"
    )
    assert status == MEDIA
    if text:
        json.loads(text)
