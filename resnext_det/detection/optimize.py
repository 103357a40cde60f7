"""The optimized copy of a detector: constant norms folded, additions and ReLUs fused, channels-last, fewer bits.

What changes: the copy's layers are no longer those of training (no gradients, no checkpoints of it). How far results
move: fp32 by rounding only; bf16, fp16 and int8 by the precision of the type, see docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..errors import UserError
from ..inference.folding import fold_norm, folds
from ..inference.fused import FusedConv, fuse_stage
from ..inference.openvino import Part, compile_parts
from ..inference.precision import BACKENDS, CHOICES, Precision
from ..inference.trunks import device_of, optimize_trunks, prepared
from .c4_head import ResNeXtC4ROIHeads, SplitRes5
from .roi_align import SparseBins, pool

REGIONS_AT_ONCE = 25
"""That OpenVINO computes: the usual numbers of proposals, 1000, 300 and 100, are multiples of it."""


def for_inference(cfg: CfgNode, model: nn.Module, calibration: Callable[[], Iterable[list[dict]]] = tuple) -> nn.Module:
    """The model that evaluation and prediction run: ``MODEL.RESNEXT.INFERENCE_DTYPE`` says in which precision.

    "off" gives ``model`` itself, all others an optimized copy. ``model`` stays as it is, so training does not notice.

    Args:
        calibration: gives the inputs on which int8 measures its ranges; called for int8 only.
    """
    if "RESNEXT" not in cfg.MODEL:
        return model
    keys = cfg.MODEL.RESNEXT
    for key, value, values in (
        ("INFERENCE_DTYPE", keys.INFERENCE_DTYPE, CHOICES),
        ("INFERENCE_BACKEND", keys.INFERENCE_BACKEND, BACKENDS),
    ):
        if value not in values:
            raise UserError(f"MODEL.RESNEXT.{key} is {value!r}: choose from {', '.join(values)}")
    if keys.INFERENCE_DTYPE == "off":
        return model
    examples = calibration() if keys.INFERENCE_DTYPE == "int8" else None
    return optimize_for_inference(model, keys.INFERENCE_DTYPE, backend=keys.INFERENCE_BACKEND, calibration=examples)


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
        backend: of trunk and head: "torch"; "openvino", which falls back to torch with a warning where it is not
            installed; "auto" is OpenVINO for int8 and torch for all others.
        calibration: for int8, inputs of ``model`` on which the ranges of its maps are measured: some dozen images
            like those it is for, as in training.

    Raises:
        UserError: unknown ``dtype`` or ``backend``, int8 without what it needs, or a model that is such a copy.
    """
    model, precision = prepared(model, dtype, compile, backend)
    device = device_of(model)
    parts: list[Part] = []
    heads = getattr(model, "roi_heads", None)
    half_from = None
    if precision.openvino:
        parts += _rpn_by_openvino(model)
    if isinstance(heads, ResNeXtC4ROIHeads) and heads.fast and folds(heads.res5):
        if precision.openvino:
            heads.optimized = OpenVINOSplitRes5(heads, precision)
            heads.chunk_size = REGIONS_AT_ONCE
            parts.append(heads.optimized.part)
        else:
            heads.optimized = FusedSplitRes5(heads.res5, precision)
        heads.res5 = heads.optimized.blocks
        if device.type == "cuda":
            heads.chunk_size = _chunk_for_memory(heads, precision.dtype, device)
        if not precision.openvino and _fuse_rpn(model, precision):
            half_from = model.backbone
    parts += optimize_trunks(model, precision, half_from)
    compile_parts(parts, precision.name, model, calibration)
    return model


def _chunk_for_memory(heads: ResNeXtC4ROIHeads, dtype: torch.dtype, device: torch.device) -> int:
    """Regions at once that take about a quarter of the GPU's free memory, between 64 and 1024."""
    free, _ = torch.cuda.mem_get_info(device)
    size = heads.pooler.level_poolers[0].output_size
    bins = size[0] * size[1] if isinstance(size, tuple) else size**2
    first = heads.res5[0]
    values = 2 * bins * _matrix(first.conv1).shape[1] + bins * heads.res5[-1].conv3.weight.shape[1]
    return int(min(max(free / 4 / (values * dtype.itemsize), 64), 1024))


