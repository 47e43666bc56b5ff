"""`keyface bench stream`: how fast, how late and how safe the live chain is on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keyface.configs.errors import UsageError
from keyface.tools.bench_stream_drops import measure_drops, server_of

_SECONDS = 20.0
_PARTS = ("one", "three", "mosaic", "rotation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only `bench stream` takes."""
    live = parser.add_argument_group("of `keyface bench stream`")
    live.add_argument(
        "--parts", default=",".join(_PARTS), metavar="A,B",
        help=f"which of {', '.join(_PARTS)} to measure; 'none': none (default: all)",
    )  # fmt: skip
    live.add_argument(
        "--seconds", type=float, default=_SECONDS, metavar="S", help="length of each run (default: 20)"
    )
    live.add_argument(
        "--faults", type=int, default=0, metavar="N",
        help="count raw faces in N frames under injected faults; fetches recognisers for non-commercial use",
    )  # fmt: skip
    live.add_argument("--seed", type=int, default=1, metavar="N", help="of the faults (default: 1)")
    live.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="where the fault count keeps what it has done, to go on later",
    )
    live.add_argument(
        "--soak", type=float, default=0.0, metavar="S",
        help="run a looped clip for S seconds: memory, threads, files, age",
    )  # fmt: skip
    live.add_argument(
        "--drops", type=int, default=0, metavar="N",
        help="fail a server N times, and measure how the stream comes back; needs --server and --url",
    )  # fmt: skip
    live.add_argument(
        "--server", metavar="COMMAND", help="a program that serves --url; started and killed here"
    )
    live.add_argument("--url", help="what --server serves")
    live.add_argument(
        "--numbered", action="store_true",
        help="its pictures carry their number as those of tests/rtsp_server.py do: their age is measured, too",
    )  # fmt: skip


def run(args: argparse.Namespace, clips: Sequence[Path]) -> int:
    """Measures and prints."""
    from keyface.configs.bench_stream_report import check_stream_bench

    parts = [] if args.parts == "none" else args.parts.split(",")
    unknown = set(parts) - set(_PARTS)
    if unknown:
        raise UsageError(f"--parts: got {', '.join(sorted(unknown))}.", f"Legal: {', '.join(_PARTS)}, none.")
    if args.faults < 0 or args.soak < 0 or args.seconds <= 0:
        raise UsageError("--faults, --soak and --seconds: want positive numbers.")
    if args.drops and not (args.drops > 0 and args.server and args.url):
        raise UsageError("--drops needs a number above 0, --server and --url.")
    if args.drops:
        server_of(args.server, args.url)  # says at once what is wrong with them
    with tempfile.TemporaryDirectory(prefix="keyface-bench-") as name:
        report = measure(args, parts, clips, Path(name))
    check_stream_bench(report)
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines(report)))
    return 0


