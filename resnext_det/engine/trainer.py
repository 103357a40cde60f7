"""The training loop of both trainings: detectron2's trainer, plus precision, accumulation and repeatable randomness."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .sampler import seed_everything
from .signals import StopRequest, on_stopping_signals

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

LOSS_LIMIT = 1e5
"""No loss of a network that learns comes near it; frozen batch norm on wrong weights gives 1e10 in the first step."""

SKIPPED_LIMIT = 30
"""Steps in a row that fp16 may skip: its scale has then fallen by 2**30, from 65536 to nothing."""


class Reason(Enum):
    """Why a step must not be made. Where processes find different reasons, the later one here is reported."""

    LOSS_NOT_FINITE = "the loss is not finite"
    LOSS_TOO_LARGE = f"the loss is above {LOSS_LIMIT:g}"
    GRADIENTS_NOT_FINITE = "the gradients are not finite"
    STEPS_SKIPPED = "fp16 cannot hold the gradients and every step was skipped, so set SOLVER.PRECISION bf16 or fp32"


class BadStep(Exception):
    """A step that would ruin the weights, in any of the processes: raised in all of them, before it is made.

    Attributes:
        reason: what is wrong.
        parts: {name: loss} of each part of the step, in this process.
    """

    def __init__(self, reason: Reason, parts: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(reason.value)
        self.reason, self.parts = reason, parts


class StopSignal(Exception):
    """A stopping signal has come to one of the processes: raised in all of them, after the step and its hooks.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Trainer(SimpleTrainer):
    """One optimizer step per iteration over ``accumulate`` batches.

    The random choices of step i (which proposals are sampled, ...) depend on (seed, i, rank) alone, so a resumed run
    repeats an uninterrupted one without saving any generator's state.

    A loss or gradient that is not finite, and a loss above :data:`LOSS_LIMIT`, end the loop in every process before the
    weights are touched (:class:`BadStep`). Stopping signals end it after the step (:class:`StopSignal`). Whoever runs
    the trainer decides what to do about them; :class:`.run.Run` does.

    Args:
        model: in train mode returns {name: scalar loss} or one scalar loss for a batch.
        optimizer: of the model's parameters.
        seed: of the run.
        precision: "fp32", or "bf16" / "fp16" for autocast; fp16 scales the loss.
        accumulate: batches whose gradients are averaged in one step.
        batch: images of one step, over all processes; the state tells how many were seen.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: str = "fp32",
        accumulate: int = 1,
        batch: int = 1,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        super().__init__(model, (), optimizer)  # the data comes by `set_data_loader`
        self.seed, self.accumulate, self.precision, self.batch = seed, accumulate, precision, batch
        self.images = 0  # that the run has seen, once its state is loaded
        self._skipped = 0  # steps in a row whose gradients fp16 could not hold
        self.device = next(model.parameters()).device
        self.autocast_dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.stop_request, self.stop_signal = StopRequest(), 0

    def set_data_loader(self, data_loader: Iterable) -> None:
        """Read batches from ``data_loader`` from now on: where to begin is known only once a checkpoint was read."""
        self.data_loader = data_loader
        self._batches = iter(data_loader)

    @property
    def stopping(self) -> bool:
        """Whether the loop ends after this step although it is not the last one; the same in every process."""
        return self.stop_signal != 0 and self.iter + 1 < self.max_iter

    def release(self) -> None:
        """Let go of the data and its workers, and of the hooks, which hold this trainer."""
        self.data_loader, self._batches, self._hooks = (), iter(()), []

    def train(self, start_iter: int, max_iter: int) -> None:
        """The loop.

        Raises:
            BadStep: the weights are as they were before the step.
            StopSignal: a signal came, and the step and its hooks are done.
            EarlyStop: a hook wants no further step.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            with on_stopping_signals(self.stop_request):
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.stopping:
                        raise StopSignal(self.stop_signal)
            self.iter = max(start_iter, max_iter)  # behind the last step, and where none is left to train
            self.after_train()

    def run_step(self) -> None:
        parts, data_time = self.losses_and_gradients(self.iter, comm.get_rank())
        losses = {name: sum(part[name].detach() for part in parts) / self.accumulate for name in parts[0]}
        reason, self.stop_signal = self._agree(self._wrong_with(losses))
        if reason is not None:
            raise BadStep(reason, parts)
        self._write_metrics(losses, data_time)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._skipped = self._skipped + 1 if self.scaler.get_scale() < scale else 0
        if self._skipped and self._skipped >= min(SKIPPED_LIMIT, self.max_iter - self.start_iter):
            raise BadStep(Reason.STEPS_SKIPPED, parts)

    def losses_and_gradients(self, iteration: int, rank: int) -> tuple[list[dict[str, torch.Tensor]], float]:
        """The step up to its gradients: the losses of each of its parts, and the seconds spent waiting for data."""
        self.optimizer.zero_grad()
        parts: list[dict[str, torch.Tensor]] = []
        data_time = 0.0
        for part in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._batches)
            data_time += time.perf_counter() - start
            seed_everything((self.seed, iteration, part, rank))
            with self._gradient_exchange(last=part == self.accumulate - 1):
                with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    out = self.model(data)
                out = {"total_loss": out} if isinstance(out, torch.Tensor) else out
                self.scaler.scale(sum(out.values()) / self.accumulate).backward()
            parts.append({name: loss.detach() for name, loss in out.items()})
        return parts, data_time

    def gradient_norms(self) -> dict[str, float]:
        """The norm of every parameter's gradient, of the unscaled loss."""
        scale = self.scaler.get_scale()
        norms = {name: p.grad.norm() / scale for name, p in self.model.named_parameters() if p.grad is not None}
        return {name.removeprefix("module."): norm.item() for name, norm in norms.items()}

    def _wrong_with(self, losses: dict[str, torch.Tensor]) -> Reason | None:
        """What this process finds wrong; one transfer from the device."""
        total = sum(losses.values()).float()
        if self.scaler.is_enabled():  # it finds such gradients itself, skips the step and lowers its scale
            norm = torch.zeros_like(total)
        else:
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).float().norm()
        total, norm = torch.stack([total, norm]).tolist()
        if not math.isfinite(total):
            return Reason.LOSS_NOT_FINITE
        if abs(total) > LOSS_LIMIT:
            return Reason.LOSS_TOO_LARGE
        return None if math.isfinite(norm) else Reason.GRADIENTS_NOT_FINITE

    def _agree(self, reason: Reason | None) -> tuple[Reason | None, int]:
        """(what is wrong with the step, signal received) in any of the processes, the same in all."""
        signal, reasons = self.stop_request.signal, (None, *Reason)
        if comm.get_world_size() > 1:
            flags = torch.tensor([reasons.index(reason), signal], device=self.device)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            number, signal = flags.tolist()
            reason = reasons[number]
        return reason, signal

    def _gradient_exchange(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once per step, in its last backward pass."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        done = min(self.iter + 1, getattr(self, "max_iter", self.iter + 1))  # a loop that has ended stands behind it
        more = {"seed": self.seed, "images": done * self.batch, "parameters": self._parameter_names()}
        return {**super().state_dict(), "scaler": self.scaler.state_dict(), **more}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "optimizer": self._by_name(state_dict)})
        self.seed = state_dict["seed"]
        self.images = state_dict.get("images", (state_dict["iteration"] + 1) * self.batch)  # earlier versions: no count
        if state_dict["scaler"]:  # empty where the run so far was not in fp16
            self.scaler.load_state_dict(state_dict["scaler"])

    def _parameter_names(self) -> list[list[str]]:
        """The names in each of the optimizer's groups, whose state torch numbers in this order."""
        names = {id(p): name.removeprefix("module.") for name, p in self.model.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    def _by_name(self, saved: dict[str, Any]) -> dict[str, Any]:
        """The saved state of the optimizer for this one, whose groups may be others: frozen stages, decay of biases."""
        own, names = self._parameter_names(), saved.get("parameters")
        if names is None or names == own:  # earlier versions kept no names
            return saved["optimizer"]
        known = saved["optimizer"]["state"]
        place = {name: i for i, name in enumerate(itertools.chain(*names)) if i in known}
        flat = list(itertools.chain(*own))
        state = {i: known[place[name]] for i, name in enumerate(flat) if name in place}
        logger.warning(
            "the parameters are grouped otherwise than in the checkpoint: momentum restored by name for %d, new for "
            "%d, no longer used for %d",
            *(len(state), len(flat) - len(state), len(place.keys() - set(flat))),
        )
        return {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}


def choose_seed(seed: int) -> int:
    """``seed`` itself; for a negative one a random seed, the same in all processes."""
    return seed if seed >= 0 else comm.shared_random_seed() % 2**31
