#!/usr/bin/env python
"""COCO metrics of a result file: tools/evaluate.py --gt instances_val.json --dt detections.json"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("evaluate")
