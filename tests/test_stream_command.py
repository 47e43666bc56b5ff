"""`keyface-stream` on the command line: what it says, what it never says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_chain import BOX, MakeClip, fake_parts, read_video
from fault_chain import (
    no_threads_left,
)
from live_sink_cases import until
from mjpeg_server import MjpegServer, mjpeg_server

from keyface.pipeline.chain import ChainParts
from keyface.pipeline.people.key import Key
from keyface.tools import stream_command
from keyface.tools.main import main

pytestmark = pytest.mark.timeout(240)

# A second, on a machine that has nothing else to do; in one of three tries. What must not be waited for takes 5 s.
AT_ONCE_S = 3.0
SECRETS = ("hidden-user", "hidden-password", "hidden-path", "hidden-token")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "my.key"
    Key.generate().save(path)
    return path


@pytest.fixture
def fake_networks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def make_parts(store: object, key: Key | None, options: object, **live: Any) -> ChainParts:
        made.append({"key": "" if key is None else key.fingerprint, **live})
        return fake_parts(BOX)

    monkeypatch.setattr("keyface.pipeline.assemble.make_parts", make_parts)
    monkeypatch.setattr("keyface.engines.store.ModelStore.ensure", lambda *_, **__: {})
    return made


def stream(*arguments: str | Path) -> int:
    return stream_command.main([str(argument) for argument in arguments])


def test_the_command_streams_a_file(
    make_clip: MakeClip, key: Path, tmp_path: Path, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.mp4"
    clip = make_clip(n_frames=60)
    assert stream("--source", clip, "--key-file", key, "--sink", "null", "--sink", out, "--json") == 0
    text, err = capsys.readouterr()
    summary = json.loads(text)
    assert summary["ending"] == "source_ended" and summary["frames_in"] == 60
    assert summary["sinks"] == ["null", str(out)] and summary["size_wh"] == [96, 64]
    assert summary["redacted_frames"] == summary["frames_out"] and summary["age"]["count"]
    assert " in " in err and " latency " in err and "dropped" in err
    assert len(read_video(out)[0]) == summary["outputs"][1]["written"] > 30
    assert fake_networks[0]["key"] == Key.load(key).fingerprint
    assert fake_networks[0]["analyse"].detect_every == 1 and fake_networks[0]["identity"].min_looks > 1


@contextmanager
def signalled(number: signal.Signals, is_time: Callable[[], bool]) -> Iterator[list[float]]:
    """Sends this process a signal when the condition holds; `time.monotonic()` of when comes in the list."""
    sent_s: list[float] = []

    def send() -> None:
        assert until(is_time)
        sent_s.append(time.monotonic())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    yield sent_s
    thread.join()


def n_bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_a_whole_recording(
    number: signal.Signals, tmp_path: Path, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    took_s = []
    while not took_s or (len(took_s) < 3 and min(took_s) >= AT_ONCE_S):
        out = tmp_path / f"{len(took_s)}.mp4"
        with signalled(number, lambda out=out: n_bytes(out.with_name(f"{out.name}.partial")) > 0) as sent_s:  # type: ignore[misc]
            code = stream("--source", "test", "--redact-only", "--sink", out, "--json", "--quiet")
            took_s.append(time.monotonic() - sent_s[0])
        summary = json.loads(capsys.readouterr().out)
        assert code == 0 and summary["ending"] == "interrupted"
        assert len(read_video(out)[0]) == summary["outputs"][0]["written"] > 0
        assert no_threads_left()
    assert min(took_s) < AT_ONCE_S


def test_a_signal_ends_a_stalled_stream_at_once(
    fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str],
    moving_image: Callable[..., np.ndarray],
) -> None:  # fmt: skip
    took_s: list[float] = []
    while not took_s or (len(took_s) < 3 and min(took_s) >= AT_ONCE_S):
        with mjpeg_server(moving_image) as server:

            def stalls(server: MjpegServer = server) -> bool:
                if server.n_sent < 20:
                    return False
                server.mode = "stall"
                time.sleep(1.0)
                return True

            with signalled(signal.SIGINT, stalls) as sent_s:
                code = stream("--source", server.secret_url, "--redact-only", "--sink", "null", "--json")
                took_s.append(time.monotonic() - sent_s[0])
        text, err = capsys.readouterr()
        assert code == 0 and json.loads(text)["ending"] == "interrupted"
        assert not [secret for secret in SECRETS if secret in text + err]
        assert no_threads_left()
    assert min(took_s) < AT_ONCE_S


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--source", "http://hidden-user:hidden-password@127.0.0.1:1/hidden-path"], 6, "refuses"),
        (["--source", "gopher://hidden-user:hidden-password@host/"], 2, "unknown kind"),
        (["--source", "/dev/video97"], 6, "does not exist"),
        (["--source", "no-such-file.mp4"], 6, "does not exist"),
        (["--source", "test", "--width", "640"], 2, "belong together"),
        (["--source", "test", "--duration", "0"], 2, "--duration"),
        (["--source", "test", "--sink", "out.avi"], 2, "Legal"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], code: int, said: str, fake_networks: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert stream(*arguments, "--redact-only", "--quiet", "--sink", "null") == code
    text, err = capsys.readouterr()
    assert said in err and err.startswith("keyface: ") and len(err.splitlines()) == 1 and not text
    assert not [secret for secret in SECRETS if secret in err]


def test_a_key_is_asked_for(fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "--source", "test", "--sink", "null"]) == 2
    assert "--key-file" in capsys.readouterr().err


def test_the_source_is_not_recorded_over(
    make_clip: MakeClip, fake_networks: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip()
    before = clip.read_bytes()
    assert stream("--source", clip, "--redact-only", "--sink", clip, "--force") == 2
    assert "source itself" in capsys.readouterr().err and clip.read_bytes() == before


def test_ctrl_c_from_a_shell(models: Any, tmp_path: Path) -> None:
    """The real program: exit code 0, a whole recording, one JSON object on standard output."""
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "keyface.tools.stream_command", "--source", "test", "--redact-only"]
    program = subprocess.Popen(
        [*command, "--sink", str(out), "--json", "--width", "160", "--height", "120"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stderr is not None
        for line in program.stderr:
            if "live" in line and " out  0.0" not in line:
                break
        sent_s = time.monotonic()
        program.send_signal(signal.SIGINT)
        text, err = program.communicate(timeout=90)
    finally:
        program.kill()
    assert program.returncode == 0, err
    assert time.monotonic() - sent_s < 15  # with the end of the interpreter
    summary = json.loads(text)
    assert summary["ending"] == "interrupted"
    assert len(read_video(out)[0]) == summary["outputs"][0]["written"] > 0
