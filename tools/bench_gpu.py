"""Measures the networks and the chain's GPU work on a card; made for a bare machine that is lent for minutes.

    python -m keyface.tools.bench_gpu --export DIR            where the models are: writes DIR/*.onnx, 45 MB
    python -m keyface.tools.bench_gpu --onnx DIR --out R.json on the card; run it again to go on
    python -m keyface.tools.bench_gpu --table R.json          prints the table

On the card it needs this code, numpy, onnx and PyTorch, and no network. Every row is written as soon as it
is measured; rows that are there are not measured again; `--seconds` ends it between two rows. TensorRT and
TensorRT-RTX rows are added where they are installed and take the card. Work on pixels (`pixels_*`) wants
cuda-python with NVRTC, or nvcc, for the kernels, and OpenCV for the rows of the host.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import EngineError, KeyfaceError, UsageError

if TYPE_CHECKING:
    from keyface.models.gpu_bench import BenchCase

NETWORKS = ("yunet_dynamic", "face_mesh", "face_blendshapes", "sface_fast", "mapping", "synthesis_256")
ONE_ONLY = {"yunet_dynamic", "face_blendshapes"}  # a batch of one
PIXELS = "pixels"  # see bench_gpu_pixels
MODES = ("eager", "cuda_graph", "compiled")
_COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "device_ms", "host_share", "memory_mb")


def main(argv: Sequence[str] | None = None) -> int:
    """Exports, measures or prints; the exit code."""
    try:
        args = _parser().parse_args(argv)
        if args.export:
            return _export(args.export)
        if args.table:
            print("\n".join(table(_read(args.table))))
            return 0
        return _measure(args)
    except KeyfaceError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_gpu", description="speed of keyface's networks on a card")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the ONNX files to carry along")
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="where they are")
    parser.add_argument("--out", type=Path, metavar="JSON", help="the report; what is in it is kept")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a report")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try it out")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="of each row (default: 200)")
    parser.add_argument("--seconds", type=float, default=540.0, metavar="S", help="begin no row after S")
    parser.add_argument("--networks", default=",".join((*NETWORKS, "chain", PIXELS)), metavar="LIST")
    parser.add_argument("--modes", default=",".join(MODES), metavar="LIST")
    parser.add_argument("--batches", default="1,8", metavar="LIST")
    parser.add_argument("--precisions", default="f32,f16", metavar="LIST")
    parser.add_argument("--compiler", default="inductor", metavar="NAME", help="back-end of torch.compile")
    parser.add_argument("--no-tensorrt", action="store_true", help="PyTorch only")
    return parser


def _export(folder: Path) -> int:
    """The networks with their weights in half, to be carried: half the bytes, float32 again when read."""
    import onnx

    from keyface.engines.gpu_networks import GPU_NETWORKS
    from keyface.engines.half_precision import pack_weights
    from keyface.engines.store import ModelStore

    sources = ModelStore().ensure([GPU_NETWORKS[name].source for name in NETWORKS])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        packed = pack_weights(onnx.load(str(sources[GPU_NETWORKS[name].source])))
        (folder / f"{name}.onnx").write_bytes(packed.SerializeToString())
    total = sum(path.stat().st_size for path in folder.glob("*.onnx"))
    print(f"{len(NETWORKS)} networks, {total / 1e6:.1f} MB in {folder}")
    return 0


def _measure(args: argparse.Namespace) -> int:
    from keyface.models import gpu_bench

    if args.onnx is None or args.out is None:
        raise UsageError("--onnx and --out are needed to measure.", "See the head of tools/bench_gpu.py.")
    if args.device == "cuda" and not gpu_bench.has_card():
        raise EngineError("PyTorch sees no card here.", "Try it out with --device cpu.")
    end_s = time.monotonic() + args.seconds
    report = _read(args.out) if args.out.is_file() else {"rows": [], "problems": {}}
    report["machine"] = {**gpu_bench.describe(args.device), "cores": os.cpu_count()}
    done = {row["key"] for row in report["rows"]}
    for key, measure in _work(args):
        if key in done or (key in report["problems"] and "out of time" not in report["problems"][key]):
            continue
        if time.monotonic() > end_s:
            print("out of time; run it again to go on", flush=True)
            break
        _one(report, key, measure)
        _write(args.out, report)
    _write(args.out, report)
    print("\n".join(table(report)))
    return 0


def _one(report: dict[str, Any], key: str, measure: Callable[[], dict[str, Any]]) -> None:
    try:
        row = measure()
    except Exception as error:  # anything a card, a compiler or a library raises: noted, and the next row
        report["problems"][key] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{key}: {report['problems'][key]}", flush=True)
        return
    report["problems"].pop(key, None)
    report["rows"].append(row)
    print(f"{key}: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms", flush=True)


def _work(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every row as its key and what measures it: the quick modes of all networks first."""
    from keyface.models.gpu_bench import measure_case

    def torch_row(case: BenchCase) -> Callable[[], dict[str, Any]]:
        return lambda: measure_case(
            case, args.onnx, device=args.device, runs=args.runs, compiled_backend=args.compiler
        )

    cases = list(_cases(args))
    if PIXELS in args.networks.split(","):
        from keyface.tools.bench_gpu_pixels import pixel_rows

        yield from pixel_rows(args)
    for case in cases:
        yield case.key(), torch_row(case)
    if not args.no_tensorrt and args.device == "cuda":
        yield from _tensorrt_rows(args)
        if PIXELS in args.networks.split(","):
            from keyface.tools.bench_gpu_tensorrt import analysis_rows

            yield from analysis_rows(args)


