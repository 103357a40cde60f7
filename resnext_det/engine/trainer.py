"""The training loop of both trainings: detectron2's trainer, plus precision, accumulation and repeatable randomness."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from fvcore.common.checkpoint import PeriodicCheckpointer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .checkpoint import RunCheckpointer
from .sampler import seed_everything

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer(SimpleTrainer):
    """One optimiser step per iteration over ``accumulate`` batches.

    The random choices of step i (which proposals are sampled, ...) depend on (seed, i, rank) alone, so a resumed run
    repeats an uninterrupted one without saving any generator's state.

    Args:
        model: in train mode returns {name: scalar loss} or one scalar loss for a batch.
        optimizer: of the model's parameters.
        seed: of the run.
        precision: "fp32", or "bf16" / "fp16" for autocast; fp16 scales the loss.
        accumulate: batches whose gradients are averaged in one step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: str = "fp32",
        accumulate: int = 1,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        super().__init__(model, (), optimizer)  # the data comes by `set_data_loader`
        self.seed, self.accumulate = seed, accumulate
        self.device_type = next(model.parameters()).device.type
        self.autocast_dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "fp16")

    def set_data_loader(self, data_loader: Iterable) -> None:
        """Read batches from ``data_loader`` from now on: where to begin is known only once a checkpoint was read."""
        self.data_loader = data_loader
        self._batches = iter(data_loader)

    def run_step(self) -> None:
        self.optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for part in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._batches)
            data_time += time.perf_counter() - start
            seed_everything((self.seed, self.iter, part, comm.get_rank()))
            with self._gradient_exchange(last=part == self.accumulate - 1):
                with torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    out = self.model(data)
                out = {"total_loss": out} if isinstance(out, torch.Tensor) else out
                self.scaler.scale(sum(out.values()) / self.accumulate).backward()
            for name, loss in out.items():
                losses[name] = losses.get(name, 0) + loss.detach() / self.accumulate
        self._write_metrics(losses, data_time)  # raises on NaN, before the weights are touched
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _gradient_exchange(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once per step, in its last backward pass."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self.scaler.state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]
        self.scaler.load_state_dict(state_dict["scaler"])


def wrap_distributed(model: nn.Module) -> nn.Module:
    """DistributedDataParallel where the run has several processes; the model itself otherwise."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    # Every process starts from rank 0's weights; batch-norm statistics stay each process's own, as in detectron2.
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )


def standard_hooks(
    optimizer: torch.optim.Optimizer,
    scheduler,
    checkpointer: RunCheckpointer,
    *,
    checkpoint_period: int,
    keep_checkpoints: int | None = None,
) -> list[HookBase]:
    """Timing, learning rate and checkpoints; evaluation and :func:`writers` go behind them."""
    made: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler(optimizer, scheduler)]
    if comm.is_main_process():
        made.append(_Checkpoints(checkpointer, checkpoint_period, max_to_keep=keep_checkpoints))
    return made


class _Checkpoints(PeriodicCheckpointer, HookBase):
    """Saves every ``period`` iterations and after the last one, as ``model_final``."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


def writers(folder: str, max_iter: int, period: int = 20) -> list[HookBase]:
    """Terminal (losses, time left, speed), ``metrics.json`` and TensorBoard, on the main process."""
    if not comm.is_main_process():
        return []
    sinks = [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(folder, "metrics.json")),
        TensorboardXWriter(folder),
    ]
    return [hooks.PeriodicWriter(sinks, period=period)]


def start_log(folder: str) -> None:
    """Log to the terminal and to ``folder/log.txt``; other processes than the first only to their own files."""
    if comm.is_main_process():
        os.makedirs(folder, exist_ok=True)
    comm.synchronize()
    for name, short in (("resnext_det", "resnext_det"), ("detectron2", "d2"), ("fvcore", "fvcore")):
        setup_logger(folder, distributed_rank=comm.get_rank(), name=name, abbrev_name=short)


def choose_seed(seed: int) -> int:
    """``seed`` itself, or, where it is negative, a random one that all processes share."""
    return seed if seed >= 0 else comm.shared_random_seed() % 2**31


def weak(trainer: Trainer):
    """The trainer as a checkpointable: the checkpointer must not keep it alive."""
    return weakref.proxy(trainer)
