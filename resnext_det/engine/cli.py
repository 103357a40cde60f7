"""The command line: detectron2's flags, and exit codes that tell a user's mistake from ours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ..errors import UserError

EXIT_OK = 0
EXIT_USER_ERROR = 2
"""Something the user can mend; argparse leaves with the same code."""


def run(main: Callable[[], object]) -> None:
    """Call ``main`` as a command: a :class:`UserError` becomes one line on stderr and exit code 2, no traceback."""
    try:
        main()
    except UserError as error:
        exit_with(error)
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's code for Ctrl-C
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_with(error: UserError) -> None:
    """Print the error on one line and leave with exit code 2."""
    print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


def training_parser(description: str) -> argparse.ArgumentParser:
    """A parser with detectron2's flags, shared by ``train_net.py`` and ``pretrain.py``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="YAML: a path, or one of the package's own"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--init-from", metavar="FILE", help="start a new run from these weights (MODEL.WEIGHTS)")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument("--trust-pickle", action="store_true", help="open weights even if that can run code from them")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine: one per GPU, or on the CPU")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in this run")
    parser.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--dist-url", default="auto", help="where processes meet, tcp://HOST:PORT; auto on one machine")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    return parser


def parse_training_arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse ``argv`` with :func:`training_parser` and turn ``--init-from`` into its key.

    Raises:
        UserError: flags that contradict each other.
    """
    args = training_parser(description).parse_args(argv)
    if args.resume and args.init_from:
        raise UserError("--resume goes on with a run and --init-from starts a new one: give one of them")
    if args.init_from:
        args.opts = ["MODEL.WEIGHTS", args.init_from, *args.opts]
    return args
