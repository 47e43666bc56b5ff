#!/usr/bin/env bash
# Measures keyface's networks on a bare machine with a graphics card: needs this code, python3 with numpy, onnx and
# PyTorch, and the files that `python -m keyface.tools.bench_gpu --export DIR` wrote where the models are.
# The kernels for pixels want cuda-bindings with NVRTC, or nvcc; what is missing is noted and left out.
# Run it again to go on: DIR/report.json keeps every row. More arguments go to bench_gpu.
#
#   bash examples/gpu-bench.sh DIR [--device cpu --runs 1 ...]
set -euo pipefail

folder=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
mkdir "$links/keyface"
for room in configs engines models pipeline tools; do
  ln -s "$root/$room" "$links/keyface/$room"
done
export PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python3 - <<'PY' || echo "card memory: no library, or no card"
from keyface.engines.device_memory import device_libraries, open_device

for library in device_libraries():
    device = open_device(library=library)
    with device.active():
        stream, given, taken = device.stream(), device.pinned(1 << 20), device.pinned(1 << 20)
        given[:], taken[:] = 7, 0
        address = device.allocate(1 << 20)
        device.copy_in(address, given, stream)
        device.copy_out(taken, address, stream)
        device.synchronise(stream)
        print(library, device.info, "right" if (taken == 7).all() else "WRONG", device.memory())
PY
python3 -m keyface.tools.bench_gpu --onnx "$folder" --out "$folder/report.json" --seconds "${LIMIT_S:-540}" "$@"
[ -z "${OUT:-}" ] || cp "$folder/report.json" "$OUT/"
