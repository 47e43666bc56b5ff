"""The program that carries an encoded stream from `PushSink` to its receiver, in a process of its own.

libav connects and waits while it keeps Python from running anything else, and PyAV cannot end such a wait.
In here that harms nobody: whoever started this program ends it at will. It is run as
`python -m keyface.pipeline.live.sink_relay`; the first line of its input says what to open, in JSON, so that no
password stands in a command line; the stream follows, in NUT. It answers with one line of JSON when it is
connected, and with another one when it fails. Neither repeats the address.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from typing import Any

import av

_LONGEST_LINE = 65_536
_SEND_BUFFER_BYTES = 128 * 1024  # what a receiver that stalls may be behind, beside its own buffers
_DEAD_AFTER_MS = 5000  # without a sign that what was sent has arrived


class _Input:
    """Standard input as PyAV wants it, without a buffer: what has come is passed on at once."""

    def read(self, n: int) -> bytes:
        return os.read(0, n)


def main() -> None:
    """Relays until the input ends or the receiver goes away."""
    try:
        order = json.loads(_first_line())
        with av.open(_Input(), format="nut", options={"fflags": "nobuffer", "probesize": "32"}) as source:
            _relay(source, order)
    except (av.FFmpegError, OSError, ValueError) as error:
        _say({"state": "failed", "kind": type(error).__name__, "errno": getattr(error, "errno", None) or 0})


def _relay(source: Any, order: dict[str, Any]) -> None:
    output = av.open(order["url"], "w", format=order["format"], container_options=order["options"])
    streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
    try:
        output.start_encoding()
        _bound_delay()
        _say({"state": "connected"})
        for packet in source.demux():
            if packet.dts is not None and packet.size:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    finally:
        output.close()


def _bound_delay() -> None:
    """Keeps the system from holding back many seconds for a receiver that does not read."""
    for name in os.listdir("/dev/fd"):
        # A descriptor may be gone, or be no TCP socket: then it is not meant.
        with contextlib.suppress(OSError, ValueError):
            handle = int(name)
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                continue
            with socket.socket(fileno=os.dup(handle)) as connection:
                if connection.type == socket.SOCK_STREAM:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                    if hasattr(socket, "TCP_USER_TIMEOUT"):
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_MS)


def _first_line() -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


def _say(message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libav's own messages hold the address
    main()
