#!/usr/bin/env python
"""Convert a file of weights: tools/convert_weights.py IN OUT [--to native|torchvision|timm]"""

from resnext_det.engine.cli import run
from resnext_det.weights.command import main

if __name__ == "__main__":
    run(main)
