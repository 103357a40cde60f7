#!/usr/bin/env python
"""Sort ImageNet's validation images: tools/make_imagenet_val.py unpacked/ ILSVRC2012_devkit_t12/"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-imagenet-val")
