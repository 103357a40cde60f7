#!/usr/bin/env python
"""Train a classifier of the family, or evaluate one: tools/pretrain.py --config-file FILE [KEY VALUE ...]"""

from resnext_det.classification.command import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
