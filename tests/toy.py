"""A training run of milliseconds on the shared engine: a linear model, data that depend on the position alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.solver.lr_scheduler import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler

from resnext_det.engine.run import Run
from resnext_det.engine.sampler import TrainingBatches


class ToyModel(nn.Module):
    """Two losses of a linear map with dropout, so that a step depends on its random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.dropout(self.linear(x))
        return {"loss_a": y.square().mean(), "loss_b": (y - 1).abs().mean()}


class ToyLoader:
    """Batches (batch_size, 4) of 10 samples; sample i is (i, 1, 1, 1) / 10. ``poison`` maps batch numbers to values."""

    def __init__(self, batch_size: int = 2, start_batch: int = 0, poison: dict[int, float] | None = None) -> None:
        self.batch_size, self.start_batch, self.poison = batch_size, start_batch, poison or {}

    def __iter__(self) -> Iterator[torch.Tensor]:
        batches = TrainingBatches(10, self.batch_size, seed=3, start_batch=self.start_batch)
        for number, batch in zip(itertools.count(self.start_batch), batches):
            x = torch.tensor([[index, 1, 1, 1] for _, index in batch]) / 10
            yield x * self.poison.get(number, 1.0)

    def describe(self, batch: int) -> list[dict]:
        places = next(iter(TrainingBatches(10, self.batch_size, seed=3, start_batch=batch)))
        return [{"position": p, "index": i, "file_name": f"{i}.jpg"} for p, i in places]


class ToyRun:
    """A :class:`Run` of the toy model under ``folder``."""

    def __init__(self, folder: Path, *, lr: float = 0.1, period: int = 2, keep: int | None = None, **options) -> None:
        metadata = {"kind": "toy", **options.pop("metadata", {})}
        self.model = ToyModel()
        optimizer = torch.optim.SGD(self.model.parameters(), lr, momentum=0.9)
        scheduler = LRMultiplier(optimizer, ConstantParamScheduler(1.0), 100)
        self.run = Run(
            self.model, optimizer, scheduler, folder=str(folder), metadata=metadata, iterations=0, seed=5,
            checkpoint_period=period, keep_checkpoints=keep, **options,
        )  # fmt: skip
        self.trainer, self.checkpointer = self.run.trainer, self.run.checkpointer

    def resume(self) -> int | None:
        return self.checkpointer.resume()

    def save(self, name: str, iteration: int) -> None:
        self.checkpointer.save(name, iteration=iteration)

    def train(self, iterations: int, resume: bool = False, **loader) -> dict[str, torch.Tensor]:
        """Train to ``iterations``; returns the weights."""
        self.run.iterations = iterations
        start = self.run.begin(resume=resume)
        self.run.train(ToyLoader(start_batch=start * self.trainer.accumulate, **loader), start)
        return {key: value.clone() for key, value in self.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
