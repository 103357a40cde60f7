"""A constant norm (frozen, or batch norm in evaluation mode) is a scale and a shift: part of the convolution before."""

from __future__ import annotations

from collections.abc import Collection

from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import Tensor, nn

from ..resnext import ConvNorm, GhostBatchNorm2d

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, GhostBatchNorm2d)


def is_constant(norm: nn.Module | None) -> bool:
    """Whether ``norm`` is a scale and a shift that no input changes. A subclass may compute anything, so it is not."""
    return type(norm) is FrozenBatchNorm2d or (
        type(norm) in BATCH_NORMS and not norm.training and norm.running_var is not None
    )


def has_hooks(module: nn.Module, but: Collection[nn.Module] = ()) -> bool:
    """Whether somebody watches ``module`` or a part of it, those of ``but`` aside, by a forward or backward hook."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(m, kind, None) for m in module.modules() if m not in but for kind in kinds)


def fold_norm(conv: nn.Conv2d) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the one convolution that equals ``conv`` and its norm; None where the norm is not constant."""
    norm = getattr(conv, "norm", None)
    if norm is None:
        return conv.weight, conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    if not is_constant(norm) or conv.bias is not None:
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
