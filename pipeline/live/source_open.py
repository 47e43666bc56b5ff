"""Opening cameras and streams: what is asked of them, and what is said when they refuse.

libav's own messages hold the URL and with it perhaps a password; only its error numbers are used.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import av.device

from keyface.configs.errors import SourceError
from keyface.pipeline.live.address import SourceAddress
from keyface.pipeline.live.source_options import DEFAULT_FPS, LiveSourceOptions

_PATIENCE = 4.0  # of HLS, whose segments come seconds apart, over other streams
_UDP_REORDER_S = 0.1
_DRIVERS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_PROTOCOLS = {
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto",
    "rtmp": "rtmp,rtmps,rtmpt,tcp,tls,http,https,crypto",
    "http": "http,https,httpproxy,tcp,tls,crypto",
}
_CODED_FORMATS = frozenset({"mjpeg", "h264", "hevc"})
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


def read_timeout_s(address: SourceAddress, options: LiveSourceOptions) -> float:
    """Longest wait for one packet: the silence allowed, and longer where packets come in segments."""
    return options.silence_s * (_PATIENCE if address.is_playlist else 1.0)


def open_address(
    address: SourceAddress,
    options: LiveSourceOptions,
    *,
    is_known: bool = False,
    platform: str | None = None,
) -> Any:
    """A PyAV container on a camera or a stream; the caller closes it.

    Args:
        is_known: it was open before, so that less has to be found out.

    Raises:
        SourceError, av.FFmpegError, OSError, ValueError: see `why_not`.
    """
    wait_s = (options.open_timeout_s, read_timeout_s(address, options))
    if address.kind == "url":
        settings = url_settings(address.scheme, options, is_known=is_known)
        return av.open(address.target, options=settings, timeout=wait_s, metadata_errors="replace")
    platform = platform or sys.platform
    driver = _DRIVERS.get("linux" if platform.startswith("linux") else platform)
    if driver is None:
        raise SourceError("Cameras are supported on Linux, macOS and Windows.", "Use a stream or a file.")
    target = camera_name(address, driver)
    first_error: Exception | None = None
    for settings in camera_settings(options, driver):
        try:
            return av.open(target, format=driver, options=settings, timeout=wait_s)
        except (av.FFmpegError, OSError, ValueError) as error:
            # A camera that cannot do what was asked is taken as it is, and scaled; a busy one stays busy.
            if _number(error) not in (errno.EINVAL, errno.EIO, 0):
                raise
            first_error = first_error or error
    raise first_error or ValueError("no settings")


def camera_name(address: SourceAddress, driver: str) -> str:
    """What libav calls the camera.

    Raises:
        OSError: there is no such device file. SourceError: there are not so many cameras.
    """
    if driver == "v4l2" and not Path(address.target).exists():
        raise OSError(errno.ENOENT, "no such device")
    if driver != "dshow" or not address.target.isdecimal():
        is_bare = driver == "dshow" and not address.target.startswith("video=")
        return f"video={address.target}" if is_bare else address.target
    # DirectShow knows names only.
    names = [
        device.name for device in av.device.enumerate_input_devices("dshow")
        if "video" in device.media_types or not device.media_types
    ]  # fmt: skip
    if int(address.target) >= len(names):
        raise SourceError(
            f"{address.label} does not exist: there are {len(names)} cameras.", "Choose another number."
        )
    name = names[int(address.target)]
    return name if name.startswith("video=") else f"video={name}"


def camera_settings(options: LiveSourceOptions, driver: str) -> list[dict[str, str]]:
    """libav's options for a camera, from all that was asked for down to nothing."""
    # Without waiting in the driver, so that a camera that falls silent is noticed.
    plain = {"fflags": "nobuffer+nonblock"}
    if driver == "dshow":
        plain["rtbufsize"] = "64M"
    size, rate, form = {}, {}, {}
    if options.size_wh is not None:
        size = {"video_size": "{}x{}".format(*options.size_wh)}
    if options.fps is not None:
        rate = {"framerate": f"{options.fps:g}"}
    elif driver == "avfoundation":
        rate = {"framerate": f"{DEFAULT_FPS:g}"}  # libav's own default of 29.97 suits hardly any camera
    if options.camera_format is not None:
        is_coded = options.camera_format in _CODED_FORMATS
        names = {"v4l2": "input_format", "avfoundation": "pixel_format"}
        form = {names.get(driver, "vcodec" if is_coded else "pixel_format"): options.camera_format}
    tries = [plain | size | rate | form, plain | size | rate, plain | size, plain | rate, plain]
    return [wanted for number, wanted in enumerate(tries) if wanted not in tries[:number]]


def url_settings(scheme: str, options: LiveSourceOptions, *, is_known: bool = False) -> dict[str, str]:
    """libav's options: little delay, no reading of anything but the network, waits that end.

    Not "nobuffer": that throws away what was read while the stream was examined, and with it the first key
    frame, so that the picture would begin one key frame later.
    """
    family = family_of(scheme)
    settings = {
        "fflags": "+genpts+discardcorrupt",
        "flags": "low_delay",
        "analyzeduration": "2000000",
        "protocol_whitelist": _PROTOCOLS[family],
    }
    if is_known:
        settings["fpsprobesize"] = "0"
    wait = str(round(max(options.open_timeout_s, options.silence_s) * 1e6))
    if family != "rtsp":
        # HLS: the last segment but one, since from the last one each next would be waited for.
        return {**settings, "rw_timeout": wait, **({"live_start_index": "-2"} if family == "http" else {})}
    return {
        **settings,
        "rtsp_transport": options.rtsp_transport,
        "allowed_media_types": "video+audio" if options.with_audio else "video",
        "max_delay": str(round(_UDP_REORDER_S * 1e6)),
        "timeout": wait,
    }


def family_of(scheme: str) -> str:
    """ "rtsp", "rtmp" or "http"."""
    return "http" if scheme.startswith("http") else scheme[:4]


def why_not(error: Exception, label: str, wait_s: float) -> SourceError:
    """What went wrong, in a sentence.

    Args:
        wait_s: how long was waited at most, if it was for that.
    """
    if isinstance(error, SourceError):
        return error
    if isinstance(error, (av.ExitError, TimeoutError)) or _number(error) == errno.ETIMEDOUT:
        return SourceError(f"{label} has sent nothing for {wait_s:g} s.", "Check the source and the network.")
    if isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError)):
        return SourceError(f"{label} refuses the user or the password.", "Check both in the URL.")
    if isinstance(error, av.HTTPNotFoundError):
        return SourceError(f"{label} has nothing at this path.", "Check the path of the URL.")
    nothing = ("sends nothing that can be read as video", "Check the address.")
    what, way_out = _REASONS.get(_number(error), nothing)
    return SourceError(f"{label} {what}.", way_out)


def video_stream(container: Any, label: str) -> Any:
    """The first stream of pictures that can be decoded. Raises SourceError: there is none."""
    streams: Sequence[Any] = container.streams.video
    if not streams or streams[0].codec_context is None:
        raise SourceError(f"{label} has no picture that can be decoded.", "Choose another source.")
    return streams[0]


def _number(error: Exception) -> int:
    return getattr(error, "errno", None) or 0
