"""The status page over HTTP: who gets in, what the answers hold, and that no watcher holds anything up."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
from fault_chain import no_threads_left
from page_cases import (
    TOKEN,
    ask,
    control,
    fed,
    picture_of,
    report_of,
    safe_pattern,
    served,
    wait_until,
    watch,
    watching,
)

from keyface.configs.errors import KeyFileError, SinkError, UsageError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live.page import LivePage, PageOptions, make_token
from keyface.pipeline.live.page_server import MOST_CONNECTIONS
from keyface.pipeline.live.page_sink import MOST_WATCHERS, PageSink
from keyface.pipeline.paste.redact import redact_frame

pytestmark = pytest.mark.timeout(240)

NAMES = [
    "",
    "page.css",
    "page.js",
    "icon.svg",
    "state.json",
    "metrics",
    "health",
    "picture.jpg",
    "stream.mjpeg",
]


# Who gets in.


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "%C3%A9", "%2e%2e"])
def test_a_wrong_token_gets_403_and_nothing_else(token: str) -> None:
    with served() as page:
        for name in (*NAMES, "control", "no-such-thing"):
            answer = ask(page, name, token=token)
            assert answer.code == 403 and answer.body == b"Forbidden\n"
            assert ask(page, name, token=token, method="POST", body=b"{}").code == 403


@pytest.mark.parametrize("path", ["/", "", "//", f"/x/../{TOKEN}/", f"/?token={TOKEN}"])
def test_the_token_counts_in_its_place_only(path: str) -> None:
    with served() as page:
        assert ask(page, "", path=path or "/").code == 403


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("LOCALHOST", 200), ("localhost.", 200),
        ("[::1]:{port}", 200), ("192.168.3.4:8700", 200), ("cam.example:{port}", 200),
        ("evil.example:{port}", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421),
        ("", 421), ("127.0.0.1:80:80", 421), ("evil.example/127.0.0.1", 421),
    ],
)  # fmt: skip
def test_names_that_were_bent_to_this_machine_reach_nothing(host: str, code: int) -> None:
    with served(host_names=("Cam.Example",)) as page:
        answer = ask(page, "state.json", headers={"Host": host.format(port=page.port)})
        assert answer.code == code
        if code != 200:
            assert answer.body == b"Misdirected Request\n"


def test_random_tokens_differ_and_are_long() -> None:
    tokens = {make_token() for _ in range(50)}
    assert len(tokens) == 50 and all(len(token) == 32 for token in tokens)
    with served(token="") as page:
        found = re.fullmatch(r"http://127\.0\.0\.1:\d+/([A-Za-z0-9_-]{32})/", page.url)
        assert found and page.shown_url == page.url
        assert ask(page, "state.json", token=found[1]).code == 200


def test_a_token_of_ones_own_is_not_shown() -> None:
    with served() as page:
        assert TOKEN in page.url and TOKEN not in page.shown_url + repr(page.options)


@pytest.mark.parametrize("bad", [{"token": "short"}, {"token": "a/" * 12}, {"port": 70000}, {"port": -1},
                                 {"address": "example.com"}, {"address": ""}])  # fmt: skip
def test_bad_options_are_one_sentence(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PageOptions(**bad)


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    assert PageOptions().is_local and PageOptions(address="::1").is_local
    assert not PageOptions(address="0.0.0.0").is_local
    with served() as page, pytest.raises(SinkError, match="the port is in use"):
        LivePage(page.controls, page.board, PageOptions(port=page.port))


# What the answers hold.


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stream.mjpeg"])
def test_every_answer_is_locked_down(name: str) -> None:
    with served() as page, fed(page):
        wait_until(lambda: page.board.report is not None)
        answer = ask(page, name)
        assert answer.code == 200 and len(answer.body) > 4
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [key for key in answer.headers if key.startswith("access-control")]
        assert TOKEN.encode() not in answer.body and "python" not in answer.headers["server"].lower()


def test_the_page_asks_for_nothing_from_outside() -> None:
    with served() as page:
        for name in ("", "page.css", "page.js"):
            text = ask(page, name).body.decode()
            assert "//" not in re.sub(r"(?m)^\s*//.*$", "", text).replace("http://www.w3.org", "")
            assert "style=" not in text and not re.search(r"\son\w+=", text) and "innerHTML" not in text


def test_what_is_not_there_is_404_and_other_methods_are_refused() -> None:
    with served() as page:
        assert ask(page, "passwd").code == ask(page, "", path=f"/{TOKEN}").code == 404
        assert ask(page, "state.json", method="POST", body=b"{}").code == 404
        for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
            answer = ask(page, "control", method=method)
            assert answer.code == 501 and "access-control-allow-origin" not in answer.headers


def test_the_state_holds_the_figures() -> None:
    with served() as page:
        first = ask(page, "state.json").json()
        assert first["state"] == "starting" and first["report"] is None and not first["can_rotate"]
        page.board(report_of())
        state = ask(page, "state.json").json()
        assert state["source"] == "rtsp://camera.example:554" and state["faces"] == 2
        assert state["report"]["dropped"] == 17 and state["report"]["age"]["p95_ms"] == 90.0
        assert state["report"]["stages"]["reenact"]["p50_ms"] == 30.0
        assert state["report"]["outputs"][1]["dropped"] == 9
        page.board.has_ended = True
        assert ask(page, "state.json").json()["state"] == "ended"


def test_health_says_whether_there_is_a_picture() -> None:
    with served() as page:
        assert ask(page, "health").code == 503
        page.board(report_of())
        assert ask(page, "health").code == 200
        page.board(report_of(state="lost"))
        assert ask(page, "health").code == 503


def test_health_sees_a_chain_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [50.0]
    with served() as page:
        monkeypatch.setattr(page.board, "_clock_s", lambda: now_s[0])
        page.board(report_of(frames_out=480))
        now_s[0] += 9.0
        page.board(report_of(frames_out=480))
        assert ask(page, "health").code == 200
        now_s[0] += 2.0
        assert ask(page, "health").code == 503
        page.controls.is_paused = True  # no frame is shown on purpose
        assert ask(page, "health").code == 200
        page.controls.is_paused = False
        page.board(report_of(frames_out=481))
        assert ask(page, "health").code == 200


# Controls.


def test_knobs_turn() -> None:
    asked: list[bool] = []
    with served(rotate=lambda: asked.append(True)) as page:
        assert control(page, "panic", True).json()["controls"]["mode"] == "mosaic"
        assert control(page, "pause", True).json()["controls"]["mode"] == "slate"
        assert control(page, "pause", False).json()["controls"]["mode"] == "mosaic"
        assert control(page, "panic", False).json()["controls"]["mode"] == "live"
        assert control(page, "boxes", True).json()["controls"]["shows_boxes"]
        assert control(page, "quality", 2).json()["controls"]["quality"] == 2
        assert control(page, "quality", None).json()["controls"]["quality"] is None
        assert control(page, "rotate").code == 200 and asked == [True]
        assert control(page, "end").json()["controls"]["wants_end"] and page.controls.wants_end


@pytest.mark.parametrize(
    ("action", "value"),
    [("pause", 1), ("panic", "true"), ("boxes", None), ("quality", -1), ("quality", 99), ("quality", 1.5),
     ("quality", True), ("key", "/etc/passwd"), ("", None)],
)  # fmt: skip
def test_a_wrong_wish_changes_nothing(action: str, value: Any) -> None:
    with served() as page:
        answer = control(page, action, value)
        assert answer.code == 400 and answer.json()["error"]
        assert page.controls.state().changes == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"{}", b'{"action": 1}', b'{"action": "end", "more": 1}',
     b"[" * 1000, b'{"action": "end", "value": "' + b"x" * 2000 + b'"}'],
)  # fmt: skip
def test_a_wrong_body_changes_nothing(body: bytes) -> None:
    with served() as page:
        answer = ask(page, "control", method="POST", headers={"Content-Type": "application/json"}, body=body)
        assert answer.code == 400 and page.controls.state().changes == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:1"},
    ],
)  # fmt: skip
def test_other_sites_turn_nothing_even_with_the_token(headers: dict[str, str]) -> None:
    with served() as page:
        assert control(page, "end", headers=headers).code == 403
        assert not page.controls.wants_end
        own = {"Origin": f"http://127.0.0.1:{page.port}", "Sec-Fetch-Site": "same-origin"}
        assert control(page, "pause", True, headers=own).code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_form_of_another_site_turns_nothing(kind: str) -> None:
    with served() as page:
        body = json.dumps({"action": "end"}).encode()
        assert ask(page, "control", method="POST", headers={"Content-Type": kind}, body=body).code == 400
        assert not page.controls.wants_end


def test_a_key_that_cannot_be_had_is_told() -> None:
    def rotate() -> None:
        raise KeyFileError("Key file 'next.key' is empty.", "Make a key.")

    with served(rotate=rotate) as page:
        answer = control(page, "rotate")
        assert answer.code == 409 and "is empty" in answer.json()["error"]
    with served() as page:
        assert control(page, "rotate").code == 409


# The picture.


def test_the_picture_moves_and_is_the_safe_one() -> None:
    with served() as page:
        assert ask(page, "picture.jpg").code == 503  # none yet
        with fed(page):
            pictures = watch(page, 6)
        assert len({picture.tobytes() for picture in pictures}) == 6
        page.sink.write(safe_pattern(40))
        shown = picture_of(ask(page, "picture.jpg").body)
        assert shown.shape == (120, 160, 3)
        assert np.abs(shown.astype(int) - safe_pattern(40).image_rgb).mean() < 6


def test_nothing_but_safe_frames_is_taken() -> None:
    sink = PageSink()
    raw = Frame(np.zeros((64, 96, 3), np.uint8), 0, 0.0)
    for bad in (raw, raw.image_rgb, None):
        with pytest.raises(TypeError, match="want SafeFrame"):
            sink.write(bad)  # type: ignore[arg-type]


def test_nothing_is_encoded_while_nobody_watches() -> None:
    with served() as page:
        for number in range(50):
            page.sink.write(safe_pattern(number))
        assert page.sink.n_encoded == 0 and ask(page, "state.json").code == 200
        ask(page, "picture.jpg")
        assert page.sink.n_encoded == 1
        ask(page, "picture.jpg")
        assert page.sink.n_encoded == 1, "the same picture is made once"


def test_large_pictures_are_scaled() -> None:
    with served() as page:
        page.sink.write(safe_pattern(0, (1920, 1080)))
        assert picture_of(ask(page, "picture.jpg").body).shape == (540, 960, 3)


def test_watchers_share_what_is_encoded_and_are_bounded() -> None:
    got: list[int] = []
    was_full = threading.Event()

    def stay() -> None:
        with watching(page) as pictures:
            seen = 0
            while seen < 25 or not was_full.is_set():
                next(pictures)
                seen += 1
        got.append(seen)

    with served() as page, fed(page):
        threads = [threading.Thread(target=stay) for _ in range(MOST_WATCHERS)]
        for thread in threads:
            thread.start()
        wait_until(lambda: page.sink.n_watchers == MOST_WATCHERS)
        answer = ask(page, "stream.mjpeg")
        was_full.set()
        assert answer.code == 503 and "watching already" in answer.json()["error"]
        for thread in threads:
            thread.join(60)
        assert len(got) == MOST_WATCHERS
        wait_until(lambda: page.sink.n_watchers == 0)
        assert page.sink.n_encoded < sum(got), "each picture is made once for all"


def test_a_watcher_that_reads_nothing_holds_nobody_up() -> None:
    with served() as page, contextlib.ExitStack() as stack:
        for _ in range(3):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
            idle.sendall(f"GET /{TOKEN}/stream.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(lambda: page.sink.n_watchers == 3)
        longest_s, began_s = 0.0, time.monotonic()
        noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
        number = 0
        while time.monotonic() - began_s < 2.0:
            frame = redact_frame(
                Frame(noise, number, number / 25), []
            )  # large as JPEG: buffers are soon full
            before_s = time.monotonic()
            page.sink.write(frame)
            longest_s = max(longest_s, time.monotonic() - before_s)
            number += 1
            time.sleep(0.01)
        assert longest_s < 5 and page.sink.n_watchers == 3
        with fed(page):
            assert len(watch(page, 3)) == 3  # and the next watcher is served


def n_clients() -> int:
    return [thread.name for thread in threading.enumerate()].count("keyface-page-client")


def test_a_crowd_of_silent_strangers_keeps_nobody_out() -> None:
    with served() as page, fed(page), contextlib.ExitStack() as stack:
        for number in range(3 * MOST_CONNECTIONS):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=30))
            idle.sendall(b"GET /" if number % 2 else b"")
        time.sleep(0.3)
        wait_until(lambda: n_clients() <= MOST_CONNECTIONS)
        for _ in range(5):
            assert ask(page, "state.json").code == 200
        assert len(watch(page, 3)) == 3
    assert no_threads_left()


def test_who_has_shown_a_token_keeps_the_place() -> None:
    with served() as page, fed(page), contextlib.ExitStack() as stack:
        watcher = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=60))
        watcher.sendall(f"GET /{TOKEN}/stream.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(lambda: page.sink.n_watchers == 1)
        for _ in range(3 * MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=30))
        time.sleep(0.3)
        assert page.sink.n_watchers == 1
        seen = b""
        while seen.count(b"image/jpeg") < 5:
            data = watcher.recv(65536)
            assert data, "the watcher was sent away"
            seen += data


def test_the_end_comes_at_once_whoever_is_connected() -> None:
    with contextlib.ExitStack() as stack:
        with served() as page, fed(page):
            for text in (
                "",
                "GET / HTTP/1.1\r\n",
                f"GET /{TOKEN}/stream.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n",
            ):
                idle = stack.enter_context(socket.create_connection(("127.0.0.1", page.port)))
                idle.sendall(text.encode())
            wait_until(lambda: page.sink.n_watchers == 1)
            began_s = time.monotonic()
            page.stop()
            assert time.monotonic() - began_s < 8
            assert "keyface-page-client" not in [thread.name for thread in threading.enumerate()]
        assert no_threads_left()
