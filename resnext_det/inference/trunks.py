"""The optimized copy of a classifier, and of the trunk of any other network."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..resnext import Bottleneck, ConvNorm, Stem, Trunk
from .folding import folds, has_hooks
from .fused import FusedStem, fuse_stage, refuse_weights
from .openvino import Recorder, compile_parts
from .precision import Precision, choose

logger = logging.getLogger(__name__)


def optimize_classifier(
    model: nn.Module,
    dtype: str = "auto",
    compile: bool = False,
    backend: str = "auto",
    calibration: Iterable[Tensor] | None = None,
) -> nn.Module:
    """A copy of a classifier that gives the same logits faster; ``model`` stays as it is.

    Arguments and errors are those of :func:`resnext_det.detection.optimize_for_inference`, with batches
    (N, 3, H, W) for ``calibration``.
    """
    model, precision = prepared(model, dtype, compile, backend)
    optimize_trunks(model, precision)
    compile_parts(model, precision.name, calibration)
    return model


def prepared(model: nn.Module, dtype: str, compile: bool, backend: str) -> tuple[nn.Module, Precision]:
    """A copy to rewrite, in evaluation mode and without gradients, and how it shall compute where it lies."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if getattr(model, "for_inference", False):
        raise UserError("the model is an optimized copy already: optimize the one that it was made from")
    precision = choose(dtype, device_of(model), backend, compile)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.for_inference = True
    model._register_load_state_dict_pre_hook(refuse_weights)
    if precision.openvino:
        for conv in (m for m in model.modules() if isinstance(m, ConvNorm)):
            conv.convolve = None  # our kernel is none of OpenVINO's
    return model, precision


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def optimize_trunks(model: nn.Module, precision: Precision, half_from: nn.Module | None = None) -> None:
    """Rewrite every trunk in ``model`` in place; the others' parts behind it get float32.

    Trunks whose norms are not constant (GN), of other blocks, or with hooks on their parts, stay as they are.

    Args:
        half_from: the one trunk that may hand on half precision: the next part takes it.
    """
    for trunk in [m for m in model.modules() if isinstance(m, Trunk)]:
        plain = all(type(block) is Bottleneck for name in trunk.stage_names for block in getattr(trunk, name))
        if any(map(has_hooks, trunk.children())):
            logger.warning("Inference: a trunk with forward or backward hooks on its parts stays as it is.")
        elif precision.openvino and folds(trunk):
            trunk.compiled = Recorder(_Maps(trunk), [torch.zeros(1, 3, 64, 64)], dynamic=(0, 2, 3))
            for name in ("stem", *trunk.stage_names):
                delattr(trunk, name)
        elif plain and folds(trunk):
            _fuse(trunk, precision)
        elif precision.name != "fp32":
            logger.warning(
                "Inference in %s: a trunk stays in float32, as its norms are not constant (GN) or its blocks are not "
                "grouped bottlenecks.",
                precision.name,
            )
        if precision.compile:
            trunk.compile()
        if precision.dtype != torch.float32 and trunk is not half_from:
            trunk.register_forward_hook(_to_float)


class _Maps(nn.Module):
    """The maps of a trunk's ``out_features`` in the order in which they are made."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.copy(trunk)
        # Its own table of children: they are about to leave the trunk.
        self.trunk._modules = {k: m for k, m in trunk._modules.items() if k in ("stem", *trunk.stage_names)}
        self.trunk._modules["compiled"] = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(Trunk.forward(self.trunk, x).values())


def _fuse(trunk: Trunk, precision: Precision) -> None:
    if type(trunk.stem) is Stem:
        trunk.stem = FusedStem(trunk.stem, precision.dtype, precision.fused)
    for name in trunk.stage_names:
        setattr(trunk, name, fuse_stage(getattr(trunk, name), precision.dtype, precision.fused))
    if hasattr(trunk, "fc"):
        trunk.fc.register_forward_pre_hook(_first_to_float)


def _first_to_float(module: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].float(), *inputs[1:])


def _to_float(module: nn.Module, inputs: tuple, output: dict[str, Tensor] | Tensor):
    if isinstance(output, Tensor):
        return output.float()
    return {name: value.float() for name, value in output.items()}
