"""The log of a run: terminal and file."""

from __future__ import annotations

import inspect
import logging
import os

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..files import atomic_write
from .processes import decided_by_main

LOG = "log.txt"
_handlers: list[tuple[logging.Logger, logging.Handler]] = []  # of the run that this process logs for


_begun: dict[str, int] = {}  # bytes that log.txt held before this run


def start_log(folder: str) -> None:
    """Log to the terminal and to ``folder/log.txt``; other processes than the first only to their own files.

    What an earlier run in this process has opened is closed: every line stands once, in the file of its own run.
    """
    decided_by_main(lambda: os.makedirs(folder, exist_ok=True))
    log = os.path.join(folder, LOG)
    _begun[os.path.realpath(folder)] = os.path.getsize(log) if os.path.isfile(log) else 0
    while _handlers:
        owner, handler = _handlers.pop()
        owner.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    for name, short in (("resnext_det", "resnext_det"), ("detectron2", "d2"), ("fvcore", "fvcore")):
        owner = logging.getLogger(name)
        before = list(owner.handlers)
        # Unwrapped: its cache would open nothing for a folder that was logged to before.
        inspect.unwrap(setup_logger)(folder, distributed_rank=comm.get_rank(), name=name, abbrev_name=short)
        _handlers.extend((owner, handler) for handler in owner.handlers if handler not in before)


def archive_log(folder: str | os.PathLike, target: str | os.PathLike) -> None:
    """Move the lines of ``folder/log.txt`` that were there before :func:`start_log` to ``target``."""
    log, begun = os.path.join(folder, LOG), _begun.get(os.path.realpath(folder), 0)
    if not begun or not os.path.isfile(log):
        return
    with open(log, "r+b") as file:  # in place: handlers append to it
        with atomic_write(os.path.join(target, LOG), "wb") as old:
            old.write(file.read(begun))
        ours = file.read()
        file.seek(0)
        file.write(ours)
        file.truncate()
    _begun[os.path.realpath(folder)] = 0
