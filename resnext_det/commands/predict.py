"""``resnext-det predict``: detect in images and videos."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from ..annotations.coco import read_ground_truth
from ..annotations.dataset import Dataset
from ..annotations.predicted import match_files
from ..detection.config import add_resnext_config
from ..detection.prediction.detector import config_of_arguments, load_predictor
from ..engine.launch import launch
from ..engine.processes import decided_by_main
from ..errors import UserError, listed
from ..files import shown
from ..inference.precision import CHOICES
from ..prediction.inputs import find_inputs, spread
from ..prediction.parts import DETECTIONS_FILE
from ..prediction.run import Summary, check_threshold, predict
from ..weights.reading import sha256
from ..weights.sources import locate
from .arguments import TRUST_PICKLE, at_least

logger = logging.getLogger(__name__)

INT8_EXAMPLES = 16


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
    parser.add_argument("--score-threshold", type=float, default=0.5, help="leave out detections below it")
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="images at a time")
    parser.add_argument("--broken", choices=("error", "skip"), default="error", help="images that cannot be read")
    parser.add_argument("--dtype", choices=CHOICES, help="over MODEL.RESNEXT.INFERENCE_DTYPE of the file")
    parser.add_argument("--no-drawings", action="store_true", help="write the JSON alone")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--workers", type=at_least(1), default=1, help="processes that share the images")
    parser.add_argument("--ids-from", metavar="SET.json", help="image and category ids of this COCO set, by name")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_threshold(args.score_threshold)
    args.input, args.opts = _settings(args.input, args.opts)
    if args.dtype:
        args.opts += ["MODEL.RESNEXT.INFERENCE_DTYPE", args.dtype]
    cfg = config_of_arguments(args)
    # Processes started here have no standard input of their own.
    args.listed = tuple(sys.stdin) if args.workers > 1 and "-" in args.input else None
    launch(_run, (cfg, args), processes=args.workers, device=cfg.MODEL.DEVICE)


def _run(cfg: CfgNode, args: Namespace) -> None:
    """One process of the run."""
    first = comm.is_main_process()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    if comm.get_local_size() > 1 and cfg.MODEL.DEVICE == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    if "-" in args.input and args.listed is None and comm.get_world_size() > 1:
        raise UserError("--input -: processes of torchrun and Slurm share one standard input; give folders or patterns")
    folder = Path(args.output)
    stdin = sys.stdin if args.listed is None else args.listed
    paths = decided_by_main(lambda: find_inputs(args.input, stdin, output=folder))
    limit = cfg.DATASETS.MAX_MEGAPIXELS
    if cfg.MODEL.RESNEXT.INFERENCE_DTYPE == "int8":
        logger.info("int8: ranges are measured on up to %d images, spread over all inputs", INT8_EXAMPLES)
    predictor, category_ids, class_names = load_predictor(
        cfg, trust_pickle=args.trust_pickle, examples=lambda: spread(paths, INT8_EXAMPLES, max_megapixels=limit)
    )
    image_ids = None
    if args.ids_from:
        truth = read_ground_truth(args.ids_from)
        image_ids = match_files(map(str, paths), truth.image_records(), f"--ids-from {args.ids_from}")
        category_ids = _ids_of_classes(truth, class_names)
    key, own = own_threshold(cfg)
    if args.score_threshold < own:
        logger.warning(
            "--score-threshold %g: the model itself leaves out what is below %s %g; set %s %g to see it",
            args.score_threshold, key, own, key, args.score_threshold,
        )  # fmt: skip
    summary = predict(
        predictor, paths, folder,
        categories=[{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)],
        image_ids=image_ids, settings={"config": _settled(cfg), "weights_sha256": sha256(locate(cfg.MODEL.WEIGHTS)[0])},
        batch_size=args.batch_size, score_threshold=args.score_threshold, broken=args.broken,
        draw=not args.no_drawings, resume=args.resume, max_megapixels=limit, progress=logger.info if first else None,
        rank=comm.get_rank(), processes=comm.get_world_size(), decide=decided_by_main,
    )  # fmt: skip
    if summary is not None:
        logging.getLogger().setLevel(logging.INFO)  # the last process tells, whichever it is
        _tell(summary, folder, args.score_threshold, cfg.MODEL.DEVICE)


def _tell(summary: Summary, folder: Path, threshold: float, device: str) -> None:
    if not summary.detections and summary.best is not None:
        logger.warning("nothing scores %g or more; the best score is %.3f (--score-threshold)", threshold, summary.best)
    if summary.broken:
        logger.warning(
            "skipped, cannot be read: %d, such as %s", len(summary.broken), listed(map(shown, summary.broken), 3)
        )
    logger.info(
        "%d detections in %d images on %s, %d broken and skipped; %s",
        summary.detections, summary.frames, device, len(summary.broken), folder / DETECTIONS_FILE,
    )  # fmt: skip


def own_threshold(cfg: CfgNode) -> tuple[str, float]:
    """The key by which the model itself leaves out detections, and its value."""
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{section}.SCORE_THRESH_TEST", cfg.MODEL[section].SCORE_THRESH_TEST


def _ids_of_classes(truth: Dataset, class_names: Sequence[str]) -> list[int]:
    known = dict(zip(truth.class_names, truth.category_ids.tolist(), strict=True))
    if missing := [name for name in class_names if name not in known]:
        raise UserError(
            f"--ids-from {truth.source}: has no category {listed(map(repr, missing), 5)}; the model knows "
            f"{listed(class_names, 5)}, the set {listed(truth.class_names, 5)}"
        )
    return [known[name] for name in class_names]


def _settled(cfg: CfgNode) -> dict:
    """What of the config decides a prediction: the model, the sizes of images, the limit."""
    model = {key: value for key, value in cfg.MODEL.items() if key not in ("WEIGHTS", "DEVICE")}
    sizes = {key: cfg.INPUT[key] for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")}
    return {"MODEL": model, "INPUT": sizes, "MAX_MEGAPIXELS": cfg.DATASETS.MAX_MEGAPIXELS}


def _settings(inputs: list[str], opts: list[str]) -> tuple[list[str], list[str]]:
    """Cut ``KEY VALUE`` pairs off the end of the inputs: keys are names such as MODEL.WEIGHTS, never files."""
    sections = get_cfg()
    add_resnext_config(sections)
    for position, word in enumerate(inputs):
        if "." in word and word.split(".")[0] in sections and not os.path.exists(word):
            return inputs[:position], inputs[position:] + opts
    return inputs, opts