def measure(
    args: argparse.Namespace, parts: Sequence[str], given: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """The whole report, see configs/bench_stream_report.py."""
    from keyface.configs.bench_stream_report import STREAM_SCHEMA, verdicts
    from keyface.engines.machine import describe_machine, package_versions
    from keyface.tools import bench_chain, bench_stream

    if args.cores:
        bench_chain.restrict_cores(args.cores)
    needs_clip = bool(parts or args.soak or args.faults)  # drops are of a stream
    sources = list(given) or ([bench_chain.make_sample_clip(folder)] if needs_clip else [])
    wanted = sorted({3 if part == "three" else 1 for part in parts} | ({1} if args.soak else set()))
    clips = bench_stream.make_clips(sources, folder, wanted)
    key_file, extra = bench_chain.make_key(folder), ["--backend", args.backend, "--reenactor", args.reenactor]
    runs: dict[str, Any] = {}
    for part in (part for part in parts if part != "rotation"):
        faces = 3 if part == "three" else 1
        _say(f"{part} ...")
        key = None if part == "mosaic" else key_file
        runs[part] = bench_stream.run_program(clips[faces], folder, key, args.seconds, faces, extra)
    rotation = soak = faults = drops = None
    if "rotation" in parts:
        _say("another key in mid-stream ...")
        rotation = bench_stream.measure_rotation(clips[1], _parts(key_file, args))
    if args.soak:
        _say(f"{args.soak:g} s of a looped clip ...")
        soak = bench_stream.measure_soak(clips[1], _parts(key_file, args), args.soak)
    if args.drops:
        _say(f"{args.drops} drops of a stream ...")
        parts_ = _parts(key_file, args)
        drops = measure_drops(
            args.url, args.server, args.drops, parts_, seed=args.seed, is_numbered=args.numbered
        )
    if args.faults:
        from keyface.tools.bench_stream_faults import count_leaks

        faults = count_leaks(
            sources,
            args.faults,
            seed=args.seed,
            state=args.state,
            backend=args.backend,
            is_generated=not given,
        )
    return {
        "schema": STREAM_SCHEMA,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine().as_dict(),
        "versions": package_versions(),
        "clips": [path.name for path in given] or ["generated sample clip"],
        "reenactor": _options(args).reenactor_used,
        "runs": runs,
        "rotation": rotation,
        "faults": faults,
        "soak": soak,
        "drops": drops,
        "verdicts": verdicts(_values(runs, rotation, faults, soak, drops)),
    }


def _options(args: argparse.Namespace) -> Any:
    from keyface.pipeline.process_options import ProcessOptions

    return ProcessOptions(backend=args.backend, reenactor=args.reenactor)


def _parts(key_file: Path, args: argparse.Namespace) -> Any:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.assemble import make_parts
    from keyface.pipeline.live.run import LIVE_IDENTITY, live_analysis
    from keyface.pipeline.people.key import Key

    with Key.load(key_file) as key:
        return make_parts(ModelStore(), key, _options(args), analyse=live_analysis(), identity=LIVE_IDENTITY)


def _values(
    runs: dict[str, Any], rotation: Any, faults: Any, soak: Any, drops: Any
) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for name, label in (("one", "one face"), ("three", "three faces"), ("mosaic", "mosaic only")):
        if name in runs:
            values[f"{label}, fps"] = runs[name]["fps_out"]
    if "one" in runs:
        values["one face, age p95"] = runs["one"]["age"]["p95_ms"]
        values["first safe frame"] = runs["one"]["first_safe_frame_s"]
    if runs:
        values["stop"] = max(run["stop_s"] for run in runs.values())
    if rotation:
        values["rotation, longest gap"] = (
            rotation["longest_gap_ms"] if rotation["in_use_s"] is not None else None
        )
    if faults:
        counts = [faults[kind] for kind in ("real", "canned") if faults[kind]]
        values["raw faces under faults"] = float(sum(count["raw_frames"] for count in counts))
    if drops:
        values["back after a drop"] = drops["back_s"]["max"]
    if soak:
        values["soak, memory drift"] = soak["memory_drift"]
    return values


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    machine = report["machine"]
    told = [
        f"{machine['cpu']}, {machine['cores']} cores; {', '.join(report['clips'])}; "
        f"reenactor {report['reenactor']}"
    ]
    for name, run in report["runs"].items():
        told.append(
            f"{name}: {run['fps_out']:.1f} of {run['fps_in']:.1f} fps, age {run['age']['p50_ms']:.0f}/"
            f"{run['age']['p95_ms']:.0f} ms (p50/p95), quality step {run['quality']}, "
            f"{run['replaced']} faces replaced"
        )
        for stage, t in run["stages"].items():
            told.append(f"  {stage:12s} {t['p50_ms']:8.2f} {t['p95_ms']:8.2f} ms (p50, p95)")
    if report["rotation"]:
        r = report["rotation"]
        told.append(f"another key: in use after {r['in_use_s']} s, longest gap {r['longest_gap_ms']} ms")
    for kind in ("real", "canned"):
        count = (report["faults"] or {}).get(kind)
        if count:
            told.append(
                f"faults, {kind} faces: {count['raw_frames']} of {count['frames']} frames with a raw face "
                f"({count['faces']} places looked at, {count['looked']} by recognisers)"
            )
    if report["soak"]:
        s = report["soak"]
        told.append(
            f"soak: {s['seconds']:g} s, memory {100 * s['memory_drift']:+.1f} %, threads {s['threads'][-1:]}"
        )
    if report["drops"]:
        d = report["drops"]
        told.append(
            f"{d['drops']} drops: {d['lost_for_good']} lost for good, back after {d['back_s']}, "
            f"pictures older by {d['age_growth_ms']} ms than before"
        )
    for v in report["verdicts"]:
        value = "-" if v["value"] is None else f"{v['value']:.3g}"
        told.append(f"{v['figure']:24s} {value:>8s}  {v['target']:16s} {v['outcome']}")
    return told
