#!/usr/bin/env python
"""Draw the training curves of runs: tools/plot_curves.py output/a output/b --out curves.png"""

from resnext_det.engine.cli import run
from resnext_det.reporting.curves import main

if __name__ == "__main__":
    run(main)
