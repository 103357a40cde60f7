"""SIGTERM and SIGUSR1, with which schedulers and spot machines announce the end, stop a run between two steps.

They may come twice, and to all: a scheduler signals every process of a job, launcher and data workers too, and the
launcher passes on what it gets.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing.queues
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

PARENT = "RESNEXT_DET_PARENT"
"""Environment variable with the number of the process that has started a command."""

GRACE = 60.0
"""Seconds in which a training that was asked to stop finishes its step and saves."""

ECHO = 5.0
"""Seconds in which a second stopping signal counts as the first one, arriving by another way."""


class Stopped(Exception):
    """A signal has ended the run after its state was saved: the same command with ``--resume`` continues."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing else takes it: what is half done is cleaned up, as after Ctrl-C."""


@contextmanager
def cleaning_up_on_sigterm() -> Iterator[None]:
    """While the block runs, SIGTERM raises :class:`Terminated`; a second one ends the process at once."""

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated("ended by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def command_line(*words: str) -> list[str]:
    """A command of this package, for :mod:`subprocess`: it needs no clone."""
    return [sys.executable, "-m", "resnext_det.cli", *words]


def start_command(line: Sequence[str], **options: Any) -> subprocess.Popen:
    """Start a command of this package as a process that gets SIGTERM when this one ends, however it does."""
    return subprocess.Popen(line, env={**os.environ, PARENT: str(os.getpid())}, **options)


def run_command(line: Sequence[str], seconds: float | None = None, **options: Any) -> int:
    """The exit code of a command of this package, which ends before this function does.

    Raises:
        subprocess.TimeoutExpired: it was ended after ``seconds``.
    """
    child = start_command(line, **options)
    try:
        return child.wait(seconds)
    finally:
        end_command(child)


def end_command(*children: subprocess.Popen, seconds: float = GRACE) -> None:
    """SIGTERM, with which trainings save, and SIGKILL after ``seconds``; nothing where it has ended.

    One signal for each: a second one could reach a process that is already leaving, and change how it ends.
    """
    for child in children:
        if child.poll() is None:
            child.terminate()
    end = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:  # its last checkpoint is whole
            child.kill()
            child.wait()


def die_with_parent() -> None:
    """Let this process end as soon as the thread that has started it ends; on Linux, elsewhere nothing.

    A worker by SIGKILL, a command of :func:`start_command` by SIGTERM; one that nobody of ours has started never.
    """
    parent = multiprocessing.parent_process()
    number, pid = (signal.SIGTERM, os.environ.pop(PARENT, "")) if parent is None else (signal.SIGKILL, parent.pid)
    if not pid or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
    if str(os.getppid()) != str(pid):  # it was faster
        os.kill(os.getpid(), number)


def begin_worker(worker: int = 0) -> None:
    """The ``worker_init_fn`` of data loaders: a worker that cannot send a batch ends.

    By default it prints a traceback, and the batch is waited for in vain.
    """
    queue: Any = multiprocessing.queues.Queue  # of which the worker's own is one already
    start_thread = queue._start_thread

    def start_or_end(self: multiprocessing.queues.Queue) -> None:
        try:
            start_thread(self)
        except RuntimeError as error:
            _end_with(error)

    queue._start_thread, queue._on_queue_feeder_error = start_or_end, staticmethod(_end_with)
    outlive_stopping_signals()


def _end_with(error: Exception, batch: object = None) -> None:
    """End with a number that :mod:`.causes` knows."""
    shortages = {"shared memory": errno.ENOSPC, "start new thread": errno.EAGAIN}
    code = next((number for words, number in shortages.items() if words in str(error)), 1)
    os._exit(getattr(error, "errno", None) or code)


def outlive_stopping_signals() -> None:
    """Only its own parent's signal, or its end, ends a data worker.

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
    try:
        threading.Thread(target=wait, daemon=True).start()
    except RuntimeError:  # too many: the parent's signal must still end this worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        raise
