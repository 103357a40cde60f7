"""``--replay DUMP`` of both trainings: the step that ended a training, run again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from .dump import summary
from .trainer import Trainer

logger = logging.getLogger(__name__)


class TrainingData(Protocol):
    """Endless batches that can say which images one of them holds."""

    def __iter__(self) -> Iterator: ...

    def describe(self, batch: int) -> list[dict]: ...


def replay_step(facts: dict[str, Any], model: nn.Module, loader: TrainingData) -> dict[str, list]:
    """Run the step of a dump again, with the random numbers that it had, and log its losses and largest gradients.

    In one process, as the process of the dump: equal to what the run saw unless its batch norm was synchronized.

    Args:
        facts: of :func:`.dump.read_dump`.
        model: what was trained, with the weights of the dump.
        loader: that process' training data from the first batch of the step on, with ``describe`` as in a run.

    Returns:
        ``{"losses": [{name: value} for each part], "recorded": the same of the dump, "gradient_norms": {name: norm}}``.
    """
    unused = torch.optim.SGD(model.parameters(), 0.0)  # no step is made
    trainer = Trainer(model, unused, seed=facts["seed"], precision=facts["precision"], accumulate=facts["accumulate"])
    now = [{"batch": b["batch"], "samples": loader.describe(b["batch"])} for b in facts["batches"]]
    if now != facts["batches"]:
        logger.warning("the training data is not what it was: the images below are today's")
    trainer.set_data_loader(loader)
    with EventStorage(facts["iteration"]):
        parts, _ = trainer.losses_and_gradients(facts["iteration"], facts["process"])
    losses = [{name: loss.item() for name, loss in part.items()} for part in parts]
    norms = trainer.gradient_norms()
    logger.info("recorded: %s", summary(facts))
    logger.info("replayed: %s", summary({**facts, "losses": losses, "batches": now}))
    largest = sorted(norms, key=lambda name: norms[name] if norms[name] == norms[name] else float("inf"))[-5:]
    logger.info("largest gradients: %s", ", ".join(f"{name} {norms[name]:.4g}" for name in reversed(largest)))
    return {"losses": losses, "recorded": facts["losses"], "gradient_norms": norms}
