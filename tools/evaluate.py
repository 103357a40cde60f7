"""COCO metrics of a result file: ``python tools/evaluate.py --gt instances_val.json --dt detections.json``."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence

from resnext_det.coco_eval import IOU_TYPES, evaluate_detections
from resnext_det.engine.cli import run
from resnext_det.files import write_json


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics, 0 to 100, and write them where ``--out`` says."""
    parser = argparse.ArgumentParser(description="COCO metrics of a result file, equal to pycocotools.")
    parser.add_argument("--gt", required=True, metavar="FILE", help="COCO annotations")
    parser.add_argument("--dt", required=True, metavar="FILE", help="COCO results")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument("--out", metavar="FILE", help="results.json to write")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    results = evaluate_detections(args.gt, args.dt, args.iou_type)
    for name, value in results.items():
        print(f"{name:24s} {'no ground truth' if math.isnan(value) else f'{value:8.4f}'}")
    if args.out:
        write_json(args.out, {args.iou_type: results})


if __name__ == "__main__":
    run(main)
