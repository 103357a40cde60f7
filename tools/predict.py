#!/usr/bin/env python
"""Detect in images and videos: tools/predict.py --config-file FILE --input photos/ MODEL.WEIGHTS FILE"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("predict")
