#!/usr/bin/env python
"""Check a data set in COCO's format before training on it: tools/check_dataset.py --json FILE --images DIR"""

from resnext_det.detection.dataset_check.command import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
