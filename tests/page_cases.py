"""A status page with safe frames on it, and requests to it as no browser would send them."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np

from keyface.pipeline.frame import Frame, SafeFrame
from keyface.pipeline.live.board import LiveBoard
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.fanout import SinkReport
from keyface.pipeline.live.page import LivePage, PageOptions
from keyface.pipeline.live.run import LiveReport
from keyface.pipeline.live.source import pattern_at
from keyface.pipeline.paste.redact import redact_frame
from keyface.pipeline.stage_times import StageTimes

TOKEN = "hidden-token-0123456789"


class Answer(NamedTuple):
    """Of the page."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def safe_pattern(number: int, size_wh: tuple[int, int] = (160, 120)) -> SafeFrame:
    return redact_frame(Frame(pattern_at(number / 10, size_wh), number, number / 25), [])


def sink_report(name: str, **changes: Any) -> SinkReport:
    values: dict[str, Any] = {"state": "live", "written": 0, "dropped": 0, "problem": ""}
    return SinkReport(name=name, age=StageTimes(480, 60.0, 90.0, 120.0, 30.0), **{**values, **changes})


def report_of(**changes: Any) -> LiveReport:
    """A report of a stream that goes well."""
    values: dict[str, Any] = {
        "state": "live", "wall_s": 20.0, "stream_s": 19.0, "frames_in": 500, "frames_out": 480,
        "dropped": 17, "fps_in": 26.3, "fps_out": 25.2, "faces": 2, "people": 3, "replaced": 900,
        "redacted_frames": 11, "redacted": {"predicted_only": 7, "too_small": 4}, "slates": 5,
        "reconnects": 1, "quality": 3, "age": StageTimes(480, 60.0, 90.0, 120.0, 30.0), "faults": {"reenact": 2},
        "stages": {"source": StageTimes(500, 1.0, 2.0, 3.0, 0.5), "reenact": StageTimes(480, 30.0, 44.0, 60.0, 15.0)},
        "first_output_s": 0.9,
        "outputs": (
            sink_report("page", written=485),
            sink_report("rtsp://hidden-host:8554", state="failed", written=20, dropped=9, problem="It went."),
            sink_report("/hidden-folder/hidden name.mp4", written=480, dropped=1),
        ),
    }  # fmt: skip
    return LiveReport(**{**values, **changes})


@contextmanager
def served(
    *, rotate: Callable[[], None] | None = None, controls: LiveControls | None = None, **options: Any
) -> Iterator[LivePage]:
    """A page on any free port, with a token that tests know."""
    controls = controls or LiveControls()
    board = LiveBoard(controls, source="rtsp://camera.example:554")
    page = LivePage(controls, board, PageOptions(**{"port": 0, "token": TOKEN, **options}), rotate=rotate)
    with page:
        yield page


@contextmanager
def fed(page: LivePage, fps: float = 25.0) -> Iterator[None]:
    """Gives the page a moving picture and figures meanwhile."""
    is_over = threading.Event()

    def feed() -> None:
        number = 0
        while not is_over.wait(1 / fps):
            page.sink.write(safe_pattern(number))
            page.board(report_of(frames_in=500 + number, frames_out=480 + number, wall_s=20 + number / fps))
            number += 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def ask(
    page: LivePage, name: str, *, method: str = "GET", token: str = TOKEN, headers: dict[str, str] | None = None,
    body: bytes | None = None, path: str | None = None,
) -> Answer:  # fmt: skip
    """One request; the answer is read to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    try:
        connection.request(method, f"/{token}/{name}" if path is None else path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def control(page: LivePage, action: str, value: Any = None, **options: Any) -> Answer:
    """Turns a knob as the page's script does."""
    headers = {"Content-Type": "application/json", **options.pop("headers", {})}
    body = json.dumps({"action": action, "value": value}).encode()
    return ask(page, "control", method="POST", headers=headers, body=body, **options)


def watch(page: LivePage, n_pictures: int) -> list[np.ndarray]:
    """The first pictures of the moving one, uint8 (H, W, 3) RGB."""
    with watching(page) as pictures:
        return list(itertools.islice(pictures, n_pictures))


@contextmanager
def watching(page: LivePage, timeout_s: float = 40.0) -> Iterator[Iterator[np.ndarray]]:
    """Pictures of the moving one as they come, uint8 (H, W, 3) RGB."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=timeout_s)
    try:
        connection.request("GET", f"/{TOKEN}/stream.mjpeg")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert answer.getheader("Content-Type", "").startswith("multipart/x-mixed-replace")
        assert answer.readline() == b"--keyface\r\n"
        yield _parts(answer)
    finally:
        connection.close()


def _parts(answer: http.client.HTTPResponse) -> Iterator[np.ndarray]:
    while True:
        assert answer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(answer.readline().split(b":")[1])
        assert answer.readline() == b"\r\n"
        picture = picture_of(answer.read(length))
        assert answer.readline() + answer.readline() == b"\r\n--keyface\r\n"
        yield picture


def picture_of(jpeg: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB."""
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def wait_until(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)
