#!/usr/bin/env bash
# Installs a headless Chromium for the tests of the status page. On Debian and Ubuntu, as root; anywhere else
# it says so, and those tests skip and say why.
set -uo pipefail

for name in chromium-headless-shell chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo '== no Chromium to test the status page with: on Debian and Ubuntu, run tests/install_browser.sh as root'
  exit 0
fi
echo '== installing a headless Chromium for the tests'
export DEBIAN_FRONTEND=noninteractive
timeout 120 apt-get update -qq || echo '== apt-get update failed; trying with what is known'
# The shell alone is smaller; older releases have the whole browser only.
timeout 420 apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core >/dev/null 2>&1 ||
  timeout 420 apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
  echo '== Chromium could not be installed: the tests of the page in a browser will be skipped'
exit 0
