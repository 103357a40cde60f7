#!/usr/bin/env python
"""Check a data set in COCO's format before training on it: tools/check_dataset.py --json FILE --images DIR"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("check")
