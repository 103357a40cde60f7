"""``resnext-det predict``: detect in images and videos."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from ..artifacts.about import is_artifact
from ..errors import UserError
from ..inference import CHOICES
from ..prediction.hub import local
from ..prediction.parts import FORMATS
from .arguments import TRUST_PICKLE, at_least, real


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/predict.py``."""
    about = "Detect objects in images and videos. `predict DETECTOR PATH ...` is short for --weights and --input."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--config-file", metavar="FILE", help="YAML; by default the one that the weights hold")
    parser.add_argument("--weights", metavar="FILE", help="of a trained detector, its OUTPUT_DIR, or an export")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="files, folders, patterns; - for stdin")
    parser.add_argument(
        "--output", default="output/predictions", metavar="FOLDER", help="drawn copies, detections.json"
    )
    parser.add_argument(
        "--score-threshold",
        type=real(at_least=0, at_most=1),
        help="leave out detections below it (the best of each class, as trained)",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="images at a time")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="images that cannot be read")
    parser.add_argument("--dtype", choices=CHOICES, help="over MODEL.RESNEXT.INFERENCE_DTYPE of the file")
    parser.add_argument("--tile", type=at_least(32), metavar="SIZE", help="cut larger images into tiles of that side")
    parser.add_argument(
        "--overlap", type=real(at_least=0, below=1), default=0.2, help="of neighboring tiles, as a part of --tile"
    )
    parser.add_argument("--format", choices=FORMATS, default="coco", help="detections.json, .jsonl or .parquet")
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--workers", type=at_least(1), default=1, help="processes that share the images")
    parser.add_argument("--ids-from", metavar="SET.json", help="image and category ids of this COCO set, by name")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(_with_flags(sys.argv[1:] if argv is None else argv))
    if not args.input:
        raise UserError("no images: give files, folders or patterns, --input PATH")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = [*args.input, *args.opts]
    # Processes started here have no standard input of their own.
    args.listed = tuple(sys.stdin) if args.workers > 1 and "-" in args.input else None
    weights = args.weights or (given[given.index("MODEL.WEIGHTS") + 1] if "MODEL.WEIGHTS" in given[:-1] else "")
    weights = local(weights)
    if weights and is_artifact(weights):
        _predict_by_artifact(args, weights)
        return
    from ..detection.prediction.command import run, split_settings
    from ..detection.prediction.detector import config_of_arguments
    from ..engine.launch import launch
    from ..weights import ReadOnce

    args.input, args.opts = split_settings(args.input, args.opts)
    if args.dtype:
        args.opts += ["MODEL.RESNEXT.INFERENCE_DTYPE", args.dtype]
    if args.tile:
        args.opts += ["TEST.TILE", str(args.tile), "TEST.TILE_OVERLAP", str(args.overlap)]
    read = ReadOnce(args.trust_pickle)
    cfg = config_of_arguments(args, read)
    launch(run, (cfg, args, *([read] if args.workers == 1 else [])), processes=args.workers, device=cfg.MODEL.DEVICE)


def _with_flags(argv: Sequence[str]) -> list[str]:
    """``DETECTOR PATH ... --flags`` as ``--weights DETECTOR --flags ... --input PATH ...``."""
    number = next((i for i, word in enumerate(argv) if word.startswith("-") and word != "-"), len(argv))
    if number < 2:
        return list(argv)
    return ["--weights", argv[0], "--input", *argv[1:number], *argv[number:]]


def _predict_by_artifact(args: argparse.Namespace, weights: str) -> None:
    """What an export cannot be asked for is refused; torch and detectron2 are not imported."""
    words = [word for word in (*args.input, *args.opts) if word not in ("MODEL.WEIGHTS", weights)]
    settings = [word for word in words if word.isupper() and "." in word and not os.path.exists(word)]
    if args.config_file or args.dtype or settings:
        what = settings[0] if settings else "--config-file" if args.config_file else "--dtype"
        raise UserError(
            f"{what}: {weights} was exported with its settings; leave it out, or give the weights themselves"
        )
    from ..prediction.command import run_artifact, run_artifact_shared

    args.weights, args.input = weights, words
    if args.workers == 1 and os.environ.keys().isdisjoint(("TORCHELASTIC_RUN_ID", "RANK", "SLURM_PROCID")):
        run_artifact(args)
        return
    from ..engine.launch import launch

    launch(run_artifact_shared, (args,), processes=args.workers)
