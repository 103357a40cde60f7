"""Grouped 3x3 convolution on channels-last maps as tensor-core products, for groups of up to 64 channels.

A group of 4 or 8 channels is smaller than a tensor core's tile of 16. So neighboring groups are put together until
they fill a tile; its weight matrix is block-diagonal, and the zeros cost less than the tile that would stand empty. A
program computes some output pixels of one tile of channels: nine products, one for each tap, summed in float32, then a
scale, a shift and a ReLU while the sum is still in registers.

The three functions are what a convolution and its gradients need, without autograd; :mod:`.layer` puts them together.
Written for NVIDIA and AMD GPUs. Checked in Triton's interpreter against float64; on a GPU: not run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr  # Triton 3.0's interpreter knows the annotation by this name only
except ImportError:  # a CPU build of torch, or another system than Linux
    triton = None

SMALLEST_TILE = 16
"""Channels that a tensor core takes at least."""

LARGEST_WIDTH = 64
"""Channels of a group; wider ones fill tensor cores by themselves, and libraries are good at them."""

PROGRAMS = 1024
"""Of the weight's gradient, about: some for each multiprocessor of a large GPU."""


class Config(NamedTuple):
    """How a kernel is cut: channels and pixels of a program, its warps, and loads in flight."""

    tile: int
    pixels: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.tile}x{self.pixels}, {self.warps} warps, {self.stages} stages"


def configs(channels: int, width: int, dtype: torch.dtype = torch.bfloat16) -> list[Config]:
    """What is worth measuring on a GPU, the first one a fair guess.

    Large tiles read whole cache lines (64 channels of bf16 are 128 bytes) and multiply more zeros, which is cheap on
    tensor cores only: float32 products stay off these.
    """
    shapes = {16: ((128, 4), (64, 4), (256, 8)), 32: ((128, 4), (64, 4), (256, 8)), 64: ((128, 4), (128, 8))}
    return _configs(channels, width, dtype, shapes)


def weight_configs(channels: int, width: int, dtype: torch.dtype = torch.bfloat16) -> list[Config]:
    """The same for the weight's gradient, whose sums are (tile, tile) and take few warps."""
    return _configs(channels, width, dtype, {16: ((64, 1), (128, 2)), 32: ((64, 2), (64, 4)), 64: ((32, 4), (64, 8))})


def _configs(channels: int, width: int, dtype: torch.dtype, shapes: dict) -> list[Config]:
    tiles = [tile for tile in shapes if tile >= width and channels % tile == 0]
    tiles = tiles[:1] if dtype == torch.float32 else tiles
    return [Config(tile, pixels, warps, 3) for tile in tiles for pixels, warps in shapes[tile]]


def available(x: Tensor) -> bool:
    """Whether a kernel can run on ``x``: Triton is there, and a GPU or Triton's interpreter (TRITON_INTERPRET=1).

    The interpreter multiplies no bf16.
    """
    return triton is not None and (x.is_cuda or (interpreted() and x.dtype != torch.bfloat16))


def lacking() -> str:
    """Why no kernel can run on this machine, "" where one can."""
    if triton is None:
        return "Triton is not installed"
    return "" if torch.cuda.is_available() or interpreted() else "there is no GPU"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU and slowly."""
    return triton is not None and "Interpreted" in type(_convolve_kernel).__name__


def supported(channels: int, width: int) -> bool:
    """Whether groups of ``width`` channels, as many out as in, fill tiles."""
    power_of_two = width & (width - 1) == 0
    return power_of_two and width <= LARGEST_WIDTH and channels % max(width, SMALLEST_TILE) == 0


def convolve(
    x: Tensor,
    weight: Tensor,
    stride: int,
    groups: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    config: Config | None = None,
) -> Tensor:
    """``relu(conv2d(x, weight, stride=stride, padding=1, groups=groups) * scale + shift)``.

    Args:
        x: (N, C, H, W) in any memory; channels-last is taken as it is.
        weight: (C, C / groups, 3, 3).
        scale, shift: (C,), of a constant norm; summed and multiplied in float32.

    Returns:
        (N, C, ceil(H / stride), ceil(W / stride)) in channels-last memory.

    Raises:
        ValueError: channels that do not fill tiles.
    """
    height, width = (-(-size // stride) for size in x.shape[2:])
    config = config or configs(*_widths(weight, groups))[0]
    merged = merged_weight(weight, groups, config.tile)
    return _run(x, merged, (height, width), stride, False, config, scale, shift, relu)


def input_gradient(
    gradient: Tensor, weight: Tensor, stride: int, groups: int, size: tuple[int, int], config: Config | None = None
) -> Tensor:
    """Gradient of :func:`convolve`'s input, ``(N, C, *size)``, from that of its output, (N, C, H', W')."""
    config = config or configs(*_widths(weight, groups))[0]
    merged = merged_weight(weight, groups, config.tile).transpose(2, 3).contiguous()
    return _run(gradient, merged, size, stride, True, config)


