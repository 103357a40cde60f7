#!/usr/bin/env python
"""Link the 5,000 classes of Sec. 5.2: tools/make_imagenet5k.py imagenet22k/ datasets/imagenet/train"""

from resnext_det.classification.makers.imagenet5k import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
