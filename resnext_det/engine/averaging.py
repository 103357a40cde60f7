"""An exponential moving average of the weights, evaluated and saved beside them as ``model_ema``."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model``, buffers included, that :class:`WeightAverage` moves towards it by ``1 - decay`` a step.

    The decay of step n is at most (1 + n) / (10 + n). Otherwise the average of a short run would still hold the weights
    it began with.
    """

    def average(averages: Any, weights: Any, steps: Any) -> None:
        n = float(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, steps)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class WeightAverage(HookBase):
    """Moves the average after every step; register it before the hooks that save and evaluate."""

    def __init__(self, average: AveragedModel, model: nn.Module) -> None:
        self.average, self.model = average, model

    def after_step(self) -> None:
        self.average.update_parameters(self.model)
