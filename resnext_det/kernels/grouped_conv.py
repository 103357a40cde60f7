"""Grouped 3x3 convolution on channels-last maps as tensor-core products, for the family's 4 to 32 channels a group.

A group of 4 or 8 channels is smaller than a tensor core's tile of 16. So neighbouring groups are put together until
they fill a tile; its weight matrix is block-diagonal, and the zeros cost less than the tile that would stand empty. A
program computes ``PIXELS`` output pixels of one tile of channels: nine products, one for each tap, summed in float32.

Written for NVIDIA and AMD GPUs. Checked in Triton's interpreter against float64; its speed on a GPU: not run. Nothing
uses it by itself yet: ``tools/benchmark.py grouped-conv`` tells for which shapes it would pay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr  # Triton 3.0's interpreter knows the annotation by this name only
except ImportError:  # a CPU build of torch, or another system than Linux
    triton = None

TILE = 16
"""Channels that a tensor core takes at least."""


def available(x: Tensor) -> bool:
    """Whether the kernel can run on ``x``: Triton is there, and a GPU or Triton's interpreter (TRITON_INTERPRET=1)."""
    return triton is not None and (x.is_cuda or not isinstance(_kernel, triton.JITFunction))


def merged_weight(weight: Tensor, groups: int) -> Tensor:
    """Block-diagonal matrices of the groups that share a tile.

    Args:
        weight: (C', C / groups, 3, 3) of a grouped convolution with as many channels out as in.

    Returns:
        (tiles, 9, tile, tile): for each tile of channels and each tap, [channel in, channel out].
    """
    channels, width = weight.shape[:2]
    if channels != groups * width:
        raise ValueError(f"{channels} channels out of {groups * width} in: this convolution keeps their number")
    tile = max(width, TILE)
    if tile % width or channels % tile or tile & (tile - 1):
        raise ValueError(f"{groups} groups of {width} channels do not fill tiles of {tile}")
    taps = weight.reshape(channels // tile, tile // width, width, width, 9).permute(0, 4, 1, 3, 2)
    merged = weight.new_zeros(channels // tile, 9, tile // width, width, tile // width, width)
    for i in range(tile // width):
        merged[:, :, i, :, i] = taps[:, :, i]
    return merged.reshape(channels // tile, 9, tile, tile).contiguous()


def grouped_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1, relu: bool = False
) -> Tensor:
    """``relu(conv2d(x, weight, bias, stride, padding=1, groups=groups))``, differentiable.

    Args:
        x: (N, C, H, W) in channels-last memory.
        weight: (C, C / groups, 3, 3).

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)) in channels-last memory.
    """
    y = _GroupedConv.apply(x, weight, stride, groups)
    y = y if bias is None else y + bias[:, None, None]
    return F.relu(y) if relu else y


class _GroupedConv(torch.autograd.Function):
    """Forward and, at stride 1, the input's gradient by the kernel; the rest by PyTorch."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        return _convolve(x, merged_weight(weight, groups), stride)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        by_kernel = ctx.needs_input_grad[0] and ctx.stride == 1
        wanted = [ctx.needs_input_grad[0] and not by_kernel, ctx.needs_input_grad[1], False]
        geometry = [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], ctx.groups
        dx, dw, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted)
        if by_kernel:  # the same convolution, each group transposed and turned by half a turn
            width = weight.shape[1]
            turned = weight.flip(2, 3).view(ctx.groups, width, width, 3, 3).transpose(1, 2).reshape(weight.shape)
            dx = _convolve(gradient, merged_weight(turned, ctx.groups), 1)
        return dx, dw, None, None


def _convolve(x: Tensor, merged: Tensor, stride: int) -> Tensor:
    n, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    out_height, out_width = -(-height // stride), -(-width // stride)
    y = x.new_empty(n, out_height, out_width, channels)
    tiles, _, tile, _ = merged.shape
    pixels = n * out_height * out_width
    block = 128 if pixels >= 128 else 16
    if pixels:
        grid = (triton.cdiv(pixels, block), tiles)
        _kernel[grid](
            x, merged, y, pixels, height, width, out_height, out_width, channels,
            STRIDE=stride, TILE=tile, PIXELS=block, PRECISE=x.dtype == torch.float32,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


if triton is not None:

    @triton.jit
    def _kernel(
        x, merged, y, pixels, height, width, out_height, out_width, channels,
        STRIDE: constexpr, TILE: constexpr, PIXELS: constexpr, PRECISE: constexpr,
    ):  # fmt: skip
        pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        within = tl.arange(0, TILE)
        channel = tl.program_id(1) * TILE + within
        column = pixel % out_width
        row = (pixel // out_width) % out_height
        image = pixel // (out_width * out_height)
        total = tl.zeros((PIXELS, TILE), dtype=tl.float32)
        for tap in range(9):
            in_row = row * STRIDE + tap // 3 - 1
            in_column = column * STRIDE + tap % 3 - 1
            inside = (pixel < pixels) & (in_row >= 0) & (in_row < height) & (in_column >= 0) & (in_column < width)
            start = ((image * height + in_row) * width + in_column).to(tl.int64) * channels
            values = tl.load(x + start[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
            matrix = (tl.program_id(1) * 9 + tap) * TILE * TILE
            weights = tl.load(merged + matrix + within[:, None] * TILE + within[None, :])
            if PRECISE:
                total += tl.dot(values, weights, input_precision="ieee")
            else:
                total += tl.dot(values, weights)
        target = y + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        tl.store(target, total.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None])
