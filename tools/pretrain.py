"""Train a classifier of the family, or evaluate one: python tools/pretrain.py --config-file configs/imagenet/...yaml"""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnext_det.classification.config import check_config, get_config
from resnext_det.classification.train import evaluate_only, train
from resnext_det.engine.cli import parse_training_arguments, run
from resnext_det.engine.config import load_config
from resnext_det.engine.launch import launch


def work(cfg: CfgNode, resume: bool, eval_only: bool, trust_pickle: bool) -> None:
    """What every process of the run does."""
    if eval_only:
        evaluate_only(cfg, trust_pickle)
    else:
        train(cfg, resume, trust_pickle)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_training_arguments(__doc__, argv)
    cfg = load_config(get_config(), args.config_file, args.opts)
    check_config(cfg)
    cfg.freeze()
    launch(
        work,
        (cfg, args.resume, args.eval_only, args.trust_pickle),
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
        device=cfg.MODEL.DEVICE,
    )


if __name__ == "__main__":
    run(main)
