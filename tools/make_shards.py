#!/usr/bin/env python
"""Pack pictures into WebDataset shards: tools/make_shards.py datasets/imagenet/train datasets/imagenet_shards/train"""

from resnext_det.classification.makers.shards import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
