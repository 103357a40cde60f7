"""The optimized copy of a classifier, and of the trunk of any other network."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..kernels.layer import use_grouped_conv
from ..resnext import Bottleneck, Stem, Trunk
from .folding import folds
from .fused import FusedStem, fuse_stage
from .openvino import Part, compile_parts
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
    compile_parts(optimize_trunks(model, precision), precision.name, model, calibration)
    return model


def prepared(model: nn.Module, dtype: str, compile: bool, backend: str) -> tuple[nn.Module, Precision]:
    """A copy to rewrite, in evaluation mode and without gradients, and how it shall compute where it lies."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if getattr(model, "for_inference", False):
        raise UserError("the model is an optimized copy already: optimize the one that it was made from")
    precision = choose(dtype, device_of(model), backend, compile)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.for_inference = True
    if precision.openvino:
        use_grouped_conv(model, "torch")  # our kernel is none of OpenVINO's
    return model, precision


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def optimize_trunks(model: nn.Module, precision: Precision, half_from: nn.Module | None = None) -> list[Part]:
    """Rewrite every trunk in ``model`` in place; the others' parts behind it get float32.

    Trunks whose norms are not constant (GN), or of other blocks, stay as they are.

    Args:
        half_from: the trunk that may hand on half precision, since what is behind it takes that.

    Returns:
        The parts that OpenVINO is to compile, once all are known.
    """
    parts = []
    for trunk in [m for m in model.modules() if isinstance(m, Trunk)]:
        plain = all(type(block) is Bottleneck for name in trunk.stage_names for block in getattr(trunk, name))
        if precision.openvino and folds(trunk):
            parts.append(_by_openvino(trunk))
        elif plain and folds(trunk):
            _fuse(trunk, precision)
        elif precision.name != "fp32":
            logger.warning(
                "Inference in %s: a trunk stays in float32, as its norms are not constant (GN) or its blocks are not "
                "grouped bottlenecks.",
                precision.name,
            )
        if precision.compile:
            trunk.forward = torch.compile(trunk.forward)
        if precision.dtype != torch.float32 and trunk is not half_from:
            trunk.register_forward_hook(_to_float)
    return parts


def _by_openvino(trunk: Trunk) -> Part:
    part = Part(_Outputs(trunk), [torch.zeros(1, 3, 64, 64)], dynamic=(0, 2, 3))
    names = None if hasattr(trunk, "fc") else [n for n in ("stem", *trunk.stage_names) if n in trunk.out_features]

    def forward(x: Tensor) -> Tensor | dict[str, Tensor]:
        outputs = part(x)
        return outputs[0] if names is None else dict(zip(names, outputs, strict=True))

    trunk.forward = forward
    return part


class _Outputs(nn.Module):
    """What a trunk's own ``forward`` returns, as a tuple."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = type(self.trunk).forward(self.trunk, x)
        return tuple(outputs.values()) if isinstance(outputs, dict) else (outputs,)


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
