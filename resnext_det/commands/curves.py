"""``resnext-det curves``: draw the training curves of runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/plot_curves.py``."""
    parser = argparse.ArgumentParser(description="Draw the training curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's OUTPUT_DIR, or its metrics.json")
    parser.add_argument("--out", default="curves.png", metavar="FILE", help="PNG to write (%(default)s)")
    parser.add_argument("--size", action="store_true", help="instead: final top-1 error against size, as in Figure 7")
    args = parser.parse_args(argv)
    from ..reporting.curves import curves_figure, read_runs, read_sizes, save_figure, size_figure

    figure = size_figure(read_sizes(args.runs)) if args.size else curves_figure(read_runs(args.runs))
    save_figure(figure, args.out)
    print(args.out)
