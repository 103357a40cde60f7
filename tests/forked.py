"""Commands in forks of this process, which has imported everything: a start costs milliseconds and not seconds."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import resnext_det.classification.train
import resnext_det.detection.train  # noqa: F401 (what commands import is imported before the fork)
from resnext_det import cli
from resnext_det.engine import exits

PATIENCE = 300.0
"""Seconds after which a process hangs."""


def start(
    words: Sequence[object],
    log: Path,
    before: Callable[[], object] = bool,
    *,
    errors: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Fork a process, in a group of its own, that runs a command as a shell would; returns its id.

    Args:
        words: of a command of the package, or a script's path and its arguments.
        log: gets its output, and its errors too unless ``errors`` is given.
        before: called in it, before the command.
        folder, environment: it works there, with these variables beside the present ones.
    """
    ready, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        return pid
    code = 1
    try:
        os.setsid()
        for stream, path in ((1, log), (2, errors or log)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
        logging.root.handlers.clear()  # pytest's
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.dump_traceback_later(PATIENCE - 20, file=sys.stderr)
        os.chdir(folder or ".")
        os.environ.update(environment or {})
        name, *arguments = map(str, words)
        script = name.endswith(".py")
        sys.argv = [name if script else f"resnext-det {name}", *arguments]
        before()

        def main() -> None:
            os.close(told)
            cli.call(name, arguments)

        if script:
            os.close(told)
            runpy.run_path(name, run_name="__main__")
        else:
            exits.run(main)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float = PATIENCE) -> int:
    """Exit code, negative for a signal; a process that does not end is a failure."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"no end after {seconds} s")
        time.sleep(0.005)


def group_is_empty(pid: int, seconds: float = 20) -> bool:
    """Whether no process of the group of ``pid`` is left, or none after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def call(*words: object, **options: object) -> CompletedProcess:
    """What ``subprocess.run(..., text=True)`` gives of a command, which :func:`start` starts."""
    with tempfile.TemporaryDirectory() as temporary:
        out, errors = Path(temporary, "out"), Path(temporary, "errors")
        code = wait(start(words, out, errors=errors, **options))
        return CompletedProcess(words, code, out.read_text("utf-8"), errors.read_text("utf-8"))
