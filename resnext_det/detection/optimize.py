"""The optimized copy of a detector: constant norms folded, additions and ReLUs fused, channels-last, fewer bits.

What changes: the copy's layers are no longer those of training (no gradients, no checkpoints of it). How far results
move: fp32 by rounding only; bf16, fp16 and int8 by the precision of the type, see docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..inference import BACKENDS, CHOICES
from ..inference.folding import fold_norm, folds, has_hooks
from ..inference.fused import FusedConv, fuse_stage, without_autocast
from ..inference.openvino import Recorder, compile_parts
from ..inference.precision import Precision
from ..inference.trunks import device_of, optimize_trunks, prepared
from .c4_head import ResNeXtC4ROIHeads, work
from .roi_align import SparseBins, pool

REGIONS_AT_ONCE = 25
"""That OpenVINO computes: the usual numbers of proposals, 1000, 300 and 100, are multiples of it."""


def for_inference(
    model: nn.Module, dtype: str, backend: str = "auto", calibration: Callable[[], Iterable[list[dict]]] = tuple
) -> nn.Module:
    """The model that evaluation and prediction run.

    Args:
        model: stays as it is, so training does not notice.
        dtype: MODEL.RESNEXT.INFERENCE_DTYPE; "off" gives ``model`` itself, all others an optimized copy.
        backend: MODEL.RESNEXT.INFERENCE_BACKEND.
        calibration: gives the inputs on which int8 measures its ranges; called for int8 only.
    """
    for key, value, values in (("INFERENCE_DTYPE", dtype, CHOICES), ("INFERENCE_BACKEND", backend, BACKENDS)):
        if value not in values:
            raise UserError(f"MODEL.RESNEXT.{key} is {value!r}: choose from {', '.join(values)}")
    if dtype == "off":
        return model
    return optimize_for_inference(model, dtype, backend=backend, calibration=calibration() if dtype == "int8" else None)


def optimize_for_inference(
    model: nn.Module,
    dtype: str = "auto",
    compile: bool = False,
    backend: str = "auto",
    calibration: Iterable | None = None,
) -> nn.Module:
    """A copy of a detector or classifier that gives the same results faster; ``model`` stays as it is.

    Args:
        model: with trunks of grouped bottlenecks and, in a detector, :class:`ResNeXtC4ROIHeads`, on the device where it
            will run. Other parts, and parts whose norms are not constant in evaluation (GN), are kept.
        dtype: of the convolutions, "fp32", "bf16", "fp16" or "int8"; "auto" is bf16 where the hardware multiplies it
            and fp32 elsewhere. Box decoding, scores and NMS stay in float32. "int8" (CPUs; trunk and head) needs
            OpenVINO, NNCF and ``calibration``.
        compile: compile the trunk with ``torch.compile``: worthwhile for many images of one size.
        backend: of trunk and head: "torch"; "openvino" (torch, with a warning, if it is not installed); "auto":
            OpenVINO for int8, torch for all others.
        calibration: for int8, inputs of ``model`` on which the ranges of its maps are measured: some dozen images
            like those it is for, as in training.

    Raises:
        UserError: unknown ``dtype`` or ``backend``, int8 without its libraries or examples, or an optimized copy as
            ``model``.
    """
    model, precision = prepared(model, dtype, compile, backend)
    device = device_of(model)
    heads = getattr(model, "roi_heads", None)
    half_from = None
    if precision.openvino:
        _rpn_by_openvino(model)
    plan = heads.plan() if isinstance(heads, ResNeXtC4ROIHeads) else None
    if plan is not None and all(map(folds, plan.blocks)):
        split = FusedSplit(plan.blocks, precision)
        chunk_size = heads.chunk_size if device.type != "cuda" else _chunk_for_memory(heads, split, device)
        if precision.openvino:
            split, chunk_size = OpenVINOSplit(plan.blocks, split, heads), REGIONS_AT_ONCE
        heads.use(split, chunk_size)
        if not precision.openvino and _fuse_rpn(model, precision):
            half_from = model.backbone
    optimize_trunks(model, precision, half_from)
    compile_parts(model, precision.name, calibration)
    return model


def _chunk_for_memory(heads: ResNeXtC4ROIHeads, split: FusedSplit, device: torch.device) -> int:
    """Regions at once that take about a quarter of the GPU's free memory, between 64 and 1024."""
    free, _ = torch.cuda.mem_get_info(device)
    height, width = _bins(heads)
    values = height * width * (2 * _matrix(split[0].conv1).shape[1] + split[-1].conv3.weight.shape[1])
    return int(min(max(free / 4 / (values * split[0].conv1.weight.itemsize), 64), 1024))


def _bins(heads: ResNeXtC4ROIHeads) -> tuple[int, int]:
    """What a region is pooled to, along y and x."""
    size = heads.pooler.level_poolers[0].output_size
    return size if isinstance(size, tuple) else (size, size)


def _rpn_head(model: nn.Module) -> nn.Module | None:
    """detectron2's ``StandardRPNHead`` with one hidden convolution; None where the model has another head, or none."""
    head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    parts = [getattr(head, name, None) for name in ("conv", "objectness_logits", "anchor_deltas")]
    plain = all(isinstance(part, nn.Conv2d) and getattr(part, "norm", None) is None for part in parts)
    return head if plain and isinstance(getattr(head.conv, "activation", None), nn.ReLU | None) else None


