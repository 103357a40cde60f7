"""What happens around the steps of both trainings: checkpoints, safety, measurements."""

from __future__ import annotations

import logging
import os
from signal import Signals
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from fvcore.common.checkpoint import PeriodicCheckpointer

from .checkpoint import RunCheckpointer
from .dump import dump_folder, summary, write_dump
from .processes import decided_by_main
from .signals import Stopped

logger = logging.getLogger(__name__)


def standard_hooks(
    optimizer: torch.optim.Optimizer,
    scheduler,
    checkpointer: RunCheckpointer,
    *,
    checkpoint_period: int,
    keep_checkpoints: int | None = None,
) -> list[HookBase]:
    """Timing, learning rate and checkpoints; evaluation and :func:`writers` go behind them."""
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(optimizer, scheduler),
        _Checkpoints(checkpointer, checkpoint_period, max_to_keep=keep_checkpoints),
        Safety(checkpointer),
    ]


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Learning rate, weight decay, ... of each group of parameters, for :func:`settle`."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def settle(optimizer: torch.optim.Optimizer, scheduler: LRMultiplier, settings: list[dict[str, Any]]) -> None:
    """After a resume, put the config's settings over those that the checkpoint has brought; a change is logged.

    Args:
        settings: :func:`settings_of` the optimizer, taken after the scheduler was made and before the resume.
    """
    changed = {}
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        for key, value in own.items():
            if key != "lr" and group.get(key) != value:  # "lr" is "initial_lr" times the schedule, below
                changed[key] = f"{key} {group.get(key)} -> {value}"
                group[key] = value
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
        group["lr"] = rate
    if changed:
        logger.warning("the config is not what the run had: %s", "; ".join(changed.values()))


class _Checkpoints(PeriodicCheckpointer, HookBase):
    """Saves every ``period`` iterations and after the last one, as ``model_final``: the main process, for all."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter
        decided_by_main(self._clear_up)

    def _clear_up(self) -> None:
        self.checkpointer.remove_parts()
        if self.trainer.start_iter == 0:
            self.checkpointer.set_aside()
        self.recent_checkpoints = self.checkpointer.periodic_checkpoints()  # those that the run has left so far

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.max_iter:
            decided_by_main(lambda: self.step(self.trainer.iter))


class Safety(HookBase):
    """Dumps a step that went wrong; saves and leaves after a stopping signal."""

    def __init__(self, checkpointer: RunCheckpointer) -> None:
        self.checkpointer = checkpointer

    def before_train(self) -> None:
        self.trainer.on_bad_step = self.dump

    def dump(self, reason: str, parts: list[dict[str, torch.Tensor]]) -> str:
        """Write this process' share of the dump; returns the message that ends the run."""
        trainer = self.trainer
        describe = getattr(trainer.data_loader, "describe", None)
        numbers = [trainer.iter * trainer.accumulate + part for part in range(trainer.accumulate)]
        facts = {
            "reason": reason,
            "iteration": trainer.iter,
            "seed": trainer.seed,
            "process": comm.get_rank(),
            "processes": comm.get_world_size(),
            "accumulate": trainer.accumulate,
            "precision": trainer.precision,
            "loss_scale": trainer.scaler.get_scale(),
            "learning_rate": [group["lr"] for group in trainer.optimizer.param_groups],
            "losses": [{name: loss.item() for name, loss in part.items()} for part in parts],
            "gradient_norms": trainer.gradient_norms(),
            "batches": [{"batch": n, "samples": describe(n) if describe else []} for n in numbers],
        }
        facts["learning_rate"] = sorted(set(facts["learning_rate"]))
        folder = dump_folder(self.checkpointer.save_dir, trainer.iter)
        write_dump(folder, comm.get_rank(), facts, self.checkpointer.model)
        comm.synchronize()
        return (
            f"{reason}: {summary(facts)}; dumped to {folder}, lower SOLVER.BASE_LR or look at these images "
            f"(the same tool with --replay {folder} runs the step again)"
        )

    def after_step(self) -> None:
        trainer = self.trainer
        if not trainer.stop_signal or trainer.iter + 1 == trainer.max_iter:  # the last step is saved in any case
            return
        name = f"model_{trainer.iter:07d}"
        decided_by_main(lambda: self.checkpointer.save(name, iteration=trainer.iter))
        raise Stopped(
            f"stopped by {Signals(trainer.stop_signal).name} after iteration {trainer.iter}; saved {name}.pth in "
            f"{self.checkpointer.save_dir}: the same command with --resume goes on with the next"
        )


def writers(folder: str, max_iter: int, period: int = 20) -> list[HookBase]:
    """Terminal (losses, time left, speed), ``metrics.json`` and TensorBoard, on the main process."""
    sinks: list[EventWriter] = []

    def open_files() -> None:
        sinks.append(CommonMetricPrinter(max_iter))
        sinks.append(JSONWriter(os.path.join(folder, "metrics.json")))
        sinks.append(TensorboardXWriter(folder))

    decided_by_main(open_files)
    return [_Writers(sinks, period)]


class _Writers(hooks.PeriodicWriter):
    """detectron2's, with writers in the main process only, whose errors end all."""

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            decided_by_main(super().after_step)

    def after_train(self) -> None:
        decided_by_main(super().after_train)

    def after_failure(self) -> None:
        """Write what there is; the other processes may be elsewhere, and the failure matters more than this one."""
        try:
            super().after_train()
        except OSError as error:
            logger.warning("the last measurements are not written: %s", error)
