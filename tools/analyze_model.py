#!/usr/bin/env python
"""Print the paper's Table 1 for a network of the family, or Table 2: tools/analyze_model.py resnext50_32x4d"""

from resnext_det.analysis import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
