"""A camera on loopback: HTTP with MJPEG, that can stall, hang up, send garbage and come back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
NOT_FOUND = b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"
UNAUTHORISED = b"HTTP/1.0 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"


def as_part(image_rgb: np.ndarray, share: float = 1.0) -> bytes:
    ok, jpeg = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    body = jpeg.tobytes()[: round(share * jpeg.size)]
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(body), body)


class MjpegServer:
    """Serves `picture(number)` at `fps`.

    Attributes:
        mode: "serve"; "stall" keeps the connection and sends nothing; "silent" does not even answer;
            "garbage" sends noise for pictures; "half" sends pictures without their second half;
            "refuse" closes at once.
        answer: HTTP head.
        n_connections, n_sent: connections, and pictures, so far.
    """

    def __init__(self, picture: Callable[[int], np.ndarray], fps: float = 30.0) -> None:
        self._picture, self._fps = picture, fps
        self.mode = "serve"
        self.answer = HEAD
        self.n_connections = 0
        self.n_sent = 0
        self.requests: list[bytes] = []
        self._is_over = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._number = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/live"

    @property
    def secret_url(self) -> str:
        return f"http://hidden-user:hidden-password@127.0.0.1:{self.port}/hidden-path?token=hidden-token"

    def hang_up(self) -> None:
        """Cuts all connections."""
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._is_over = True
        self._listener.close()
        self.hang_up()
        for thread in self._threads[1:]:
            thread.join(10)

    def _accept(self) -> None:
        while not self._is_over:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.n_connections += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                if self.mode == "refuse":
                    return
                while self.mode == "silent" and not self._is_over:
                    time.sleep(0.01)
                self.requests.append(connection.recv(4096))
                connection.sendall(self.answer)
                while not self._is_over and self.answer is HEAD:
                    if self.mode in ("serve", "half"):
                        share = 1.0 if self.mode == "serve" else 0.5
                        connection.sendall(as_part(self._picture(self._number), share))
                        self._number += 1
                        self.n_sent += 1
                    elif self.mode == "garbage":
                        connection.sendall(np.random.default_rng(self._number).bytes(4096))
                    elif self.mode == "refuse":
                        return
                    time.sleep(1 / self._fps)
            except OSError:
                return


@contextmanager
def mjpeg_server(picture: Callable[[int], np.ndarray], fps: float = 30.0) -> Iterator[MjpegServer]:
    server = MjpegServer(picture, fps)
    try:
        yield server
    finally:
        server.close()
