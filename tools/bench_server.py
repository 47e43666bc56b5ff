"""A stream server that a benchmark starts, kills, freezes and replaces by noise; see `pipeline/faults/drops.py`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import urlsplit

from keyface.configs.errors import UsageError

SERVER_DROPS = ("kill", "freeze", "garbage")
"""What can be done to any server, as kinds for `DropRun`."""

_LONGEST_START_S = 60.0
_ASK_EVERY_S = 0.02

# Takes every connection and answers with random bytes.
_NOISE = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
listener.settimeout(0.02)
others = []
while True:
    try:
        others.append(listener.accept()[0])
        others[-1].setblocking(False)
    except TimeoutError:
        pass
    for other in list(others):
        try:
            other.send(os.urandom(2000))
        except OSError:
            others.remove(other)
"""


class ServerCommand:
    """Runs an RTSP server as a process group of its own; usable as a context manager.

    Args:
        command: program and arguments; it must serve `url` until it is killed. No shell is involved.
        url: rtsp://, on this machine.

    Raises:
        UsageError: the URL is not RTSP on loopback.
    """

    def __init__(self, command: Sequence[str], url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 554
        if parts.scheme != "rtsp" or self._host not in ("127.0.0.1", "localhost", "::1") or not command:
            raise UsageError("--drops: the server must be a command that serves rtsp:// on 127.0.0.1.")
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._noise: subprocess.Popen[bytes] | None = None
        self._failure = ""

    def __enter__(self) -> ServerCommand:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts it, and returns when it answers. Raises UsageError: it cannot be started or does not."""
        deadline_s = time.monotonic() + _LONGEST_START_S
        while time.monotonic() < deadline_s:
            # What listened on the port before may hold it for a moment: then it is started again.
            if self._process is None or self._process.poll() is not None:
                self._process = self._spawn()
            if self._answers():
                return
            time.sleep(_ASK_EVERY_S)
        self.close()
        raise UsageError(
            f"--drops: {self._command[0]} does not serve RTSP on port {self._port}.", "Check its command."
        )

    def fail(self, how: str) -> None:
        """One of `SERVER_DROPS`."""
        self._failure = how
        if how == "freeze":
            self._signal(signal.SIGSTOP)
            return
        self._kill()
        if how == "garbage":
            command = [sys.executable, "-c", _NOISE, self._host, str(self._port)]
            self._noise = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert self._noise.stdout is not None
            self._noise.stdout.readline()

    def restore(self) -> None:
        """Ends what `fail` began; returns when the server answers. Raises UsageError: it does not."""
        if self._failure == "freeze":
            self._signal(signal.SIGCONT)
        self._end_noise()
        self.start()

    def close(self) -> None:
        """Ends everything."""
        self._end_noise()
        self._kill()

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"--drops: {self._command[0]} cannot be started: {error.strerror}.") from None

    def _answers(self) -> bool:
        request = f"OPTIONS rtsp://{self._host}:{self._port}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode()
        try:
            with socket.create_connection((self._host, self._port), timeout=2.0) as connection:
                connection.sendall(request)
                return connection.recv(64).startswith(b"RTSP/1.")
        except OSError:
            return False

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _kill(self) -> None:
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def _end_noise(self) -> None:
        if self._noise is None:
            return
        self._noise.kill()
        self._noise.wait(10)
        if self._noise.stdout is not None:
            self._noise.stdout.close()
        self._noise = None
