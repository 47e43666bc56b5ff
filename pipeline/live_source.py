"""Live sources: cameras, network streams, files at their own pace, and a test pattern.

A live source has no time of its own that could be trusted: frames get the time at which they came, in
seconds from the first one (a file: its own time). A camera or a stream that is lost is opened again, with
growing pauses, for as long as it takes; meanwhile `status` says so and the sink shows a slate.

Every wait ends: libav's calls have time-outs, a stream without a picture for a while counts as lost, and
`stop` ends all of it at once. No message repeats a URL, since it may hold a password.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import cv2
import numpy as np

from keyface.configs.errors import SourceError, UsageError
from keyface.pipeline.capture import FileSource
from keyface.pipeline.capture_open import MAX_PIXELS
from keyface.pipeline.frame import Frame, ImageRgb
from keyface.pipeline.live_address import SourceAddress
from keyface.pipeline.live_audio import AudioTap
from keyface.pipeline.rotation import apply_turn, turn_of_frame
from keyface.pipeline.yuv import rgb_from_av

SourceState = Literal["starting", "live", "lost", "ended"]

_DEFAULT_SIZE_WH = (640, 480)
_DEFAULT_FPS = 30.0
_LEAST_STEP_S = 1e-4  # between two frames, whatever the clock says
_POLL_S = 0.004  # between two looks at a camera that has no new frame
_PROTOCOLS = {
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto",
    "rtmp": "rtmp,rtmps,rtmpt,tcp,tls,http,https,crypto",
    "http": "http,https,httpproxy,tcp,tls,crypto",
}
_REASONS = {
    errno.ECONNREFUSED: ("refuses the connection", "Check the address, and that it is switched on."),
    errno.EHOSTUNREACH: ("cannot be reached", "Check the address and the network."),
    errno.ENETUNREACH: ("cannot be reached", "Check the address and the network."),
    errno.ENOENT: ("does not exist", "Check the name; `ls /dev/video*` lists cameras on Linux."),
    errno.ENODEV: ("is no camera", "Choose another number."),
    errno.ENXIO: ("is not connected", "Plug it in, or choose another one."),
    errno.EBUSY: ("is used by another program", "Close that program first."),
    errno.EACCES: ("may not be used by this user", "On Linux, add the user to the group 'video'."),
    errno.EPERM: ("may not be used by this user", "Allow the use of the camera in the system's settings."),
    errno.EIO: ("cannot be reached or read", "Check the name and the network."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSourceOptions:
    """How a live source is opened.

    Attributes:
        size_wh: px asked of a camera or the test pattern; other pictures are scaled to it. None: as it comes.
        fps: asked of a camera or the test pattern; None: as it comes, 30 for the test pattern.
        is_looped: a file begins again at its end.
        with_audio: the source's sound is wanted too, see `LiveSource.audio`.
        open_timeout_s: longest wait for a connection.
        silence_s: without a picture for that long a camera or stream is lost.
        first_pause_s, longest_pause_s: before it is opened again; the pause doubles each time in vain.
    """

    size_wh: tuple[int, int] | None = None
    fps: float | None = None
    is_looped: bool = False
    with_audio: bool = False
    open_timeout_s: float = 5.0
    silence_s: float = 5.0
    first_pause_s: float = 0.25
    longest_pause_s: float = 2.0

    def __post_init__(self) -> None:
        if self.size_wh is not None and not all(16 <= side <= 8192 for side in self.size_wh):
            raise UsageError(f"--width, --height: got {self.size_wh}, want 16 to 8192 px.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise UsageError(f"--fps: got {self.fps:g}, want 1 to 240.")
        if not (self.open_timeout_s > 0 and self.silence_s > 0):
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
    """

    state: SourceState = "starting"
    size_wh: tuple[int, int] | None = None
    fps: float = _DEFAULT_FPS
    origin_s: float | None = None
    reconnects: int = 0
    problem: str = ""


class _Picture(NamedTuple):
    image_rgb: ImageRgb
    time_s: float | None  # of a source with a time of its own, from its first picture
    is_suspect: bool


