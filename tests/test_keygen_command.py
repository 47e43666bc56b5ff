"""`keyface keygen` and the command shell around it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keyface.configs.errors import KeyFileError, UsageError
from keyface.pipeline.people.key import Key, is_locked
from keyface.tools import keygen_command
from keyface.tools.main import COMMANDS, main


def test_makes_a_private_key_and_tells_its_fingerprint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.key"
    assert main(["keygen", str(path)]) == 0
    out, err = capsys.readouterr()
    key = Key.load(path)
    assert key.fingerprint in out and err == "" and key.warnings == ()
    assert key.derive("a-use/v1").hex() not in out


def test_never_overwrites_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.key"
    path.write_text("precious")
    assert main(["keygen", str(path)]) == KeyFileError.exit_code
    assert "--force" in capsys.readouterr().err and path.read_text() == "precious"
    assert main(["keygen", str(path), "--force"]) == 0
    Key.load(path)


def test_passphrase_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "my.key"
    monkeypatch.setenv("KEYFACE_PASSPHRASE", "a secret")
    assert main(["keygen", str(path), "--passphrase"]) == 0
    assert is_locked(path)
    assert keygen_command.ask_passphrase(path) == "a secret"
    Key.load(path, "a secret")


def test_passphrase_typed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KEYFACE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["one", "other", "", "same", "same"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    path = tmp_path / "my.key"
    assert main(["keygen", str(path), "--passphrase"]) == UsageError.exit_code
    assert "differ" in capsys.readouterr().err
    assert main(["keygen", str(path), "--passphrase"]) == UsageError.exit_code
    assert "empty" in capsys.readouterr().err
    assert not path.exists()
    assert main(["keygen", str(path), "--passphrase"]) == 0
    Key.load(path, "same")


def test_no_terminal_and_no_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KEYFACE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["keygen", str(tmp_path / "k"), "--passphrase"]) == UsageError.exit_code
    assert "KEYFACE_PASSPHRASE" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("nonsense", 2), ("--version", 0)])
def test_shell_helps(argument: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([argument])
    out, err = capsys.readouterr()
    assert caught.value.code == code
    if argument != "--version":
        assert all(name in out + err for name in COMMANDS)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == UsageError.exit_code
    err = capsys.readouterr().err
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0 and f"keyface {name}" in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom keyface.tools.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        "    pass\nassert not {'numpy', 'cv2', 'av', 'onnxruntime', 'torch'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_errors_of_commands_become_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(error: BaseException) -> None:
        def run(_: object) -> int:
            raise error

        monkeypatch.setattr(keygen_command, "run", run)

    old = signal.getsignal(signal.SIGTERM)
    try:
        fail(KeyFileError("It is gone.", "Look for it."))
        assert main(["keygen", "k"]) == 3
        assert capsys.readouterr().err == "keyface: It is gone. Look for it.\n"
        fail(KeyboardInterrupt())
        assert main(["keygen", "k"]) == 130
        assert "Interrupted" in capsys.readouterr().err
        monkeypatch.setattr(keygen_command, "run", lambda _: signal.raise_signal(signal.SIGTERM))
        assert main(["keygen", "k"]) == 143
        assert "Terminated" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, old)
