"""Layers of a trained network in the form that runs fastest: constant norms folded, additions and ReLUs fused,
channels-last memory, half precision. They have no gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..resnext import Bottleneck, Stem
from .folding import fold_norm, is_pointwise

CHANNELS_LAST = torch.channels_last


def refuse_weights(*args, **kwargs) -> NoReturn:
    """What stands where weights would be loaded: an optimized copy holds them in another form."""
    raise UserError("an optimized copy takes no weights: load them into the model that it was made from, and optimize")


def without_autocast(function: Callable) -> Callable:
    """A method of an optimized copy whose precision is its own, also under autocast; its first argument is a tensor."""

    @functools.wraps(function)
    def run(self, x: Tensor, *rest, **named):
        if not torch.is_autocast_enabled(x.device.type):
            return function(self, x, *rest, **named)
        with torch.autocast(x.device.type, enabled=False):
            return function(self, x, *rest, **named)

    return run


class FusedConv(nn.Module):
    """A convolution with its constant norm folded in, optionally a ReLU, optionally added to another tensor.

    A 1x1 convolution is a matrix product in channels-last memory and is asked for as one, which adds to the other
    tensor in place. Others are single oneDNN calls on CPUs, with the weight stored as oneDNN wants it; elsewhere plain
    PyTorch.
    """

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, fused: bool, relu: bool = False, out: torch.dtype | None = None
    ) -> None:
        super().__init__()
        weight, bias = fold_norm(conv)
        self.product = is_pointwise(conv)
        weight = weight.flatten(1).t().contiguous() if self.product else weight.contiguous(memory_format=CHANNELS_LAST)
        self.register_buffer("weight", weight.detach().to(dtype))
        self.register_buffer("bias", bias.detach().to(dtype))
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.relu, self.out = relu, out
        self.convolve = getattr(conv, "convolve", None)  # MODEL.RESNEXT.GROUPED_CONV
        self.fused = (
            fused
            and weight.device.type == "cpu"
            and dtype != torch.float16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
            and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())  # oneDNN refuses on AVX2
        )
        self._packed: dict[tuple[int, ...], Tensor] = {}

    @without_autocast
    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'). ``add`` has that shape, is added before the ReLU and may be overwritten."""
        x = x.to(self.weight.dtype).contiguous(memory_format=CHANNELS_LAST)
        if self.product:
            y = self._product(x, add)
        elif self.convolve is not None and add is None:
            y = self.convolve(x, self.weight, shift=self.bias, relu=self.relu)
        elif self.fused and add is None and x.numel():
            padding, stride, dilation, groups = self.geometry
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self._weight_for(x), self.bias, padding, stride, dilation, groups,
                "relu" if self.relu else "none", [], "",
            )  # fmt: skip
        else:
            padding, stride, dilation, groups = self.geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if add is None else y.add_(add)
            y = y.relu_() if self.relu else y
        return y if self.out is None else y.to(self.out)

    def _product(self, x: Tensor, add: Tensor | None) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        shape = *x.shape[:3], self.weight.shape[1]
        x = x.reshape(-1, x.shape[3])
        if add is None:
            y = torch.addmm(self.bias, x, self.weight)
        else:
            y = add.permute(0, 2, 3, 1).reshape(-1, shape[3])
            y = (y if self.bias is None else y.add_(self.bias)).addmm_(x, self.weight)
        return (y.relu_() if self.relu else y).view(shape).permute(0, 3, 1, 2)

    _load_from_state_dict = refuse_weights

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": {}}  # oneDNN's tensors cannot be copied

    def _weight_for(self, x: Tensor) -> Tensor:
        # oneDNN's layout depends on the sizes it is prepared for. Only a few sizes are kept: images vary.
        key = tuple(x.shape)
        if key not in self._packed:
            if len(self._packed) >= 2:
                return self.weight
            padding, stride, dilation, groups = self.geometry
            self._packed[key] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, stride, dilation, groups, list(key)
            )
        return self._packed[key]


class FusedBottleneck(nn.Module):
    """:class:`~resnext_det.resnext.Bottleneck` from :class:`FusedConv`: no separate norms and few separate additions.

    ``overwrite`` lets it write its sum over its input: right behind another block of its stage, whose result nobody
    else reads.
    """

    def __init__(self, block: Bottleneck, dtype: torch.dtype, fused: bool, overwrite: bool) -> None:
        super().__init__()
        self.conv1 = FusedConv(block.conv1, dtype, fused, relu=True)
        self.conv2 = FusedConv(block.conv2, dtype, fused, relu=True)
        self.conv3 = FusedConv(block.conv3, dtype, fused, relu=True)
        self.shortcut = None if block.shortcut is None else FusedConv(block.shortcut, dtype, fused)
        if self.shortcut is not None and self.conv3.product:  # one addition less: their sum is all that counts
            self.shortcut.bias += self.conv3.bias
            self.conv3.bias = None
        self.residual = block.residual
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv1.weight.dtype)  # also where it is its own shortcut
        y = self.conv2(self.conv1(x))
        if not self.residual:
            return self.conv3(y)
        side = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(y, add=side.clone() if side is x and not self.overwrite else side)


class FusedStem(nn.Module):
    """:class:`~resnext_det.resnext.Stem` with the norm folded and the ReLU fused."""

    def __init__(self, stem: Stem, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.conv1 = FusedConv(stem.conv1, dtype, fused, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


def fuse_stage(stage: Iterable[Bottleneck], dtype: torch.dtype, fused: bool) -> nn.Sequential:
    """The stage of plain grouped bottlenecks with every block fused."""
    return nn.Sequential(*(FusedBottleneck(block, dtype, fused, overwrite=i > 0) for i, block in enumerate(stage)))
