#!/usr/bin/env bash
# Installs the CPU build of torch for the tests of training code, or says why it does not.
# BIN: the virtual environment's bin folder. TORCH: the requirement, or "none".
set -euo pipefail

if "$BIN/python" -c 'import torch' 2>/dev/null; then
  exit 0
fi
if [ "$TORCH" = none ]; then
  echo "== torch left out as asked: tests of training code will be skipped"
  exit 0
fi
plan=$(mktemp)
trap 'rm -f "$plan"' EXIT
if ! "$BIN/python" -m pip install --disable-pip-version-check --quiet --dry-run --report "$plan" "$TORCH"; then
  echo "== $TORCH cannot be had here: tests of training code will be skipped"
elif grep -qE '"name": *"(nvidia[-_]|cuda[-_]|triton)' "$plan"; then
  echo "== $TORCH would bring CUDA libraries here: tests of training code will be skipped"
else
  echo "== installing $TORCH (CPU build) for the tests of training code"
  "$BIN/python" -m pip install --disable-pip-version-check --quiet "$TORCH"
fi
