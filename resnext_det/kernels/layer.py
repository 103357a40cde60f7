"""The grouped 3x3 convolution as a layer: gradients, autocast, torch.compile, and a choice by measurement.

    >>> use_grouped_conv(model, "auto")   # parameter names and the state dict stay as they are

Forward, input's gradient and weight's gradient are chosen separately, each among the kernel in several cuts and
PyTorch (cuDNN) on channels-last and on NCHW memory, conversions included. Results are in channels-last memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..resnext import ConvNorm
from . import MODES
from . import grouped_conv as kernels
from .choice import Way, fastest

logger = logging.getLogger(__name__)

CHANNELS_LAST = torch.channels_last


def use_grouped_conv(model: nn.Module, mode: str) -> int:
    """Let the grouped 3x3 convolutions of ``model``'s blocks be computed as ``mode`` says, from now on.

    Args:
        model: trunk, classifier or stage of :mod:`resnext_det.resnext`; changed in place.
        mode: one of :data:`MODES`.

    Returns:
        How many convolutions the kernel may compute now. Without Triton or a GPU, with groups that fill no tile, or
        with dilation, PyTorch computes it and the log says so.

    Raises:
        UserError: unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"GROUPED_CONV {mode!r}: choose from {', '.join(MODES)}")
    grouped = [m for m in model.modules() if isinstance(m, ConvNorm) and m.groups > 1 and m.kernel_size == (3, 3)]
    for conv in grouped:
        conv.convolve = None
    if mode == "torch" or not grouped:
        return 0
    if lacking := kernels.lacking():
        logger.warning("Grouped convolution %s: %s, so all %d stay PyTorch's.", mode, lacking, len(grouped))
        return 0
    fitting = [conv for conv in grouped if _fits(conv)]
    for conv in fitting:
        conv.convolve = partial(grouped_conv3x3, stride=conv.stride[0], groups=conv.groups, mode=mode)
    if len(fitting) < len(grouped):
        odd = next(conv for conv in grouped if not _fits(conv))
        logger.warning(
            "Grouped convolution %s: %d of %d stay PyTorch's, such as %d groups of %d channels with dilation %d.",
            *(mode, len(grouped) - len(fitting), len(grouped), odd.groups, odd.weight.shape[1], odd.dilation[0]),
        )
    logger.info("Grouped convolution %s: for %d layers.", mode, len(fitting))
    return len(fitting)


def _fits(conv: nn.Conv2d) -> bool:
    same = conv.in_channels == conv.out_channels and conv.stride[0] == conv.stride[1]
    plain = conv.padding == conv.dilation == (1, 1)
    return same and plain and kernels.supported(conv.in_channels, conv.weight.shape[1])


