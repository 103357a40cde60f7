"""The C4 head: RoIAlign on res4, then res5 on every region (He et al. 2016, Appendix A; paper Sec. 5.4).

Most of a C4 detector's time is this head. Two identities shorten it without changing its result:

* A 1x1 convolution without bias commutes with RoIAlign: both are linear, and RoIAlign pads with zero. So the first
  1x1 convolution of res5 and its shortcut run once on the map and their results are pooled; norm and ReLU follow.
* A convolution of stride 2 and kernel 1 reads the even bins only, so only these are pooled for it.

A constant norm (frozen, or batch norm in evaluation mode) is a scale and a shift: the scale goes into the weight, the
shift into the bias. Weight gradients flow through the scale, so training profits as well.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..resnext import Bottleneck, ConvNorm
from .backbone import make_res5
from .roi_align import box_weights, pool, sparse_bins

logger = logging.getLogger(__name__)


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


def per_sample(module: nn.Module) -> bool:
    """Whether every sample's result is its own, so that a batch may be cut: false for batch norms that are training."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    return not any(isinstance(m, norms) and (m.training or m.running_var is None) for m in module.modules())


class SplitRes5:
    """A res5 stage cut where the map ends and the regions begin.

    ``rest(pool(on_map(x)))`` equals ``res5(roi_align(x))``. Weights are read once, at construction, so make one for
    each pass.
    """

    def __init__(self, res5: nn.Sequential) -> None:
        first = res5[0]
        self.strides = first.conv1.stride[0], first.shortcut.stride[0]
        self._res5 = res5
        self._folded = {m: fold_norm(m) for m in res5.modules() if isinstance(m, ConvNorm)}

    @staticmethod
    def fits(res5: nn.Module) -> bool:
        """Whether the stage begins with a grouped bottleneck that has a projection shortcut."""
        return (
            isinstance(res5, nn.Sequential)
            and all(type(b) is Bottleneck for b in res5)
            and (res5[0].shortcut is not None)
        )

    def on_map(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the first 1x1 convolution's and the shortcut's result, without shift: (N, H, W, C') each."""
        first = self._res5[0]
        x = features.contiguous(memory_format=torch.channels_last)
        weights = (
            conv.weight if self._folded[conv] is None else self._folded[conv][0]
            for conv in (first.conv1, first.shortcut)
        )
        y, side = (F.conv2d(x, weight).permute(0, 2, 3, 1).contiguous() for weight in weights)
        return y, side

    def rest(self, y: Tensor, side: Tensor) -> Tensor:
        """Pooled results of :meth:`on_map`, (R, C', bins, bins) each -> (R, out_channels, bins', bins')."""
        first = self._res5[0]
        y = F.relu_(self._shift(first.conv1, y))
        y = self._conv(first.conv3, F.relu_(self._conv(first.conv2, y)))
        y = F.relu_(y + self._shift(first.shortcut, side))
        for block in self._res5[1:]:
            z = F.relu_(self._conv(block.conv1, y))
            z = F.relu_(self._conv(block.conv2, z))
            z = self._conv(block.conv3, z)
            y = F.relu_(z + y if block.residual else z)
        return y

    def whole(self, x: Tensor) -> Tensor:
        """The stage itself on pooled res4, (R, C, bins, bins): for few regions on a large map."""
        return self._res5(x)

    def _shift(self, conv: ConvNorm, x: Tensor) -> Tensor:
        folded = self._folded[conv]
        return conv.norm(x) if folded is None else x + folded[1].to(x.dtype)[:, None, None]

    def _conv(self, conv: ConvNorm, x: Tensor) -> Tensor:
        folded = self._folded[conv]
        return (
            conv(x) if folded is None else F.conv2d(x, *folded, conv.stride, conv.padding, conv.dilation, conv.groups)
        )


@ROI_HEADS_REGISTRY.register()
class ResNeXtC4ROIHeads(Res5ROIHeads):
    """detectron2's ``Res5ROIHeads``, several times faster: same parameter names, same results, box and mask heads.

    Stock's: ``roi_heads.res5.0.conv1.weight``, ``roi_heads.box_predictor.cls_score.weight``, ...

    Args:
        fast: False runs the plain ``res5(pooler(features))``, the reference of the tests. Poolers other than
            ``ROIAlignV2`` and stages other than grouped bottlenecks take it too, with a warning.
        chunk_size: regions that go through res5 at once where the batch may be cut (in inference, and in training with
            ``recompute``); bounds the memory. 0 takes all.
        recompute: in training, keep nothing of res5 but its input and run each chunk again for its gradient: a small
            part of the memory for a third more arithmetic. Training batch norms need the whole batch: then ignored.
    """

    @configurable
    def __init__(
        self, *, pooler: ROIPooler, fast: bool = True, chunk_size: int = 32, recompute: bool = False, **kwargs
    ) -> None:
        super().__init__(pooler=pooler, **kwargs)
        self.chunk_size, self.recompute = chunk_size, recompute
        align = pooler.level_poolers[0]
        self.fast = (
            fast and len(pooler.level_poolers) == 1 and getattr(align, "aligned", False) and (SplitRes5.fits(self.res5))
        )
        if fast and not self.fast:
            logger.warning(
                "C4 head: the fast path needs MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2 and grouped bottlenecks; "
                "taking the plain one."
            )
        self.optimized: SplitRes5 | None = None  # set by optimize_for_inference

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        arguments = super().from_config(cfg, input_shape)
        if "RESNEXT" in cfg.MODEL:
            keys = cfg.MODEL.RESNEXT
            arguments.update(fast=keys.FAST_C4, chunk_size=keys.C4_CHUNK_SIZE, recompute=keys.C4_RECOMPUTE)
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Sequential, int]:
        res5 = make_res5(cfg)
        return res5, res5[-1].out_channels

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """Regions' features (R, out_channels, 7, 7); without a mask head their mean, (R, out_channels, 1, 1)."""
        if not self.fast:
            return super()._shared_roi_transform(features, boxes)
        return self._regions(features[0], convert_boxes_to_pooler_format(boxes), mean=not self.mask_on)

    def _regions(self, features: Tensor, rois: Tensor, mean: bool) -> Tensor:
        align = self.pooler.level_poolers[0]
        bins = align.output_size if isinstance(align.output_size, tuple) else (align.output_size,) * 2
        rows, columns, image = box_weights(rois, features, bins, align.spatial_scale, align.sampling_ratio)
        stage = self.optimized or SplitRes5(self.res5)
        # Convolving the map first pays when it has fewer positions than the regions have bins.
        map_first = features.shape[0] * features.shape[2] * features.shape[3] < len(rois) * bins[0] * bins[1]
        maps = stage.on_map(features) if map_first else (features.permute(0, 2, 3, 1).contiguous(),)
        strides = stage.strides if map_first else (1,)

        def pooled(part: slice) -> list[Tensor]:
            out = {}
            for stride in set(strides):
                out[stride] = sparse_bins(rows[part, ::stride], columns[part, ::stride], image[part])
            return [pool(m, out[s]).permute(0, 3, 1, 2) for m, s in zip(maps, strides, strict=True)]

        def finish(*x: Tensor) -> Tensor:
            y = stage.rest(*x) if map_first else stage.whole(*x)
            # An optimised stage may be in half precision; the heads behind it are not.
            wide = torch.promote_types(y.dtype, torch.float32)
            if mean:
                return y.mean(dim=(2, 3), keepdim=True, dtype=wide)
            return y if self.optimized is None else y.to(wide)

        gradients = torch.is_grad_enabled() and (
            features.requires_grad or any(p.requires_grad for p in self.res5.parameters())
        )
        chunk = self.chunk_size if per_sample(self.res5) and (self.recompute or not gradients) else 0
        if not chunk or len(rois) <= chunk:
            return finish(*pooled(slice(None)))
        if gradients:
            return torch.cat(
                [
                    checkpoint(lambda p=slice(i, i + chunk): finish(*pooled(p)), use_reentrant=False)
                    for i in range(0, len(rois), chunk)
                ]
            )
        out = []
        for i in range(0, len(rois), 4 * chunk):  # the sparse matrix costs less when made for more regions at once
            parts = zip(*(x.split(chunk) for x in pooled(slice(i, i + 4 * chunk))), strict=True)
            out += [finish(*part) for part in parts]
        return torch.cat(out)
