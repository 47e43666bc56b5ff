#!/usr/bin/env bash
# Installs TensorRT-RTX (97 MB) for the tests that build engines without a graphics card, or says why it does not.
# BIN: the virtual environment's bin folder. TENSORRT_RTX: the requirement, or "none".
set -euo pipefail

if "$BIN/python" -c 'import tensorrt_rtx' 2>/dev/null; then
  exit 0
fi
if [ "$TENSORRT_RTX" = none ]; then
  echo "== TensorRT-RTX left out as asked: tests that build engines with it will be skipped"
  exit 0
fi
echo "== installing $TENSORRT_RTX for the tests that build engines"
if ! "$BIN/python" -m pip install --disable-pip-version-check --quiet "$TENSORRT_RTX" ||
  ! "$BIN/python" -c 'import tensorrt_rtx'; then
  echo "== $TENSORRT_RTX cannot be had here: tests that build engines with it will be skipped"
fi
