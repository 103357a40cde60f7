"""``resnext-det proposals``: write the boxes that an RPN proposes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
    from ..detection.config import setup
    from ..detection.dump_proposals import run
    from ..engine.launch import launch

    cfg = setup(args.config_file, args.opts)
    given = "MODEL.WEIGHTS" in args.opts[::2]
    launch(
        run,
        (cfg, args.dataset, args.output, given, args.trust_pickle),
        processes=args.num_gpus,
        device=cfg.MODEL.DEVICE,
    )
