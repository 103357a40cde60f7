"""``resnext-det predict``: detect in images and videos."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..inference import CHOICES
from .arguments import TRUST_PICKLE, at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/predict.py``."""
    parser = argparse.ArgumentParser(description="Detect objects in images and videos.")
    parser.add_argument("--config-file", metavar="FILE", help="YAML; by default the one that the weights hold")
    parser.add_argument("--weights", metavar="FILE", help="of a trained detector, or its OUTPUT_DIR (MODEL.WEIGHTS)")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="files, folders, patterns; - for stdin"
    )
    parser.add_argument(
        "--output", default="output/predictions", metavar="FOLDER", help="drawn copies, detections.json"
    )
    parser.add_argument(
        "--score-threshold", type=float, help="leave out detections below it (the best of each class, as trained)"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="images at a time")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="images that cannot be read")
    parser.add_argument("--dtype", choices=CHOICES, help="over MODEL.RESNEXT.INFERENCE_DTYPE of the file")
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--workers", type=at_least(1), default=1, help="processes that share the images")
    parser.add_argument("--ids-from", metavar="SET.json", help="image and category ids of this COCO set, by name")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(argv)
    from ..detection.prediction.command import run, split_settings
    from ..detection.prediction.detector import config_of_arguments
    from ..detection.prediction.run import check_threshold
    from ..engine.launch import launch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.score_threshold is not None:
        check_threshold(args.score_threshold)
    args.input, args.opts = split_settings(args.input, args.opts)
    if args.dtype:
        args.opts += ["MODEL.RESNEXT.INFERENCE_DTYPE", args.dtype]
    cfg = config_of_arguments(args)
    # Processes started here have no standard input of their own.
    args.listed = tuple(sys.stdin) if args.workers > 1 and "-" in args.input else None
    launch(run, (cfg, args), processes=args.workers, device=cfg.MODEL.DEVICE)
