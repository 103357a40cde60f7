"""A prediction as the command asks for it, in every process: the config and the flags become arguments here."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from ...annotations.coco import read_ground_truth
from ...annotations.predicted import match_files
from ...engine.processes import decided_by_main
from ...prediction.command import ids_of_classes, listed_names, tell, threshold_of
from ...prediction.inputs import find_inputs, spread
from ...prediction.run import predict
from ...weights import ReadOnce
from ..config import add_resnext_config
from ..initial_weights import weights_of
from .detector import load_predictor, tiled

logger = logging.getLogger(__name__)

INT8_EXAMPLES = 16


def run(cfg: CfgNode, args: Namespace, read: ReadOnce | None = None) -> None:
    """One process of the run; ``read`` may have read MODEL.WEIGHTS."""
    read = read or ReadOnce(args.trust_pickle)
    first = comm.is_main_process()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    if comm.get_local_size() > 1 and cfg.MODEL.DEVICE == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    folder = Path(args.output)
    paths = decided_by_main(lambda: find_inputs(args.input, listed_names(args, comm.get_world_size()), output=folder))
    limit = cfg.DATASETS.MAX_MEGAPIXELS
    if cfg.MODEL.RESNEXT.INFERENCE_DTYPE == "int8":
        logger.info("int8: ranges are measured on up to %d images, spread over all inputs", INT8_EXAMPLES)
    predictor, category_ids, class_names = load_predictor(
        cfg, read, examples=lambda: spread(paths, INT8_EXAMPLES, max_megapixels=limit)
    )
    digest = weights_of(cfg, read).sha256
    read.forget()
    image_ids = None
    if args.ids_from:
        truth = read_ground_truth(args.ids_from)
        image_ids = match_files(map(str, paths), truth.image_records(), f"--ids-from {args.ids_from}")
        category_ids = ids_of_classes(truth, class_names)
    threshold = threshold_of(args, predictor.thresholds, class_names)
    key, own = own_threshold(cfg)
    if args.score_threshold is not None and args.score_threshold < own:
        logger.warning(
            "--score-threshold %g: the model itself leaves out what is below %s %g; set %s %g to see it",
            args.score_threshold, key, own, key, args.score_threshold,
        )  # fmt: skip
    summary = predict(
        tiled(predictor, cfg.TEST.TILE, cfg.TEST.TILE_OVERLAP), paths, folder,
        categories=[{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)],
        image_ids=image_ids, settings={"config": _applied(cfg), "weights_sha256": digest},
        batch_size=args.batch_size, score_threshold=threshold, broken=args.broken, channels=cfg.INPUT.CHANNELS,
        draw=not args.no_drawings, resume=args.resume, form=args.format, max_megapixels=limit,
        progress=logger.info if first else None,
        rank=comm.get_rank(), processes=comm.get_world_size(), decide=decided_by_main,
    )  # fmt: skip
    if summary is not None:
        logging.getLogger().setLevel(logging.INFO)  # the last process tells, whichever it is
        tell(summary, float(np.min(threshold)), cfg.MODEL.DEVICE)


def own_threshold(cfg: CfgNode) -> tuple[str, float]:
    """The key by which the model itself leaves out detections, and its value."""
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{section}.SCORE_THRESH_TEST", cfg.MODEL[section].SCORE_THRESH_TEST


def _applied(cfg: CfgNode) -> dict:
    """What of the config decides a prediction: the model, the sizes of images and tiles, the limit."""
    model = {key: value for key, value in cfg.MODEL.items() if key not in ("WEIGHTS", "DEVICE")}
    sizes = {key: cfg.INPUT[key] for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")}
    tiles = {key: cfg.TEST[key] for key in ("TILE", "TILE_OVERLAP")}
    return {"MODEL": model, "INPUT": sizes, "MAX_MEGAPIXELS": cfg.DATASETS.MAX_MEGAPIXELS, "TEST": tiles}


def split_settings(inputs: list[str], opts: list[str]) -> tuple[list[str], list[str]]:
    """Cut ``KEY VALUE`` pairs off the end of the inputs: keys are names such as MODEL.WEIGHTS, never files."""
    sections = get_cfg()
    add_resnext_config(sections)
    for position, word in enumerate(inputs):
        if "." in word and word.split(".")[0] in sections and not os.path.exists(word):
            return inputs[:position], inputs[position:] + opts
    return inputs, opts
