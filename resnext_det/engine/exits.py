"""The command line: detectron2's flags, and exit codes that tell a user's mistake from ours."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

from ..errors import RunFailed, UserError
from ..files import shown
from .causes import cause_of
from .signals import Stopped, Terminated, cleaning_up_on_sigterm, die_with_parent

EXIT_OK = 0
EXIT_FAILED = 1
"""A process of the run died (or a bug of ours, with a traceback)."""
EXIT_USER_ERROR = 2
"""Something the user can fix; argparse leaves with the same code."""
EXIT_STOPPED = 75
"""Stopped by a signal, everything saved: the same command with --resume continues. (EX_TEMPFAIL of sysexits.h.)"""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as a shell reports it."""
EXIT_TERMINATED = 143
"""SIGTERM, as a shell reports it, where nothing was to be saved."""
EXIT_PIPE = 141
"""The reader of our output, such as `head`, has left; as a shell reports a program that dies of it."""


def run(main: Callable[[], object]) -> None:
    """Call ``main`` as a command: what ends it with a known cause becomes one line on stderr and an exit code."""
    logging.raiseExceptions = False  # a disk that is full when a line is logged is told once, at the end
    die_with_parent()
    try:
        with cleaning_up_on_sigterm():
            main()
        sys.stdout.flush()
    except SystemExit:
        _can_print()
        raise
    except (Exception, KeyboardInterrupt) as error:
        can_print = _can_print()
        if isinstance(error, BrokenPipeError) and (not can_print or _reader_left(sys.stdout)):
            _silence(sys.stdout)
            sys.exit(EXIT_PIPE)
        cause = cause_of(error)
        code = exit_code(cause)
        if code is None:
            raise
        sys.unraisablehook = lambda unraisable: None  # what falls over this on the way out, as half-made loaders do
        exit_with(cause, code)


def _can_print() -> bool:
    """Whether stdout takes what was printed; where it does not, it is silenced, or Python changes the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
        return False
    return True


def _reader_left(stream: TextIO) -> bool:
    """Whether ``stream`` is a pipe that nobody reads; a broken pipe may also be another process of the run."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that needs no traceback; None for one that does."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    if isinstance(error, Stopped):
        return EXIT_STOPPED
    if isinstance(error, RunFailed):
        return EXIT_FAILED
    if isinstance(error, Terminated):
        return EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return None


def exit_with(error: BaseException, code: int = EXIT_USER_ERROR) -> None:
    """Print the error on one line, whatever names from data it holds, and leave."""
    text = shown(" ".join(str(error).split()), limit=4000)
    if isinstance(error, KeyboardInterrupt):
        text = text or "interrupted"
    if text:
        try:
            told = text if isinstance(error, Stopped | KeyboardInterrupt) else f"error: {text}"
            print(told, file=sys.stderr, flush=True)
        except OSError:  # the code says it
            _silence(sys.stderr)
    sys.exit(code)
