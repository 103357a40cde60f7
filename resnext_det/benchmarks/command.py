"""The command ``tools/benchmark.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ..engine.cli import at_least
from ..files import write_json
from .c4 import c4_inference, c4_memory, c4_train
from .classify import classify
from .evaluate import benchmark_evaluate
from .grouped_conv import grouped_conv
from .input import input_pipeline
from .measure import Result, Setting, machine, report
from .roi_align import roi_align

BENCHMARKS: dict[str, Callable[[Setting], Result]] = {
    "c4-inference": c4_inference,
    "c4-train": c4_train,
    "c4-memory": c4_memory,
    "classify": classify,
    "roi-align": roi_align,
    "grouped-conv": grouped_conv,
    "input": input_pipeline,
    "coco-evaluation": lambda setting: benchmark_evaluate(setting.device, setting.quick),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print ratios, agreement and seconds, and write them where ``--json`` says."""
    parser = argparse.ArgumentParser(description="Measure this package against its peers on this machine.")
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", help="write ratios, agreement, seconds and machine there")
    parser.add_argument("--threads", type=at_least(0), default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small problem: checks that it runs, measures nothing")
    parser.add_argument("--turns", type=at_least(0), default=0, help="measured turns; 0 is each benchmark's own number")
    parser.add_argument("--regions", type=at_least(1), default=512, help="of each picture in c4-train and c4-memory")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="of CPUs; cpu, the processor's time, on shared machines",
    )
    args = parser.parse_args(argv)
    description = machine(args.threads, args.device)
    setting = Setting(args.device, args.quick, args.clock, args.turns, args.regions)
    command = " ".join(["tools/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    result = {**BENCHMARKS[args.what](setting), "machine": {**description, "clock": args.clock, "command": command}}
    print(report(args.what, result))
    if args.json:
        write_json(args.json, result)
