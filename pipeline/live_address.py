"""What `--source` names: a camera, a stream, a file or the test pattern; never repeats a password."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
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


def parse_source(text: str, *, platform: str = sys.platform) -> SourceAddress:
    """Reads a `--source`.

    Args:
        text: "0" or "/dev/video0" for a camera, a URL, "test", or else a file.
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
    if "://" in text:
        return _parse_url(text)
    return SourceAddress("file", text, text)


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
    label = f"{scheme}://{_host_for_people(parts, host)}" + (f":{port}" if port else "")
    return SourceAddress("url", text, label, port or _DEFAULT_PORTS[scheme])


def _host_for_people(parts: SplitResult, host: str) -> str:
    # With an @ behind the first slash, what looks like the host may be the user of "user:pass/word@host".
    if "@" in f"{parts.path}{parts.query}{parts.fragment}" and "@" not in parts.netloc:
        return "..."
    return f"[{host}]" if ":" in host else host
