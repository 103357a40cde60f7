"""``resnext-det predict``: detect in images and videos."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg

from ..detection.config import add_resnext_config
from ..detection.predictor import Summary, Writer, find_inputs, load_predictor, predict, read_frames
from ..engine.config import load_config
from ..inference.precision import CHOICES
from .arguments import TRUST_PICKLE

logger = logging.getLogger(__name__)

INT8_EXAMPLES = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/predict.py``."""
    parser = argparse.ArgumentParser(description="Detect objects in images and videos.")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration of the detector")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="files, folders, patterns; - for stdin"
    )
    parser.add_argument(
        "--output", default="output/predictions", metavar="FOLDER", help="drawn copies, detections.json"
    )
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out detections below it")
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="images that cannot be read")
    parser.add_argument("--dtype", choices=CHOICES, help="over MODEL.RESNEXT.INFERENCE_DTYPE of the file")
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    inputs, opts = _settings(args.input, args.opts)
    cfg = get_cfg()
    add_resnext_config(cfg)
    load_config(cfg, args.config_file, opts)
    cfg.MODEL.RESNEXT.INFERENCE_DTYPE = args.dtype or cfg.MODEL.RESNEXT.INFERENCE_DTYPE
    paths = find_inputs(inputs, sys.stdin)

    def examples() -> Iterator[np.ndarray]:  # those for int8 are the first of what is asked for
        frames = read_frames(paths, args.broken, Summary())
        return (frame.pixels for frame in itertools.islice(frames, INT8_EXAMPLES))

    predictor, category_ids, class_names = load_predictor(cfg, trust_pickle=args.trust_pickle, examples=examples)
    writer = Writer(Path(args.output), category_ids, class_names, draw=not args.no_drawings)
    choices = {"batch_size": args.batch_size, "score_threshold": args.score_threshold, "broken": args.broken}
    summary = predict(predictor, paths, writer, **choices, progress=logger.info)
    path = writer.close()
    logger.info(
        "%d detections in %d images, %.1f s on %s, %d broken and skipped; %s",
        summary.detections, summary.frames, summary.seconds, cfg.MODEL.DEVICE, len(summary.broken), path,
    )  # fmt: skip


def _settings(inputs: list[str], opts: list[str]) -> tuple[list[str], list[str]]:
    """Cut ``KEY VALUE`` pairs off the end of the inputs: keys are names such as MODEL.WEIGHTS, never files."""
    sections = get_cfg()
    for position, word in enumerate(inputs):
        if "." in word and word.split(".")[0] in sections and not os.path.exists(word):
            return inputs[:position], inputs[position:] + opts
    return inputs, opts
