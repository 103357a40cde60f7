"""RoIAlign as one sparse matrix product over the channels-last map (He et al. 2017, Mask R-CNN, Sec. 3).

Equal to torchvision's ``roi_align(aligned=True)``, and to detectron2's ``ROIAlignV2``, for every box. RoIAlign is
linear in the map and separable: with one small matrix per region and axis,

    out[r, c] = rows[r] @ map[image(r), c] @ columns[r].T        (bins, H) @ (H, W) @ (W, bins)

where row ``i`` of ``rows[r]`` holds the bilinear weights of the samples of bin ``i``, averaged. The half-pixel offset,
the adaptive number of samples and the border rule all live in these matrices. They are almost empty (two entries a
row for a box of up to 14 pixels of the map), so an output bin is a weighted sum of a few map positions, mostly four.
:func:`sparse_bins` writes those sums down as a sparse matrix of (bins, map positions) and :func:`pool` applies it to
all channels at once with ``embedding_bag``. The gradient is the product with the transposed matrix, each map position
again a weighted sum of bins in a fixed order: no atomic additions, so its bits are the same every time, on a GPU too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor


def axis_weights(low: Tensor, high: Tensor, size: int, bins: int, sampling_ratio: int = 0) -> Tensor:
    """Interpolation matrix of RoIAlign along one axis.

    Args:
        low, high: (R,) bounds of the boxes in map pixels, the half-pixel offset already subtracted.
        size: length of the map along this axis, in pixels.
        bins: output bins along this axis.
        sampling_ratio: samples per bin; 0 takes ceil(length / bins) of them.

    Returns:
        (R, bins, size). Rows of a box without samples (zero or negative length, adaptive) are zero.
    """
    # The operations and their order are torchvision's: one ulp more would give some boxes another number of samples.
    step = (high - low) / bins
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else torch.ceil(step)
    bin_low = low[:, None] + torch.arange(bins, dtype=low.dtype, device=low.device) * step[:, None]
    pixel = torch.arange(size, dtype=low.dtype, device=low.device)
    matrix = low.new_zeros(len(low), bins, size)
    for s in range(int(samples.max()) if len(low) else 0):
        position = bin_low + ((s + 0.5) * step / samples)[:, None]
        # A sample more than one pixel outside counts as zero; within that pixel it takes the border's value.
        counted = (s < samples[:, None]) & (position >= -1) & (position <= size)
        distance = (torch.where(counted, position, 0.0).clamp(0, size - 1)[:, :, None] - pixel).abs_()
        weight = torch.where(counted, 1 / samples[:, None], 0.0)
        # Bilinear interpolation along one axis: 1 - distance to the two nearest pixels, 0 to all others.
        matrix += distance.neg_().add_(1).clamp_(min=0).mul_(weight[:, :, None])
    return matrix


class SparseBins(NamedTuple):
    """The matrix of (bins, map positions) in compressed rows: one row per output bin.

    Attributes:
        index: (E,) int32, map position (image * H + y) * W + x of each entry, row after row.
        weight: (E,) of each entry.
        offsets: (rows,) int32, where each row begins.
        shape: (R, bins along y, bins along x); their product is the number of rows.
    """

    index: Tensor
    weight: Tensor
    offsets: Tensor
    shape: tuple[int, int, int]

    def split(self, regions: int) -> list[SparseBins]:
        """The matrices of ``regions`` boxes each, in order; the last may have fewer."""
        count, bins_y, bins_x = self.shape
        per_region = bins_y * bins_x
        ends = [*self.offsets[:: regions * per_region].tolist(), len(self.index)]
        parts = []
        for i, (low, high) in enumerate(zip(ends, ends[1:], strict=False)):
            part = slice(i * regions * per_region, (i + 1) * regions * per_region)
            shape = (min(regions, count - i * regions), bins_y, bins_x)
            parts.append(SparseBins(self.index[low:high], self.weight[low:high], self.offsets[part] - low, shape))
        return parts


def sparse_bins(rows: Tensor, columns: Tensor, image: Tensor) -> SparseBins:
    """Combine the two axes' matrices of :func:`axis_weights`.

    Args:
        rows: (R, bins along y, H). columns: (R, bins along x, W).
        image: (R,) integer index of the image each box lies in.
    """
    (rois, bins_y, height), (_, bins_x, width) = rows.shape, columns.shape
    ry, by, y = rows.nonzero(as_tuple=True)
    rx, bx, x = columns.nonzero(as_tuple=True)
    wy, wx = rows[ry, by, y], columns[rx, bx, x]
    # Entries of one axis are sorted by (box, bin); those of bin (by, bx) are all pairs of the two.
    count_y, count_x = (rows != 0).sum(2, dtype=torch.int32), (columns != 0).sum(2, dtype=torch.int32)
    first_y = _exclusive_sum(count_y.flatten()).view(rois, bins_y)
    first_x = _exclusive_sum(count_x.flatten()).view(rois, bins_x)
    count = (count_y[:, :, None] * count_x[:, None, :]).flatten()
    offsets = _exclusive_sum(count)
    row = torch.repeat_interleave(torch.arange(len(count), dtype=torch.int32, device=count.device), count)
    k = torch.arange(len(row), dtype=torch.int32, device=count.device) - offsets[row]
    pairs_x = count_x[:, None, :].expand(rois, bins_y, bins_x).flatten()[row]
    entry_y = first_y[:, :, None].expand(rois, bins_y, bins_x).flatten()[row] + k // pairs_x
    entry_x = first_x[:, None, :].expand(rois, bins_y, bins_x).flatten()[row] + k % pairs_x
    line = (image.to(torch.int32)[ry] * height + y.to(torch.int32)) * width
    return SparseBins(
        line[entry_y] + x.to(torch.int32)[entry_x], wy[entry_y] * wx[entry_x], offsets, (rois, bins_y, bins_x)
    )


def pool(maps: Tensor, bins: SparseBins, shift: Tensor | None = None, relu: bool = False) -> Tensor:
    """Apply the sparse matrix to every channel; differentiable with respect to ``maps`` and ``shift``.

    Args:
        maps: (N, H, W, C), contiguous.
        shift: (C,), added to every bin.
        relu: ends with a ReLU.

    Returns:
        (R, bins along y, bins along x, C), contiguous.
    """
    table = maps.reshape(-1, maps.shape[3])
    y = _Pool.apply(table, bins.index, bins.weight, bins.offsets, shift)
    y = (
        F.relu_(y) if relu else y
    )  # in place before it is viewed: in place on a view, autograd would copy it back and forth
    return y.view(*bins.shape, maps.shape[3])


def roi_align(
    features: Tensor, boxes: Tensor, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int = 0
) -> Tensor:
    """RoIAlign, equal to ``torchvision.ops.roi_align(..., aligned=True)``.

    Args:
        features: (N, C, H, W); fastest in channels-last memory.
        boxes: (R, 5): index of the image, then x1, y1, x2, y2 in pixels of the image. No gradient flows to them.
        output_size: bins along y and x.
        spatial_scale: pixels of the map per pixel of the image, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 takes ceil(length / bins) of them.

    Returns:
        (R, C, bins, bins) in channels-last memory, of the type of ``features``. The interpolation weights are computed
        in float32 (float64 for float64 maps): half precision moves a box by pixels.
    """
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    if not torch.jit.is_scripting():
        if isinstance(features, torch.fx.Proxy):
            arguments = (features, boxes, output_size, spatial_scale, sampling_ratio)
            return features.tracer.create_proxy("call_function", roi_align, arguments, {})
        if not torch.jit.is_tracing() and not _is_exporting():
            rows, columns, image = box_weights(boxes, features, bins, spatial_scale, sampling_ratio)
            maps = features.permute(0, 2, 3, 1).contiguous()
            return pool(maps, sparse_bins(rows, columns, image)).permute(0, 3, 1, 2)
    # A graph must not hold these boxes' numbers of samples: it gets the operator that counts them when it runs.
    return torchvision.ops.roi_align(features, boxes, bins, spatial_scale, sampling_ratio, True)


# torch 2.4 has the wider question only.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def box_weights(
    boxes: Tensor, features: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Both matrices of :func:`axis_weights` for (R, 5) boxes on a map (N, C, H, W), and the index of the image."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    x1, y1, x2, y2 = (boxes[:, 1:].detach().to(dtype) * spatial_scale - 0.5).unbind(1)
    rows = axis_weights(y1, y2, features.shape[2], output_size[0], sampling_ratio)
    columns = axis_weights(x1, x2, features.shape[3], output_size[1], sampling_ratio)
    return rows, columns, boxes[:, 0].long()


class _Pool(torch.autograd.Function):
    """Sparse matrix times dense map (positions, C) -> (rows, C), and the transposed product for the gradient."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor, weight: Tensor, offsets: Tensor, shift: Tensor | None) -> Tensor:
        ctx.save_for_backward(index, weight, offsets)
        ctx.positions = len(table)
        y = _weighted_sums(table, index, weight, offsets)
        return y if shift is None else y.add_(shift.to(y.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        index, weight, offsets = ctx.saved_tensors
        needs_table, *_, needs_shift = ctx.needs_input_grad
        shift_gradient = gradient.sum(0) if needs_shift else None
        if not needs_table:
            return None, None, None, None, shift_gradient
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(index)])])
        row = torch.repeat_interleave(
            torch.arange(len(offsets), dtype=torch.int32, device=index.device), ends - offsets
        )
        # Stable, so that each position adds up its bins in one order and the bits never change.
        index, order = index.sort(stable=True)
        starts = _exclusive_sum(torch.bincount(index, minlength=ctx.positions).to(torch.int32))
        table_gradient = _weighted_sums(gradient.contiguous(), row[order], weight[order], starts)
        return table_gradient, None, None, None, shift_gradient


def _weighted_sums(table: Tensor, index: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """(positions, C) -> (rows, C): row i is the sum of ``weight[k] * table[index[k]]`` over its entries k."""
    if len(offsets) == 0 or len(index) == 0:
        return table.new_zeros(len(offsets), table.shape[1])
    return F.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weight.to(table.dtype))


def _exclusive_sum(count: Tensor) -> Tensor:
    return torch.cumsum(count, 0, dtype=torch.int32) - count
