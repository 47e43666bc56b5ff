"""Any RTSP server can be made to fail by a benchmark, given the command that starts it."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from live_reading import QUICK, Reading, url_source
from rtsp_server import SERVER, SYSTEM_PYTHON, free_port, need_server, write_clip

from keyface.configs.errors import UsageError
from keyface.tools import bench_server
from keyface.tools.bench_server import SERVER_DROPS, ServerCommand

CALM = replace(QUICK, open_timeout_s=8.0, silence_s=4.0)
pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize(
    ("command", "url"),
    [([], "rtsp://127.0.0.1:1/x"), (["a"], "rtsp://camera.local/x"), (["a"], "http://127.0.0.1/x")],
)
def test_only_rtsp_on_this_machine(command: list[str], url: str) -> None:
    with pytest.raises(UsageError, match="serves rtsp"):
        ServerCommand(command, url)


def test_a_command_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match="cannot be started"):
        ServerCommand(["/no/such/server"], f"rtsp://127.0.0.1:{free_port()}/x").start()


def test_a_command_that_does_not_serve_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_server, "_LONGEST_START_S", 0.5)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(UsageError, match="does not serve RTSP"):
        ServerCommand(command, f"rtsp://127.0.0.1:{free_port()}/x").start()


@pytest.mark.slow
def test_a_server_fails_in_every_way_and_returns(tmp_path: Path) -> None:
    need_server()
    port = free_port()
    clip = write_clip(tmp_path / "clip", (320, 240))
    command = [SYSTEM_PYTHON, str(SERVER), "--port", str(port), "--clip", str(clip)]
    url = f"rtsp://127.0.0.1:{port}/hidden-path"
    with ServerCommand(command, url) as server, Reading(url_source(url, CALM)) as reading:
        for how in SERVER_DROPS:
            reading.wait_for_more(5)
            n = reading.source.status.reconnects
            server.fail(how)
            reading.wait(lambda: reading.source.status.state == "lost")
            time.sleep(0.2)
            server.restore()
            reading.wait(lambda n=n: reading.source.status.reconnects > n)  # type: ignore[misc]
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
