"""What `--source` names: a camera, a stream, a file or the test pattern; never repeats a password."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from keyface.configs.errors import UsageError

SourceKind = Literal["camera", "url", "file", "test"]

URL_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https")
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """A source by its name.

    Attributes:
        kind: what it is.
        target: what is opened; may hold a password, so it is left out of the representation.
        label: for people: of a URL only scheme, host and port, since user, path and query may be secrets.
        port: of a URL, 0 of anything else.
    """

    kind: SourceKind
    target: str = field(repr=False)
    label: str
    port: int = 0

    @property
    def scheme(self) -> str:
        """Of a URL, else ''."""
        return self.target.split("://", 1)[0].lower() if self.kind == "url" else ""

    @property
    def is_endless(self) -> bool:
        """True when the source may come back after a loss: cameras and streams."""
        return self.kind in ("camera", "url")

    @property
    def is_playlist(self) -> bool:
        """True when a URL looks like one of HLS."""
        return self.kind == "url" and re.search(r"\.m3u8?([?#]|$)", self.target, re.IGNORECASE) is not None


def parse_source(text: str, *, platform: str = sys.platform) -> SourceAddress:
    """Reads a `--source`.

    Args:
        text: "0", "/dev/video0" or "camera:NAME" for a camera, a URL, "test", or else a file.
        platform: as `sys.platform`.

    Raises:
        UsageError: an unknown scheme or a URL that cannot be read; the text is not repeated.
    """
    if text == "test":
        return SourceAddress("test", text, "test pattern")
    if text.isdecimal():
        target = f"/dev/video{int(text)}" if platform.startswith("linux") else str(int(text))
        return SourceAddress("camera", target, f"camera {int(text)}")
    if re.fullmatch(r"/dev/(video\d+|v4l/.+)", text):
        return SourceAddress("camera", text, f"camera {text}")
    if text.startswith("camera:") and text != "camera:":
        return SourceAddress("camera", text.removeprefix("camera:"), f"camera {text.removeprefix('camera:')}")
    if "://" in text:
        return _parse_url(text)
    return SourceAddress("file", text, text)


def read_source(
    *, text: str | None = None, env: str | None = None, file: Path | None = None
) -> SourceAddress:
    """The source by its name, or from where other users of the machine cannot see it.

    Args:
        text: the name itself.
        env: an environment variable that holds it.
        file: a file whose first line it is; only its owner should be able to read it.

    Raises:
        UsageError: not exactly one of them was given, it is not there or empty, or see `parse_source`. What
            it holds is not repeated.
    """
    if sum(given is not None for given in (text, env, file)) != 1:
        raise UsageError(
            "The source is missing or named twice.", "Give --source, --source-env or --source-file."
        )
    if env is not None:
        text = os.environ.get(env, "").strip()
        if not text:
            raise UsageError(f"--source-env: the variable {env} is not set or empty.", "Put the URL into it.")
    elif file is not None:
        text = _first_line(file)
    return parse_source(text or "")


def _first_line(file: Path) -> str:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"--source-file: {file} cannot be read as text.", "Check its name and its rights."
        ) from None
    line = text.strip().split("\n", 1)[0].strip()
    if not line:
        raise UsageError(f"--source-file: {file} is empty.", "Put the URL into its first line.")
    return line


def _parse_url(text: str) -> SourceAddress:
    scheme = text.split("://", 1)[0].lower()
    legal = ", ".join(f"{name}://" for name in URL_SCHEMES)
    if scheme not in URL_SCHEMES:
        raise UsageError("--source: the URL is of an unknown kind.", f"Legal: {legal}.")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise UsageError(
            "--source: the URL cannot be read.",
            f"Write {scheme}://[USER:PASSWORD@]HOST[:PORT]/PATH, with %2F for / and %40 for @ in a password.",
        )
    label = f"{scheme}://{host_for_people(parts, host)}" + (f":{port}" if port else "")
    return SourceAddress("url", text, label, port or _DEFAULT_PORTS[scheme])


def host_for_people(parts: SplitResult, host: str) -> str:
    """The host of a URL as it may be shown, or "..." when it may be part of a password."""
    # With an @ behind the first slash, what looks like the host may be the user of "user:pass/word@host".
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and "@" not in parts.netloc:
        return "..."
    return f"[{host}]" if ":" in host else host
