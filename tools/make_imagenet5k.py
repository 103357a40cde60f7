#!/usr/bin/env python
"""Link the 5,000 classes of Sec. 5.2: tools/make_imagenet5k.py imagenet22k/ datasets/imagenet/train"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-imagenet5k")