def _rpn_by_openvino(model: nn.Module) -> None:
    head = _rpn_head(model)
    if head is not None and not has_hooks(head):
        example = [torch.zeros(1, head.conv.in_channels, 8, 8)]
        model.proposal_generator.rpn_head = _EachLevel(Recorder(_OneLevel(head), example, dynamic=(0, 2, 3)))


class _EachLevel(nn.Module):
    """detectron2's RPN head whose levels ``part`` computes: maps -> objectness logits, box deltas of each."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*map(self.part, features), strict=True)
        return list(logits), list(deltas)


class _OneLevel(nn.Module):
    """detectron2's RPN head on one map: (N, C, H, W) -> objectness logits, box deltas."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (logits,), (deltas,) = type(self.head).forward(self.head, [x])
        return logits, deltas


def _fuse_rpn(model: nn.Module, precision: Precision) -> bool:
    """Fuse the RPN's head; False where it is not known."""
    head = _rpn_head(model)
    if head is None or has_hooks(head):
        return False
    dtype, fused = precision.dtype, precision.fused
    relu = getattr(head.conv, "activation", None) is not None
    head.conv = FusedConv(head.conv, dtype, fused, relu=relu)
    head.objectness_logits = FusedConv(head.objectness_logits, dtype, fused, out=torch.float32)
    head.anchor_deltas = FusedConv(head.anchor_deltas, dtype, fused, out=torch.float32)
    return True


class FusedSplit(nn.Sequential):
    """:class:`~.c4_head.Res5Split` of fused blocks: the map's convolutions without shift, the regions' fused."""

    def __init__(self, blocks: Sequence[nn.Module], precision: Precision) -> None:
        super().__init__(*fuse_stage(blocks, precision.dtype, precision.fused))
        self.strides = blocks[0].conv1.stride[0], blocks[0].shortcut.stride[0]
        self.work_on_map, self.work_on_bins = work(blocks, self.strides)

    @without_autocast
    def on_map(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first = self[0]
        x = features.to(first.conv1.weight.dtype).permute(0, 2, 3, 1).contiguous()
        return x @ _matrix(first.conv1), x @ _matrix(first.shortcut)

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins], *, mean: bool) -> Tensor:
        first, *others = self
        y = first.conv2(pool(maps[0], bins[0], first.conv1.bias, relu=True).permute(0, 3, 1, 2))
        y = first.conv3(y, add=pool(maps[1], bins[1], first.shortcut.bias).permute(0, 3, 1, 2))
        for block in others:
            y = block(y)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()  # of the heads behind it

    whole = forward


class OpenVINOSplit(nn.Module):
    """:class:`~.c4_head.Res5Split` whose regions OpenVINO computes, from the bins as they were pooled to the end."""

    def __init__(self, blocks: Sequence[nn.Module], fused: FusedSplit, heads: ResNeXtC4ROIHeads) -> None:
        super().__init__()
        self.strides, self.work_on_map, self.work_on_bins = fused.strides, fused.work_on_map, fused.work_on_bins
        self.fused = fused
        self.mean = not heads.mask_on
        channels = blocks[0].conv1.out_channels, blocks[0].shortcut.out_channels
        example = [
            torch.zeros(REGIONS_AT_ONCE, *(-(-n // stride) for n in _bins(heads)), c)
            for stride, c in zip(self.strides, channels, strict=True)
        ]
        # Of a thousand regions of an image, forty chunks, every eighth chunk shows five.
        self.part = Recorder(_Regions(blocks, mean=self.mean), example, every=8, rows=5)

    def on_map(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.fused.on_map(features)

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins], *, mean: bool) -> Tensor:
        if self.mean and not mean:  # asked for by somebody else's head
            return self.fused.of_regions(maps, bins, mean=mean)
        (y,) = self.part(pool(maps[0], bins[0]), pool(maps[1], bins[1]))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x)

    whole = forward


class _Regions(nn.Module):
    """Pooled results of res5's first 1x1 convolution and shortcut, (R, bins, bins, C) -> the blocks' result.

    ``mean`` averages it to (R, out_channels) on the spot, so that little leaves OpenVINO.
    """

    def __init__(self, blocks: Sequence[nn.Module], mean: bool) -> None:
        super().__init__()
        self.blocks, self.mean = nn.ModuleList(blocks), mean
        self.shifts = [fold_norm(conv)[1][:, None, None] for conv in (blocks[0].conv1, blocks[0].shortcut)]

    def forward(self, y: Tensor, side: Tensor) -> Tensor:
        first, *others = self.blocks
        y, side = (x.permute(0, 3, 1, 2) + shift for x, shift in zip((y, side), self.shifts, strict=True))
        y = (first.conv3(first.conv2(y.relu()).relu()) + side).relu()
        for block in others:
            y = block(y)
        return y.mean((2, 3)) if self.mean else y


def _matrix(conv: FusedConv) -> Tensor:
    """(C, C') of a 1x1 convolution of any stride."""
    return conv.weight if conv.product else conv.weight.flatten(1).t()
