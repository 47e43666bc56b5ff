"""An RTSP camera on loopback: run by the system's Python, which has GStreamer's RTSP server.

Usage: rtsp_server_process.py --port N --clip FILE [--clip FILE ...] [--fps N] [--audio] [--auth USER:PASSWORD]

Which frame of the clip is sent at a moment follows from the clock alone: number floor(monotonic * fps), so
that whoever reads the number off the picture knows how old it is. Prints "ready" when it serves. Standard
input takes one word a line: serve, silent (sends nothing), garbage (noise for coded pictures), mute (no
sound), next (the next clip, perhaps of another size), late (holds 2 s back from now on).
"""

from __future__ import annotations

import argparse
import math
import os
import random
import struct
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

AUDIO_RATE_HZ = 8000
CHUNK_S = 0.02
TONE_S = 0.1  # at the begin of each second of the clock
FACTORY = (
    "( appsrc name=video is-live=true format=time do-timestamp=true "
    "caps=video/x-h264,stream-format=byte-stream,alignment=au ! h264parse ! "
    "rtph264pay name=pay0 pt=96 {audio})"
)
AUDIO = (
    "appsrc name=audio is-live=true format=time do-timestamp=true "
    "caps=audio/x-raw,format=S16LE,layout=interleaved,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8 "
)


def read_clip(path: str) -> list[tuple[bool, bytes]]:
    """(is a key frame, Annex B access unit) of each frame; see `rtsp_server.write_clip`."""
    units = []
    with open(path, "rb") as file:
        while head := file.read(5):
            length, is_key = struct.unpack(">IB", head)
            units.append((bool(is_key), file.read(length)))
    return units


def sound_at(first: int, n: int) -> bytes:
    """Samples by number since the clock began: a tone in the first tenth of each second."""
    values = []
    for number in range(first, first + n):
        within = number % AUDIO_RATE_HZ
        is_on = within < TONE_S * AUDIO_RATE_HZ
        values.append(round(12000 * math.sin(2 * math.pi * 1000 * within / AUDIO_RATE_HZ)) if is_on else 0)
    return struct.pack(f"<{n}h", *values)


class Camera:
    """What all viewers see."""

    def __init__(self, clips: list[list[tuple[bool, bytes]]], fps: float) -> None:
        self.clips, self.fps = clips, fps
        self.mode, self.n_clip, self.late_s, self.is_mute = "serve", 0, 0.0, False

    def obey(self, word: str) -> None:
        if word == "next":
            self.n_clip = (self.n_clip + 1) % len(self.clips)
        elif word == "late":
            self.late_s += 2.0
        elif word == "mute":
            self.is_mute = True
        elif word:
            self.mode = word


class Viewer:
    """Feeds one viewer's pipeline until that is gone."""

    def __init__(self, camera: Camera, media: object) -> None:
        self.camera = camera
        element = media.get_element()
        self.video = element.get_by_name_recurse_up("video")
        self.audio = element.get_by_name_recurse_up("audio")
        self.last: int | None = None
        self.clip_in_use: int | None = None
        self.next_sample: int | None = None
        self.is_gone = False
        media.connect("unprepared", self.leave)
        GLib.timeout_add(4, self.tick)

    def leave(self, _: object) -> None:
        self.is_gone = True

    def tick(self) -> bool:
        if self.is_gone:
            return False
        self.send_pictures()
        if self.audio is not None and not self.camera.is_mute:
            self.send_sound()
        return True

    def send_pictures(self) -> None:
        camera = self.camera
        now = int((time.monotonic() - camera.late_s) * camera.fps)
        units = camera.clips[camera.n_clip]
        has_jumped = self.last is None or now - self.last > 5 or now < self.last
        if has_jumped or self.clip_in_use != camera.n_clip:
            if not units[now % len(units)][0]:
                if has_jumped:
                    self.last = None
                if self.last is None or self.clip_in_use != camera.n_clip:
                    return  # what follows needs a key frame
            self.last, self.clip_in_use = now - 1, camera.n_clip
        while self.last < now:
            self.last += 1
            data = units[self.last % len(units)][1]
            if camera.mode == "garbage":
                data = data[:5] + random.randbytes(max(0, len(data) - 5))
            if camera.mode != "silent":
                self.video.emit("push-buffer", Gst.Buffer.new_wrapped(data))

    def send_sound(self) -> None:
        now = int(time.monotonic() * AUDIO_RATE_HZ)
        n = int(CHUNK_S * AUDIO_RATE_HZ)
        if self.next_sample is None or now - self.next_sample > AUDIO_RATE_HZ:
            self.next_sample = now // n * n - n
        while self.next_sample + n <= now:
            self.audio.emit("push-buffer", Gst.Buffer.new_wrapped(sound_at(self.next_sample, n)))
            self.next_sample += n


def guard(server: object, factory: object, user: str, password: str) -> None:
    """Lets in nobody without the password."""
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    factory.add_role_from_structure(
        Gst.Structure.new_from_string(
            "user,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
        )[0]
        if isinstance(Gst.Structure.new_from_string("a"), tuple)
        else Gst.Structure.new_from_string(
            "user,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
        )
    )


random.seed(0)  # noise is the same noise in every run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--clip", action="append", required=True)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--audio", action="store_true")
    parser.add_argument("--auth", default="")
    args = parser.parse_args()
    Gst.init(None)
    camera = Camera([read_clip(path) for path in args.clip], args.fps)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    factory.set_launch(FACTORY.format(audio=AUDIO if args.audio else ""))
    viewers: list[Viewer] = []
    factory.connect("media-configure", lambda _, media: viewers.append(Viewer(camera, media)))
    if args.auth:
        guard(server, factory, *args.auth.split(":"))
    server.get_mount_points().add_factory("/hidden-path", factory)
    if server.attach(None) == 0:
        sys.exit("the port is in use")

    def on_input(*_: object) -> bool:
        words = os.read(0, 4096).decode().split()
        for word in words:
            camera.obey(word)
        return bool(words)

    GLib.io_add_watch(0, GLib.IO_IN, on_input)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
