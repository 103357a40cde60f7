"""A constant norm (frozen, or batch norm in evaluation mode) is a scale and a shift: part of the convolution before."""

from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from ..resnext import ConvNorm


def fold_norm(conv: nn.Conv2d) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the one convolution that equals ``conv`` and its norm; None where the norm is not constant."""
    norm = getattr(conv, "norm", None)
    if norm is None:
        return conv.weight, conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    constant = isinstance(norm, FrozenBatchNorm2d) or (
        isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.training and norm.running_var is not None
    )
    if not constant or conv.bias is not None:
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean * scale
    bias = bias if norm.bias is None else bias + norm.bias
    return conv.weight * scale[:, None, None, None], bias


def folds(module: nn.Module) -> bool:
    """Whether the norm of every convolution is constant now."""
    return all(fold_norm(m) is not None for m in module.modules() if isinstance(m, ConvNorm))


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether the convolution looks at one pixel only and at all of them: a matrix product."""
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
