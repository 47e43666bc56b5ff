"""`keyface-stream` with its page, keys to change to, a configuration file and logs, on the command line."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_chain import BOX, fake_parts
from fault_chain import no_threads_left
from page_cases import TOKEN

from keyface.pipeline.chain import ChainParts
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.keys import KEYS
from keyface.pipeline.people.key import Key
from keyface.tools import stream_command

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def fake_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_parts(*_: object, **__: Any) -> ChainParts:
        return fake_parts(BOX)

    monkeypatch.setattr("keyface.pipeline.assemble.make_parts", make_parts)
    monkeypatch.setattr("keyface.engines.store.ModelStore.ensure", lambda *_, **__: {})
    monkeypatch.delenv("KEYFACE_PAGE_TOKEN", raising=False)


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("a.key", "b.key")]
    for file in files:
        Key.generate().save(file)
    return files


def stream(*arguments: str | Path) -> int:
    return stream_command.main([str(argument) for argument in arguments])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Client:
    """Uses the page while the command runs: one step after the other, each when its condition holds."""

    def __init__(self, port: int, token: str, *steps: tuple[Callable[[Any], bool], dict[str, Any]]) -> None:
        self._port, self._token, self._steps = port, token, steps
        self.states: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _ask(self, name: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            method = "GET" if body is None else "POST"
            connection.request(
                method, f"/{self._token}/{name}", None if body is None else json.dumps(body), headers
            )
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def _run(self) -> None:
        deadline_s = time.monotonic() + 90
        for is_time, body in self._steps:
            while time.monotonic() < deadline_s:
                try:
                    state = self._ask("state.json")
                except OSError:  # not up yet
                    state = None
                if state is not None and state["report"] is not None and is_time(state):
                    self.states.append(self._ask("control", body))
                    break
                time.sleep(0.02)

    def join(self) -> None:
        self._thread.join(120)


def test_a_stream_is_steered_from_the_page(
    keys: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: list[str] = []
    request = LiveControls.request_key

    def note(self: LiveControls, key: Key) -> None:
        wanted.append(key.fingerprint)
        request(self, key)

    monkeypatch.setattr(LiveControls, "request_key", note)
    monkeypatch.setenv("KEYFACE_PAGE_TOKEN", TOKEN)
    port, log = free_port(), tmp_path / "log.jsonl"
    client = Client(
        port, TOKEN,
        (lambda s: s["report"]["frames_out"] > 3, {"action": "rotate"}),
        (lambda s: True, {"action": "rotate"}),
        (lambda s: True, {"action": "panic", "value": True}),
        (lambda s: s["report"]["frames_out"] > 20, {"action": "end"}),
    )  # fmt: skip
    code = stream("--source", "test", "--width", "96", "--height", "64", "--key-file", keys[0],
                  "--next-key-file", keys[1], "--sink", f"page:{port}", "--json", "--log-json", log)  # fmt: skip
    client.join()
    text, err = capsys.readouterr()
    summary = json.loads(text)
    assert code == 0 and summary["ending"] == "closed" and summary["sinks"] == ["page"]
    assert len(client.states) == 4 and client.states[2]["controls"]["mode"] == "mosaic"
    prints = []
    for file in (keys[1], keys[0]):
        with Key.load(file) as key:
            prints.append(key.fingerprint)
    assert wanted == prints, "the next one, and then round to the first"
    events = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "start" and names[-1] == "end" and {"controls", "first_picture"} <= set(names)
    assert events[-1]["frames_out"] == summary["frames_out"]
    said = text + err + log.read_text("utf-8")
    assert TOKEN not in said and not [one for one in prints if one in said]
    assert no_threads_left()


def test_a_random_token_is_printed_once_and_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        stream("--source", "test", "--redact-only", "--sink", "page:0", "--duration", "0.3", "--quiet") == 0
    )
    text, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert re.fullmatch(r"keyface: page http://127\.0\.0\.1:\d+/[A-Za-z0-9_-]{32}/", line) and not text


def test_a_token_from_a_file_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", "utf-8")
    common = ("--source", "test", "--redact-only", "--sink", "page:0", "--duration", "0.3")
    assert stream(*common, "--page-token-file", file) == 0
    err = capsys.readouterr().err
    assert "/TOKEN/" in err and TOKEN not in err
    assert stream(*common, "--page-token-file", file, "--quiet", "--page-address", "0.0.0.0") == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert "can be reached from other machines" in warning


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sink", "page:x"], "page:PORT"),
        (["--sink", "page:99999"], "port"),
        (["--sink", "page", "--sink", "page:1"], "named twice"),
        (["--sink", "page:0", "--page-address", "example"], "IP address"),
        (["--sink", "page:0", "--page-token-file", "none"], "--page-token-file"),
        (["--sink", "null", "--json", "--log-json", "-"], "both write"),
        (["--sink", "null", "--quality", "9"], "--quality"),
        (["--sink", "null", "--config", "none.toml"], "--config"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert stream("--source", "test", "--redact-only", *arguments) == 2
    text, err = capsys.readouterr()
    assert said in err and err.startswith("keyface: ") and len(err.splitlines()) == 1 and not text


def test_a_source_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert stream("--redact-only", "--sink", "null") == 2
    assert "--source" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert stream("--source", "test", "--redact-only", "--sink", f"page:{port}") == 6
    assert "the port is in use" in capsys.readouterr().err and no_threads_left()


def test_every_key_file_is_checked_at_the_start(keys: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    keys[1].write_bytes(b"short")
    assert (
        stream("--source", "test", "--sink", "null", "--key-file", keys[0], "--next-key-file", keys[1]) == 3
    )
    assert "b.key" in capsys.readouterr().err


def test_a_locked_key_takes_the_passphrase_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "locked.key"
    Key.generate().save(file, passphrase="hidden-word")
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "hidden-word")
    assert stream("--source", "test", "--sink", "null", "--key-file", file, "--duration", "0.3") == 0
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "another")
    assert stream("--source", "test", "--sink", "null", "--key-file", file, "--duration", "0.3") == 3
    assert "hidden-word" not in capsys.readouterr().err


def test_a_configuration_runs_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stream.toml"
    file.write_text(
        'source = "test"\nredact-only = true\nsink = ["null"]\nduration = 60\nwidth = 96\nheight = 64\n'
        'quiet = true\njson = true\nstart-mode = "slate"\n', "utf-8"
    )  # fmt: skip
    assert stream("--config", file, "--duration", "0.6") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["ending"] == "duration" and summary["wall_s"] < 45 and summary["size_wh"] == [96, 64]
    assert summary["slates"] > 0 and summary["redacted_frames"] == 0, "it began with a pause"


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        stream("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--source", "--sink", "--key-file", "--next-key-file", "--config", "--page-token-file",
                 "--page-address", "--page-host", "--log-json", "--json", "--duration", "--quality"):  # fmt: skip
        assert flag in text
    for name in KEYS:
        assert f"{name}: " in text
    assert "rtsp" in text and "Ctrl-C" in text
