"""What an exception of torch means for the user: its data workers and process groups report in their own words."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback

from ..errors import RunFailed, UserError
from ..files import shown

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, over quota, over the size limit of files."""

_SHORTAGES = {
    "out of memory; take smaller images, a smaller network or a smaller batch (in a training SOLVER.ACCUMULATE shares "
    "one out over several passes)": re.compile(
        r"can't allocate memory|[Cc]annot allocate memory|bad_alloc|bad allocation|could not create a primitive"
        r"|failed to map segment|[Uu]nable to allocate|out of memory|mmap length is greater|OutOfMemory"
    ),
    "too many open files; raise the limit (ulimit -n 4096), or lower DATALOADER.NUM_WORKERS": re.compile(
        r"Too many open files|received 0 items of ancdata"
    ),
    "too little shared memory; enlarge /dev/shm (docker: --shm-size=8g), or set DATALOADER.NUM_WORKERS 0": re.compile(
        rf"shared memory\(shm\)|/torch_\d+_|Bus error|/dev/shm|exit code {errno.ENOSPC}\b"
    ),
    "no more processes or threads may start; raise the limit (ulimit -u), or lower OMP_NUM_THREADS and "
    "DATALOADER.NUM_WORKERS": re.compile(
        r"can't start new thread|Resource temporarily unavailable|pthread_create|Thread creation failed"
        rf"|exit code {errno.EAGAIN}\b"
    ),
}
"""What there is too little of, with the fix, and the words in which libraries say so."""

PLACES = {
    errno.EACCES: "give permission, or name another place",
    errno.EPERM: "give permission, or name another place",
    errno.EROFS: "name another place",
    errno.ENOTDIR: "a part of it is a file; name another place",
    errno.EISDIR: "it is a folder; name a file, or remove it",
    errno.EEXIST: "it is a file; name another folder, or remove it",
    errno.ENOENT: "correct the path",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "its links lead in a circle; name another place",
}
"""What the file system says of a path, and the fix."""

_LOST = re.compile(
    # gloo's pairs: "[.../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
    r"gloo/transport/\w+/\w+\.(cc|h):\d+\] .*("
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Connection timed out|Connection refused|"
    r"Timed out waiting \d+ms for (send|recv) operation|Application timeout caused pair closure)"
    # NCCL names the remote side with this code
    r"|ncclRemoteError|NCCL communicator was aborted|remote process has exited or there was a network error"
    # the store through which processes meet
    r"|failed to recv, got 0 bytes|(sendBytes|recvBytes|sendValue|recvValue\w*) failed on SocketImpl"
)
"""What torch says when another process of the run is gone."""


def _shortage(error: BaseException, text: str) -> str:
    """One of :data:`_SHORTAGES`; "" for another error."""
    memory, files, shared, threads = _SHORTAGES
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return memory
    if isinstance(error, SystemError) and "_find_and_load" in text:  # Python's own, of an import that finds no memory
        return memory
    if isinstance(error, OSError) and error.errno is not None:  # its text may hold any path
        numbers = {errno.ENOMEM: memory, errno.EMFILE: files, errno.ENFILE: files, errno.EAGAIN: threads}
        if error.errno in FULL and ("/torch_" in text or _makes_a_semaphore(error)):
            return shared
        return numbers.get(error.errno, "")
    if not isinstance(error, RuntimeError | OSError | ImportError):
        return ""
    return next((told for told in (shared, memory, files, threads) if _SHORTAGES[told].search(text)), "")


def _makes_a_semaphore(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith(os.path.join("multiprocessing", "synchronize.py")) for frame in frames)


def cause_of(error: BaseException) -> BaseException:
    """The :class:`UserError` or :class:`RunFailed` that ``error`` stands for, or ``error`` itself."""
    if isinstance(error, RunFailed):  # reported already, in words that would match again
        return error
    text = " ".join(str(error).split())
    if isinstance(error, UserError) and text.startswith("Caught"):  # raised in a data worker: its traceback comes along
        return UserError(text.rpartition(f"{type(error).__name__}: ")[2])
    if text.startswith("Caught"):
        text = str(error).strip().rpartition("\n")[2]
    if isinstance(error.__cause__, RuntimeError) and text.startswith("DataLoader worker"):
        text = str(error.__cause__)  # the same with the exit code
    if shortage := _shortage(error, text):
        return UserError(f"{shortage} ({shown(text)})" if text else shortage)
    if isinstance(error, OSError) and error.errno in FULL:
        return UserError(f"{error}; free some space and run it again (a training: with --resume)")
    if isinstance(error, OSError) and error.filename is not None and error.errno in PLACES:
        path = error.filename2 or error.filename  # of two, the one that was to be made
        return UserError(f"{os.fsdecode(path)}: {(error.strerror or '').lower()}; {PLACES[error.errno]}")
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return UserError(
            f"DETERMINISTIC True: {text.split(' does not')[0]} cannot be; set DETERMINISTIC False, or in a C4 detector "
            "MODEL.RESNEXT.FAST_C4 True"
        )
    if isinstance(error, ValueError) and text.startswith("Expected more than 1 value per channel when training"):
        return UserError(
            f"batch norm: one value per channel has no variance ({text.rpartition('got input size ')[2]}); take larger "
            "images, or more of them in each process and part (SOLVER.IMS_PER_BATCH, SOLVER.ACCUMULATE)"
        )
    if isinstance(error, KeyError) and text.endswith(' registry!"'):  # fvcore's, quoted as every KeyError
        return UserError(f"config: {error.args[0]} Correct the name, or import the module that registers it")
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return RunFailed(
            f"a data worker died ({text[:200]}); too little memory or /dev/shm is the usual cause: lower "
            "DATALOADER.NUM_WORKERS and continue with --resume"
        )
    dist = sys.modules.get("torch.distributed")  # this module serves commands that need no torch
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        return error
    if isinstance(error, RuntimeError) and _LOST.search(text):
        return RunFailed(
            f"process {dist.get_rank()} lost another process of the run ({text[:200]}); that one's log names the "
            "cause; continue with --resume"
        )
    return error
