"""Where a push leads to: the URL, how to mux for it, and what of it may be shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from keyface.configs.errors import UsageError
from keyface.pipeline.live.address import host_for_people

PUSH_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp")

_NEEDS_PORT = ("srt", "udp")


@dataclass(frozen=True, slots=True)
class PushAddress:
    """A receiver of a stream.

    Attributes:
        url: what is opened; may hold a password, so it is left out of the representation.
        label: for people: scheme, host and port only, since user, path and query may be secrets (of RTMP the
            path is the key of the channel).
        scheme: one of `PUSH_SCHEMES`.
        format: of libav's muxer.
        options: of the muxer.
    """

    url: str = field(repr=False)
    label: str
    scheme: str
    format: str
    options: dict[str, str]


def parse_push(text: str) -> PushAddress:
    """Reads the URL of a `--sink`.

    Raises:
        UsageError: an unknown scheme or a URL that cannot be read; the text is not repeated.
    """
    scheme = text.split("://", 1)[0].lower()
    if scheme not in PUSH_SCHEMES:
        legal = ", ".join(f"{name}://" for name in PUSH_SCHEMES)
        raise UsageError("--sink: the URL is of an unknown kind.", f"Legal: {legal}.")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or (port is None and scheme in _NEEDS_PORT):
        form = "HOST:PORT" if scheme in _NEEDS_PORT else "[USER:PASSWORD@]HOST[:PORT]/PATH"
        raise UsageError("--sink: the URL cannot be read.", f"Write {scheme}://{form}.")
    label = f"{scheme}://{host_for_people(parts, host)}" + (f":{port}" if port else "")
    if (
        scheme == "udp" and "pkt_size=" not in parts.query
    ):  # whole packets of MPEG-TS that fit into Ethernet's
        text += ("&" if parts.query else "?") + "pkt_size=1316"
    if scheme.startswith("rtsp"):
        return PushAddress(text, label, scheme, "rtsp", {"rtsp_transport": "tcp"})
    if scheme.startswith("rtmp"):
        return PushAddress(text, label, scheme, "flv", {"flvflags": "no_duration_filesize"})
    return PushAddress(text, label, scheme, "mpegts", {"flush_packets": "1"})
