#!/usr/bin/env python
"""Pack images into WebDataset shards: tools/make_shards.py datasets/imagenet/train datasets/imagenet_shards/train"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-shards")
