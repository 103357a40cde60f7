#!/usr/bin/env python
"""Train and evaluate a detector: tools/train_net.py --config-file FILE [--num-gpus N] [KEY VALUE ...]"""

from resnext_det.detection.train import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
