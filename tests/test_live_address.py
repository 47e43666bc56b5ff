"""What a source is called, where its name may come from, and what of it is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_reading import SECRETS

from keyface.configs.errors import UsageError
from keyface.pipeline.live.address import parse_source, read_source


@pytest.mark.parametrize(
    ("text", "kind", "target", "label"),
    [
        ("0", "camera", "/dev/video0", "camera 0"),
        ("/dev/video2", "camera", "/dev/video2", "camera /dev/video2"),
        ("test", "test", "test", "test pattern"),
        ("clip.mp4", "file", "clip.mp4", "clip.mp4"),
        ("RTSP://a:b@cam.local/x", "url", "RTSP://a:b@cam.local/x", "rtsp://cam.local"),
        ("https://[::1]:8443/x?t=1", "url", "https://[::1]:8443/x?t=1", "https://[::1]:8443"),
    ],
)
def test_addresses(text: str, kind: str, target: str, label: str) -> None:
    address = parse_source(text, platform="linux")
    assert (address.kind, address.target, address.label) == (kind, target, label)


def test_a_camera_number_on_a_mac_stays_a_number() -> None:
    assert parse_source("1", platform="darwin").target == "1"


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://hidden-user:hidden-password@cam:554/hidden-path?key=hidden-token",
        "rtmp://host/hidden-path/hidden-token",
        "rtsp://hidden-user:12/hidden-password@cam/x",
        "http://cam/hidden-path?hidden-user@hidden-token#hidden-password",
    ],
)
def test_a_label_holds_no_secret(url: str) -> None:
    address = parse_source(url)
    assert not [secret for secret in SECRETS if secret in f"{address.label}{address!r}"]


@pytest.mark.parametrize(
    "url", ["ftp://hidden-user@cam/x", "rtsp://hidden-user:hidden/password@cam", "rtsp:///hidden-path"]
)
def test_a_bad_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [("camera:/dev/v4l/by-id/x", "/dev/v4l/by-id/x"), ("camera:USB 2.0 Webcam", "USB 2.0 Webcam")],
)
def test_a_camera_by_its_name(text: str, target: str) -> None:
    address = parse_source(text, platform="win32")
    assert (address.kind, address.target, address.label) == ("camera", target, f"camera {target}")


@pytest.mark.parametrize(
    ("url", "is_playlist"),
    [
        ("http://a/b.m3u8", True), ("https://a/b.M3U8?x=1", True), ("http://a/b.mp4?x=.m3u8x", False),
        ("rtsp://a/b", False), ("b.m3u8", False),
    ],
)  # fmt: skip
def test_playlists_are_known_by_their_name(url: str, is_playlist: bool) -> None:
    assert parse_source(url).is_playlist is is_playlist


# Names out of sight.

URL = "rtsp://hidden-user:hidden-password@cam/hidden-path"


def test_a_source_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_URL", f" {URL}\n")
    address = read_source(env="CAMERA_URL")
    assert address.target == URL and address.label == "rtsp://cam"


def test_a_source_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "camera.url"
    file.write_text(f"{URL}\nanything else\n", "utf-8")
    assert read_source(file=file).target == URL


def test_a_source_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAMERA_URL", raising=False)
    with pytest.raises(UsageError, match="CAMERA_URL is not set"):
        read_source(env="CAMERA_URL")
    with pytest.raises(UsageError, match="cannot be read"):
        read_source(file=tmp_path / "no")
    (tmp_path / "empty").write_text(" \n", "utf-8")
    with pytest.raises(UsageError, match="is empty"):
        read_source(file=tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x80hidden")
    with pytest.raises(UsageError, match="cannot be read as text") as caught:
        read_source(file=tmp_path / "bytes")
    assert "hidden" not in str(caught.value)


def test_exactly_one_source_is_wanted(tmp_path: Path) -> None:
    for given in ({}, {"text": "0", "env": "A"}, {"env": "A", "file": tmp_path}):
        with pytest.raises(UsageError, match="missing or named twice"):
            read_source(**given)  # type: ignore[arg-type]
    assert read_source(text="0").kind == "camera"


def test_a_bad_url_out_of_sight_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_URL", "ftp://hidden-user:hidden-password@cam/hidden-path")
    with pytest.raises(UsageError) as caught:
        read_source(env="CAMERA_URL")
    assert not [secret for secret in SECRETS if secret in str(caught.value)]
