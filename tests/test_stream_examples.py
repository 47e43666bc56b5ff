"""The service unit and the container file: every command in them is one that the program takes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from page_cases import TOKEN, report_of, served

from keyface.tools.main import _build_parser

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "examples" / "keyface-stream.service"
CONTAINER = ROOT / "examples" / "Containerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

pytestmark = pytest.mark.timeout(150)


def parsed(command: list[str]) -> argparse.Namespace:
    """The options of a keyface command; fails the test where the program would refuse them."""
    program = Path(command[0]).name
    assert program in PROJECT["scripts"]
    arguments = [*(["stream"] if program == "keyface-stream" else []), *command[1:]]
    args = _build_parser(arguments).parse_args(arguments)
    return args.flags.settle(args) if "flags" in args else args


# The service.


def unit_lines() -> list[tuple[str, str]]:
    lines = [line.strip() for line in UNIT.read_text("utf-8").splitlines()]
    return [
        (line.split("=", 1)[0], line.split("=", 1)[1]) for line in lines if "=" in line and line[0] != "#"
    ]


def test_the_commands_of_the_service_are_real() -> None:
    commands = [shlex.split(value) for name, value in unit_lines() if name.startswith("Exec")]
    assert len(commands) == 2
    pull, stream = (parsed(command) for command in commands)
    assert pull.command == "models"
    assert stream.sinks == ["page:8700"] and stream.page_address == "127.0.0.1" and stream.log_json == "-"
    loaded = {value.split(":")[0] for name, value in unit_lines() if name == "LoadCredential"}
    used = {
        str(path).removeprefix("%d/")
        for path in (stream.source_file, stream.key_file, stream.page_token_file)
    }
    assert used == loaded, "each secret is handed over as a credential"


def test_the_service_is_locked_down() -> None:
    lines = dict(unit_lines())
    for name in ("NoNewPrivileges", "DynamicUser", "PrivateTmp", "ProtectKernelModules", "ProtectHome",
                 "RestrictSUIDSGID", "RestrictNamespaces", "LockPersonality"):  # fmt: skip
        assert lines[name] == "yes"
    assert lines["ProtectSystem"] == "strict" and lines["CapabilityBoundingSet"] == ""
    assert lines["DevicePolicy"] == "closed" and lines["DeviceAllow"] == "char-video4linux rw"
    assert lines["Restart"] == "always" and lines["LimitCORE"] == "0" and lines["UMask"] == "0077"


def test_systemd_takes_the_service(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine: on Debian and Ubuntu, apt install systemd")
    for name in PROJECT["scripts"]:
        stand_in = tmp_path / name
        stand_in.write_text("#!/bin/sh\n")
        stand_in.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace("/opt/keyface/bin", str(tmp_path)), "utf-8")
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr + done.stdout
    unit.write_text(unit.read_text("utf-8").replace("ProtectHome=yes", "ProtectHome=perhaps"), "utf-8")
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, timeout=120)
    assert "perhaps" in done.stderr, "the check finds what is wrong"


def test_systemd_finds_little_exposure() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine: on Debian and Ubuntu, apt install systemd")
    command = [program, "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250")
    found = re.search(r"exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found and float(found[1]) < 3.0


# The container.


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^\s*#.*\n", "", CONTAINER.read_text("utf-8"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def values_of(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def test_every_instruction_is_one() -> None:
    legal = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
             "ENTRYPOINT", "CMD"}  # fmt: skip
    assert {name for name, _ in instructions()} <= legal
    images = [value.split()[0] for value in values_of("FROM")]
    assert set(images) == {"debian:trixie-slim"}, "its Python, 3.13, is one that keyface takes"
    copied = [word for value in values_of("COPY") if "--from" not in value for word in value.split()[:-1]]
    assert all((ROOT / word).exists() for word in copied)
    assert {"pyproject.toml", "README.md", "LICENSE"} < set(copied), "what the build of the wheel reads"


def test_the_container_runs_as_nobody_in_particular() -> None:
    names = [name for name, _ in instructions()]
    user = int(values_of("USER")[-1])
    assert user >= 1000 and names.index("USER") < names.index("ENTRYPOINT")
    assert not [value for value in values_of("ENV") if re.search("TOKEN|PASS|SECRET", value)]


def test_the_commands_of_the_container_are_real() -> None:
    (entry,), (words,) = values_of("ENTRYPOINT"), values_of("CMD")
    stream = parsed([*json.loads(entry), *json.loads(words)])
    assert stream.page_address == "0.0.0.0" and stream.sinks == [f"page:{values_of('EXPOSE')[0]}"]
    runs = [shlex.split(part) for value in values_of("RUN") for part in value.split("&&")]
    ours = [run for run in runs if Path(run[0]).name in PROJECT["scripts"]]
    assert [parsed(run).command for run in ours] == ["models"]
    (install,) = [run for run in runs if Path(run[0]).name == "pip"]
    (extras,) = [re.search(r"\[(.+)\]", word) for word in install if word.startswith(".[")]
    assert extras and set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_health_check_tells_health(tmp_path: Path) -> None:
    (value,) = values_of("HEALTHCHECK")
    program, option, code = json.loads(value[value.index("[") :])
    assert (program, option) == ("python", "-c")
    token_file = tmp_path / "page-token"
    token_file.write_text(f"{TOKEN}\n", "utf-8")
    with served() as page:
        code = code.replace("/run/secrets/page-token", str(token_file)).replace(
            "127.0.0.1:8700", f"127.0.0.1:{page.port}"
        )
        command = [sys.executable, option, code]
        assert subprocess.run(command, capture_output=True, timeout=30).returncode != 0
        page.board(report_of())
        assert subprocess.run(command, capture_output=True, timeout=30).returncode == 0
        page.board(report_of(state="lost"))
        assert subprocess.run(command, capture_output=True, timeout=30).returncode != 0
