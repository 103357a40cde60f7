"""``resnext-det reproduce``: the paper's tables, its numbers beside ours."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ..errors import UserError, nearest
from ..files import shown
from ..paper.tables import PROTOCOLS, TABLES
from .arguments import at_least


def factor(text: str) -> Fraction:
    """argparse type: above 0, at most 64."""
    with contextlib.suppress(ZeroDivisionError):
        if 0 < (value := Fraction(text)) <= 64:
            return value
    raise argparse.ArgumentTypeError(f"{shown(text)}: give a factor such as 1/4, above 0 and at most 64")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/reproduce.py``."""
    parser = argparse.ArgumentParser(
        description="Run a table of the paper, or print its finished numbers beside the paper's."
    )
    tables = {str(name): name for name in TABLES}
    parser.add_argument("--table", required=True, choices=tables, help="its number, or residual for that of Sec. 5.1")
    parser.add_argument("--run", action="store_true", help="train what is missing; without it nothing is run")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are missing, run nothing")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these lines, such as R50 X50")
    parser.add_argument("--seeds", nargs="+", type=at_least(0), metavar="N",
                        help="runs of each line; 0 to 9 for Table 7, as in the paper, elsewhere 0")  # fmt: skip
    parser.add_argument("--output", default="output/reproduce", metavar="FOLDER", help="of all runs (%(default)s)")
    parser.add_argument("--data", metavar="FOLDER", help="a set of your own in place of the paper's")
    parser.add_argument("--settings", metavar="FILE", help="YAML with settings for every run")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), dest="options",
                        help="a setting for every run, may be repeated")  # fmt: skip
    parser.add_argument("--width", type=factor, default=Fraction(1), help="factor of all channels, such as 1/4")
    parser.add_argument("--weights", nargs=2, action="append", default=[], metavar=("ROW", "FILE"),
                        help="Table 8: pretrained weights of a line, in place of the published ones")  # fmt: skip
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper",
                        help="Table 8: RPN and Fast R-CNN apart, as in the paper, or joint training")  # fmt: skip
    parser.add_argument("--num-gpus", type=at_least(0), default=1, help="processes of each run")
    args = parser.parse_args(argv)
    from ..paper.reproduce import Settings, options_of_file, plan, run_missing, table_text

    settings = Settings(
        Path(args.output),
        Path(args.data) if args.data else None,
        (*options_of_file(args.settings), *(part for pair in args.options for part in pair)),
        args.width,
        dict(args.weights),
        args.protocol,
        args.num_gpus,
    )
    table = tables[args.table]
    known = TABLES[table].rows
    seeds = args.seeds or list(range(TABLES[table].runs))
    rows = args.rows or list(known)
    for name in rows:
        if name not in known:
            raise UserError(f"--rows {name}: not in table {args.table}{nearest(name, known)}; {', '.join(known)}")
    if args.run or args.dry_run:
        commands = (c for seed in seeds for name in rows for c in plan(table, name, seed, settings))
        run_missing(commands, dry_run=args.dry_run)
    print(table_text(table, rows, seeds, settings))
