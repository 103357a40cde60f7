"""``resnext-det pretrain``: train a classifier, or evaluate one."""

from __future__ import annotations

from collections.abc import Sequence

from .arguments import parse_training_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: parse the flags, read the config, run in as many processes as asked for.

    Slow imports come behind the flags: ``--help`` answers at once.
    """
    args = parse_training_arguments("Train a classifier of the family, or evaluate one.", argv)
    from ..classification.config import check_config, get_config
    from ..classification.replay import replay
    from ..classification.train import run
    from ..engine.config import load_config
    from ..engine.launch import start_training

    cfg = load_config(get_config(), args.config_file, args.opts)
    check_config(cfg)
    cfg.freeze()
    start_training(args, cfg, run, replay)
