"""Flags that several commands share: detectron2's, and ranges of numbers."""

from __future__ import annotations

import argparse
import operator
import os
from collections.abc import Callable, Sequence

from ..errors import UserError
from ..files import shown

TRUST_PICKLE = "open weights even if that can run code from them"
"""Help of the flag --trust-pickle, which every tool that opens weights has."""


def at_least(smallest: int) -> Callable[[str], int]:
    """The ``type`` of a flag that is a whole number from ``smallest`` to the largest that torch counts with."""

    def number(text: str) -> int:
        value = int(text)
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be at least {smallest}")
        if value >= 1 << 31:
            raise argparse.ArgumentTypeError(f"{shown(text)}: must be below {1 << 31}")
        return value

    return number


def real(**bounds: float) -> Callable[[str], float]:
    """The ``type`` of a flag that is a finite number: ``above``, ``at_least``, ``at_most`` and ``below`` bound it."""
    holds = {"above": operator.gt, "at_least": operator.ge, "at_most": operator.le, "below": operator.lt}
    words = " and ".join(f"{name.replace('_', ' ')} {bound:g}" for name, bound in bounds.items())

    def number(text: str) -> float:
        value = float(text)
        if not abs(value) < 1 << 31 or not all(holds[name](value, bound) for name, bound in bounds.items()):
            raise argparse.ArgumentTypeError(f"{shown(text)}: give a number {words}")
        return value

    return number


def add_output_dir(parser: argparse.ArgumentParser) -> None:
    """The flag ``--output-dir`` of commands that look at a set."""
    text = "a run's folder, or any: its cache keeps what this finds for the next time, while the files are the same"
    parser.add_argument("--output-dir", metavar="FOLDER", help=text)


def check_output_dir(folder: str | None) -> None:
    """Raises UserError for what is there and is no folder."""
    if folder is not None and os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output-dir {shown(folder)}: is no folder; name another")


def detector_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of commands that take a trained detector."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", metavar="FILE", help="YAML; by default the one that the weights hold")
    parser.add_argument("--weights", metavar="FILE", help="of a trained detector, or its OUTPUT_DIR (MODEL.WEIGHTS)")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    return parser


def training_parser(description: str) -> argparse.ArgumentParser:
    """A parser with detectron2's flags and a few more, shared by ``train_net.py`` and ``pretrain.py``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", metavar="FILE", help="YAML: a path, or one of the package's own")
    parser.add_argument("--replay", metavar="DUMP", help="run the step again that wrote OUTPUT_DIR/dump_NNNNNNN")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--init-from", metavar="FILE", help="start a new run from these weights (MODEL.WEIGHTS)")
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS (with --resume the last checkpoint), do not train",
    )
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument(
        "--num-gpus", type=at_least(0), default=1, help="processes on this machine: one per GPU, or on the CPU"
    )
    parser.add_argument("--num-machines", type=at_least(1), default=1, help="machines in this run")
    parser.add_argument("--machine-rank", type=at_least(0), default=0, help="which of them this is, from 0")
    parser.add_argument("--dist-url", default="auto", help="where processes meet, tcp://HOST:PORT; auto on one machine")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    return parser


def parse_training_arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse ``argv`` with :func:`training_parser` and turn ``--init-from`` into its key.

    With ``--replay`` the configuration is the dump's own if no other is given.

    Raises:
        UserError: flags that contradict each other, or no configuration.
    """
    args = training_parser(description).parse_args(argv)
    if not args.config_file and args.replay:
        folder = args.replay if os.path.isdir(args.replay) else os.path.dirname(args.replay)
        args.config_file = os.path.join(folder, "config.yaml")
    if not args.config_file:
        raise UserError("--config-file is missing: give a YAML configuration, such as one of configs/")
    if args.machine_rank >= args.num_machines:
        raise UserError(f"--machine-rank {args.machine_rank}: of {args.num_machines} machines, counted from 0")
    if args.resume and args.init_from:
        raise UserError("--resume continues a run and --init-from starts a new one: give one of them")
    if args.init_from:
        args.opts = ["MODEL.WEIGHTS", args.init_from, *args.opts]
    return args
