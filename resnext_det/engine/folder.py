"""The folder of a run: one run at a time writes there, and a new run archives all of an earlier one."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError
from ..files import RESULTS_FILE, sweep
from .logs import archive_log
from .processes import decided_by_main

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
RESULTS = ("model_*.pth", "last_checkpoint", "evaluations.jsonl", "metrics.json", RESULTS_FILE)
"""Files by which the folder of an earlier run is known."""
TRACKER_FILE = "tracker.json"
"""The ids of its runs in experiment trackers."""
BESIDE = ("config.yaml", TRACKER_FILE, "events.out.tfevents.*")
FOLDERS = ("inference", "dump_*")
"""What else belongs to it; of the log, what was written before this run."""


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """While the block runs, no other run may write to ``folder``; the main process holds the lock.

    The system lets go of it when the process ends, however that is.

    Raises:
        UserError: another run is writing there.
    """
    held = []
    decided_by_main(lambda: held.append(_lock(Path(folder))))
    try:
        yield
    finally:
        for handle in held:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not: data workers have copies of it
            os.close(handle)


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        raise UserError(
            f"OUTPUT_DIR {folder}: another run is writing there ({holder or 'unknown'}); wait for it, or name another "
            "OUTPUT_DIR"
        ) from None
    except OSError:  # a file system without locks
        logger.warning("%s: its file system has no locks, so nothing keeps a second run out", folder)
        return handle
    for earlier in folder.glob("earlier_run_*"):  # it may have been killed while it moved a log
        sweep(earlier)
    os.truncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return handle


def archive(folder: str | os.PathLike) -> Path | None:
    """Move all files of an earlier run into a folder ``earlier_run_N``: a new run starts clean.

    Returns:
        That folder; None where there was nothing.
    """
    folder = Path(folder)
    old = [path for pattern in RESULTS for path in folder.glob(pattern) if path.is_file()]
    if not old:
        return None
    old += [path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()]
    old += [path for pattern in FOLDERS for path in folder.glob(pattern) if path.is_dir()]
    target = next(t for n in itertools.count(1) if not (t := folder / f"earlier_run_{n}").exists())
    target.mkdir()
    for path in old:
        os.replace(path, target / path.name)
    archive_log(folder, target)
    checkpoints = sum(path.suffix == ".pth" for path in old)
    logger.warning(
        f"{folder} held an earlier run with {checkpoints} checkpoints; all of it is in {target} now (--resume would "
        "have resumed it)"
    )
    return target
