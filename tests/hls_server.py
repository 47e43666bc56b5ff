"""A web server on loopback with a clip as HLS, live or as a recording, and as a plain file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
from rtsp_server import FPS, numbered

SEGMENT_S = 1
SIZE_WH = (320, 240)


def write_segments(folder: Path, n_segments: int) -> None:
    """MPEG-TS segments of a second with numbered pictures and a tone, and the same as one MP4."""
    targets = {"hls": folder / "all.m3u8", "mp4": folder / "clip.mp4"}
    for form, path in targets.items():
        options = {
            "hls_time": str(SEGMENT_S),
            "hls_list_size": "0",
            "hls_segment_filename": f"{folder}/%d.ts",
        }
        options = options if form == "hls" else {"movflags": "+faststart"}
        with av.open(str(path), "w", format=form, options=options) as container:
            video = container.add_stream("libx264", rate=FPS)
            video.width, video.height = SIZE_WH
            video.pix_fmt, video.gop_size = "yuv420p", FPS * SEGMENT_S
            video.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "scenecut=0"}
            audio = container.add_stream("aac", rate=48000, layout="mono")
            for number in range(n_segments * SEGMENT_S * FPS):
                frame = av.VideoFrame.from_ndarray(numbered(number, SIZE_WH), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                container.mux(video.encode(frame))
                container.mux(audio.encode(_tone(number)))
            container.mux(video.encode())
            container.mux(audio.encode())


def _tone(number: int) -> av.AudioFrame:
    n = 48000 // FPS
    times_s = (number * n + np.arange(n)) / 48000
    tone = 0.3 * np.sin(2 * np.pi * 1000 * times_s) * (times_s % 1.0 < 0.1)
    frame = av.AudioFrame.from_ndarray(tone.astype(np.float32)[None, :], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, number * n, Fraction(1, 48000)
    return frame


class HlsServer:
    """Serves `write_segments`.

    Attributes:
        mode: "serve"; "stall" adds no segment to the live list any more; "refuse" answers 503.
    """

    def __init__(self, folder: Path) -> None:
        self.mode = "serve"
        self._folder = folder
        self._began_s = time.monotonic()
        self._stalled_at: int | None = None
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        """ "live.m3u8", "all.m3u8" or "clip.mp4"."""
        return f"http://hidden-user:hidden-password@127.0.0.1:{self.port}/{name}?token=hidden-token"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.split("?", 1)[0].lstrip("/")
        self.requests.append(name)
        body = self._live_list() if name == "live.m3u8" else self._file(name)
        if self.mode == "refuse" or body is None:
            handler.send_error(503 if self.mode == "refuse" else 404)
            return
        handler.send_response(200)
        kind = {"m3u8": "application/vnd.apple.mpegurl", "ts": "video/mp2t"}.get(name.rsplit(".", 1)[-1])
        handler.send_header("Content-Type", kind or "video/mp4")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        try:
            handler.wfile.write(body)
        except OSError:
            return

    def _file(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.is_file() and path.parent == self._folder else None

    def _live_list(self) -> bytes:
        """Three segments, which move on by one each second."""
        newest = 3 + int((time.monotonic() - self._began_s) / SEGMENT_S)
        if self.mode == "stall":
            newest = self._stalled_at = self._stalled_at or newest
        else:
            self._stalled_at = None
        first = newest - 3
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{SEGMENT_S}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for number in range(first, newest):
            lines += [f"#EXTINF:{SEGMENT_S}.0,", f"{number}.ts"]
        return ("\n".join(lines) + "\n").encode()


@contextmanager
def hls_server(folder: Path) -> Iterator[HlsServer]:
    server = HlsServer(folder)
    try:
        yield server
    finally:
        server.close()