def _cases(args: argparse.Namespace) -> Iterator[BenchCase]:
    from keyface.models.gpu_bench import BenchCase

    legal = {"networks": (*NETWORKS, "chain", PIXELS), "modes": MODES, "precisions": ("f32", "f16")}
    for option, values in legal.items():
        wrong = [name for name in getattr(args, option).split(",") if name not in values]
        if wrong:
            raise UsageError(f"--{option}: got {', '.join(wrong)}.", f"Legal: {', '.join(values)}.")
    for mode in args.modes.split(","):
        for network in _networks(args):
            for batch in map(int, args.batches.split(",")):
                for precision in args.precisions.split(","):
                    if (network in ONE_ONLY and batch > 1) or (mode == "cuda_graph" and args.device == "cpu"):
                        continue
                    yield BenchCase(network=network, mode=mode, batch=batch, is_half=precision == "f16")


def _networks(args: argparse.Namespace) -> list[str]:
    """Those asked for, work on pixels left out."""
    return [name for name in args.networks.split(",") if name != PIXELS]


def _tensorrt_rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    from keyface.engines.tensorrt_flavour import FLAVOURS, is_installed

    for flavour in FLAVOURS:
        if not is_installed(flavour):
            continue
        for network in _networks(args):
            for batch in map(int, args.batches.split(",")):
                for precision in args.precisions.split(","):
                    if network == "chain" or (network in ONE_ONLY and batch > 1):
                        continue
                    yield (
                        f"{network}/{flavour}/{precision}/batch{batch}",
                        _tensorrt_measure(args, flavour, network, batch, precision),
                    )


def _tensorrt_measure(
    args: argparse.Namespace, flavour_name: str, network: str, batch: int, precision: str
) -> Callable[[], dict[str, Any]]:
    def measure() -> dict[str, Any]:
        import numpy as np

        from keyface.engines.benchmark import random_inputs
        from keyface.tools.bench_gpu_tensorrt import built_engine

        opened, build_s = built_engine(args.onnx, flavour_name, network, precision)  # type: ignore[arg-type]
        with opened as engine:
            inputs = {
                name: np.repeat(array, batch, 0) if batch > 1 else array
                for name, array in random_inputs(engine).items()
            }
            times = []
            for i in range(args.runs + 10):
                began = time.perf_counter()
                engine.run(inputs)
                if i >= 10:
                    times.append((time.perf_counter() - began) * 1e3)
        p50, p95, p99 = (round(float(v), 4) for v in np.percentile(times, (50, 95, 99)))
        return {
            "key": f"{network}/{flavour_name}/{precision}/batch{batch}", "network": network,
            "runner": flavour_name, "precision": precision, "batch": batch, "runs": len(times),
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "device_ms": None, "host_share": None,
            "memory_mb": None, "build_s": round(build_s, 2),
        }  # fmt: skip

    return measure


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of a Markdown table, and what failed."""
    machine = ", ".join(f"{name} {value}" for name, value in report.get("machine", {}).items())
    lines = [machine, "", "| network | batch | precision | runner | " + " | ".join(_COLUMNS) + " |"]
    lines.append("|" + " --- |" * (4 + len(_COLUMNS)))
    order = sorted(report["rows"], key=lambda r: (r["network"], r["batch"], r["precision"], r["p50_ms"]))
    for row in order:
        values = ["" if row[c] is None else f"{row[c]:.3g}" for c in _COLUMNS]
        head = f"| {row['network']} | {row['batch']} | {row['precision']} | {row['runner']} | "
        lines.append(head + " | ".join(values) + " |")
    lines += [f"not measured: {key}: {problem}" for key, problem in report["problems"].items()]
    return lines


def _read(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if not {"rows", "problems"} <= report.keys():
        raise UsageError(f"{path} is no report of bench_gpu.")
    return report


def _write(path: Path, report: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
