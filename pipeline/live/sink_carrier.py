"""Processes that carry a stream to its receiver: our own relay, and for SRT perhaps srt-live-transmit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import av

from keyface.configs.errors import SinkError
from keyface.pipeline.live.sink_address import PushAddress

_LOOK_EVERY_S = 0.1
_GOODBYE_S = 0.3  # for the last packets and the farewell of a protocol
_SRT_PROGRAM = "srt-live-transmit"


class CarrierLost(Exception):
    """The stream does not reach its receiver.

    Attributes:
        kind: name of the error's class where it happened.
        errno: of the system, 0 when it has none.
    """

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(kind)
        self.kind, self.errno = kind, number


class PipeWriter:
    """A pipe as PyAV wants it: writes wait, but only so long, and end at once when they are told to."""

    def __init__(self, handle: int, stall_s: float) -> None:
        self._handle = handle
        self._stall_s = stall_s
        self._is_interrupted = threading.Event()
        os.set_blocking(handle, False)
        self._poll = select.poll()
        self._poll.register(handle, select.POLLOUT)

    def interrupt(self) -> None:
        """Makes this and every later write fail."""
        self._is_interrupted.set()

    def write(self, data: bytes) -> int:
        """Writes all of it. Raises TimeoutError, or OSError when nobody reads any more."""
        rest, deadline_s = memoryview(data), time.monotonic() + self._stall_s
        while rest:
            if self._is_interrupted.is_set():
                raise BrokenPipeError(errno.EPIPE, "interrupted")
            if self._poll.poll(_LOOK_EVERY_S * 1000):
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._handle, rest) :]
            elif time.monotonic() > deadline_s:
                raise TimeoutError(errno.ETIMEDOUT, "stalled")
        return len(data)


class Carrier:
    """One process and the pipe to it.

    Args:
        command: what to run; reads the stream from its standard input.
        format: in which it wants the stream.
        prelude: comes before the stream.
        hear: reads a line that it writes: True says that it is connected. Raises CarrierLost when it says
            that it has failed.
        stall_s: longest wait for it to take what is written.

    Attributes:
        stream: what to write to.
        format: see above.
    """

    def __init__(
        self, command: list[str], format: str, prelude: bytes, hear: Callable[[bytes], bool], stall_s: float
    ) -> None:
        self.format = format
        self._hear = hear
        # In a session of its own, so that Ctrl-C in a terminal ends the stream and not its carrier first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self.stream = PipeWriter(self._process.stdin.fileno(), stall_s)
        self._answers = self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._heard = b""
        self._is_connected = False
        self._failure: CarrierLost | None = None
        if prelude:
            self.stream.write(prelude)

    def is_connected(self) -> bool:
        """True when the receiver gets the stream, False while that is not known. Raises CarrierLost."""
        failure = self.failure()
        if failure is not None:
            raise failure
        return self._is_connected

    def failure(self) -> CarrierLost | None:
        """Why it has ended, None while it goes on."""
        self._listen()
        if self._failure is None and self._process.poll() is not None:
            self._listen()
            self._failure = self._failure or CarrierLost("ended", errno.EPIPE)
        return self._failure

    def interrupt(self) -> None:
        """Ends it now, from any thread."""
        self.stream.interrupt()
        self._process.kill()

    def close(self, *, is_patient: bool) -> None:
        """Ends it; a patient end gives it a moment to say goodbye to the receiver."""
        self.stream.interrupt()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if is_patient:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GOODBYE_S)
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def _listen(self) -> None:
        while not self._answers.closed:
            chunk = self._answers.read(4096)
            if not chunk:
                break
            self._heard += chunk
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            try:
                self._is_connected = self._hear(line) or self._is_connected
            except CarrierLost as failure:
                self._failure = failure


def make_carrier(address: PushAddress) -> Callable[[float], Carrier]:
    """What starts a carrier for this address, given the longest wait for it to take what is written.

    Raises:
        SinkError: nothing here speaks the protocol.
    """
    if address.scheme == "srt" and not _libav_speaks("srt"):
        program = shutil.which(_SRT_PROGRAM)
        if program is None:
            raise SinkError(
                "This PyAV is built without SRT.",
                f"Install {_SRT_PROGRAM} (on Debian the package srt-tools), or push by another protocol.",
            )
        command = [program, "-v", "-autoreconnect:no", "-chunk:1316", "file://con", address.url]
        return partial(Carrier, command, "mpegts", b"", lambda line: b"target connected" in line)
    order: dict[str, Any] = {"url": address.url, "format": address.format, "options": address.options}
    command = [sys.executable, "-P", "-m", "keyface.pipeline.live.sink_relay"]
    return partial(Carrier, command, "nut", json.dumps(order).encode() + b"\n", _hear_relay)


def _hear_relay(line: bytes) -> bool:
    message = json.loads(line)
    if message["state"] == "failed":
        raise CarrierLost(str(message["kind"]), int(message["errno"]))
    return bool(message["state"] == "connected")


@cache
def _libav_speaks(scheme: str) -> bool:
    """Whether libav was built with a protocol; asked in a way that opens no connection."""
    try:
        av.open(f"{scheme}://127.0.0.1:9?mode=none", timeout=1.0).close()
    except av.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, OSError):
        return True
    return True
