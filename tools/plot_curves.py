#!/usr/bin/env python
"""Draw the training curves of runs: tools/plot_curves.py output/a output/b --out curves.png"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("curves")
