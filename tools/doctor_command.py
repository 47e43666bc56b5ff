"""`keyface doctor`: what this machine has, what is missing, what to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from keyface.tools.doctor_checks import Finding, can_run, examine

_MARKS = {"ok": "ok", "missing": "MISSING", "warning": "warning", "absent": "-"}


def add_parser(subparsers: Any) -> None:
    """Adds `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine has, what is missing, what to do",
        epilog="Exit code 0: keyface process can run here; 1: something that it needs is missing.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 0 when the default chain can run, else 1."""
    findings = examine()
    is_ready = can_run(findings)
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"can_run": is_ready, "findings": rows}, indent=1))
    else:
        _print_table(findings)
        print()
        print(
            "keyface process can run here."
            if is_ready
            else "keyface process cannot run here yet: see MISSING."
        )
    return 0 if is_ready else 1


def _print_table(findings: list[Finding]) -> None:
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            print(f"\n{area}" if area != findings[0].area else area)
        print(f"  {_MARKS[finding.state]:<8} {finding.name:<28} {finding.detail}")
        if finding.way_out:
            print(f"           {'':<28} -> {finding.way_out}")