class LiveSource:
    """Iterates `Frame`s as they come, once. All frames have the size of the first, or `options.size_wh`.

    Args:
        address: see `parse_source`.
        is_ready: files and the test pattern begin when it is set, so that they lose nothing while the chain
            starts; None: at once.

    Attributes:
        status: see `LiveStatus`.
        audio: the source's sound, when `options.with_audio`; else None.
    """

    def __init__(
        self,
        address: SourceAddress,
        options: LiveSourceOptions | None = None,
        *,
        is_ready: threading.Event | None = None,
    ) -> None:
        self.address = address
        self.options = options or LiveSourceOptions()
        self.status = LiveStatus(size_wh=self.options.size_wh, fps=self.options.fps or _DEFAULT_FPS)
        self.is_ready = is_ready
        self.audio = AudioTap() if self.options.with_audio else None
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Ends the iteration, from any thread; may be called again. Does not wait."""
        self._is_stopped.set()
        if self.address.kind == "url":
            _shut_connections(self.address.port)

    def __iter__(self) -> Iterator[Frame]:
        """Raises SourceError: it cannot be opened at first, or a file cannot be read."""
        last_s = -1.0
        for index, picture in enumerate(self._pictures()):
            now_s = time.monotonic()
            if self.status.origin_s is None:
                self.status.origin_s = now_s - (picture.time_s or 0.0)
            pts_s = now_s - self.status.origin_s if picture.time_s is None else picture.time_s
            last_s = max(pts_s, last_s + _LEAST_STEP_S)
            yield Frame(self._fitted(picture.image_rgb), index, last_s, is_suspect=picture.is_suspect)
        self.status.state = "ended"

    def _pictures(self) -> Iterator[_Picture]:
        """All pictures, over all connections."""
        if not self.address.is_endless:
            for picture in self._file() if self.address.kind == "file" else self._pattern():
                self.status.state = "live"
                yield picture
            return
        has_worked, pause_s = False, self.options.first_pause_s
        while not self._is_stopped.is_set():
            try:
                for picture in self._connection():
                    if self.status.state == "lost":
                        self.status.reconnects += 1
                    self.status.state = "live"
                    has_worked, pause_s = True, self.options.first_pause_s
                    yield picture
            except SourceError as error:
                if self._is_stopped.is_set():
                    return
                if not has_worked:
                    raise
                self.status.problem = error.problem
            self.status.state = "lost"
            # Many viewers of one server must not all come back in the same moment.
            self._is_stopped.wait(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, self.options.longest_pause_s)

    # ------------------------------------------------------------ cameras and streams
    def _connection(self) -> Iterator[_Picture]:
        """Pictures of one connection, until it is lost.

        Raises:
            SourceError: always, at its end.
        """
        label = self.address.label
        try:
            container = self._open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from None
        try:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise SourceError(f"{label} has no picture that can be decoded.", "Choose another source.")
            yield from self._decoded(container)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from None
        finally:
            with contextlib.suppress(av.FFmpegError, OSError):
                container.close()
        raise SourceError(f"{label} has ended.", "Check that it still sends.")

    def _open(self) -> Any:
        options, wait_s = self.options, (self.options.open_timeout_s, self.options.silence_s)
        if self.address.kind == "url":
            settings = _url_settings(self.address.scheme, options.open_timeout_s)
            return av.open(self.address.target, options=settings, timeout=wait_s, metadata_errors="replace")
        driver = {"linux": "v4l2", "darwin": "avfoundation"}.get(sys.platform)
        if driver is None:
            raise SourceError("Cameras are supported on Linux and macOS.", "Use a stream or a file.")
        if driver == "v4l2" and not Path(self.address.target).exists():
            raise OSError(errno.ENOENT, "no such device")
        # Without waiting in the driver, so that a camera that falls silent is noticed.
        settings = {"fflags": "nobuffer+nonblock"}
        wanted = dict(settings)
        if options.size_wh is not None:
            wanted["video_size"] = "{}x{}".format(*options.size_wh)
        if options.fps is not None:
            wanted["framerate"] = f"{options.fps:g}"
        try:
            return av.open(self.address.target, format=driver, options=wanted, timeout=wait_s)
        except (av.FFmpegError, OSError, ValueError) as error:
            if wanted == settings or getattr(error, "errno", None) not in (errno.EINVAL, errno.EIO, None):
                raise
        # A camera that cannot do what was asked is taken as it is, and scaled.
        return av.open(self.address.target, format=driver, options=settings, timeout=wait_s)

    def _decoded(self, container: Any) -> Iterator[_Picture]:
        """Pictures until the end; those after damage, until a clean key frame, are suspect, and so is what
        comes before the first one."""
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # threads that work on several frames would hold these back
        if self.options.fps is None and 1 <= float(stream.average_rate or 0) <= 240:
            self.status.fps = float(stream.average_rate)
        is_suspect, last_s = True, time.monotonic()
        for packet in self._packets(container, stream):
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except av.FFmpegError:
                frames, is_suspect = [], True
            is_damaged = packet.is_corrupt or self._is_cut_off(packet, stream)
            is_suspect = is_suspect or is_damaged
            for frame in frames:
                if frame.width * frame.height > MAX_PIXELS:
                    raise SourceError(
                        f"{self.address.label} sends {frame.width}x{frame.height} px, which is too large.",
                        "Choose a smaller picture at the source.",
                    )
                if frame.is_corrupt:
                    is_suspect = True
                elif frame.key_frame and not is_damaged:
                    is_suspect = False
                last_s = time.monotonic()
                image_rgb = rgb_from_av(frame, stream.codec_context.name)
                yield _Picture(apply_turn(image_rgb, turn_of_frame(frame)), None, is_suspect)
            if time.monotonic() - last_s > self.options.silence_s:
                raise SourceError(f"{self.address.label} sends data without a picture.", "Check the source.")

    def _is_cut_off(self, packet: Any, stream: Any) -> bool:
        """True for a JPEG from a network without its end, which libav decodes half and calls sound."""
        if self.address.kind != "url" or stream.codec_context.name != "mjpeg":
            return False
        return not bytes(packet).rstrip(b"\0\r\n").endswith(b"\xff\xd9")

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Packets until the end of the stream or `stop`."""
        last_s = time.monotonic()
        while not self._is_stopped.is_set():
            try:
                for packet in container.demux(stream):
                    if self._is_stopped.is_set():
                        return
                    if packet.size:
                        last_s = time.monotonic()
                        yield packet
                return
            except av.BlockingIOError:  # a camera without a new frame
                if time.monotonic() - last_s > self.options.silence_s:
                    raise TimeoutError(errno.ETIMEDOUT, "silent") from None
                self._is_stopped.wait(_POLL_S)

    def _failure(self, error: Exception) -> SourceError:
        """What went wrong, in a sentence. libav's own texts hold the URL: only its numbers are used."""
        label = self.address.label
        if isinstance(error, SourceError):
            return error
        if isinstance(error, (av.ExitError, TimeoutError)) or _number(error) == errno.ETIMEDOUT:
            wait_s = self.options.silence_s if self.status.state == "live" else self.options.open_timeout_s
            return SourceError(
                f"{label} has sent nothing for {wait_s:g} s.", "Check the source and the network."
            )
        if isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError)):
            return SourceError(f"{label} refuses the user or the password.", "Check both in the URL.")
        if isinstance(error, av.HTTPNotFoundError):
            return SourceError(f"{label} has nothing at this path.", "Check the path of the URL.")
        what, way_out = _REASONS.get(
            _number(error), ("sends nothing that can be read as video", "Check the address.")
        )
        return SourceError(f"{label} {what}.", way_out)

    # ------------------------------------------------------------ files and the pattern
    def _file(self) -> Iterator[_Picture]:
        """A file at its own pace, over and over when it is looped."""
        offset_s, began_s = 0.0, None
        while not self._is_stopped.is_set():
            with FileSource(self.address.target) as source:
                self.status.fps = self.options.fps or source.info.fps
                if self.status.size_wh is None:
                    self.status.size_wh = source.info.size_wh
                if began_s is None:
                    self._wait_until_ready()
                    began_s = time.monotonic()
                time_s = offset_s
                for frame in source:
                    time_s = offset_s + frame.pts_s
                    if self._wait_until(began_s + time_s):
                        return
                    yield _Picture(frame.image_rgb, time_s, frame.is_suspect)
                offset_s = time_s + 1 / source.info.fps
            if not self.options.is_looped:
                return

    def _pattern(self) -> Iterator[_Picture]:
        """Waves that move, with a bar that crosses them once in two seconds, and no face."""
        size_wh = self.options.size_wh or _DEFAULT_SIZE_WH
        self.status.size_wh, fps = size_wh, self.status.fps
        self._wait_until_ready()
        began_s, number = time.monotonic(), 0
        while not self._wait_until(began_s + number / fps):
            yield _Picture(pattern_at(number / fps, size_wh), number / fps, False)
            # What a slow machine could not make in time is left out.
            number = max(number + 1, int((time.monotonic() - began_s) * fps))

    def _wait_until_ready(self) -> None:
        while self.is_ready is not None and not self.is_ready.wait(0.05):
            if self._is_stopped.is_set():
                return

    def _wait_until(self, moment_s: float) -> bool:
        """Waits; True when stopped."""
        return self._is_stopped.wait(max(0.0, moment_s - time.monotonic()))

    def _fitted(self, image_rgb: ImageRgb) -> ImageRgb:
        height, width = image_rgb.shape[:2]
        size_wh = self.status.size_wh or (width, height)
        self.status.size_wh = size_wh
        if (width, height) == size_wh:
            return image_rgb
        how = cv2.INTER_AREA if size_wh[0] < width else cv2.INTER_LINEAR
        fitted: ImageRgb = cv2.resize(image_rgb, size_wh, interpolation=how)
        return fitted


