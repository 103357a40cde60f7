"""The command ``tools/evaluate.py``: COCO metrics of a result file, without a model."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Sequence

from ..annotations import IOU_TYPES
from ..errors import UserError
from ..files import shown, write_json
from ..images import MAX_MEGAPIXELS
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics, 0 to 100, and write them where ``--out`` says."""
    parser = argparse.ArgumentParser(description="COCO metrics of a result file, equal to pycocotools.")
    parser.add_argument("--gt", required=True, metavar="FILE", help="COCO annotations")
    parser.add_argument("--dt", required=True, metavar="FILE", help="COCO results, or what predict wrote")
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument("--out", metavar="FILE", help="results.json to write")
    parser.add_argument("--report", metavar="FILE", help="HTML page to write about the boxes")
    parser.add_argument("--images", metavar="FOLDER", help="the images, for the page")
    parser.add_argument(
        "--max-detections", type=at_least(1), help="counted of each class in an image; COCO: 100, keypoints 20"
    )
    parser.add_argument("--max-megapixels", type=float, default=MAX_MEGAPIXELS, help="larger images are not shown")
    args = parser.parse_args(argv)
    from ..annotations.coco import Detections, read_ground_truth
    from ..annotations.evaluation import evaluate, log_reasons
    from ..annotations.predicted import read_predictions

    logging.basicConfig(format="%(message)s")
    if args.report and args.iou_type != "bbox":
        raise UserError(f"--report: the page is about boxes; leave out --iou-type {args.iou_type}")
    if args.images and not os.path.isdir(args.images):
        raise UserError(f"--images {args.images}: no such folder")
    options = {} if args.max_detections is None else {"max_detections": args.max_detections}
    truth = read_ground_truth(args.gt, with_masks=args.iou_type == "segm", **options)
    detections = read_predictions(args.dt, truth)
    if detections is None:
        detections = Detections.from_json(args.dt)
    limit = args.max_detections
    if limit is None:
        limits = None
    else:
        limits = [limit] if args.iou_type == "keypoints" else sorted({1, 10, limit})
    evaluation = evaluate(truth, detections, args.iou_type, max_detections=limits)
    log_reasons(evaluation, len(detections))
    results = evaluation.results()
    for name, value in results.items():
        print(f"{shown(name):24s} {'no ground truth' if math.isnan(value) else f'{value:8.4f}'}")
    if args.out:
        write_json(args.out, {args.iou_type: results})
    if args.report:
        from ..reporting.report import write_report  # matplotlib is slow to start

        write_report(
            args.report,
            truth,
            detections,
            evaluation,
            image_root=args.images,
            title=os.path.basename(args.gt),
            max_megapixels=args.max_megapixels,
        )
        print(shown(args.report))
