"""``resnext-det transfer``: pretrained backbones on the C4 benchmarks, means over trials and their difference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..paper.reproduce import options_of_file, run_missing
from ..paper.transfer import (
    NETWORKS,
    PROTOCOLS,
    Settings,
    commands_of,
    measured,
    measured_frozen,
    table_text,
    write_csv,
    write_png,
)
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Run or resume what is missing, then print the table and write it as CSV and PNG."""
    parser = argparse.ArgumentParser(description="Fine-tune pretrained backbones by a transfer protocol and compare.")
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True, help="data, schedule and what is frozen")
    parser.add_argument(
        "--weights", nargs="+", required=True, metavar="FILE", help="backbones to compare; none: random"
    )
    parser.add_argument("--network", choices=NETWORKS, default="R_50", help="that the weights are of (%(default)s)")
    parser.add_argument(
        "--trials", type=at_least(1), default=5, help="runs of each, with seeds 0, 1, ... (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/transfer"), metavar="FOLDER", help="of all runs")
    parser.add_argument("--num-gpus", type=at_least(0), default=1, help="processes of each run")
    parser.add_argument("--batch", type=at_least(1), help="images per step; by default two for each process")
    parser.add_argument("--settings", metavar="FILE", help="YAML with settings for every run")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), dest="options",
                        help="a setting for every run, may be repeated")  # fmt: skip
    parser.add_argument("--classification", type=Path, metavar="FOLDER",
                        help="classify on frozen features too; class folders under train and val")  # fmt: skip
    parser.add_argument("--classification-settings", metavar="FILE", help="YAML with settings for that")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are missing, run nothing")
    args = parser.parse_args(argv)
    options = (*options_of_file(args.settings), *(part for pair in args.options for part in pair))
    of_classification = tuple(options_of_file(args.classification_settings))
    run = (args.output, args.protocol, args.network, args.num_gpus, args.batch, options)
    settings = Settings(*run, args.classification, of_classification)
    run_missing(commands_of(args.weights, args.trials, settings), dry_run=args.dry_run)
    found, frozen = measured(args.weights, args.trials, settings), measured_frozen(args.weights, settings)
    print(table_text(found, args.trials, settings, frozen))
    if not args.dry_run:
        place = args.output / f"{args.protocol}_{args.network}"
        write_csv(place.with_suffix(".csv"), found, settings, frozen)
        write_png(place.with_suffix(".png"), found, settings, frozen)
        print(f"\n{place}.csv and .png written")
