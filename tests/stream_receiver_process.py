"""Takes streams on loopback and decodes them: URL FORMAT OPTIONS(JSON). One line of JSON on standard output for
each frame: kind ("ready", "video", "audio"), at_s (`time.monotonic`), time_s (in the stream), number (read off
the picture), light and is_key, or level (of the sound). Begins again when a stream ends."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import av
import numpy as np
from rtsp_server import number_of

QUICK = {"fflags": "nobuffer", "analyzeduration": "500000"}


def say(**entry: Any) -> None:
    sys.stdout.write(json.dumps({"at_s": time.monotonic(), **entry}) + "\n")
    sys.stdout.flush()


def receive(url: str, format: str, options: dict[str, str]) -> None:
    with av.open(url, format=format, options={**QUICK, **options}, timeout=(60, 30)) as source:
        for stream in source.streams.video:
            stream.thread_type = "SLICE"
        for packet in source.demux():
            for frame in packet.decode():
                if packet.stream.type == "video":
                    image = frame.to_ndarray(format="rgb24")
                    number, light = number_of(image), float(image.mean())
                    say(
                        kind="video",
                        time_s=frame.time,
                        number=number,
                        light=light,
                        is_key=bool(frame.key_frame),
                    )
                else:
                    samples = frame.to_ndarray().astype(np.float64)
                    say(kind="audio", time_s=frame.time, level=float(np.sqrt(np.mean(samples**2))))


def main() -> None:
    url, format, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    say(kind="ready")
    while True:
        try:
            receive(url, format, options)
        except (av.FFmpegError, OSError):
            time.sleep(0.05)


if __name__ == "__main__":
    main()
