"""Answers one request of the status page."""

from __future__ import annotations

import json
import logging
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from keyface.configs.errors import KeyfaceError, SinkError
from keyface.pipeline.live.metrics import METRICS_TYPE, metrics_text

if TYPE_CHECKING:
    from keyface.pipeline.live.page import LivePage

_LOG = logging.getLogger(__name__)

_MOST_FPS = 15.0  # of the moving picture
_MOST_BODY_BYTES = 1024
_SEND_BUFFER_BYTES = 128 * 1024  # what is under way to a slow watcher is old
_BOUNDARY = b"keyface"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageHandler(BaseHTTPRequestHandler):
    """One connection, one request. The subclass that is served names its `page`."""

    page: ClassVar[LivePage]
    timeout = 10.0  # for each read and write
    server_version = "keyface"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers what can be looked at."""
        name = self._admitted()
        if name is None:
            return
        if name == "stream.mjpeg":
            self._stream()
        elif name == "picture.jpg":
            self._picture()
        elif name == "state.json":
            self._json(HTTPStatus.OK, self.page.state())
        elif name == "metrics":
            self._metrics()
        elif name == "health":
            self._health()
        elif (asset := self.page.asset(name)) is not None:
            self._answer(HTTPStatus.OK, *asset)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Turns a knob."""
        name = self._admitted()
        if name is None:
            return
        if name != "control":
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if not self._is_own_origin():
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        try:
            action, value = self._wish()
            self.page.act(action, value)
        except (ValueError, RecursionError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except KeyfaceError as error:
            self._json(HTTPStatus.CONFLICT, {"error": str(error)})
        else:
            _LOG.info("page: %s", action, extra={"event": "control", "fields": {"action": action}})
            self._json(HTTPStatus.OK, self.page.state())

    def _admitted(self) -> str | None:
        """What follows the token in the path; None when the request was refused."""
        if not self.page.knows_host(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        token, slash, name = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not self.page.knows_token(token):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        self.page.admit(self.connection)
        if not slash:
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return name

    def _is_own_origin(self) -> bool:
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = self.headers.get("Origin")
        return origin is None or origin in {
            f"{kind}://{self.headers.get('Host')}" for kind in ("http", "https")
        }

    def _wish(self) -> tuple[str, Any]:
        """Action and value of the request's body. Raises ValueError."""
        if self.headers.get_content_type() != "application/json":
            raise ValueError("want JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BODY_BYTES:
            raise ValueError(f"want a body of at most {_MOST_BODY_BYTES} bytes")
        body = json.loads(self.rfile.read(int(length)))
        if (
            not isinstance(body, dict)
            or not isinstance(body.get("action"), str)
            or set(body) - {"action", "value"}
        ):
            raise ValueError('want {"action": TEXT, "value": ...}')
        return body["action"], body.get("value")

    def _stream(self) -> None:
        """Newest picture first, until the watcher goes or the stream ends."""
        sink = self.page.sink
        try:
            with sink.watching():
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
                self._head(
                    HTTPStatus.OK, f"multipart/x-mixed-replace; boundary={_BOUNDARY.decode()}", n_bytes=None
                )
                self.wfile.write(b"--%s\r\n" % _BOUNDARY)
                self._send_pictures()
        except SinkError as error:
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})

    def _send_pictures(self) -> None:
        sink, number, next_s = self.page.sink, 0, 0.0
        while not (self.page.is_closing or sink.is_closed):
            picture = sink.picture(after=number)
            if picture is None:
                continue
            number = picture.number
            # The boundary goes out behind each picture: browsers show it when they see its end.
            self.wfile.write(
                b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n--%s\r\n"
                % (len(picture.jpeg), picture.jpeg, _BOUNDARY)
            )
            now_s = time.monotonic()
            time.sleep(max(0.0, next_s - now_s))
            next_s = max(next_s, now_s) + 1 / _MOST_FPS

    def _picture(self) -> None:
        try:
            with self.page.sink.watching():
                picture = self.page.sink.picture()
        except SinkError as error:
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)})
            return
        if picture is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._answer(HTTPStatus.OK, picture.jpeg, "image/jpeg")

    def _metrics(self) -> None:
        try:
            text = metrics_text(self.page.board, watchers=self.page.sink.n_watchers)
        except KeyfaceError as error:
            self._answer(HTTPStatus.NOT_IMPLEMENTED, f"{error}\n".encode(), "text/plain; charset=utf-8")
        else:
            self._answer(HTTPStatus.OK, text, METRICS_TYPE)

    def _health(self) -> None:
        """200 or 503, see `LiveBoard.is_well`."""
        is_well = self.page.board.is_well
        code = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(code, b"well\n" if is_well else b"no picture\n", "text/plain; charset=utf-8")

    def _json(self, code: HTTPStatus, value: Any) -> None:
        self._answer(code, json.dumps(value).encode(), "application/json")

    def _refuse(self, code: HTTPStatus) -> None:
        self._answer(code, f"{code.phrase}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, code: HTTPStatus, body: bytes, kind: str) -> None:
        self._head(code, kind, len(body))
        self.wfile.write(body)

    def _head(self, code: HTTPStatus, kind: str, n_bytes: int | None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if n_bytes is not None:
            self.send_header("Content-Length", str(n_bytes))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of the base class's own refusals (a request that cannot be read): repeats nothing of it."""
        self.close_connection = True
        self._refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request line holds the token."""
