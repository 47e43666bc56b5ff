"""The status page in a real browser: the picture moves, the buttons work, and no raw face comes through."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from browser import Browser, open_browser
from fault_chain import RAW_CORRELATION, correlation, no_threads_left
from live_chain import filmed, texture_parts, url_source
from live_sink_cases import until
from mjpeg_server import mjpeg_server
from page_cases import TOKEN, ask, fed, picture_of, served, wait_until, watch

from keyface.configs.errors import KeyFileError
from keyface.pipeline.live.page import LivePage
from keyface.pipeline.live.run import run_live

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

PICTURE = """(() => {
  const picture = document.getElementById('picture');
  if (picture.hidden || !picture.naturalWidth) return null;
  const canvas = document.createElement('canvas');
  canvas.width = 32; canvas.height = 24;
  const context = canvas.getContext('2d');
  context.drawImage(picture, 0, 0, 32, 24);
  return Array.from(context.getImageData(0, 0, 32, 24).data).join();
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def text_of(browser: Browser, id_: str) -> str:
    return str(browser.value(f"document.getElementById('{id_}').textContent"))


def pressed(id_: str, is_on: bool = True) -> str:
    return f"document.getElementById('{id_}').getAttribute('aria-pressed') === '{str(is_on).lower()}'"


def test_the_picture_moves_and_the_figures_are_there(browser: Browser) -> None:
    browser.complaints.clear()
    with served(rotate=lambda: None) as page, fed(page):
        browser.open(page.url)
        browser.wait_for(f"{PICTURE} !== null")
        seen = set()
        wait_until(lambda: seen.add(browser.value(PICTURE)) or len(seen) >= 5)  # type: ignore[func-returns-value]
        browser.wait_for("document.getElementById('fps-out').textContent > '1'")
        assert text_of(browser, "state") == "live" and text_of(browser, "age-p95") == "90"
        assert text_of(browser, "faces") == "2" and text_of(browser, "reconnects") == "1"
        assert "reenact" in text_of(browser, "stages") and "too small" in text_of(browser, "reasons")
        assert "It went." in text_of(browser, "sinks")
        assert browser.value("document.title") == "keyface"
    assert browser.complaints == [], "scripts run and the security policy lets everything needed through"


@pytest.mark.parametrize("size_wh", [(360, 640), (768, 1024), (1280, 800)])
def test_it_fits_the_screen_and_can_be_read(browser: Browser, size_wh: tuple[int, int]) -> None:
    with served(rotate=lambda: None) as page, fed(page):
        browser.open(page.url, size_wh)
        browser.wait_for("!document.getElementById('picture').hidden")
        browser.wait_for("document.getElementById('stages').children.length")
        assert browser.value("document.documentElement.scrollWidth") <= size_wh[0]
        outside = browser.value(
            "Array.from(document.querySelectorAll('button, select, td, .tile')).filter(e => {"
            "const r = e.getBoundingClientRect(); return r.width && (r.left < 0 || r.right > innerWidth);"
            "}).length"
        )
        small = browser.value(
            "Array.from(document.querySelectorAll('button, select')).filter(e => "
            "e.getBoundingClientRect().height < 44).length"
        )
        assert outside == 0 and small == 0, "nothing is cut off, and every button can be hit with a thumb"
        shot = browser.screenshot()
        assert np.median(shot[-40:, :10]) < 40, "it is dark"


def test_the_buttons_turn_the_knobs(browser: Browser) -> None:
    asked: list[bool] = []
    with served(rotate=lambda: asked.append(True)) as page, fed(page):
        browser.open(page.url)
        browser.wait_for("document.getElementById('state').textContent === 'live'")
        controls = page.controls
        browser.click("panic")
        wait_until(lambda: controls.mode == "mosaic")
        browser.wait_for(pressed("panic"))
        assert text_of(browser, "state") == "mosaic only"
        browser.click("pause")
        wait_until(lambda: controls.mode == "slate")
        browser.wait_for(pressed("pause"))
        browser.click("pause")
        wait_until(lambda: controls.mode == "mosaic")
        browser.wait_for(pressed("pause", False))
        browser.click("panic")
        wait_until(lambda: controls.mode == "live")
        browser.click("boxes")
        wait_until(lambda: controls.shows_boxes)
        browser.click("rotate")
        wait_until(lambda: asked == [True])
        choose = "(() => { const q = document.getElementById('quality'); q.value = '%s'; "
        choose += "q.dispatchEvent(new Event('change')); })()"
        browser.value(choose % "2")
        wait_until(lambda: controls.quality == 2)
        browser.value(choose % "")
        wait_until(lambda: controls.quality is None)


def test_keys_do_the_same(browser: Browser) -> None:
    with served() as page, fed(page):
        browser.open(page.url)
        browser.wait_for("document.getElementById('state').textContent === 'live'")
        browser.press("m")
        wait_until(lambda: page.controls.mode == "mosaic")
        browser.wait_for(pressed("panic"))
        browser.press(" ")
        wait_until(lambda: page.controls.mode == "slate")
        browser.press("b")
        wait_until(lambda: page.controls.shows_boxes)
        browser.press("k")  # there is no key to change to
        assert browser.value("document.getElementById('rotate').disabled")


def test_the_stream_ends_at_the_second_press_only(browser: Browser) -> None:
    with served() as page, fed(page):
        browser.open(page.url)
        browser.wait_for("document.getElementById('state').textContent === 'live'")
        browser.click("end")
        time.sleep(0.3)
        assert not page.controls.wants_end and "again" in text_of(browser, "end")
        for _ in range(
            5
        ):  # on a busy machine the second press may come so late that it counts as a first one
            browser.click("end")
            if until(lambda: page.controls.wants_end, 2.0):
                break
        assert page.controls.wants_end
    browser.wait_for("document.getElementById('state').textContent === 'ended'")


def test_what_goes_wrong_is_told_as_text(browser: Browser) -> None:
    def rotate() -> None:
        raise KeyFileError("Key file '<img src=x onerror=alert(1)>' is empty.")

    with served(rotate=rotate) as page, fed(page):
        browser.open(page.url)
        browser.wait_for("document.getElementById('state').textContent === 'live'")
        browser.click("rotate")
        browser.wait_for("!document.getElementById('note').hidden")
        assert "<img src=x" in text_of(browser, "note")
        assert browser.value("document.querySelectorAll('#note img').length") == 0


def test_a_wrong_token_shows_nothing(browser: Browser) -> None:
    with served() as page, fed(page):
        browser.open(page.url.replace(TOKEN, "x" * len(TOKEN)))
        assert browser.value("document.body.innerText").strip() == "Forbidden"
        assert browser.value("document.querySelectorAll('img, button').length") == 0


def test_another_site_reads_nothing_and_turns_nothing(browser: Browser) -> None:
    """With the token even: what a script from elsewhere asks for, it cannot read or use."""
    with served() as page, fed(page):
        browser.open("about:blank")
        assert (
            browser.value(f"fetch('{page.url}state.json').then(a => a.text(), e => 'refused')") == "refused"
        )
        wish = json.dumps(json.dumps({"action": "end"}))
        for kind in ("text/plain", "application/json"):
            script = f"""fetch('{page.url}control', {{method: 'POST', body: {wish},
                headers: {{'Content-Type': '{kind}'}}, mode: '%s'}}).then(a => a.type, e => 'refused')"""
            assert browser.value(script % "cors") == "refused"
            assert browser.value(script % "no-cors") == "refused"
        assert not page.controls.wants_end
    browser.complaints.clear()


def run_in_background(page: LivePage, url: str) -> tuple[threading.Thread, list[object]]:
    result: list[object] = []

    def work() -> None:
        result.extend(
            run_live(
                url_source(url), [page.sink], texture_parts(), on_tick=page.board, controls=page.controls
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    return thread, result


def test_no_raw_face_comes_through_a_running_chain(browser: Browser) -> None:
    """The whole way: a camera that shows a face, the chain, the page, the browser, the stop button."""
    with mjpeg_server(filmed) as camera, served() as page:
        thread, result = run_in_background(page, camera.url)
        try:
            browser.open(page.url)
            browser.wait_for("document.getElementById('state').textContent === 'live'")
            browser.wait_for(f"{PICTURE} !== null")
            pictures = watch(page, 12)
            browser.click("panic")
            pictures += [*watch(page, 8), picture_of(ask(page, "picture.jpg").body)]
            assert max(correlation(picture) for picture in pictures) < RAW_CORRELATION
            shown = browser.screenshot()
            assert correlation(shown) < RAW_CORRELATION
            for name in ("", "state.json", "metrics", "page.js", "page.css"):
                assert b"\xff\xd8\xff" not in ask(page, name).body, "no picture hides in another answer"
            browser.click("end")
            browser.click("end")
            thread.join(60)
            assert not thread.is_alive() and page.controls.wants_end
        finally:
            page.controls.request_end()
            thread.join(60)
    assert result and no_threads_left()
