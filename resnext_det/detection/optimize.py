"""Make a trained network fast to run: constant norms folded, adds and ReLUs fused, channels-last, half precision.

What changes: the copy's layers are no longer those of training (no gradients, no checkpoints of it). How far results
move: fp32 by rounding only; bf16 and fp16 by the precision of the type, see docs/speed.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..resnext import Bottleneck, Stem, Trunk
from .c4_head import ResNeXtC4ROIHeads, SplitRes5, fold_norm, is_pointwise
from .roi_align import SparseBins, pool

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANNELS_LAST = torch.channels_last


def optimize_for_inference(model: nn.Module, dtype: str = "fp32", compile: bool = False) -> nn.Module:
    """A copy of a detector or classifier that gives the same results faster; ``model`` stays as it is.

    Args:
        model: with trunks of grouped bottlenecks and, in a detector, :class:`ResNeXtC4ROIHeads`. Other parts are kept.
        dtype: of the convolutions, "fp32", "bf16" or "fp16". Box decoding, scores and NMS stay in float32.
        compile: compile the trunk with ``torch.compile``: worthwhile for many images of one size.

    Raises:
        UserError: unknown ``dtype``.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    kind = DTYPES[dtype]
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fused = not compile  # torch.compile chooses its own fusions
    for module in list(model.modules()):
        if isinstance(module, ResNeXtC4ROIHeads) and module.fast:
            module.optimized = FusedSplitRes5(module.res5, kind, fused)
            module.res5 = module.optimized.blocks
            device = next(module.box_predictor.parameters()).device
            module.chunk_size = 32 if device.type == "cpu" else 256
        elif isinstance(module, Trunk):
            _fuse_trunk(module, kind, fused)
            if compile:
                module.forward = torch.compile(module.forward)
    generator = getattr(model, "proposal_generator", None)
    head = getattr(generator, "rpn_head", None)
    if head is not None and isinstance(getattr(head, "conv", None), nn.Conv2d):
        relu = head.conv.activation is not None
        head.conv = FusedConv(head.conv, kind, fused, relu=relu)
        head.objectness_logits = FusedConv(head.objectness_logits, kind, fused, out=torch.float32)
        head.anchor_deltas = FusedConv(head.anchor_deltas, kind, fused, out=torch.float32)
    return model


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
        self.fused = (
            fused
            and weight.device.type == "cpu"
            and dtype != torch.float16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        )
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'). ``add`` has that shape, is added before the ReLU and may be overwritten."""
        x = x.to(self.weight.dtype).contiguous(memory_format=CHANNELS_LAST)
        if self.product:
            y = self._product(x, add)
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
            y = add.permute(0, 2, 3, 1).reshape(-1, shape[3]).add_(self.bias).addmm_(x, self.weight)
        return (y.relu_() if self.relu else y).view(shape).permute(0, 3, 1, 2)

    def _weight_for(self, x: Tensor) -> Tensor:
        # oneDNN's layout depends on the sizes it is prepared for. Only a few sizes are kept: pictures vary.
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
        self.residual = block.residual
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
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


class FusedSplitRes5(SplitRes5):
    """:class:`SplitRes5` of a fused stage: the map's convolutions without shift, the regions' fused."""

    def __init__(self, res5: nn.Sequential, dtype: torch.dtype, fused: bool) -> None:
        super().__init__(res5)
        self.blocks = _fuse_stage(res5, dtype, fused)

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


def _matrix(conv: FusedConv) -> Tensor:
    """(C, C') of a 1x1 convolution of any stride."""
    return conv.weight if conv.product else conv.weight.flatten(1).t()


def _fuse_stage(stage: nn.Sequential, dtype: torch.dtype, fused: bool) -> nn.Sequential:
    return nn.Sequential(*(FusedBottleneck(block, dtype, fused, overwrite=i > 0) for i, block in enumerate(stage)))


def _fuse_trunk(trunk: Trunk, dtype: torch.dtype, fused: bool) -> None:
    if type(trunk.stem) is Stem:
        trunk.stem = FusedStem(trunk.stem, dtype, fused)
    for name in trunk.stage_names:
        stage = getattr(trunk, name)
        if all(type(block) is Bottleneck for block in stage):
            setattr(trunk, name, _fuse_stage(stage, dtype, fused))
    if hasattr(trunk, "fc"):
        trunk.fc.register_forward_pre_hook(_first_to_float)


def _first_to_float(module: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].float(), *inputs[1:])
