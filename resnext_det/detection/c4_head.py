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
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..inference.folding import fold_norm, is_pointwise
from ..resnext import Bottleneck, ConvNorm
from .backbone import make_res5
from .roi_align import SparseBins, box_weights, pool, sparse_bins

logger = logging.getLogger(__name__)


def per_sample(module: nn.Module) -> bool:
    """Whether every sample's result is its own, so that a batch may be cut: false for batch norms that are training."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    return not any(isinstance(m, norms) and (m.training or m.running_var is None) for m in module.modules())


def pointwise_relu(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None) -> Tensor:
    """ReLU of a 1x1 convolution, (N, C, H, W) -> (N, C', H, W) in channels-last memory; ``add`` joins before the ReLU.

    The convolution is asked for as the matrix product it is: on CPUs much faster, its gradient most of all
    (docs/speed.md).
    """
    x = x.permute(0, 2, 3, 1)
    y = F.linear(x.reshape(-1, x.shape[3]), weight.flatten(1), bias)  # two dimensions: the bias is added in the product
    # In place before it is viewed: in place on a view, autograd would copy it back and forth.
    y = y if add is None else y.add_(add.permute(0, 2, 3, 1).reshape(y.shape))
    return F.relu_(y).view(*x.shape[:3], y.shape[1]).permute(0, 3, 1, 2)


class SplitRes5:
    """A res5 stage cut where the map ends and the regions begin.

    ``of_regions(on_map(x), bins)`` equals ``res5(roi_align(x))``. Weights are read once, at construction, so make
    one for each pass.
    """

    def __init__(self, res5: nn.Sequential) -> None:
        first = res5[0]
        self.strides = first.conv1.stride[0], first.shortcut.stride[0]
        self._res5 = res5
        channels = first.conv1.out_channels, first.shortcut.out_channels
        self.work_on_map = sum(channels)  # of the two, for one position of the map
        self.work_on_bins = sum(c / s**2 for c, s in zip(channels, self.strides, strict=True))  # and for one bin
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
        x = features.permute(0, 2, 3, 1).contiguous()
        weights = (
            conv.weight if self._folded[conv] is None else self._folded[conv][0]
            for conv in (first.conv1, first.shortcut)
        )
        y, side = (F.linear(x, weight.flatten(1)) for weight in weights)
        return y, side

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins]) -> Tensor:
        """Results of :meth:`on_map` and the bins to pool each with -> (R, out_channels, bins', bins')."""
        first, *others = self._res5
        y = self._pooled(first.conv1, maps[0], bins[0], relu=True)
        side = self._pooled(first.shortcut, maps[1], bins[1], relu=False)
        y = self._conv_relu(first.conv3, self._conv_relu(first.conv2, y), add=side)
        for block in others:
            z = self._conv_relu(block.conv2, self._conv_relu(block.conv1, y))
            y = self._conv_relu(block.conv3, z, add=y if block.residual else None)
        return y

    def whole(self, x: Tensor) -> Tensor:
        """The stage itself on pooled res4, (R, C, bins, bins): for few regions on a large map."""
        return self._res5(x)

    def _pooled(self, conv: ConvNorm, of_map: Tensor, bins: SparseBins, relu: bool) -> Tensor:
        folded = self._folded[conv]
        if folded is not None:
            return pool(of_map, bins, folded[1], relu).permute(0, 3, 1, 2)
        x = conv.norm(pool(of_map, bins).permute(0, 3, 1, 2))
        return F.relu_(x) if relu else x

    def _conv_relu(self, conv: ConvNorm, x: Tensor, add: Tensor | None = None) -> Tensor:
        folded = self._folded[conv]
        if folded is not None and is_pointwise(conv):
            return pointwise_relu(x, *folded, add)
        if folded is None:
            y = conv(x)
        elif conv.convolve is not None:
            y = conv.convolve(x, folded[0], shift=folded[1], relu=add is None)
            return y if add is None else F.relu_(y + add)
        else:
            y = F.conv2d(x, *folded, conv.stride, conv.padding, conv.dilation, conv.groups)
        return F.relu_(y if add is None else y + add)


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
        if not self.fast or torch.jit.is_tracing():  # a trace would keep this image's numbers of samples
            return super()._shared_roi_transform(features, boxes)
        return self._regions(features[0], convert_boxes_to_pooler_format(boxes), mean=not self.mask_on)

    def _regions(self, features: Tensor, rois: Tensor, mean: bool) -> Tensor:
        align = self.pooler.level_poolers[0]
        bins = align.output_size if isinstance(align.output_size, tuple) else (align.output_size,) * 2
        rows, columns, image = box_weights(rois, features, bins, align.spatial_scale, align.sampling_ratio)
        stage = self.optimized or SplitRes5(self.res5)
        # Convolving the map first pays unless few regions have fewer bins to convolve than the map has positions.
        map_first = features[:, 0].numel() * stage.work_on_map < len(rois) * bins[0] * bins[1] * stage.work_on_bins
        maps = stage.on_map(features) if map_first else (features.permute(0, 2, 3, 1).contiguous(),)
        strides = stage.strides if map_first else (1,)

        def finish(bins: Sequence[SparseBins]) -> Tensor:
            if map_first:
                y = stage.of_regions(maps, bins)
            else:
                y = stage.whole(pool(maps[0], bins[0]).permute(0, 3, 1, 2))
            # An optimized stage may be in half precision; the heads behind it are not.
            wide = torch.promote_types(y.dtype, torch.float32)
            if mean:
                # Asked for in the order of the memory, so that the gradient comes back in it too.
                return y.permute(0, 2, 3, 1).mean(dim=(1, 2), dtype=wide)[:, :, None, None]
            return y if self.optimized is None else y.to(wide)

        gradients = torch.is_grad_enabled() and (
            features.requires_grad or any(p.requires_grad for p in self.res5.parameters())
        )
        chunk = self.chunk_size if per_sample(self.res5) and (self.recompute or not gradients) else 0
        bins_of = {s: sparse_bins(rows[:, ::s], columns[:, ::s], image) for s in set(strides)}
        if not chunk or len(rois) <= chunk:
            return finish([bins_of[s] for s in strides])
        out = []
        for bins in zip(*(bins_of[s].split(chunk) for s in strides), strict=True):
            out.append(checkpoint(finish, bins, use_reentrant=False) if gradients else finish(bins))
        return torch.cat(out)
