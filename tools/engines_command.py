"""`keyface engines`: builds the networks' engines for graphics cards, and looks after them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyface.configs.errors import DeviceError, EngineError, UsageError

if TYPE_CHECKING:
    from keyface.engines.engine_cache import CachedEngine, EngineCache
    from keyface.engines.gpu_open import BuildRequest, BuildResult
    from keyface.engines.store import ModelStore
    from keyface.engines.tensorrt_build import Progress
    from keyface.engines.tensorrt_flavour import Flavour, FlavourName

_WARM_RUNS = 5


def add_parser(subparsers: Any) -> None:
    """Adds `engines build|list|verify|clean|warm`."""
    parser = subparsers.add_parser(
        "engines",
        help="build and check the engines of graphics cards",
        description="An engine is a network made ready for one kind of graphics card. It is built once, "
        "kept in a cache, and used by --backend tensorrt or tensorrt_rtx.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build what is missing or stale")
    build.add_argument(
        "--sm",
        metavar="LIST",
        help="cards to build for, by compute capability, such as 75,80,86,89,120: ahead of time, without a "
        "card, with TensorRT-RTX (default: the card of this machine)",
    )
    build.add_argument(
        "--precision",
        choices=("f16", "f32"),
        help="default: half for every network, and float32 too for those that decide who somebody becomes",
    )
    build.add_argument("--force", action="store_true", help="build even what is in order")
    build.add_argument("--quiet", action="store_true", help="no progress on standard error")
    listing = actions.add_parser("list", help="engines in the cache")
    verify = actions.add_parser("verify", help="compare every engine with its network, library and SHA-256")
    clean = actions.add_parser("clean", help="remove what is stale, damaged or unfinished")
    clean.add_argument("--all", action="store_true", help="remove every engine")
    warm = actions.add_parser("warm", help="open every engine on the card, run it and say how long it takes")
    for action in (build, warm):
        action.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all of the chain)")
        action.add_argument(
            "--library", choices=("tensorrt", "tensorrt_rtx"), help="default: the first that fits the card"
        )
    for action in (build, listing, verify, clean, warm):
        action.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs one action. `build`, `verify` and `warm` return 5 when an engine is not in order."""
    from keyface.engines.gpu_networks import GPU_NETWORKS

    for name in getattr(args, "names", ()):
        if name not in GPU_NETWORKS:
            raise UsageError(f"no network is called {name!r}.", f"Legal: {', '.join(GPU_NETWORKS)}.")
    actions = {"build": _build, "list": _list, "verify": _verify, "clean": _clean, "warm": _warm}
    return actions[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from keyface.engines.gpu_open import build_engines, requests_for
    from keyface.engines.tensorrt_flavour import load_flavour, parse_architectures

    if args.sm is not None:
        try:
            architectures = parse_architectures(args.sm)
        except EngineError as error:
            raise UsageError(error.problem, error.way_out) from error
        flavour = load_flavour(args.library or "tensorrt_rtx")
        flavour.check_ahead(architectures)
    else:
        flavour, architectures = _for_this_card(args.library)
    paths = _sources(args)
    requests = requests_for(paths, (args.precision,) if args.precision else None, names=args.names)
    with _BuildBars(is_quiet=args.quiet or args.json) as bars:
        results = build_engines(
            requests,
            flavour,
            architectures,
            is_ahead=args.sm is not None,
            force=args.force,
            on_progress=bars.start,
        )
    _print_built(results, flavour, architectures, is_json=args.json)
    return EngineError.exit_code if any(result.problem for result in results) else 0


def _for_this_card(library: FlavourName | None) -> tuple[Flavour, tuple[str, ...]]:
    """The library for the card of this machine, and what the card is. Raises DeviceError, EngineError."""
    from keyface.engines.device_memory import open_device
    from keyface.engines.tensorrt_flavour import choose_flavour, load_flavour

    try:
        device = open_device()
    except DeviceError as error:
        raise DeviceError(
            error.problem, "Without a card here, build for others with --sm 75,80,86,89,120."
        ) from error
    try:
        flavour = load_flavour(library) if library else choose_flavour(device.info)
        flavour.check_card(device.info)
        return flavour, (device.info.architecture,)
    finally:
        device.close()


def _sources(args: argparse.Namespace) -> dict[str, Any]:
    """Verified ONNX files of the networks asked for, fetched or derived when they are missing."""
    from keyface.engines.gpu_networks import GPU_NETWORKS
    from keyface.engines.store import ModelStore
    from keyface.tools.pull_bars import PullBars

    names = [GPU_NETWORKS[name].source for name in args.names or GPU_NETWORKS]
    with PullBars(is_quiet=getattr(args, "quiet", False) or args.json) as bars:
        return dict(ModelStore().ensure(names, bars))


def _print_built(
    results: Iterable[BuildResult], flavour: Flavour, architectures: tuple[str, ...], *, is_json: bool
) -> None:
    results = list(results)
    if is_json:
        summary = {"library": f"{flavour.name} {flavour.version}", "architectures": list(architectures)}
        print(json.dumps({**summary, "engines": [result.as_dict() for result in results]}, indent=1))
        return
    for result in results:
        if result.problem:
            print(f"{result.model} in {result.precision}: {result.problem}", file=sys.stderr)
    built, kept = sum(r.is_new for r in results), sum(r.path is not None and not r.is_new for r in results)
    n_bytes = sum(r.path.stat().st_size for r in results if r.path)
    print(
        f"{built} engines built, {kept} in order already, {len(results) - built - kept} failed; "
        f"{n_bytes / 1e6:.0f} MB for {', '.join(architectures)} with {flavour.name} {flavour.version}"
    )


class _BuildBars:
    """Progress of builds on standard error: a bar on a terminal, a line for each engine elsewhere."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._bar: Any = None

    def start(self, request: BuildRequest) -> Progress:
        """The progress callback of one engine."""
        from tqdm import tqdm

        label = f"building {request.network.name} {request.precision}"
        self._close()
        if self._is_quiet:
            return lambda phase, done, total: None
        if not sys.stderr.isatty():
            print(label, file=sys.stderr, flush=True)
            return lambda phase, done, total: None
        self._bar = bar = tqdm(desc=label, total=0, unit="step")

        def show(phase: str, done: int, total: int) -> None:
            bar.total = max(total, 1)
            bar.set_postfix_str(phase[:40], refresh=False)
            bar.update(done - bar.n)

        return show

    def __enter__(self) -> _BuildBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _list(args: argparse.Namespace) -> int:
    from keyface.engines.engine_cache import EngineCache

    cache = EngineCache()
    _print_entries(cache, list(cache.entries()), is_json=args.json)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from keyface.engines.engine_cache import EngineCache

    cache = EngineCache()
    judged = list(_judge(cache))
    _print_entries(cache, judged, is_json=args.json)
    return EngineError.exit_code if any(entry.state != "ok" for entry in judged) else 0


def _judge(cache: EngineCache) -> Iterator[CachedEngine]:
    """Every entry against its network as the store has it, and the library as it is installed."""
    from keyface.engines.gpu_networks import GPU_NETWORKS
    from keyface.engines.store import ModelStore

    store, versions = ModelStore(), _installed_versions()
    for entry in cache.entries():
        if entry.key.model not in GPU_NETWORKS:
            yield replace(entry, state="stale", reason="the chain has no such network any more")
            continue
        yield cache.judge(entry, _wanted_key(store, entry, versions))


def _wanted_key(store: ModelStore, entry: CachedEngine, versions: dict[str, str]) -> Any:
    """What the entry's key should be today; what cannot be told stays as it is."""
    from keyface.configs.errors import ModelStoreError
    from keyface.engines.gpu_networks import GPU_NETWORKS, key_for
    from keyface.engines.tensorrt_flavour import Flavour

    key, network = entry.key, GPU_NETWORKS[entry.key.model]
    version = versions.get(key.flavour, key.flavour_version)
    flavour = Flavour(key.flavour, None, version)  # type: ignore[arg-type]
    try:
        path = store.path(network.source)
    except ModelStoreError:
        return replace(key, flavour_version=version)
    return key_for(network, path, key.precision, flavour, key.architectures)  # type: ignore[arg-type]


def _installed_versions() -> dict[str, str]:
    from keyface.engines.tensorrt_flavour import FLAVOURS, is_installed, load_flavour

    return {name: load_flavour(name).version for name in FLAVOURS if is_installed(name)}


def _print_entries(cache: EngineCache, entries: list[CachedEngine], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=1))
        return
    print(f"{'network':<18}{'precision':<11}{'MB':>6}  {'cards':<28}{'library':<24}state")
    for entry in entries:
        key = entry.key
        state = f"{entry.state}: {entry.reason}" if entry.reason else entry.state
        print(
            f"{key.model:<18}{key.precision:<11}{entry.n_bytes / 1e6:>6.1f}  "
            f"{' '.join(key.architectures):<28}{f'{key.flavour} {key.flavour_version}':<24}{state}"
        )
    print(f"{len(entries)} engines in {cache.root}")


