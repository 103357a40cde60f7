#!/usr/bin/env python
"""COCO metrics of a result file: tools/evaluate.py --gt instances_val.json --dt detections.json"""

from resnext_det.coco_eval import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
