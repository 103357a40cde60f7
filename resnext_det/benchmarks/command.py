"""The command ``tools/benchmark.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..benchmark import BENCHMARKS, machine, report
from ..files import write_json


def main(argv: Sequence[str] | None = None) -> None:
    """Print ratios, agreement and seconds, and write them where ``--json`` says."""
    parser = argparse.ArgumentParser(description="Measure this package against its peers on this machine.")
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", help="write ratios, agreement, seconds and machine there")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a small problem: checks that it runs, measures nothing")
    args = parser.parse_args(argv)
    description = machine(args.threads, args.device)
    result = {**BENCHMARKS[args.what](args.device, args.quick), "machine": description}
    print(report(args.what, result))
    if args.json:
        write_json(args.json, result)
