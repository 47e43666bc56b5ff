"""Keys to change to, in the order of their files, and the keys of the window that ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyface.configs.errors import KeyFileError
from keyface.pipeline.frame import Frame
from keyface.pipeline.live.control import LiveControls
from keyface.pipeline.live.keys import KEYS, LiveKeys, keys_text
from keyface.pipeline.paste.redact import redact_frame
from keyface.pipeline.people.key import Key
from keyface.pipeline.people.key_ring import KeyRing


def no_passphrase(file: Path) -> str:
    raise AssertionError(f"asked for {file}")


def made(folder: Path, *names: str, passphrase: str | None = None) -> list[Path]:
    for name in names:
        Key.generate().save(folder / name, passphrase=passphrase)
    return [folder / name for name in names]


def fingerprint(file: Path, passphrase: str | None = None) -> str:
    with Key.load(file, passphrase) as key:
        return key.fingerprint


def test_it_goes_round(tmp_path: Path) -> None:
    files = made(tmp_path, "a", "b", "c")
    ring = KeyRing(files, no_passphrase)
    seen = [ring.first(), *(ring.next() for _ in range(4))]
    assert [key.fingerprint for key in seen] == [fingerprint(files[k]) for k in (0, 1, 2, 0, 1)]
    assert ring.warnings == ()


def test_the_only_file_is_read_again(tmp_path: Path) -> None:
    (file,) = made(tmp_path, "a")
    ring = KeyRing([file], no_passphrase)
    ring.first()
    with pytest.raises(KeyFileError, match="holds the key that is in use"):
        ring.next()
    with Key.generate() as fresh:
        fresh.save(file, replace=True)
    assert ring.next().fingerprint == fingerprint(file)


def test_a_bad_file_is_told_at_the_start_and_skips_nothing_later(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a", "b")
    with pytest.raises(KeyFileError, match="does not exist"):
        KeyRing([a, tmp_path / "none"], no_passphrase)
    ring = KeyRing([a, b], no_passphrase)
    ring.first()
    kept = b.read_bytes()
    b.write_bytes(b"")
    with pytest.raises(KeyFileError, match="is empty"):
        ring.next()
    b.write_bytes(kept)
    assert ring.next().fingerprint == fingerprint(b)


def test_each_locked_file_is_asked_for_once(tmp_path: Path) -> None:
    (a,) = made(tmp_path, "a")
    (b,) = made(tmp_path, "b", passphrase="word")
    asked: list[Path] = []

    def ask(file: Path) -> str:
        asked.append(file)
        return "word"

    ring = KeyRing([a, b], ask)
    ring.first()
    assert ring.next().fingerprint == fingerprint(b, "word")
    ring.next()
    ring.next()
    assert asked == [b]


def test_files_that_others_can_read_are_told(tmp_path: Path) -> None:
    files = made(tmp_path, "a", "b")
    files[1].chmod(0o644)
    (warning,) = KeyRing(files, no_passphrase).warnings
    assert "chmod 600" in warning and "'" + str(files[1]) in warning


# Keys of the window.


def test_every_key_does_what_the_list_says() -> None:
    asked: list[bool] = []
    controls = LiveControls()
    keys = LiveKeys(controls, lambda: asked.append(True))
    assert keys.press(ord(" ")) and controls.mode == "slate"
    assert keys.press(ord(" ")) and controls.mode == "live"
    assert keys.press(ord("m")) and controls.mode == "mosaic"
    assert keys.press(ord("m")) and controls.mode == "live"
    assert keys.press(ord("b")) and controls.shows_boxes
    assert keys.press(ord("k")) and asked == [True]
    assert keys.press(ord("-")) and controls.quality == 1
    assert keys.press(ord("+")) and controls.quality == 0
    assert keys.press(ord("+")) and controls.quality == 0
    assert keys.press(ord("a")) and controls.quality is None
    for _ in range(20):
        keys.press(ord("-"))
    assert controls.quality == controls.quality_steps - 1
    assert keys.press(ord("h")) and keys.shows_help and len(keys.help_lines()) == len(KEYS)
    assert not keys.press(255) and not keys.press(ord("x"))
    changes = controls.state().changes
    assert keys.press(ord("q")) and controls.wants_end and controls.state().changes == changes + 1
    assert all(name in keys_text() for name in KEYS)


def test_a_key_that_cannot_be_had_is_shown_until_the_next_press(tmp_path: Path) -> None:
    def rotate() -> None:
        raise KeyFileError("Key file 'b' is empty.", "Make one.")

    keys = LiveKeys(LiveControls(), rotate)
    keys.press(ord("k"))
    assert keys.message == "Key file 'b' is empty."
    keys.press(ord("b"))
    assert keys.message == ""
    keyless = LiveKeys(LiveControls())
    keyless.press(ord("k"))
    assert "no key" in keyless.message


def test_the_window_passes_keys_on_and_shows_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from keyface.pipeline.live import sink_window
    from keyface.pipeline.live.sink_window import WindowSink

    shown: list[np.ndarray] = []
    pressed = iter([ord("m"), ord("h"), 255, ord("q")])
    stand_ins: dict[str, Any] = {
        "namedWindow": lambda *_: None, "destroyWindow": lambda *_: None,
        "imshow": lambda _, image: shown.append(np.array(image)), "waitKey": lambda _: next(pressed),
        "getWindowProperty": lambda *_: 1.0,
    }  # fmt: skip
    monkeypatch.setenv("DISPLAY", ":0")
    for name, call in stand_ins.items():
        monkeypatch.setattr(sink_window.cv2, name, call)
    controls = LiveControls()
    window = WindowSink()
    window.keys = LiveKeys(controls)
    window.open((320, 240), 25.0)
    frame = redact_frame(Frame(np.full((240, 320, 3), 150, np.uint8), 0, 0.0), [])
    for _ in range(4):
        window.write(frame)
    window.close()
    assert controls.mode == "mosaic" and controls.wants_end and window.wants_end
    assert (shown[0] == 150).all() and (shown[1] == 150).all()
    assert np.median(shown[2]) == 50 and (shown[2] > 200).sum() > 500, "white letters on a darkened picture"
    assert (frame.image_rgb == 150).all()
