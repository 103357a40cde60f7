"""Draw the training curves of runs: ``python tools/plot_curves.py output/a output/b --out curves.png``."""

import argparse

from resnext_det.engine.cli import run
from resnext_det.reporting.curves import curves_figure, read_runs, save_figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's OUTPUT_DIR, or its metrics.json")
    parser.add_argument("--out", default="curves.png", metavar="FILE", help="PNG to write (%(default)s)")
    args = parser.parse_args(argv)
    save_figure(curves_figure(read_runs(args.runs)), args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
