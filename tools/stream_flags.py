"""The flags of `keyface stream`."""

from __future__ import annotations

import argparse
from pathlib import Path

from keyface.pipeline.live.keys import keys_text
from keyface.tools.book_options import add_book_options
from keyface.tools.card_options import add_encoder_option, add_frames_option
from keyface.tools.reenactor_option import add_reenactor_option

_SWITCH = argparse.BooleanOptionalAction  # so that the command line can also take back what a file says


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all of them."""
    parser.add_argument(
        "--source", metavar="SOURCE",
        help="camera number, /dev/videoN or camera:NAME, rtsp://, rtmp:// or http(s):// URL, video file, or "
        "'test'",
    )  # fmt: skip
    parser.add_argument(
        "--source-env", metavar="NAME",
        help="take the source from this environment variable: for URLs with a password",
    )  # fmt: skip
    parser.add_argument(
        "--source-file", type=Path, metavar="FILE", help="take the source from the first line of this file"
    )
    parser.add_argument("--key-file", type=Path, metavar="KEY", help="made by `keyface keygen`")
    parser.add_argument(
        "--next-key-file", type=Path, action="append", metavar="KEY", dest="next_key_files",
        help="a key that the stream may change to while it runs; may be given several times. Without it, the "
        "change reads --key-file again",
    )  # fmt: skip
    parser.add_argument(
        "--sink", action="append", metavar="SINK", dest="sinks",
        help="virtual (a camera for other programs), virtual:DEVICE, window, page or page:PORT (a page for a "
        "browser on this machine), null, FILE.mp4, FILE.m3u8 or hls:SECONDS:FILE.m3u8 (all of it, or the last "
        "seconds, in segments), or a URL of rtsp, rtmp, srt or udp to send to; may be given several times, and "
        "one that fails is left out (default: virtual)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="read flags from a TOML file: names as here without the dashes in front, for instance "
        'sink = ["page", "a.mp4"]; what the command line says wins',
    )  # fmt: skip
    _add_what(parser)
    add_book_options(parser)
    _add_how(parser)
    _add_page(parser)
    _add_output(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is shown")
    what.add_argument(
        "--redact-only", action=_SWITCH, default=False,
        help="mosaic all faces, no virtual ones; needs no key",
    )  # fmt: skip
    what.add_argument(
        "--faces", choices=("all", "largest"), default="all",
        help="largest: one virtual face, for the largest; all others are mosaicked (default: all)",
    )  # fmt: skip
    what.add_argument("--width", type=int, metavar="PX", help="asked of a camera; others are scaled to it")
    what.add_argument("--height", type=int, metavar="PX", help="likewise; give both or none")
    what.add_argument("--fps", type=float, help="asked of a camera, and of the test pattern")
    what.add_argument(
        "--camera-format", metavar="NAME",
        help="asked of a camera, by libav's name: mjpeg, yuyv422, nv12, ... (default: its own choice)",
    )  # fmt: skip
    what.add_argument(
        "--rtsp-transport", choices=("tcp", "udp"), default="tcp",
        help="how an RTSP source sends: udp loses packets where tcp waits for them (default: tcp)",
    )  # fmt: skip
    what.add_argument("--duration", type=float, metavar="S", help="end after that much of the stream")
    what.add_argument("--loop", action=_SWITCH, default=False, help="begin a file again at its end")
    add_encoder_option(what)
    what.add_argument("--force", action=_SWITCH, default=False, help="replace existing recordings")
    what.add_argument(
        "--audio", action=_SWITCH, default=False,
        help="pass the sound on, unchanged, to recordings and receivers; voices are not disguised",
    )  # fmt: skip
    what.add_argument(
        "--start-mode", choices=("live", "mosaic", "slate"), default="live",
        help="mosaic: everybody is mosaicked until somebody changes it; slate: begin with a pause "
        "(default: live)",
    )  # fmt: skip
    what.add_argument(
        "--boxes", action=_SWITCH, default=False, help="draw boxes around replaced and mosaicked faces"
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--detect-every", type=int, choices=(1, 2), default=1, metavar="N",
        help="2: look for new faces in every second frame only; faster, and shows a new face for one frame "
        "more (default: 1)",
    )  # fmt: skip
    how.add_argument(
        "--quality", type=int, metavar="STEP", help="0 is the best (default: by how busy the machine is)"
    )
    add_reenactor_option(how)
    how.add_argument(
        "--backend",
        choices=("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "onnxruntime_cuda"),
        default="auto",
        help="default: auto; the last three need a graphics card, see --preset gpu",
    )
    how.add_argument("--preset", default="default", metavar="NAME", help="how networks are run")
    add_frames_option(how)
    how.add_argument("--threads", type=int, default=0, help="threads of one network (default: as configured)")


def _add_page(parser: argparse.ArgumentParser) -> None:
    page = parser.add_argument_group(
        "the page (--sink page)",
        "Its address holds a random token and is printed once. KEYFACE_PAGE_TOKEN or --page-token-file sets a "
        "token of your own. /TOKEN/metrics is for Prometheus, /TOKEN/state.json for programs.",
    )
    page.add_argument(
        "--page-token-file", type=Path, metavar="FILE",
        help="its first line is the token: 16 to 128 of A-Z a-z 0-9 _ -",
    )  # fmt: skip
    page.add_argument(
        "--page-address", default="127.0.0.1", metavar="IP",
        help="listen on another address than 127.0.0.1; everybody on the way can then read the picture and "
        "the token, since there is no encryption",
    )  # fmt: skip
    page.add_argument(
        "--page-host", action="append", metavar="NAME", dest="page_hosts",
        help="a name under which browsers may call it, besides IP addresses and localhost; may be given "
        "several times",
    )  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    said = parser.add_argument_group("what is said", f"Keys in the window. {keys_text()}.")
    said.add_argument(
        "--json", action=_SWITCH, default=False,
        help="print a summary as JSON on standard output at the end",
    )  # fmt: skip
    said.add_argument("--quiet", action=_SWITCH, default=False, help="no line each second")
    said.add_argument(
        "--log-json", metavar="FILE",
        help="write events and figures as JSON lines to FILE, or to standard output for -; they hold no "
        "names, no embeddings and no secrets of URLs",
    )  # fmt: skip
