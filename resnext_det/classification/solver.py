"""The optimizer of a pretraining, from SOLVER."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """SGD or AdamW over all trained parameters alike, norms and biases too; SOLVER.CLIP_NORM bounds their gradient."""
    solver = cfg.SOLVER
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=solver.WEIGHT_DECAY)
    else:
        optimizer = torch.optim.SGD(
            parameters,
            lr,
            momentum=solver.MOMENTUM,
            weight_decay=solver.WEIGHT_DECAY,
            nesterov=solver.NESTEROV,
        )
    if solver.CLIP_NORM:
        # Before the step itself: a gradient scaler has unscaled by then.
        optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(parameters, solver.CLIP_NORM) and None)
    return optimizer
