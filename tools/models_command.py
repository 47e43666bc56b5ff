"""`keyface models`: lists, fetches and verifies the weights."""

from __future__ import annotations

import argparse
import json
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Any

from keyface.configs.errors import ModelStoreError, UsageError


def add_parser(subparsers: Any) -> None:
    """Adds `models list|pull|verify|where|licences`."""
    parser = subparsers.add_parser(
        "models",
        help="list, fetch and verify the models",
        epilog="NAME is a model or a group: default, evaluate, optional, all.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="models, groups, sizes and states")
    pull = actions.add_parser("pull", help="fetch, verify and build what is missing")
    pull.add_argument("--force", action="store_true", help="fetch and build even what is in order")
    pull.add_argument(
        "--from",
        dest="from_folder",
        type=Path,
        metavar="FOLDER",
        help="take files or archives from FOLDER instead of the network",
    )
    pull.add_argument("--quiet", action="store_true", help="no progress bars")
    verify = actions.add_parser("verify", help="compare every file with its SHA-256")
    verify.add_argument(
        "--update-own", action="store_true", help="for developers: write the hashes of our own weights anew"
    )
    where = actions.add_parser("where", help="the cache folder, or where one model lies")
    where.add_argument("name", nargs="?", metavar="NAME")
    licences = actions.add_parser("licences", help="licences of the models, or the card of one")
    licences.add_argument("name", nargs="?", metavar="NAME")
    for action in (listing, pull, verify):
        action.add_argument("names", nargs="*", metavar="NAME")
    for action in (listing, verify, licences):
        action.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs one action. `verify` returns 4 when a model that is wanted is not in order."""
    actions = {"list": _list, "pull": _pull, "verify": _verify, "where": _where, "licences": _licences}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from keyface.engines.store import ModelStore

    store = ModelStore()
    rows: list[dict[str, Any]] = []
    for name in store.resolve(args.names or "all"):
        entry = store.manifest[name]
        rows.append(
            {
                "name": name,
                "group": entry.group,
                "kind": type(entry.source).__name__.removesuffix("Source").lower(),
                "bytes": entry.bytes
                or (store.where(name).stat().st_size if store.where(name).is_file() else 0),
                "state": store.status(name),
                "licence": entry.licence,
            }
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'model':<28}{'group':<10}{'source':<9}{'MB':>7}  {'state':<9}licence")
    for row in rows:
        print(
            f"{row['name']:<28}{row['group']:<10}{row['kind']:<9}{row['bytes'] / 1e6:>7.1f}  "
            f"{row['state']:<9}{row['licence']}"
        )
    return 0


def _pull(args: argparse.Namespace) -> int:
    from keyface.engines.store import ModelStore
    from keyface.tools.pull_bars import PullBars

    if args.from_folder is not None and not args.from_folder.is_dir():
        raise UsageError(f"--from {args.from_folder}: there is no such folder.")
    store = ModelStore()
    with PullBars(is_quiet=args.quiet) as bars:
        paths = store.pull(args.names or "default", bars, force=args.force, from_folder=args.from_folder)
    n_bytes = sum(path.stat().st_size for path in paths.values())
    print(f"{len(paths)} models, {n_bytes / 1e6:.0f} MB, verified in {store.root}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from keyface.engines.store import ModelStore

    if args.update_own:
        return _update_own()
    store = ModelStore()
    states = store.verify(args.names or "all")
    wanted = store.resolve(args.names or "default")
    # What nobody asked for may be absent, but nothing may be there with a wrong hash.
    is_good = all(
        state == "ok" or (state == "missing" and name not in wanted) for name, state in states.items()
    )
    if args.json:
        print(json.dumps({"root": str(store.root), "ok": is_good, "models": states}, indent=1))
    else:
        for name, state in states.items():
            print(f"{name:<28}{state}")
        if not is_good:
            print("Run 'keyface models pull' to bring what is not in order.")
    return 0 if is_good else ModelStoreError.exit_code


def _update_own() -> int:
    from keyface.engines.own_weights import update_own_weights

    result = update_own_weights()
    for name in result.updated:
        print(f"{name}: hash written")
    for path in result.unlisted:
        print(f"{path}: no entry in the manifest names it")
    if not result.updated:
        print("no hash had changed")
    return ModelStoreError.exit_code if result.unlisted else 0


def _where(args: argparse.Namespace) -> int:
    from keyface.engines.store import ModelStore

    store = ModelStore()
    print(store.where(args.name) if args.name else store.root)
    return 0


def _licences(args: argparse.Namespace) -> int:
    from keyface.configs.manifest import load_manifest

    manifest = load_manifest()
    entries = [manifest[args.name]] if args.name else list(manifest.models.values())
    if args.json:
        rows = [
            {"name": e.name, "group": e.group, "licence": e.licence, "note": e.licence_note} for e in entries
        ]
        print(json.dumps(rows, indent=1))
    elif args.name:
        print((Path(str(files("keyface.models"))) / "cards" / entries[0].card).read_text(encoding="utf-8"))
    else:
        for e in entries:
            print(f"{e.name} ({e.group}): {e.licence}")
            print(textwrap.indent(textwrap.fill(e.licence_note, 100), "    "))
    return 0
