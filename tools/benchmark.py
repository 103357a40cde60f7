"""Measure this package against its peers: python tools/benchmark.py c4-inference --json out.json"""

import argparse
import json

from resnext_det.benchmark import BENCHMARKS, machine, report
from resnext_det.engine.cli import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    run(main)
