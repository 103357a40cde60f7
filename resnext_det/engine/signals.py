"""SIGTERM and SIGUSR1, with which schedulers and spot machines announce the end, stop a run between two steps.

They may come twice, and to all: a scheduler signals every process of a job, launcher and data workers too, and the
launcher passes on what it gets.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

ECHO = 5.0
"""Seconds in which a second stopping signal counts as the first one, arriving by another way."""


class Stopped(Exception):
    """A signal has ended the run after its state was saved: the same command with ``--resume`` continues."""


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
    """A handler that notes the first stopping signal; one that comes :data:`ECHO` later ends the process at once.

    Attributes:
        signal: its number, 0 for none so far.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._time = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def die_with_parent() -> None:
    """Let SIGKILL end this process as soon as the thread that has started it ends; on Linux, elsewhere nothing."""
    parent = multiprocessing.parent_process()
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent.pid:  # it was faster
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_stopping_signals(worker: int = 0) -> None:
    """The ``worker_init_fn`` of data loaders: only its own parent's signal, or its end, ends a worker.

    The last step needs its data, so a worker must not die of the signal that asks the run to stop. Nor of Ctrl-C, which
    a terminal sends to all: the run would report a dead worker and not the interruption.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):  # macOS has no way to see who sent a signal
        return

    def wait() -> None:
        while signal.sigwaitinfo(STOPPING).si_pid != parent.pid:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=wait, daemon=True).start()
