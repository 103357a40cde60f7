"""``resnext-det train``: train, resume and evaluate a detector."""

from __future__ import annotations

from collections.abc import Sequence

from .arguments import parse_training_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: parse the flags, read the config, run in as many processes as asked for.

    Slow imports come behind the flags: ``--help`` answers at once.
    """
    args = parse_training_arguments("Train and evaluate a detector.", argv)
    from ..detection.config import setup
    from ..detection.replay import replay
    from ..detection.train import run
    from ..engine.launch import start_training

    cfg = setup(args.config_file, args.opts)
    start_training(args, cfg, run, replay)
