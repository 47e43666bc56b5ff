"""What encodes H.264: x264 on the CPU, or the encoder of a graphics card (NVENC), through libav.

NVENC is used when it is asked for and never otherwise; where it cannot be had, that is an error. Pictures reach
it through host memory, as they reach x264.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av

from keyface.configs.errors import SinkError
from keyface.configs.schema import EncoderName

_CODECS: dict[EncoderName, str] = {"software": "libx264", "nvenc": "h264_nvenc"}
_TRIAL_PX = 256  # some cards refuse less than 145 by 49
_REASONS = {
    errno.EPERM: "there is no NVIDIA driver here, or no card with an encoder",
    errno.ENOSYS: "the driver is too old, or the card cannot encode such pictures",
    errno.ENOMEM: "the card has no memory or no session left",
}
_WAY_OUT = "Leave out --encoder nvenc to encode on the CPU; data centre cards such as H100 have no encoder."


def add_picture(container: Any, encoder: EncoderName, rate: Fraction, options: Mapping[str, str]) -> Any:
    """A video stream of a PyAV output container.

    Args:
        options: of x264; NVENC gets its own for them, see `nvenc_options`.
    """
    chosen = nvenc_options(options) if encoder == "nvenc" else dict(options)
    return container.add_stream(_CODECS[encoder], rate=rate, options=chosen)


def nvenc_options(options: Mapping[str, str]) -> dict[str, str]:
    """NVENC's words for x264's: constant quality at about the same number, no B-frames, its middle preset."""
    rest = {name: value for name, value in options.items() if name not in ("crf", "preset", "tune")}
    is_immediate = options.get("tune") == "zerolatency"
    chosen = {"preset": "p4", "tune": "ull" if is_immediate else "hq", "bf": "0", **rest}
    if is_immediate:
        chosen |= {"zerolatency": "1", "delay": "0"}
    if int(options["crf"]) == 0:  # NVENC would take quality 0 for "choose yourself"
        return chosen | {"tune": "lossless"}
    return chosen | {"rc": "vbr", "cq": options["crf"]}


def open_picture(context: Any, encoder: EncoderName) -> None:
    """Opens a card's encoder whose context is complete; x264 opens with the first frame.

    Raises:
        SinkError: the card's encoder cannot be had.
    """
    if encoder == "software":
        return
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        reason = (
            _REASONS.get(getattr(error, "errno", None) or 0) or getattr(error, "strerror", "") or "no reason"
        )
        raise SinkError(
            f"The card's encoder (NVENC) cannot be used for {context.width}x{context.height}: {reason}.",
            _WAY_OUT,
        ) from error


def check_encoder(encoder: EncoderName) -> None:
    """Tries the encoder before anything else is begun. Raises SinkError."""
    if encoder == "software":
        return
    context = av.CodecContext.create(_CODECS[encoder], "w")
    context.width = context.height = _TRIAL_PX
    context.pix_fmt = "yuv420p"
    context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
    context.options = nvenc_options({"crf": "18"})
    open_picture(context, encoder)
