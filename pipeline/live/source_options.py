"""What may be asked of a live source, and how it is doing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from keyface.configs.errors import UsageError
from keyface.pipeline.frame import ImageRgb

SourceState = Literal["starting", "live", "lost", "ended"]
RtspTransport = Literal["tcp", "udp"]

DEFAULT_FPS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSourceOptions:
    """How a live source is opened.

    Attributes:
        size_wh: px asked of a camera or the test pattern; other pictures are fitted into it. None: as it comes.
        fps: asked of a camera or the test pattern; None: as it comes, 30 for the test pattern.
        camera_format: asked of a camera, by libav's name: "mjpeg", "yuyv422", "nv12", ...; None: its own.
        is_looped: a file or a recording on a server begins again at its end.
        with_audio: the source's sound is wanted too, see `LiveSource.audio`.
        rtsp_transport: how RTSP sends its media; "udp" loses packets where "tcp" waits for them.
        open_timeout_s: longest wait for a connection.
        silence_s: without a picture for that long a camera or stream is lost.
        first_pause_s, longest_pause_s: before it is opened again; the pause doubles each time in vain.
        longest_backlog_s: of received but undecoded video; more is passed over up to a key frame.
    """

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    camera_format: str | None = None
    is_looped: bool = False
    with_audio: bool = False
    rtsp_transport: RtspTransport = "tcp"
    open_timeout_s: float = 5.0
    silence_s: float = 5.0
    first_pause_s: float = 0.2
    longest_pause_s: float = 1.2
    longest_backlog_s: float = 0.5

    def __post_init__(self) -> None:
        if self.size_wh is not None and not all(16 <= side <= 8192 for side in self.size_wh):
            raise UsageError(f"--width, --height: got {self.size_wh}, want 16 to 8192 px.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UsageError(f"--fps: got {self.fps:g}, want 1 to 240.")
        if self.camera_format is not None and not re.fullmatch(r"[a-z0-9_]{1,32}", self.camera_format):
            raise UsageError(
                "--camera-format: not a name of a format.", "Such as mjpeg, yuyv422, nv12 or h264."
            )
        if self.rtsp_transport not in get_args(RtspTransport):
            raise UsageError(f"--rtsp-transport: got {self.rtsp_transport!r}.", "Legal: tcp, udp.")
        waits = (self.open_timeout_s, self.silence_s, self.longest_backlog_s)
        if not all(0 < wait_s < math.inf for wait_s in waits):
            raise UsageError("live source: time-outs must be above 0.")


@dataclass(slots=True)
class LiveStatus:
    """How a live source is doing. Written on its thread, each field at once; read on any.

    Attributes:
        state: see `SourceState`.
        size_wh: px of all frames, None before the first.
        fps: nominal, for sinks that want a number.
        origin_s: `time.monotonic()` at frame time 0, None before the first frame.
        reconnects: times that it came back.
        problem: what the last loss was, one sentence; '' when there was none.
        skipped: video packets passed over undecoded, because decoding was behind.
    """

    state: SourceState = "starting"
    size_wh: tuple[int, int] | None = None
    fps: float = DEFAULT_FPS
    origin_s: float | None = None
    reconnects: int = 0
    problem: str = ""
    skipped: int = 0


class Picture(NamedTuple):
    """One picture on its way to becoming a frame.

    Attributes:
        image_rgb: uint8 (H, W, 3), of whatever size.
        time_s: of a source with a time of its own, from its first picture on; None: the time of arrival.
        is_suspect: after damage, and not from a clean key frame on.
    """

    image_rgb: ImageRgb
    time_s: float | None
    is_suspect: bool
