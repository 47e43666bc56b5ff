"""`keyface bench`: how fast the chain and its networks are on this machine."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import UsageError
from keyface.tools import bench_reenact_command, bench_stream_command
from keyface.tools.reenactor_option import add_reenactor_option

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore

_1080P_PIXELS = 1920 * 1080


def add_parser(subparsers: Any) -> None:
    """Adds `bench` to the sub-commands."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed on this machine",
        description="Runs the real chain on a clip, as a program of its own and again inside this one, then "
        "every network alone on every back-end that is installed. Close other programs first.",
    )
    parser.add_argument(
        "what", nargs="?", choices=("chain", "stream", "reenact"), default="chain",
        help="stream: how fast, how late and how safe a live stream is; reenact: both reenactors in turn on the same "
        "frames (default: chain)",
    )  # fmt: skip
    parser.add_argument(
        "--clip", type=Path, action="append", metavar="FILE", dest="clips",
        help="default: a clip of a generated person, made for this; `bench stream` takes several",
    )  # fmt: skip
    parser.add_argument("--frames", type=int, metavar="N", help="frames to process; short clips are repeated")
    parser.add_argument("--width", type=int, metavar="PX", help="scale the clip to this width")
    parser.add_argument("--size", metavar="WxH", help="fit the clip into a picture of this size")
    parser.add_argument(
        "--faces", type=int, default=1, metavar="N", help="show the clip N times side by side"
    )
    parser.add_argument("--cores", type=int, metavar="N", help="use only N processor cores")
    parser.add_argument("--backend", choices=("auto", "onnxruntime", "openvino"), default="auto")
    parser.add_argument("--redact-only", action="store_true", help="the chain with mosaics, no virtual faces")
    add_reenactor_option(parser)
    parser.add_argument("--only", choices=("chain", "engines"), help="measure one part only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="print B / A")
    bench_stream_command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measures or compares, and prints."""
    from keyface.configs.bench_report import check_bench, compare_bench, read_bench

    if args.compare:
        first, second = (read_bench(path) for path in args.compare)
        print("\n".join(_comparison(compare_bench(first, second), args.compare)))
        return 0
    _check(args)
    if args.what == "stream":
        return bench_stream_command.run(args, args.clips or [])
    if args.what == "reenact":
        return bench_reenact_command.run(args)
    report = measure(args)
    check_bench(report)
    print(json.dumps(report, indent=2) if args.json else "\n".join(_lines(report)))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("frames", "width", "faces", "cores"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: got {value}, want 1 or more.")
    for clip in args.clips or []:
        if not clip.is_file():
            raise UsageError(f"--clip: there is no file {clip}.")
    if args.what != "stream" and len(args.clips or []) > 1:
        raise UsageError(
            f"--clip: bench {args.what} measures one clip.", "Give one, or use 'keyface bench stream'."
        )
    args.clip = args.clips[0] if args.clips else None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report, see configs/bench_report.py."""
    from keyface.configs.bench_report import SCHEMA
    from keyface.engines.machine import describe_machine, package_versions
    from keyface.engines.store import ModelStore
    from keyface.tools import bench_chain

    if args.cores:
        bench_chain.restrict_cores(args.cores)
    skipped: dict[str, str] = {}
    clip, whole, inside, engines = None, None, None, []
    store = ModelStore()
    if args.only != "engines":
        with tempfile.TemporaryDirectory(prefix="keyface-bench-") as name:
            clip, whole, inside = _measure_chain(args, Path(name), skipped)
    if args.only != "chain":
        engines = _measure_engines(store, skipped)
    report = {
        "schema": SCHEMA,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine().as_dict(),
        "versions": package_versions(),
        "models": _hashes(store),
        "clip": clip,
        "whole_process": whole,
        "in_process": inside,
        "engines": engines,
        "skipped": skipped,
    }
    report["verdicts"] = _verdicts(report)
    return report


def _measure_chain(
    args: argparse.Namespace, folder: Path, skipped: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
    from keyface.pipeline.media.capture import FileSource
    from keyface.tools import bench_chain

    source = args.clip or bench_chain.make_sample_clip(folder)
    clip = _arranged(args, source, folder)
    key_file = bench_chain.make_key(folder)
    what = ["--redact-only"] if args.redact_only else ["--reenactor", _reenactor(args)]
    extra = ["--backend", args.backend, *what]
    _say("the whole process ...")
    whole = bench_chain.attempt(
        skipped, "whole process", lambda: bench_chain.run_whole_process(clip, folder, key_file, extra)
    )
    _say("inside this process, twice ...")
    inside = bench_chain.attempt(
        skipped, "in process", lambda: bench_chain.run_in_process(clip, folder, key_file, extra)
    )
    with FileSource(clip) as frames:
        info = frames.info
    told = {
        "name": source.name if args.clip else "generated sample clip",
        "frames": whole["frames"] if whole else info.n_frames_hint or 0,
        "size_wh": list(info.size_wh),
        "fps": round(info.fps, 3),
        "faces_asked": args.faces,
        "options": " ".join(extra),
    }
    return told, whole, inside


def _reenactor(args: argparse.Namespace) -> str:
    from keyface.pipeline.process_options import ProcessOptions

    return ProcessOptions(backend=args.backend, reenactor=args.reenactor).reenactor_used


def _arranged(args: argparse.Namespace, source: Path, folder: Path) -> Path:
    """The clip itself, or a copy of the wanted size, length and number of faces."""
    if args.faces == 1 and not (args.width or args.size or args.frames):
        return source
    from keyface.pipeline.measure.bench_clip import write_bench_clip

    target = folder / "input.mp4"
    write_bench_clip(
        source, target, faces=args.faces, width=args.width, size_wh=_size(args.size), n_frames=args.frames
    )
    return target


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size: got {text!r}, want WxH such as 1920x1080.")
    return int(width), int(height)


def _measure_engines(store: ModelStore, skipped: dict[str, str]) -> list[dict[str, Any]]:
    from keyface.configs.errors import ModelStoreError
    from keyface.engines.benchmark import EngineTiming, networks_of_the_chain, time_models
    from keyface.engines.machine import usable_cores

    files = {}
    for name in networks_of_the_chain(store.manifest):
        try:
            store.ensure([name])
            files[name] = store.path(name)
        except ModelStoreError as error:
            skipped[name] = str(error)
    rows = []
    for result in time_models(files, threads=(1, 2) if usable_cores() > 1 else (1,)):
        if isinstance(result, EngineTiming):
            _say(f"{result.model} on {result.backend}, {result.p50_ms:.1f} ms")
            rows.append(result.as_dict())
        else:
            skipped[result[0]] = result[1]
    return rows


def _hashes(store: ModelStore) -> dict[str, str]:
    """SHA-256 of every default model that is in the cache, name by name."""
    from keyface.configs.errors import ModelStoreError
    from keyface.engines.archive import sha256_of

    hashes = {}
    for name in store.manifest.group("default"):
        try:
            hashes[name] = sha256_of(store.path(name))
        except ModelStoreError:
            continue  # not pulled: then it was not used either
    return hashes


def _verdicts(report: dict[str, Any]) -> list[dict[str, Any]]:
    from keyface.configs.evaluation import load_evaluation

    run, clip = report["whole_process"], report["clip"]
    if run is None or clip is None:
        return []
    is_large = clip["size_wh"][0] * clip["size_wh"][1] >= _1080P_PIXELS
    values = {
        "fps_1080p" if is_large else "fps": run["fps"],
        "first_frame_s": run["first_frame_s"],
        "peak_memory_gb": round(run["peak_rss_bytes"] / 1e9, 3),
    }
    targets = load_evaluation().speed
    rows = []
    for name, value in values.items():
        met = None if value is None else targets[name].is_met(value)
        outcome = {None: "not measured", True: "pass", False: "fail"}[met]
        rows.append({"figure": name, "value": value, "target": targets[name].wish, "outcome": outcome})
    return rows


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _lines(report: dict[str, Any]) -> list[str]:
    machine, clip = report["machine"], report["clip"]
    memory = f", {machine['memory_bytes'] / 1e9:.0f} GB" if machine["memory_bytes"] else ""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores{memory}",
        f"{machine['system']}, Python {machine['python']}",
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    ]
    if clip:
        width, height = clip["size_wh"]
        lines += ["", f"{clip['name']}: {clip['frames']} frames of {width}x{height}, {clip['fps']:g} fps"]
    for title, key in (("whole process", "whole_process"), ("in process, warm", "in_process")):
        if report[key]:
            lines += ["", *_run_lines(title, report[key])]
    for v in report["verdicts"]:
        value = "-" if v["value"] is None else f"{v['value']:.2f}"
        lines.append(f"{v['figure']:20s} {value:>8s}  {v['target']:12s} {v['outcome']}")
    if report["engines"]:
        lines += [
            "",
            f"{'network':20s} {'back-end':12s} prec threads {'p50 ms':>8s} {'p95 ms':>8s} {'open ms':>8s}",
        ]
    for t in report["engines"]:
        lines.append(
            f"{t['model']:20s} {t['backend']:12s} {t['precision']:4s} {t['threads']:7d} "
            f"{t['p50_ms']:8.2f} {t['p95_ms']:8.2f} {t['open_ms']:8.0f}"
        )
    return lines + [f"left out: {what}: {why}" for what, why in report["skipped"].items()]


def _run_lines(title: str, run: dict[str, Any]) -> list[str]:
    first = "-" if run["first_frame_s"] is None else f"{run['first_frame_s']:.2f} s"
    memory = "" if run["peak_rss_bytes"] is None else f", peak memory {run['peak_rss_bytes'] / 1e9:.2f} GB"
    lines = [
        f"{title}: {run['fps']:.1f} fps, first frame after {first}{memory}",
        f"  {run['frames']} frames in {run['wall_s']:.1f} s, {run['cpu_s']:.1f} s of processor; "
        f"{run['faces']} faces, {run['redacted_frames']} frames with a mosaic",
        f"  {'stage':12s} {'p50 ms':>8s} {'p95 ms':>8s} {'p99 ms':>8s}",
    ]
    for name, t in run["stages"].items():
        lines.append(f"  {name:12s} {t['p50_ms']:8.2f} {t['p95_ms']:8.2f} {t['p99_ms']:8.2f}")
    return lines


def _comparison(rows: list[tuple[str, float, float, float | None]], paths: list[Path]) -> list[str]:
    lines = [f"{'figure':58s} {paths[0].stem[:12]:>14s} {paths[1].stem[:12]:>14s} {'ratio':>7s}"]
    for name, first, second, ratio in rows:
        lines.append(
            f"{name:58s} {first:14.4g} {second:14.4g} {'-' if ratio is None else f'{ratio:.2f}':>7s}"
        )
    return lines