def grouped_conv3x3(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = False,
    mode: str = "auto",
) -> Tensor:
    """``relu(conv2d(x, weight, stride=stride, padding=1, groups=groups) * scale + shift)``, differentiable.

    Scale, shift and ReLU run inside the kernel where scale and shift are constants, as those of a frozen norm are.

    Args:
        x: (N, C, H, W) in any memory; channels-last costs no copy.
        weight: (C, C / groups, 3, 3).
        scale, shift: (C,).
        mode: one of :data:`MODES`.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)) in channels-last memory; under autocast in its type.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    weight = weight.to(x.dtype)
    learned = any(t is not None and t.requires_grad for t in (scale, shift))
    if not learned:
        return _forward(x, weight, scale, shift, stride, groups, relu, mode)
    y = _forward(x, weight, None, None, stride, groups, False, mode)
    y = y if scale is None else y * scale.to(y.dtype)[:, None, None]
    y = y if shift is None else y + shift.to(y.dtype)[:, None, None]
    return F.relu(y) if relu else y


# Operators of torch.library, so that torch.compile takes each as a whole and the choice falls when it runs.


@torch.library.custom_op(
    "resnext_det::grouped_conv3x3",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? scale, Tensor? shift, int stride, int groups, bool relu, str mode)"
    " -> Tensor",
)
def _forward(x, weight, scale, shift, stride, groups, relu, mode):
    def torch_way(memory: torch.memory_format) -> Tensor:
        y = F.conv2d(x.contiguous(memory_format=memory), weight, None, stride, 1, 1, groups)
        y = y.contiguous(memory_format=CHANNELS_LAST)
        y = y if scale is None else y * scale.to(y.dtype)[:, None, None]
        y = y if shift is None else y + shift.to(y.dtype)[:, None, None]
        return F.relu_(y) if relu else y

    def kernel_way(config: kernels.Config) -> Tensor:
        return kernels.convolve(x, weight, stride, groups, scale, shift, relu, config)

    found = kernels.configs(weight.shape[0], weight.shape[1], x.dtype)
    return _run("forward", x, weight, stride, groups, mode, torch_way, kernel_way, found)


@_forward.register_fake
def _(x, weight, scale, shift, stride, groups, relu, mode):
    return _empty(x, (x.shape[0], x.shape[1], -(-x.shape[2] // stride), -(-x.shape[3] // stride)))


@torch.library.custom_op(
    "resnext_det::grouped_conv3x3_input",
    mutates_args=(),
    schema="(Tensor gradient, Tensor weight, int stride, int groups, SymInt height, SymInt width, str mode) -> Tensor",
)
def _input_gradient(gradient, weight, stride, groups, height, width, mode):
    def torch_way(memory: torch.memory_format) -> Tensor:
        g = gradient.contiguous(memory_format=memory)
        # The input's values do not matter, its shape and memory do.
        x = g.new_empty(g.shape[0], g.shape[1], height, width).to(memory_format=memory)
        return _backward(g, x, weight, stride, groups, 0).contiguous(memory_format=CHANNELS_LAST)

    def kernel_way(config: kernels.Config) -> Tensor:
        return kernels.input_gradient(gradient, weight, stride, groups, (height, width), config)

    found = kernels.configs(weight.shape[0], weight.shape[1], gradient.dtype)
    return _run("input gradient", gradient, weight, stride, groups, mode, torch_way, kernel_way, found)


@_input_gradient.register_fake
def _(gradient, weight, stride, groups, height, width, mode):
    return _empty(gradient, (gradient.shape[0], gradient.shape[1], height, width))


@torch.library.custom_op(
    "resnext_det::grouped_conv3x3_weight",
    mutates_args=(),
    schema="(Tensor x, Tensor gradient, Tensor weight, int stride, int groups, str mode) -> Tensor",
)
def _weight_gradient(x, gradient, weight, stride, groups, mode):
    def torch_way(memory: torch.memory_format) -> Tensor:
        g, values = (t.contiguous(memory_format=memory) for t in (gradient, x))
        return _backward(g, values, weight, stride, groups, 1).contiguous()

    def kernel_way(config: kernels.Config) -> Tensor:
        return kernels.weight_gradient(x, gradient, stride, groups, config)

    found = kernels.weight_configs(weight.shape[0], weight.shape[1], x.dtype)
    return _run("weight gradient", x, weight, stride, groups, mode, torch_way, kernel_way, found)


@_weight_gradient.register_fake
def _(x, gradient, weight, stride, groups, mode):
    return weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    x, weight, scale, _, ctx.stride, ctx.groups, ctx.relu, ctx.mode = inputs
    ctx.save_for_backward(x, weight, scale, output if ctx.relu else None)


def _gradients(ctx, gradient):
    x, weight, scale, output = ctx.saved_tensors
    if ctx.relu:
        gradient = gradient * (output > 0)
    gradient = gradient.contiguous(memory_format=CHANNELS_LAST)
    dx = dw = None
    per_output = None if scale is None else scale.to(weight.dtype)[:, None, None, None]
    if ctx.needs_input_grad[0]:
        scaled = weight if scale is None else weight * per_output
        size = x.shape[2:]
        dx = _input_gradient(gradient, scaled, ctx.stride, ctx.groups, size[0], size[1], ctx.mode)
    if ctx.needs_input_grad[1]:
        dw = _weight_gradient(x, gradient, weight, ctx.stride, ctx.groups, ctx.mode)
        dw = dw if scale is None else dw * per_output
    return dx, dw, None, None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, which: int) -> Tensor:
    wanted = [index == which for index in range(3)]
    geometry = [stride] * 2, [1, 1], [1, 1], False, [0, 0], groups
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted)[which]


def _empty(x: Tensor, shape: tuple) -> Tensor:
    n, channels, height, width = shape
    return x.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


def _run(
    what: str,
    x: Tensor,
    weight: Tensor,
    stride: int,
    groups: int,
    mode: str,
    torch_way: Callable[[torch.memory_format], Tensor],
    kernel_way: Callable[[kernels.Config], Tensor],
    configs: list[kernels.Config],
) -> Tensor:
    """One pass, in the way that ``mode`` allows and measures fastest."""
    ways: dict[str, Way] = {}
    if mode != "torch" and kernels.available(x) and not torch.are_deterministic_algorithms_enabled():
        ways |= {f"triton {config}": partial(kernel_way, config) for config in configs}
    elif mode == "triton" and kernels.available(x):
        ways["triton"] = partial(kernel_way, configs[0])
    if mode == "auto" and x.is_cuda or not ways:
        ways["torch channels-last"] = partial(torch_way, CHANNELS_LAST)
    if mode == "auto" and x.is_cuda and not torch.are_deterministic_algorithms_enabled():
        ways["torch NCHW"] = partial(torch_way, torch.contiguous_format)
    if not x.is_cuda or not x.numel():  # nothing to gain
        return next(iter(ways.values()))()
    name = torch.cuda.get_device_name(x.device)
    # Images of a detector vary in size; what is fastest hardly does within a factor of two.
    size = (x.shape[0] * x.shape[2] * x.shape[3]).bit_length()
    key = (what, name, mode, x.dtype, weight.shape, stride, groups, size)
    shape = "x".join(map(str, x.shape))
    title = f"grouped convolution, {what}, {shape} in {groups} groups, stride {stride}, {x.dtype} on {name}"
    return fastest(title, key, ways, x.device)()
