"""`keyface bench reenact`: what a face costs in one frame with each reenactor, measured in turn in one run."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from keyface.configs.errors import StageError
from keyface.configs.schema import ReenactorName

if TYPE_CHECKING:
    from keyface.engines.store import ModelStore
    from keyface.pipeline.frame import Frame

_FRAMES = 200
_SKIPPED = 25
_SAMPLE_PX, _SAMPLE_PERSON = 512, 38
_KEY = bytes(range(32))  # protects nobody: nothing that is rendered here is kept


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from keyface.configs.bench_reenact_report import check_reenact_bench

    report = measure(args)
    check_reenact_bench(report)
    print(json.dumps(report, indent=2) if args.json else "\n".join(lines(report)))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report, see configs/bench_reenact_report.py."""
    from keyface.engines.archive import sha256_of
    from keyface.pipeline.assemble import make_parts, model_names, network_opener
    from keyface.pipeline.people.key import Key
    from keyface.pipeline.process_options import ProcessOptions
    from keyface.tools import bench_chain, bench_reenact
    from keyface.tools.process_command import ensure_models

    if args.cores:
        bench_chain.restrict_cores(args.cores)
    options = {name: ProcessOptions(backend=args.backend, reenactor=name) for name in get_args(ReenactorName)}
    store = ensure_models(options["warp"], args.json, is_needed=True)
    runners = {name: bench_reenact.Runner() for name in options}
    with ExitStack() as stack:
        frames = _frames(args, store, stack)
        chains = {}
        for name, chosen in options.items():
            network = runners[name].timed(network_opener(store, chosen))
            # The same key for both, so that both show the same person.
            with Key(_KEY) as key:
                parts = make_parts(store, key, chosen, open_network=network)
            stack.callback(parts.release)
            chains[name] = parts, runners[name]
        n_counted, size_wh = bench_reenact.measure(frames, chains, n_skipped=_SKIPPED)
    if not all(runner.replaced for runner in runners.values()):
        raise StageError(
            f"no face was replaced after frame {_SKIPPED}, so nothing was measured.", "Give another --clip."
        )
    name = "generated sample clip" if args.clip is None else Path(args.clip).name
    clip = {"name": name, "frames": n_counted, "size_wh": list(size_wh)}
    hashes = {name: sha256_of(store.path(name)) for name in model_names(options["warp"])}
    return report_of({name: runner.to_json() for name, runner in runners.items()}, clip, hashes)


def _frames(args: argparse.Namespace, store: ModelStore, stack: ExitStack) -> Iterable[Frame]:
    """Those of the clip, or of a generated person's performance, which is rendered beforehand."""
    from keyface.pipeline.assemble import open_portrait
    from keyface.pipeline.media.capture import FileSource
    from keyface.pipeline.sample.clip import FPS, sample_frames
    from keyface.pipeline.sample.performance import Performance

    count = _SKIPPED + (args.frames or _FRAMES)
    if args.clip is not None:
        return itertools.islice(stack.enter_context(FileSource(args.clip)), count)
    performance = Performance(min(max(count / FPS, 2.0), 120.0))
    with open_portrait(store, _SAMPLE_PERSON) as portrait:
        return list(itertools.islice(sample_frames(portrait, performance, size_px=_SAMPLE_PX), count))


def report_of(rows: dict[str, Any], clip: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """The report of what was measured.

    Args:
        rows: reenactor -> what `bench_reenact.Runner.to_json` says.
        hashes: model -> SHA-256.
    """
    from keyface.configs.bench_reenact_report import REENACT_SCHEMA, reenact_verdicts
    from keyface.engines.machine import describe_machine, package_versions

    warp, latent = rows["warp"]["total"], rows["latent"]["total"]
    ratio = {p: round(warp[f"{p}_ms"] / max(latent[f"{p}_ms"], 1e-6), 3) for p in ("p50", "p95", "p99")}
    return {
        "schema": REENACT_SCHEMA,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine().as_dict(),
        "versions": package_versions(),
        "models": hashes,
        "clip": clip,
        "reenactors": rows,
        "warp_to_latent": ratio,
        "verdicts": reenact_verdicts({"warp, p50": warp["p50_ms"], "warp to latent, p50": ratio["p50"]}),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    machine, clip = report["machine"], report["clip"]
    told = [f"{machine['cpu']}, {machine['cores']} cores; {clip['name']}, {clip['frames']} frames"]
    for name, row in report["reenactors"].items():
        mosaics = sum(row["redacted"].values())
        told.append(
            f"{name}: first frame {row['first_s']:.2f} s, {row['replaced']} faces replaced, {mosaics} mosaicked; "
            + ", ".join(f"{network} on {backend}" for network, backend in row["backends"].items())
        )
        told.append(f"  {'per frame':12s} {'p50 ms':>8s} {'p95 ms':>8s} {'p99 ms':>8s}")
        for part in ("total", "network", "landmarks", "numpy"):
            t = row[part]
            told.append(f"  {part:12s} {t['p50_ms']:8.2f} {t['p95_ms']:8.2f} {t['p99_ms']:8.2f}")
    ratio = report["warp_to_latent"]
    told.append(
        f"warp / latent: {ratio['p50']:.2f} (p50), {ratio['p95']:.2f} (p95), {ratio['p99']:.2f} (p99)"
    )
    for v in report["verdicts"]:
        told.append(f"{v['figure']:24s} {v['value']:8.3g}  {v['target']:16s} {v['outcome']}")
    return told