def _rpn_head(model: nn.Module) -> nn.Module | None:
    """detectron2's ``StandardRPNHead`` with one hidden convolution; None where the model has another head, or none."""
    head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    parts = [getattr(head, name, None) for name in ("conv", "objectness_logits", "anchor_deltas")]
    plain = all(isinstance(part, nn.Conv2d) and getattr(part, "norm", None) is None for part in parts)
    return head if plain and isinstance(getattr(head.conv, "activation", None), nn.ReLU | None) else None


def _rpn_by_openvino(model: nn.Module) -> list[Part]:
    head = _rpn_head(model)
    if head is None:
        return []
    part = Part(_OneLevel(head), [torch.zeros(1, head.conv.in_channels, 8, 8)], dynamic=(0, 2, 3))

    def forward(features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*map(part, features), strict=True)
        return list(logits), list(deltas)

    head.forward = forward
    return [part]


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
    if head is None:
        return False
    dtype, fused = precision.dtype, precision.fused
    relu = getattr(head.conv, "activation", None) is not None
    head.conv = FusedConv(head.conv, dtype, fused, relu=relu)
    head.objectness_logits = FusedConv(head.objectness_logits, dtype, fused, out=torch.float32)
    head.anchor_deltas = FusedConv(head.anchor_deltas, dtype, fused, out=torch.float32)
    return True


class FusedSplitRes5(SplitRes5):
    """:class:`SplitRes5` of a fused stage: the map's convolutions without shift, the regions' fused."""

    def __init__(self, res5: nn.Sequential, precision: Precision) -> None:
        super().__init__(res5)
        self.blocks = fuse_stage(res5, precision.dtype, precision.fused)
        del self._res5, self._folded  # the stage as it was; every method that reads it is replaced below

    def on_map(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first = self.blocks[0]
        x = features.to(first.conv1.weight.dtype).permute(0, 2, 3, 1).contiguous()
        return x @ _matrix(first.conv1), x @ _matrix(first.shortcut)

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins]) -> Tensor:
        first, *others = self.blocks
        y = first.conv2(pool(maps[0], bins[0], first.conv1.bias, relu=True).permute(0, 3, 1, 2))
        y = first.conv3(y, add=pool(maps[1], bins[1], first.shortcut.bias).permute(0, 3, 1, 2))
        for block in others:
            y = block(y)
        return y

    def whole(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class OpenVINOSplitRes5(FusedSplitRes5):
    """:class:`FusedSplitRes5` whose regions OpenVINO computes, from the bins as they were pooled to the end."""

    def __init__(self, heads: ResNeXtC4ROIHeads, precision: Precision) -> None:
        stage = heads.res5
        super().__init__(stage, precision)
        size = heads.pooler.level_poolers[0].output_size
        bins = size if isinstance(size, tuple) else (size, size)
        channels = stage[0].conv1.out_channels, stage[0].shortcut.out_channels
        example = [
            torch.zeros(REGIONS_AT_ONCE, *(-(-n // stride) for n in bins), c)
            for stride, c in zip(self.strides, channels, strict=True)
        ]
        # Of a thousand regions of an image, forty chunks, every eighth chunk shows five.
        self.part = Part(_Regions(stage, mean=not heads.mask_on), example, every=8, rows=5)

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins]) -> Tensor:
        return self.part(pool(maps[0], bins[0]), pool(maps[1], bins[1]))[0]


class _Regions(nn.Module):
    """Pooled results of res5's first 1x1 convolution and shortcut, (R, bins, bins, C) -> the stage's result.

    ``mean`` averages it to (R, out_channels, 1, 1) on the spot, so that little leaves OpenVINO.
    """

    def __init__(self, stage: nn.Sequential, mean: bool) -> None:
        super().__init__()
        self.stage, self.mean = stage, mean
        self.shifts = [fold_norm(conv)[1][:, None, None] for conv in (stage[0].conv1, stage[0].shortcut)]

    def forward(self, y: Tensor, side: Tensor) -> Tensor:
        first, *others = self.stage
        y, side = (x.permute(0, 3, 1, 2) + shift for x, shift in zip((y, side), self.shifts, strict=True))
        y = (first.conv3(first.conv2(y.relu()).relu()) + side).relu()
        for block in others:
            y = block(y)
        return y.mean((2, 3), keepdim=True) if self.mean else y


def _matrix(conv: FusedConv) -> Tensor:
    """(C, C') of a 1x1 convolution of any stride."""
    return conv.weight if conv.product else conv.weight.flatten(1).t()