def pattern_at(time_s: float, size_wh: tuple[int, int]) -> ImageRgb:
    """The test picture at a time: uint8 (H, W, 3)."""
    width, height = size_wh
    x = np.arange(width, dtype=np.float32)[None, :] / width
    y = np.arange(height, dtype=np.float32)[:, None] / height
    waves = [127 + 80 * np.sin(6.3 * ((k + 1) * x + y) + time_s + 2 * k) for k in range(3)]
    image: ImageRgb = np.stack(waves, axis=-1).astype(np.uint8)
    left = int((time_s / 2 % 1.0) * width)
    image[:, left : left + max(2, width // 40)] = 235
    return image


def _url_settings(scheme: str, timeout_s: float) -> dict[str, str]:
    """libav's options: little delay, no reading of anything but the network, waits that end."""
    family = "http" if scheme.startswith("http") else scheme[:4]
    settings = {
        "fflags": "nobuffer+discardcorrupt",
        "flags": "low_delay",
        "analyzeduration": "2000000",
        "protocol_whitelist": _PROTOCOLS[family],
    }
    microseconds = str(round(timeout_s * 1e6))
    if family == "rtsp":
        return {**settings, "rtsp_transport": "tcp", "timeout": microseconds}
    return {**settings, "rw_timeout": microseconds}


def _number(error: Exception) -> int:
    return getattr(error, "errno", None) or 0


def _shut_connections(port: int) -> None:
    """Ends this process's connections to `port` of whatever host.

    libav offers no way to end a call that waits for data, but on a connection that was shut down every
    call returns at once.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):
            # A descriptor may be gone, or not be a connected socket: then it is not meant.
            with contextlib.suppress(OSError, ValueError):
                handle = int(name)
                if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                    continue
                with socket.socket(fileno=os.dup(handle)) as connection:
                    peer = connection.getpeername()
                    if isinstance(peer, tuple) and peer[1] == port:
                        connection.shutdown(socket.SHUT_RDWR)
