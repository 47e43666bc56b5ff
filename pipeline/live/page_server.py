"""A small HTTP server that ends: few connections at once, each with a time-out, all threads joined at the end.

When all places are taken, a newcomer takes that of the connection that has waited longest without showing a
token: strangers who connect and say nothing cannot keep out those who may come in.

Apart from the runner, this is the only place that makes threads: one that waits for connections and one for
each connection.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from keyface.configs.errors import SinkError
from keyface.pipeline.runner import describe

_LOG = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
_LOOK_EVERY_S = 0.1  # for the end
_JOIN_S = 2.0


class BoundedServer(HTTPServer):
    """Serves each connection on a thread of its own.

    Args:
        address: to listen on, an IP address.
        port: 0: any that is free; see `server_port`.
        handler: class of the handlers.

    Raises:
        SinkError: the port is taken, or the address is not one of this machine.
    """

    allow_reuse_address = os.name == "posix"
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._strangers: dict[socket.socket, None] = {}  # those of them without a token so far, oldest first
        self._main: threading.Thread | None = None
        self.is_closing = False
        try:
            super().__init__((address, port), handler)
        except (OSError, OverflowError) as error:
            raise SinkError(f"The page cannot be served on {address}, port {port}: {_why(error)}.",
                            "Choose another port: --sink page:PORT.") from error  # fmt: skip

    def server_bind(self) -> None:
        """As in the base class, without its look-up of the host's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def start(self) -> None:
        """Begins to serve."""
        self._main = threading.Thread(
            target=self.serve_forever, args=(_LOOK_EVERY_S,), name="keyface-page", daemon=True
        )
        self._main.start()

    def stop(self) -> None:
        """Ends all connections and joins all threads. May be called again."""
        self.is_closing = True
        if self._main is not None:
            self.shutdown()
            self._main.join(_JOIN_S)
            self._main = None
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            _shut(connection)
            thread.join(_JOIN_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hands a connection to a thread, or refuses it when all places are taken by those with a token."""
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="keyface-page-client", daemon=True
        )
        with self._lock:
            is_full = len(self._connections) >= MOST_CONNECTIONS
            oldest = next(iter(self._strangers), None) if is_full else None
            is_refused = self.is_closing or (is_full and oldest is None)
            if oldest is not None:
                del self._strangers[oldest]
                del self._connections[oldest]
                _shut(oldest)  # under the lock: its own thread closes it only afterwards
            if not is_refused:
                self._connections[request] = thread
                self._strangers[request] = None
        if is_refused:
            self.shutdown_request(request)
        else:
            thread.start()

    def admit(self, request: socket.socket) -> None:
        """Says that a connection has shown a token: it keeps its place."""
        with self._lock:
            self._strangers.pop(request, None)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            _LOG.debug("page: a client went away")
        except Exception as error:  # costs this client its answer, and nobody else anything
            _LOG.warning("page: an answer failed: %s", describe(error))
        finally:
            with self._lock:
                self._connections.pop(request, None)
                self._strangers.pop(request, None)
            self.shutdown_request(request)


def _shut(connection: socket.socket) -> None:
    """Ends what its thread waits for."""
    with contextlib.suppress(OSError):  # its own thread has closed it meanwhile
        connection.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "the port is in use"
    if number == errno.EACCES:
        return "this user may not use the port"
    return "no such address on this machine" if number == errno.EADDRNOTAVAIL else str(error)
