"""A headless Chromium, steered through its debugging pipe: no driver and no package is needed beside it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

# The pipe is expected at the file descriptors 3 and 4, which may be in use by now.
PUT_IN_PLACE = """
import os, sys
for number, now in ((3, os.dup(os.dup(int(sys.argv[1])))), (4, os.dup(os.dup(int(sys.argv[2]))))):
    os.dup2(now, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--mute-audio",
)  # fmt: skip
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page of one browser."""

    def __init__(self, program: str, profile: Path) -> None:
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}"]
        self._program = subprocess.Popen(
            [sys.executable, "-IS", "-c", PUT_IN_PLACE, str(there), str(back), program, *flags],
            pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._number = 0
        self._buffer = b""
        self._session = ""
        self.complaints: list[str] = []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        """Ends the program."""
        os.close(self._out)
        try:
            self._program.wait(20)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait(5)
        os.close(self._in)

    def open(self, url: str, size_wh: tuple[int, int] = (1280, 900)) -> None:
        """Goes to an address and waits for it."""
        width, height = size_wh
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)  # fmt: skip
        self._ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 60.0) -> None:
        """Until the expression is true."""
        deadline_s = time.monotonic() + timeout_s
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {script}"
            time.sleep(0.05)

    def click(self, id_: str) -> None:
        """Presses a button with the mouse, where it lies."""
        box = self.value(
            f"(() => {{ const e = document.getElementById('{id_}'); e.scrollIntoView({{block: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Types one key."""
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key)

    def screenshot(self) -> np.ndarray:
        """The whole page, uint8 (H, W, 3) RGB."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        png = np.frombuffer(base64.b64decode(answer["data"]), np.uint8)
        return np.asarray(cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1])

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self._number)

    def _until(self, is_it: Callable[[dict[str, Any]], bool], timeout_s: float = 90.0) -> Any:
        deadline_s = time.monotonic() + timeout_s
        while True:
            while b"\0" not in self._buffer:
                left_s = deadline_s - time.monotonic()
                ready, _, _ = select.select([self._in], [], [], max(0.0, left_s))
                assert ready, "the browser does not answer"
                data = os.read(self._in, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
            line, self._buffer = self._buffer.split(b"\0", 1)
            answer = json.loads(line)
            self._note(answer)
            if is_it(answer):
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _note(self, answer: dict[str, Any]) -> None:
        """Keeps errors of scripts and of the security policy."""
        if answer.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(answer["params"]["exceptionDetails"].get("exception", answer)))
        if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
            self.complaints.append(answer["params"]["entry"]["text"])


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser, or a skipped test where there is none."""
    found = [path for path in map(shutil.which, NAMES) if path]
    if not found:
        pytest.skip("no Chromium: run tests/install_browser.sh (Debian, Ubuntu)")
    browser = Browser(found[0], profile)
    try:
        yield browser
    finally:
        browser.close()
