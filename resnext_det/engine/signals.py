"""SIGTERM and SIGUSR1, with which schedulers and spot machines announce the end, stop a run between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """A signal has ended the run after its state was saved: the same command with ``--resume`` goes on."""


@contextmanager
def on_stopping_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While the block runs, ``handler`` takes the stopping signals; elsewhere than in the main thread nothing does."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other to set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopRequest:
    """A handler that notes the first stopping signal; a second one ends the process at once.

    Attributes:
        signal: its number, 0 for none so far.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
