"""The command line: detectron2's flags, and exit codes that tell a user's mistake from ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ..errors import RunFailed, UserError
from .causes import cause_of
from .signals import Stopped

EXIT_OK = 0
EXIT_FAILED = 1
"""A process of the run died (or a bug of ours, with a traceback)."""
EXIT_USER_ERROR = 2
"""Something the user can fix; argparse leaves with the same code."""
EXIT_STOPPED = 75
"""Stopped by a signal, everything saved: the same command with --resume goes on. (EX_TEMPFAIL of sysexits.h.)"""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as a shell reports it."""


def run(main: Callable[[], object]) -> None:
    """Call ``main`` as a command: what ends it with a known cause becomes one line on stderr and an exit code."""
    try:
        main()
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        cause = cause_of(error)
        code = exit_code(cause)
        if code is None:
            raise
        exit_with(cause, code)


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that needs no traceback; None for one that does."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    if isinstance(error, Stopped):
        return EXIT_STOPPED
    if isinstance(error, RunFailed):
        return EXIT_FAILED
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return None


def exit_with(error: BaseException, code: int = EXIT_USER_ERROR) -> None:
    """Print the error on one line and leave."""
    text = " ".join(str(error).split())
    if text:
        print(text if isinstance(error, Stopped) else f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
