"""The drops of `keyface bench stream --drops N`: a server of the user's own is killed and frozen again and again."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keyface.configs.errors import SourceError, UsageError

if TYPE_CHECKING:
    from keyface.pipeline.chain import ChainParts

_STARTS_WITHIN_S = 20.0
_DEFAULT_PORTS = {"rtsp": 554, "rtmp": 1935, "http": 80, "https": 443}


class CommandServer:
    """A program that serves a stream, for `DropRun`: "kill" ends and starts it, "freeze" stops it and lets it go on.
    A context manager.

    Args:
        command: started without a shell, and ended here.
        url: what it serves; it counts as serving when its port takes a connection.

    Raises:
        UsageError: the command is empty, or the URL names no host.
    """

    def __init__(self, command: str, url: str) -> None:
        self._words = shlex.split(command)
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        if not self._words or not parts.hostname or not port:
            raise UsageError("--drops needs --server COMMAND and --url URL with a host and a port.")
        self._address = (parts.hostname, port)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""

    def __enter__(self) -> CommandServer:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def fail(self, how: str) -> None:
        """See `FailingServer`."""
        self._failure = how
        if how == "freeze" and self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
        else:
            self._kill()

    def restore(self) -> None:
        """See `FailingServer`."""
        if self._failure == "freeze" and self._process is not None:
            self._process.send_signal(signal.SIGCONT)
        else:
            self._start()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise UsageError(f"--server: {self._words[0]} cannot be started: {error.strerror}.") from error
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                self._kill()
                raise SourceError("--server: the program ended at once.", "Try the command by itself.")
            try:
                socket.create_connection(self._address, timeout=1.0).close()
                return
            except OSError:
                time.sleep(0.02)
        self._kill()
        raise SourceError(f"--server: nothing listens on port {self._address[1]}.", "Check --url.")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(10)
        if process.stdin is not None:
            process.stdin.close()


def measure_drops(url: str, command: str, n_drops: int, parts: ChainParts, *, seed: int) -> dict[str, Any]:
    """Runs the chain on a stream that fails `n_drops` times; see `DropRun.to_json`."""
    from keyface.pipeline.faults.drops import DropRun
    from keyface.pipeline.live.address import parse_source
    from keyface.pipeline.live.run import LiveOptions, run_live
    from keyface.pipeline.live.sink import NullSink
    from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

    with CommandServer(command, url) as server:
        source = LiveSource(parse_source(url), LiveSourceOptions(silence_s=1.0, open_timeout_s=2.0))
        drops = DropRun(source, server, n_drops=n_drops, kinds=("kill", "freeze"), seed=seed)
        run_live(source, [NullSink()], parts, LiveOptions(), on_tick=drops)
    return drops.to_json()
