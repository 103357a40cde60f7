#!/usr/bin/env python
"""Train and evaluate a detector: tools/train_net.py --config-file FILE [--num-gpus N] [KEY VALUE ...]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("train")
