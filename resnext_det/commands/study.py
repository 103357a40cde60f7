"""``resnext-det study``: benchmarks and tables in a row, in stretches of machine time."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, nearest
from .arguments import at_least, real


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/study.py``.

    Raises:
        Stopped: the time is over, or a signal came, and not everything is finished.
        UserError: some step has failed.
    """
    parser = argparse.ArgumentParser(description="Run a list of benchmarks and tables, in stretches of time.")
    parser.add_argument("study", metavar="FILE", help="YAML, such as configs/reproduce/one_gpu.yaml")
    parser.add_argument("--output", default="output/study", metavar="FOLDER", help="of all runs (%(default)s)")
    parser.add_argument("--results", required=True, metavar="FOLDER", help="of what is kept: a few small files")
    parser.add_argument(
        "--minutes", type=real(at_least=0), default=math.inf, help="stop then, at a checkpoint; 1 more to save"
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, help="trainings side by side on this machine")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps")
    parser.add_argument("--device", default="auto", help="of the benchmarks")
    parser.add_argument("--quick", action="store_true", help="the benchmarks on small problems, which measure nothing")
    args = parser.parse_args(argv)
    from ..engine.config import resolve_device
    from ..engine.signals import Stopped, on_stopping_signals
    from ..paper.study import Chain, Runner, chains_of, collect, drop_known, read_runs, read_study, run_benchmark

    device = resolve_device(args.device)
    ends = time.monotonic() + 60 * args.minutes
    steps = read_study(args.study)
    for name in args.only or ():
        if name not in [step.name for step in steps]:
            raise UserError(f"--only {name}: no such step{nearest(name, [step.name for step in steps])}")
    chosen = [step for step in steps if not args.only or step.name in args.only]
    output, results, folder = Path(args.output), Path(args.results), Path(args.study).parent
    results.mkdir(parents=True, exist_ok=True)
    chains: list[Chain] = []
    runner, done = Runner(args.jobs, ends, lambda: collect(steps, chains, results)), True
    failed: list[str] = []

    def stop(number: int, frame: object) -> None:
        raise Stopped(f"stopped by a signal; the same command continues, results so far in {results}")

    try:
        with on_stopping_signals(stop):  # which ends the benchmark as well
            for step in (step for step in chosen if step.benchmark):
                left = (ends - time.monotonic()) / 60
                try:
                    done &= left > 0 and run_benchmark(step, results, device, args.quick, left)
                except UserError as error:
                    failed.append(str(error))
                    print(error, flush=True)
        for step in chosen:
            chains += chains_of(step, output, folder) if step.table else []
        drop_known(chains, read_runs(results))
        done &= runner.run(chains)
    finally:
        collect(steps, chains, results)
    print((results / "tables.md").read_text(encoding="utf-8"))
    failed += [f"{chain.name}: {chain.failed}" for chain in chains if chain.failed]
    if failed:
        raise UserError(f"{failed[0]} ({len(failed)} such); the others went on")
    if not done:
        raise Stopped(f"not everything is finished; the same command continues, results so far in {results}")