def weight_gradient(x: Tensor, gradient: Tensor, stride: int, groups: int, config: Config | None = None) -> Tensor:
    """Gradient of :func:`convolve`'s weight, (C, C / groups, 3, 3), in the type of ``x``.

    The pixels are cut into parts, one sum each, which are then added up: equal bits every time.
    """
    n, channels, height, width = x.shape
    out_height, out_width = gradient.shape[2:]
    per_group = channels // groups
    config = config or weight_configs(channels, per_group)[0]
    tiles, pixels = channels // config.tile, n * out_height * out_width
    blocks = max(-(-pixels // config.pixels), 1)
    # Blocks of pixels in a part, a power of two: a loop's length is compiled in, and few lengths should be.
    per_part = 1 << (blocks * tiles * 3 // PROGRAMS or 1).bit_length() - 1
    parts = -(-blocks // per_part)
    sums = x.new_empty(parts, tiles, 9, config.tile, config.tile, dtype=torch.float32)
    _weight_kernel[(tiles, 3, parts)](
        _channels_last(x), _channels_last(gradient), sums, pixels, height, width, out_height, out_width, channels,
        STRIDE=stride, BLOCKS=per_part, PRECISE=x.dtype == torch.float32, TILE=config.tile, PIXELS=config.pixels,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    together = config.tile // per_group
    blocks_of = sums.view(parts, tiles, 9, together, per_group, together, per_group).diagonal(dim1=3, dim2=5)
    # (tiles, 9, in, out, groups together) after the sum
    summed = blocks_of.sum(0).permute(0, 4, 3, 2, 1)
    return summed.reshape(channels, per_group, 3, 3).to(x.dtype)


def merged_weight(weight: Tensor, groups: int, tile: int | None = None) -> Tensor:
    """Block-diagonal matrices of the groups that share a tile.

    Args:
        weight: (C, C / groups, 3, 3) of a grouped convolution with as many channels out as in.
        tile: channels of a tile; None takes the smallest.

    Returns:
        (tiles, 9, tile, tile): for each tile of channels and each tap, [channel in, channel out].
    """
    channels, width = _widths(weight, groups)
    tile = tile or max(width, SMALLEST_TILE)
    together = tile // width
    taps = weight.reshape(channels // tile, together, width, width, 9).permute(0, 4, 3, 2, 1)  # .., in, out, group
    return torch.diag_embed(taps).permute(0, 1, 4, 2, 5, 3).reshape(channels // tile, 9, tile, tile)


def _widths(weight: Tensor, groups: int) -> tuple[int, int]:
    """(channels, channels of a group), where they fit the kernels."""
    channels, width = weight.shape[:2]
    if channels != groups * width:
        raise ValueError(f"{channels} channels out of {groups * width} in: this convolution keeps their number")
    if not supported(channels, width):
        raise ValueError(f"{groups} groups of {width} channels do not fill tiles of {max(width, SMALLEST_TILE)}")
    return channels, width


def _channels_last(x: Tensor) -> Tensor:
    """The map as contiguous (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous()


def _run(
    x: Tensor,
    merged: Tensor,
    size: tuple[int, int],
    stride: int,
    transposed: bool,
    config: Config,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    n, channels, height, width = x.shape
    x = _channels_last(x)
    y = x.new_empty(n, *size, channels)
    pixels = n * size[0] * size[1]
    if pixels:
        _convolve_kernel[(triton.cdiv(pixels, config.pixels) * (channels // config.tile),)](
            x, merged, scale if scale is not None else merged, shift if shift is not None else merged, y,
            pixels, height, width, *size, channels,
            STRIDE=stride, TRANSPOSED=transposed, SCALED=scale is not None, SHIFTED=shift is not None, RELU=relu,
            PRECISE=x.dtype == torch.float32, TILE=config.tile, PIXELS=config.pixels,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


if triton is not None:

    @triton.jit
    def _product(a, b, PRECISE: constexpr):
        """A matrix product; float32 stays float32 instead of becoming TF32."""
        if PRECISE:
            return tl.dot(a, b, input_precision="ieee")
        else:
            return tl.dot(a, b)

    @triton.jit
    def _pixels_of(x, image, row, column, inside, height, width, channels, channel):
        """The values of these pixels and channels, (pixels, tile); zero where not ``inside`` the map."""
        inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        start = ((image * height + row) * width + column).to(tl.int64) * channels
        return tl.load(x + start[:, None] + channel[None, :], mask=inside[:, None], other=0.0)

    @triton.jit
    def _convolve_kernel(
        x, merged, scale, shift, y, pixels, in_height, in_width, out_height, out_width, channels,
        STRIDE: constexpr, TRANSPOSED: constexpr, SCALED: constexpr, SHIFTED: constexpr,
        RELU: constexpr, PRECISE: constexpr, TILE: constexpr, PIXELS: constexpr,
    ):  # fmt: skip
        # All tiles of some pixels stand next to one another, so that a cache line is used by neighbors in time.
        tiles = channels // TILE
        tile = tl.program_id(0) % tiles
        pixel = (tl.program_id(0) // tiles) * PIXELS + tl.arange(0, PIXELS)
        within = tl.arange(0, TILE)
        channel = tile * TILE + within
        column = pixel % out_width
        row = (pixel // out_width) % out_height
        image = pixel // (out_width * out_height)
        total = tl.zeros((PIXELS, TILE), dtype=tl.float32)
        for tap in range(9):
            inside = pixel < pixels
            if TRANSPOSED:  # which of the other map's pixels has read this one with this tap?
                times_row = row + 1 - tap // 3
                times_column = column + 1 - tap % 3
                inside = inside & (times_row >= 0) & (times_row % STRIDE == 0)
                inside = inside & (times_column >= 0) & (times_column % STRIDE == 0)
                in_row = times_row // STRIDE
                in_column = times_column // STRIDE
            else:
                in_row = row * STRIDE + tap // 3 - 1
                in_column = column * STRIDE + tap % 3 - 1
            values = _pixels_of(x, image, in_row, in_column, inside, in_height, in_width, channels, channel)
            matrix = (tile * 9 + tap) * TILE * TILE
            weights = tl.load(merged + matrix + within[:, None] * TILE + within[None, :])
            total += _product(values, weights, PRECISE)
        if SCALED:
            total = total * tl.load(scale + channel).to(tl.float32)[None, :]
        if SHIFTED:
            total = total + tl.load(shift + channel).to(tl.float32)[None, :]
        if RELU:
            total = tl.maximum(total, 0.0)
        target = y + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        tl.store(target, total.to(y.dtype.element_ty), mask=(pixel < pixels)[:, None])

    @triton.jit
    def _weight_kernel(
        x, gradient, sums, pixels, height, width, out_height, out_width, channels,
        STRIDE: constexpr, BLOCKS: constexpr, PRECISE: constexpr, TILE: constexpr, PIXELS: constexpr,
    ):  # fmt: skip
        # A program adds up one row of taps, so that the gradient is read once for three products.
        tile, taps, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        within = tl.arange(0, TILE)
        channel = tile * TILE + within
        left = tl.zeros((TILE, TILE), dtype=tl.float32)
        middle = tl.zeros((TILE, TILE), dtype=tl.float32)
        right = tl.zeros((TILE, TILE), dtype=tl.float32)
        for block in range(BLOCKS):
            pixel = (part * BLOCKS + block) * PIXELS + tl.arange(0, PIXELS)
            inside = pixel < pixels
            column = (pixel % out_width) * STRIDE
            row = ((pixel // out_width) % out_height) * STRIDE + taps - 1
            image = pixel // (out_width * out_height)
            start = pixel.to(tl.int64) * channels
            slopes = tl.load(gradient + start[:, None] + channel[None, :], mask=inside[:, None], other=0.0)
            values = _pixels_of(x, image, row, column - 1, inside, height, width, channels, channel)
            left += _product(tl.trans(values), slopes, PRECISE)
            values = _pixels_of(x, image, row, column, inside, height, width, channels, channel)
            middle += _product(tl.trans(values), slopes, PRECISE)
            values = _pixels_of(x, image, row, column + 1, inside, height, width, channels, channel)
            right += _product(tl.trans(values), slopes, PRECISE)
        matrix = sums + ((part * tl.num_programs(0) + tile) * 9 + taps * 3).to(tl.int64) * TILE * TILE
        place = within[:, None] * TILE + within[None, :]
        tl.store(matrix + place, left)
        tl.store(matrix + TILE * TILE + place, middle)
        tl.store(matrix + 2 * TILE * TILE + place, right)