def _clean(args: argparse.Namespace) -> int:
    from keyface.engines.engine_cache import EngineCache

    cache = EngineCache()
    doomed = [entry for entry in _judge(cache) if args.all or entry.state != "ok"]
    for entry in doomed:
        cache.remove(entry)
    left_overs = cache.remove_left_overs()
    if args.json:
        print(json.dumps({"removed": [entry.path.name for entry in doomed], "left_overs": left_overs}))
    else:
        print(f"{len(doomed)} engines and {left_overs} unfinished files removed from {cache.root}")
    return 0


def _warm(args: argparse.Namespace) -> int:
    from keyface.engines.gpu_open import requests_for

    flavour, _ = _for_this_card(args.library)
    rows, has_failed = [], False
    for request in requests_for(_sources(args), names=args.names):
        row: dict[str, Any] = {"model": request.network.name, "precision": request.precision}
        try:
            with _timed(row, request, flavour) as engine:
                row["notes"] = engine.notes
        except EngineError as error:
            row["problem"], has_failed = str(error), True
        rows.append(row)
        if not args.json:
            times = (
                f"opened in {row['open_ms']:.0f} ms, run in {row['run_ms']:.2f} ms" if "run_ms" in row else ""
            )
            print(f"{row['model']:<18}{row['precision']:<6}{row.get('problem', times)}")
    if args.json:
        print(json.dumps(rows, indent=1))
    return EngineError.exit_code if has_failed else 0


@contextmanager
def _timed(row: dict[str, Any], request: BuildRequest, flavour: Flavour) -> Iterator[Any]:
    """Opens and runs an engine; writes its times into the row."""
    from keyface.engines.benchmark import random_inputs
    from keyface.engines.gpu_open import open_tensorrt

    start = time.perf_counter()
    with open_tensorrt(request.path, request.network.name, request.precision, flavour.name) as engine:
        row["open_ms"] = round((time.perf_counter() - start) * 1e3, 1)
        inputs = random_inputs(engine)
        for _ in range(_WARM_RUNS):
            start = time.perf_counter()
            engine.run(inputs)
            row["run_ms"] = round((time.perf_counter() - start) * 1e3, 3)
        yield engine
