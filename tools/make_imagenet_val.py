#!/usr/bin/env python
"""Sort ImageNet's validation pictures: tools/make_imagenet_val.py unpacked/ ILSVRC2012_devkit_t12/"""

from resnext_det.classification.makers.imagenet_val import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
