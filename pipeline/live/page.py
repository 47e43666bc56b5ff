"""The status page: the safe picture, the figures and the controls of a stream, for a browser on this machine.

    GET  /TOKEN/              the page               GET  /TOKEN/state.json   all figures
    GET  /TOKEN/stream.mjpeg  moving picture         GET  /TOKEN/metrics      for Prometheus
    GET  /TOKEN/picture.jpg   one picture            GET  /TOKEN/health       200 or 503
    POST /TOKEN/control       {"action": ..., "value": ...}

Who has no token gets 403 whatever they ask for. Names of hosts are checked, so that a web site whose name
was bent to this machine reaches nothing. There is no CORS; controls take JSON from the page's own origin.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Self

from keyface.configs.errors import UsageError
from keyface.pipeline.live.board import LiveBoard
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.page_handler import PageHandler
from keyface.pipeline.live.page_server import BoundedServer
from keyface.pipeline.live.page_sink import PageSink

DEFAULT_PORT = 8700
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
_HOST = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.]+)\](:\d+)?|(?P<name>[^:\[\]]+)(:\d+)?")
_ASSETS = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("page.svg", "image/svg+xml"),
}


def make_token() -> str:
    """192 random bits, for URLs."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageOptions:
    """How the page is served.

    Attributes:
        port: 0: any that is free.
        address: to listen on, an IP address.
        host_names: names under which a browser may call it, besides IP addresses and localhost.
        token: 16 to 128 of A-Z a-z 0-9 _ -; '': a random one.
    """

    port: int = DEFAULT_PORT
    address: str = "127.0.0.1"
    host_names: tuple[str, ...] = ()
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--sink page: got port {self.port}, want 0 to 65535.")
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            raise UsageError(
                f"--page-address: got {self.address!r}, want an IP address.", "For instance 127.0.0.1."
            ) from None
        if self.token and not _TOKEN.fullmatch(self.token):
            raise UsageError("The token of the page must be 16 to 128 of A-Z a-z 0-9 _ -.")

    @property
    def is_local(self) -> bool:
        """True when only this machine can reach it."""
        return ipaddress.ip_address(self.address).is_loopback


class LivePage:
    """Serves the page from `start` to `stop`.

    Args:
        controls: of the stream.
        board: figures of the stream.
        options: see `PageOptions`.
        rotate: asks for the next key, raises KeyfaceError; None: there is none.

    Attributes:
        sink: to be given to `run_live`.

    Raises:
        SinkError: the port is taken.
    """

    def __init__(
        self,
        controls: LiveControls,
        board: LiveBoard,
        options: PageOptions | None = None,
        *,
        rotate: Callable[[], None] | None = None,
    ) -> None:
        options = options or PageOptions()
        self.controls = controls
        self.board = board
        self.rotate = rotate
        self.sink = PageSink()
        self.options = options
        self._token = options.token or make_token()
        self._host_names = {"localhost", *(name.lower().rstrip(".") for name in options.host_names)}
        self._assets = {
            name: (files("keyface.pipeline.live").joinpath(file).read_bytes(), kind)
            for name, (file, kind) in _ASSETS.items()
        }

        class Handler(PageHandler):
            page = self

        self._server = BoundedServer(options.address, options.port, Handler)

    @property
    def port(self) -> int:
        """On which it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """With the token: a secret."""
        return self._url(self._token)

    @property
    def shown_url(self) -> str:
        """With the token only if it is a random one, which nobody could know otherwise."""
        return self._url("TOKEN") if self.options.token else self.url

    @property
    def is_closing(self) -> bool:
        """True when all answers are to end."""
        return self._server.is_closing

    def start(self) -> None:
        """Begins to serve."""
        self._server.start()

    def stop(self) -> None:
        """Ends all connections; no thread is left. May be called again."""
        self.sink.close()
        self._server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def knows_token(self, text: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())

    def knows_host(self, host: str) -> bool:
        """True for a Host header that is an IP address, localhost or one of the names given. Only names can
        be bent to another machine; the port says nothing."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match["v6"] or match["name"]).lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._host_names
        return True

    def admit(self, connection: socket.socket) -> None:
        """Lets a connection that has shown the token keep its place when many come."""
        self._server.admit(connection)

    def asset(self, name: str) -> tuple[bytes, str] | None:
        """A fixed file of the page and its type; None for other names."""
        return self._assets.get(name)

    def state(self) -> dict[str, Any]:
        """What the page shows, as plain values."""
        return {
            **self.board.to_json(),
            "can_rotate": self.rotate is not None,
            "watchers": self.sink.n_watchers,
        }

    def act(self, action: str, value: Any) -> None:
        """Turns one knob.

        Raises:
            ValueError: no such action, or a value that it does not take.
            KeyfaceError: the next key cannot be had.
        """
        switches = {"pause": "is_paused", "panic": "is_panic", "boxes": "shows_boxes"}
        if action in switches:
            if type(value) is not bool:
                raise ValueError(f"{action}: want true or false")
            setattr(self.controls, switches[action], value)
        elif action == "quality":
            self.controls.quality = value
        elif action == "rotate":
            if self.rotate is None:
                raise UsageError("There is no key to change to.")
            self.rotate()
        elif action == "end":
            self.controls.request_end()
        else:
            raise ValueError(f"legal actions: {', '.join((*switches, 'quality', 'rotate', 'end'))}")

    def _url(self, token: str) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.options.address, self.options.address)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}/{token}/"
