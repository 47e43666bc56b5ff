"""An RTSP server on loopback that is sent to (ANNOUNCE and RECORD): run by the system's Python, which has
GStreamer's RTSP server.

Usage: rtsp_receiver_process.py --port N --folder DIR [--auth USER:PASSWORD]

Each stream, of a picture without sound, becomes a file in the folder, as MPEG-TS. Prints "ready" when it serves.
"""

from __future__ import annotations

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

RECEIVE = (
    "( rtph264depay name=depay0 ! h264parse ! mpegtsmux ! "
    "filesink name=file async=false buffer-mode=unbuffered )"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--auth", default="")
    args = parser.parse_args()
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    factory.set_launch(RECEIVE)
    factory.set_latency(0)
    count = 0

    def name_file(_: object, media: object) -> None:
        nonlocal count
        count += 1
        file = media.get_element().get_by_name_recurse_up("file")
        file.set_property("location", f"{args.folder}/{args.port}-{GLib.get_monotonic_time()}-{count}.ts")

    factory.connect("media-configure", name_file)
    if args.auth:
        user, password = args.auth.split(":")
        auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        server.set_auth(auth)
        rights = "user,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
        made = Gst.Structure.new_from_string(rights)
        factory.add_role_from_structure(made[0] if isinstance(made, tuple) else made)
    server.get_mount_points().add_factory("/hidden-path", factory)
    if server.attach(None) == 0:
        sys.exit("the port is in use")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
