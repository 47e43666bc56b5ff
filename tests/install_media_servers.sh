#!/usr/bin/env bash
# Installs what the tests of network streams talk to: GStreamer's RTSP server, ffmpeg as an RTMP server, SRT.
# On Debian and Ubuntu, as root; anywhere else it says so, and those tests skip and say why.
set -uo pipefail

is_there() {
  command -v ffmpeg >/dev/null && command -v srt-live-transmit >/dev/null && /usr/bin/python3 -c "
import gi
gi.require_version('GstRtspServer', '1.0')
from gi.repository import GstRtspServer" 2>/dev/null
}

if is_there; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo '== no RTSP and RTMP server to test with: on Debian and Ubuntu, run tests/install_media_servers.sh as root'
  exit 0
fi
echo '== installing an RTSP and an RTMP server for the tests'
export DEBIAN_FRONTEND=noninteractive
timeout 120 apt-get update -qq || echo '== apt-get update failed; trying with what is known'
timeout 420 apt-get install -y -qq --no-install-recommends \
  python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
  gstreamer1.0-plugins-bad ffmpeg srt-tools >/dev/null ||
  echo '== the servers could not be installed: their tests will be skipped'
exit 0
