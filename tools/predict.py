#!/usr/bin/env python
"""Detect in pictures and videos: tools/predict.py --config-file FILE --input photos/ MODEL.WEIGHTS FILE"""

from resnext_det.detection.predict import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
