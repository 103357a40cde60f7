"""``resnext-det benchmark``: measure this package against its peers."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmarks import BENCHMARKS
from ..errors import UserError
from ..files import read_state, shown, write_json
from .arguments import at_least, real

if TYPE_CHECKING:
    from ..benchmarks.measure import Result, Row, Setting


def run_benchmark(name: str, setting: Setting) -> Result:
    """The result of the benchmark of that name."""
    module, function = BENCHMARKS[name].split(":")
    return getattr(import_module(f"resnext_det.benchmarks.{module}"), function)(setting)


def main(argv: Sequence[str] | None = None) -> None:
    """Print ratios, agreement and seconds, and write them where ``--json`` says."""
    parser = argparse.ArgumentParser(description="Measure this package against its peers on this machine.")
    parser.add_argument("what", choices=list(BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", help="write ratios, agreement, seconds and machine there")
    parser.add_argument("--threads", type=at_least(0), default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small problem: checks that it runs, measures nothing")
    parser.add_argument("--turns", type=at_least(0), default=0, help="measured turns; 0 is each benchmark's own number")
    parser.add_argument("--regions", type=at_least(1), default=512, help="of each image in c4-train and c4-memory")
    parser.add_argument("--norm", choices=("FrozenBN", "BN"), default="FrozenBN", help="in c4-train and c4-memory")
    parser.add_argument("--extra-norm", action="store_true", help="one more behind res5, in c4-train and c4-memory")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="of CPUs; cpu, the processor's time, on shared machines",
    )
    parser.add_argument(
        "--batch", type=at_least(0), default=0, help="images at once in c4-inference, networks, grouped-conv"
    )
    parser.add_argument(
        "--minutes",
        type=real(at_least=0),
        default=math.inf,
        help="begin no row of networks or grouped-conv later; the same command continues with the others",
    )
    parser.add_argument("--images", type=at_least(100), nargs="+", default=[], help="sizes of the sets of scale")
    parser.add_argument("--folder", help="where scale makes its sets; a set of a million images has 1.5 GB")
    args = parser.parse_args(argv)
    from ..benchmarks.measure import Setting, machine, report  # torch takes seconds to import

    begin = time.monotonic()
    description = machine(args.threads, args.device)
    command = " ".join(["tools/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    rows_of = {key: value for key, value in vars(args).items() if key not in ("json", "minutes")}
    facts = {**description, "clock": args.clock, "command": command, "settings": rows_of}

    def keep(rows: dict[str, Row]) -> None:
        if args.json:
            write_json(args.json, {"rows": rows, "machine": facts})

    setting = Setting(
        args.device,
        args.quick,
        args.clock,
        args.turns,
        args.regions,
        args.batch,
        begin + 60 * args.minutes,
        _known(args.json, facts) if args.json else {},
        keep,
        norm=args.norm,
        extra_norm=args.extra_norm,
        images=tuple(sorted(args.images)),
        folder=args.folder,
    )
    result = {**run_benchmark(args.what, setting), "machine": facts}
    print(report(args.what, result))
    if args.json:
        write_json(args.json, result)


def _known(file: str, machine: Mapping[str, object]) -> dict[str, Row]:
    """The rows that an earlier call of the same command has measured on the same hardware and versions.

    Raises:
        UserError: the file is of another machine or command, whose rows would be lost.
    """
    if not Path(file).is_file():
        return {}
    schema = {"machine": dict, "rows?": (None, {str: {str: (float, str, None)}})}
    earlier = read_state(file, schema, "it is not a benchmark's results: name another file for --json")
    rows, of = earlier.get("rows"), earlier["machine"]
    if not rows:
        return {}
    for key in ("processor", "gpu", "torch", "settings"):
        if of.get(key) != machine[key]:
            raise UserError(
                f"--json {file}: its rows were measured with other {key} ({shown(of.get(key))}; here {machine[key]}); "
                "name another file or remove it"
            )
    return rows
