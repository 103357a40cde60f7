"""``resnext-det proposals``: write the boxes that an RPN proposes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..detection.config import setup
from ..detection.data.checked_sets import check_sets_from_config
from ..detection.data.loaders import known_sets, register_sets
from ..detection.dump_proposals import dump_proposals
from ..detection.initial_weights import apply_preset
from ..detection.train import load_to_evaluate
from ..engine.launch import launch
from ..engine.logs import start_log
from .arguments import TRUST_PICKLE, at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/dump_proposals.py``."""
    parser = argparse.ArgumentParser(
        description="Write the boxes that an RPN proposes, for Fast R-CNN to train on (MODEL.LOAD_PROPOSALS)."
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML configuration of the RPN")
    parser.add_argument(
        "--dataset", action="append", metavar="NAME", help="a set, may be repeated; default DATASETS.TRAIN and TEST"
    )
    parser.add_argument("--output", metavar="FOLDER", help="where NAME.pkl goes; default OUTPUT_DIR/proposals")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("--num-gpus", type=at_least(0), default=1, help="processes: one per GPU, or on the CPU")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="settings over those of the file; MODEL.WEIGHTS defaults to the newest checkpoint in OUTPUT_DIR",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cfg = setup(args.config_file, args.opts)
    given = "MODEL.WEIGHTS" in args.opts[::2]
    launch(
        _run,
        (cfg, args.dataset, args.output, given, args.trust_pickle),
        processes=args.num_gpus,
        device=cfg.MODEL.DEVICE,
    )


def _run(
    cfg: CfgNode, names: Sequence[str] | None, folder: str | None, weights_given: bool, trust_pickle: bool
) -> None:
    register_sets(cfg.DATASETS.REGISTER)
    names = names or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    known_sets(names, "TRAIN and TEST")
    start_log(cfg.OUTPUT_DIR)
    sets = check_sets_from_config(cfg, training=True)
    cfg = apply_preset(cfg, trust_pickle=trust_pickle)
    model = build_model(cfg)
    load_to_evaluate(cfg, model, newest=not weights_given, trust_pickle=trust_pickle)
    dump_proposals(cfg, model, names, folder or os.path.join(cfg.OUTPUT_DIR, "proposals"), sets=sets)
