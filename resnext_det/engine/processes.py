"""What the processes of a run decide and compute together."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import RunFailed, UserError
from .causes import cause_of

logger = logging.getLogger(__name__)

Decision = TypeVar("Decision")
NOTICE = 300.0
"""Seconds between the lines of a process that waits for another."""

FILES_OF_RUN = 128
"""Open files of a run beside those of its workers: libraries, logs, sockets."""


def enough_open_files(workers: int, images: int) -> None:
    """Allow as many open files as the system grants, and refuse to start workers with too few of them.

    Each tensor on its way from a worker is an open file in both processes; where they run out, loading hangs.

    Args:
        workers: processes that load data for this one.
        images: that a worker hands over at a time, each of up to four tensors.

    Raises:
        UserError: the limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    of_worker = 2 * 4 * images  # two batches wait
    if workers and allowed != resource.RLIM_INFINITY and allowed < FILES_OF_RUN + workers * of_worker:
        raise UserError(
            f"DATALOADER.NUM_WORKERS {workers}: at most {allowed} files may be open here, which loading would use up; "
            f"set it to {max(0, (allowed - FILES_OF_RUN) // of_worker)}, or raise the limit (ulimit -n)"
        )


def decided_by_main(decide: Callable[[], Decision]) -> Decision:
    """Call ``decide`` in the main process only, and give its result (which is pickled) to all; the others wait.

    However long it takes: what the others wait for is no collective operation, which the group's timeout would end.

    Raises:
        UserError: in every process, when ``decide`` raises it.
        RunFailed: in the others, when ``decide`` raises anything else, which the main process passes on as it is.
    """
    if comm.get_world_size() == 1:
        return decide()
    box: list = [None, None, None]  # the decision, and what went wrong: its kind and text, since not all can be pickled
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            box[0] = decide()
        except Exception as error:
            cause, failure = cause_of(error), error
            if isinstance(cause, UserError):
                box[1:] = UserError, str(cause)
            elif isinstance(cause, RunFailed):
                box[1:] = RunFailed, str(cause)
            else:
                box[1:] = RunFailed, f"process 0 of {comm.get_world_size()} failed: {type(error).__name__}: {error}"
    _meet_after_work()
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    decided, kind, text = box
    if kind is not None:
        raise kind(text)
    return decided


_meetings = itertools.count()


def _meet_after_work() -> None:
    """Return once the main process has called this too, as often as this one has."""
    store, key = dist.distributed_c10d._get_default_store(), f"resnext_det/decided_{next(_meetings)}"
    if comm.is_main_process():
        return store.set(key, "1")
    begun, pause, spoken = time.monotonic(), 0.001, 0.0
    while not store.check([key]):
        time.sleep(pause)
        pause, waited = min(2 * pause, 0.5), time.monotonic() - begun
        if waited - spoken > NOTICE:
            spoken = waited
            logger.info("waiting for process 0 (its log shows how far it is), %.0f minutes so far", waited / 60)


def wrap_distributed(model: nn.Module) -> nn.Module:
    """DistributedDataParallel where the run has several processes; the model itself otherwise."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **own_buffers())


def own_buffers() -> dict[str, bool]:
    """The argument of DistributedDataParallel by which batch-norm statistics stay each process's own.

    That is detectron2's way as well. Every process starts from rank 0's weights all the same.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    # The older name is deprecated where torch has the newer one.
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
